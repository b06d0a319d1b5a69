"""nvcc compiles every kernel, for every supported architecture with `-m full`: no warning, no spill, no local memory.

Needs no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SOME = (75, 90, 120)  # the oldest, the one that is measured, the newest
MAX_REGISTERS = 64  # two CTAs of 512 threads per SM


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc", path=str(Path(home) / "bin")) or shutil.which("nvcc")


def unavailable() -> str | None:
    """Why these tests cannot run; None when they can."""
    nvcc = find_nvcc()
    if nvcc is None:
        return "needs nvcc: neither in CUDA_HOME nor on the PATH"
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    missing = [a for a in ARCHITECTURES if f"compute_{a}\n" not in known]
    return f"{nvcc} does not know sm_{missing[0]} (CUDA 12.8 to 13 know all)" if missing else None


pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def compile_kernels(source: Path, target: Path, *flags: str, architectures: tuple[int, ...] = SOME) -> str:
    """What nvcc and ptxas say; the test fails on any warning."""
    command = [
        *(find_nvcc(), "-std=c++17", "-O3", "--threads", str(os.cpu_count() or 1), "-c", source, "-o", target),
        *(
            "-Werror",
            "all-warnings",
            "-Xcompiler",
            "-Wall,-Wextra,-Werror",
            "-Xptxas",
            "-v,-warn-spills,-warn-lmem-usage",
        ),
        *[f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures],
        *flags,
    ]
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
@pytest.mark.parametrize(
    "architectures", [pytest.param(SOME, id="some"), pytest.param(ARCHITECTURES, id="all", marks=pytest.mark.full)]
)
def test_compiles_without_warnings_or_spills(source, architectures, tmp_path):
    report = compile_kernels(source, tmp_path / "kernels.o", architectures=architectures)
    built = re.findall(r"Compiling entry function '\w+' for 'sm_(\d+)'", report)
    assert set(map(int, built)) == set(architectures)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) >= len(built)
    assert set(frames) == {("0", "0", "0")}, report
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == len(built)
    assert max(registers) <= MAX_REGISTERS, report


def test_spills_would_be_seen(tmp_path):
    """The same flags refuse a kernel that is starved of registers."""
    source = tmp_path / "spills.cu"
    source.write_text(
        """
        __global__ void spills(float* x) {
          float v[64];
        #pragma unroll
          for (int i = 0; i < 64; ++i) v[i] = x[i * 32];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 64; ++i) x[i * 32 + 1] = v[i] * v[63 - i];
        }
        """
    )
    with pytest.raises(AssertionError, match=r"[Ss]pill|[Ll]ocal memory"):
        compile_kernels(source, tmp_path / "spills.o", "-maxrregcount=24")


def test_the_launch_interface_needs_no_torch(tmp_path):
    """Another host can include and call it with a plain C++ compiler and CUDA's headers."""
    source = tmp_path / "host.cpp"
    source.write_text(
        """
        #include "fused_step.h"
        int main() {
          unite::StepParams params{};
          const unite::LaunchConfig config = unite::choose_launch(params, 132);
          return unite::launch_fused_step(params, nullptr, 0, config, nullptr) == cudaSuccess;
        }
        """
    )
    nvcc = find_nvcc()
    command = [
        nvcc,
        "-std=c++17",
        "-arch=sm_90",
        f"-I{KERNELS}",
        source,
        KERNELS / "fused_step.cu",
        "-o",
        tmp_path / "host",
    ]
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert subprocess.run([tmp_path / "host"]).returncode == 0
