"""Loads the compiled modules, and says what is missing and how to get it.

`_C` (schemas and CPU kernel) is required. `_C_cuda` is optional: a machine without it, or one where it cannot be
loaded, keeps the CPU.
"""

from __future__ import annotations

import importlib.machinery
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_REBUILD = "rebuild it with: pip install --no-build-isolation --force-reinstall --no-deps <path to unite_ext>"

cuda_unavailable_reason: str | None = None
"""Why there is no CUDA kernel in this process; None when it is loaded."""


def _module_path(name: str) -> Path | None:
    """Where a compiled module is. One build of these is for every Python, so its name does not hold a version."""
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if "cpython" in suffix:  # what an older version of this package left in a source folder
            continue
        if (path := folder / f"{name}{suffix}").exists():
            return path
    return None


def _load_cpu() -> None:
    path = _module_path("_C")
    if path is None:
        raise ImportError(
            f"unite_ext's compiled module _C is not in {Path(__file__).parent}. If this is a source checkout, install "
            f"it and run Python from another folder; else {_REBUILD}"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"unite_ext's compiled module {path.name} does not load beside torch {torch.__version__} (2.10 or newer is "
            f"needed); {_REBUILD}. The loader said: {error}"
        ) from error


def _load_cuda() -> str | None:
    path = _module_path("_C_cuda")
    if path is None:
        return "this build has no CUDA module"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        logger.warning("unite_ext's CUDA module does not load, CUDA tensors are refused: %s", error)
        return f"its CUDA module does not load: {error}"
    return None


def cuda_help() -> str:
    """What to tell somebody who wanted the CUDA kernel."""
    return (
        f"unite_ext has no CUDA kernel here: {cuda_unavailable_reason}. To build it, install a CUDA build of torch and "
        "a CUDA toolkit of the same major version, set CUDA_HOME, and run "
        "UNITE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps <path to unite_ext>"
    )


def require_cuda_for(tensor: torch.Tensor) -> None:
    """Raise RuntimeError for a CUDA tensor when there is no CUDA kernel."""
    if tensor.is_cuda and cuda_unavailable_reason is not None:
        raise RuntimeError(cuda_help())


_load_cpu()
cuda_unavailable_reason = _load_cuda()
