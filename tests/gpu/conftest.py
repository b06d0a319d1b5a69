"""What the GPU tests share. Without a GPU they are skipped, visibly; with one, a missing CUDA module fails them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import emulator
from patched_source import copy_source, replace_once
from test_nvcc import find_nvcc

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a CUDA build of torch")
    from unite_ext import _backend

    assert _backend.cuda_unavailable_reason is None, _backend.cuda_help()
    return torch.device("cuda", torch.cuda.current_device())


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    """The same values at the same strides and the same misalignment."""
    storage = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype, device="cuda")
    y = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    return y.copy_(x)


class Driver:
    """The launcher on the device, called directly."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.gpu_workspace_bytes.restype = ctypes.c_size_t
        pointer = ctypes.c_void_p
        self.lib.gpu_fused_step.argtypes = [pointer, pointer, ctypes.c_size_t, pointer, pointer]

    def chosen(self, params) -> emulator.LaunchConfig:
        config = emulator.LaunchConfig()
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.lib.gpu_choose_launch(ctypes.byref(params), sms, ctypes.byref(config))
        return config

    def launch(self, params, workspace: torch.Tensor, config) -> int:
        """Enqueues one step on the current stream; a cudaError_t."""
        stream = torch.cuda.current_stream().cuda_stream
        return self.lib.gpu_fused_step(
            ctypes.byref(params), workspace.data_ptr(), workspace.nbytes, ctypes.byref(config), stream
        )


# Now and then a thread waits for up to four microseconds.
DELAY = """
__device__ __forceinline__ void delay() {
  const unsigned mixed = (static_cast<unsigned>(clock64()) ^ blockIdx.x * 0x9E3779B1u ^ threadIdx.x) * 0x85EBCA6Bu;
  if (mixed >> 30 == 0) __nanosleep(mixed >> 8 & 4095);
}
"""


def source_with_delays(folder: Path) -> Path:
    """The driver over a copy of the kernels with random delays around the ticket, to stir up the order of arrivals."""
    kernel = copy_source(folder) / "csrc" / "cuda" / "row_top_k.cuh"
    for old, new in [
        ("block.sync();  // this slice is published", "delay();\n  block.sync();"),
        ("__threadfence();  // release", "__threadfence();\n    delay();"),
        ("__threadfence();  // acquire", "delay();\n    __threadfence();"),
        ("// True in all threads of the CTA that arrives last", f"{DELAY}\n// True in the last CTA"),
    ]:
        replace_once(kernel, old, new)
    driver = folder / "tests" / "gpu" / "driver.cu"
    driver.parent.mkdir(parents=True)
    driver.write_text((HERE / "driver.cu").read_text())
    return driver


@pytest.fixture(scope="session", params=[False, True], ids=["", "delays"])
def driver(request, gpu, tmp_path_factory) -> Driver:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: neither in CUDA_HOME nor on the PATH")
    major, minor = torch.cuda.get_device_capability()
    folder = tmp_path_factory.mktemp("driver")
    source = source_with_delays(folder) if request.param else HERE / "driver.cu"
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC", "-shared"]
    subprocess.run([*command, source, "-o", folder / "driver.so"], check=True)
    return Driver(folder / "driver.so")
