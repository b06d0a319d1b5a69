#!/usr/bin/env bash
# Shows, on a machine without a GPU, that the CUDA module builds, links, imports and registers its operators
# against a CUDA build of torch. Downloads several GB, so it is not part of the test command.
#
#   tests/check_cuda_build.sh            a virtual environment of its own, with torch 2.11
#   PYTHON=/path/to/python tests/check_cuda_build.sh      one that has a CUDA build of torch, setuptools and pybind11
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -z "${PYTHON:-}" ]; then
  python3 -m venv "$scratch/venv"
  PYTHON=$scratch/venv/bin/python
  "$PYTHON" -m pip install --quiet "torch==2.11.0" "setuptools>=77" wheel ninja "pybind11>=2.12" numpy
fi
export CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}" TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}" UNITE_CUDA=1

"$PYTHON" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$scratch" .
"$PYTHON" -m pip install --quiet --force-reinstall --no-deps --target "$scratch/site" "$scratch"/unite_ext-*.whl
"$PYTHON" -m pip install --quiet transformers tokenizers safetensors tqdm

cd "$scratch"
PYTHONPATH="$scratch/site" "$PYTHON" - <<'PY'
import torch

import unite_ext
from unite_ext import _backend

assert torch.version.cuda, f"torch {torch.__version__} is not a CUDA build"
assert _backend.cuda_unavailable_reason is None, _backend.cuda_unavailable_reason
PARTS = ("top_k_keys", "unite_keys", "gather_logits", "score_slots", "combine_slots")
for name in ("fused_step", "step_workspace", *PARTS):
    for key in ("CUDA",) + (("CPU",) if name != "step_workspace" else ()):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"unite_ext::{name}", key), (name, key)
print(f"unite_ext {unite_ext.__version__}: _C_cuda is built, linked, imported and registered beside torch {torch.__version__}")
PY
