"""What the GPU tests share. Without a GPU they are skipped, visibly; with one, a missing CUDA module fails them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import emulator
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


@pytest.fixture(scope="session", params=[False, True], ids=["", "delays"])
def driver(request, gpu, tmp_path_factory) -> Driver:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: neither in CUDA_HOME nor on the PATH")
    major, minor = torch.cuda.get_device_capability()
    library = tmp_path_factory.mktemp("driver") / "driver.so"
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC", "-shared"]
    command += ["-DUNITE_TEST_DELAYS"] if request.param else []
    subprocess.run([*command, HERE / "driver.cu", "-o", library], check=True)
    return Driver(library)
