"""Builds the compiled modules; everything else about the package stands in pyproject.toml.

Switches: UNITE_CUDA=auto|0|1 (1 fails where the CUDA module cannot be built), and torch's own CUDA_HOME,
TORCH_CUDA_ARCH_LIST and MAX_JOBS.
"""

import glob
import os
import re
import subprocess

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # without build isolation nobody enforces pyproject.toml's bound
    raise SystemExit(f"building needs setuptools 77 or newer, got {setuptools.__version__}: pip install -U setuptools")

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

# Compiled against torch's stable ABI as of 2.10, a build runs beside any later torch.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
CSRC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc")
# Nothing of Python is used in `_C` and `_C_cuda`, so that one build is for every Python: unite_ext/_C.abi3.so.
SHARED = {"include_dirs": [CSRC], "py_limited_api": True}
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def cuda_toolkit() -> tuple[str, str]:
    """The folder and the version of the CUDA toolkit, or two empty strings."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), cpp_extension.CUDA_HOME, "/usr/local/cuda"):
        # A wrapper of nvcc on the PATH is not a toolkit: the headers must be there as well.
        if home and os.path.exists(f"{home}/bin/nvcc") and os.path.exists(f"{home}/include/cuda_runtime.h"):
            text = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
            match = re.search(r"release (\d+\.\d+)", text)
            return home, match.group(1) if match else ""
    return "", ""


def cuda_decision() -> tuple[bool, str]:
    """Whether the CUDA module is built, and why."""
    switch = os.environ.get("UNITE_CUDA", "auto")
    if switch not in ("auto", "0", "1"):
        raise SystemExit(f"UNITE_CUDA must be auto, 0 or 1, got {switch!r}")
    home, toolkit = cuda_toolkit()
    if switch == "0":
        build, why = False, "UNITE_CUDA=0"
    elif torch.version.cuda is None:
        build, why = False, f"torch {torch.__version__} is a build without CUDA"
    elif not toolkit:
        build, why = False, "no CUDA toolkit found, set CUDA_HOME"
    elif toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        build, why = False, f"the CUDA toolkit is {toolkit}, torch was built with {torch.version.cuda}"
    else:
        build, why = True, f"CUDA {toolkit} in {home}, torch {torch.__version__}"
    if switch == "1" and not build:
        raise SystemExit(f"UNITE_CUDA=1, but the CUDA module cannot be built: {why}")
    return build, why


def cuda_extension() -> Extension:
    home, _ = cuda_toolkit()
    cpp_extension.CUDA_HOME = home  # torch may have guessed the folder of a wrapper
    # With neither a GPU nor a list, torch fails with a bare IndexError.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    extension = cpp_extension.CUDAExtension(
        "unite_ext._C_cuda",
        sorted(glob.glob("csrc/cuda/*.cpp") + glob.glob("csrc/cuda/*.cu")),
        **SHARED,
        extra_compile_args={"cxx": CXX_FLAGS + STABLE_ABI + ["-DUSE_CUDA"], "nvcc": ["-std=c++17", "-O3", *STABLE_ABI]},
    )
    # The runtime travels inside the module, so that it needs only the driver and torch.
    extension.libraries = [name for name in extension.libraries if name != "cudart"]
    extension.extra_link_args += [f"{home}/lib64/libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
    return extension


cpu = cpp_extension.CppExtension(
    "unite_ext._C",
    ["csrc/ops.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))],
    **SHARED,
    extra_compile_args=CXX_FLAGS + STABLE_ABI,
)
host = Extension(
    "unite_ext._host",
    sorted(glob.glob("csrc/host/*.cpp")),
    include_dirs=[CSRC, pybind11.get_include()],
    extra_compile_args=CXX_FLAGS,
    language="c++",
)
with_cuda, why = cuda_decision()
print(f"unite_ext builds the CPU module and {'the CUDA module' if with_cuda else 'no CUDA module'} ({why})", flush=True)

setup(
    ext_modules=[cpu, host] + ([cuda_extension()] if with_cuda else []),
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
