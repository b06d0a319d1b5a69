#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes: build, tests, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu.sh [folder for results, default benchmarks/results/gpu]
#
# Needs a CUDA build of torch, a CUDA toolkit of the same major version (CUDA_HOME), pytest and pybind11; for the
# benchmarks also UNITE_TEST_TOKENIZERS. A step that fails is reported and does not stop the next one.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-benchmarks/results/gpu}" && cd "${1:-benchmarks/results/gpu}" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}
deadline=$((SECONDS + 530))
failed=0

# step NAME SECONDS COMMAND...: runs it within its own time and what is left of the nine minutes.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS code
  shift 2
  if ((left < 10)); then
    echo "$name: not run, no time left"
    failed=1
    return
  fi
  timeout "$((limit < left ? limit : left))" "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "$name: $([ $code = 0 ] && echo ok || echo "FAILED ($code)") in $((SECONDS - start)) s   $(tail -n 1 "$out/$name.log" | cut -c1-120)"
  [ $code = 0 ] || failed=1
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$cuda/bin/nvcc" --version | tail -n 2
  python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  git describe --always --dirty 2>/dev/null
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

arch=$(python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
step build 180 env UNITE_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" python setup.py build_ext --inplace
[ $failed = 0 ] || { tail -n 20 "$out/build.log"; exit 1; }

step tests 180 python -m pytest tests/gpu -q --maxfail=20 --junitxml="$out/tests.xml"
if [ -x "$cuda/bin/compute-sanitizer" ]; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$cuda/bin/compute-sanitizer" --tool "$tool" \
      --kernel-name kernel_substring=fused_step --error-exitcode 9 python tests/gpu/sanitizer_case.py
  done
else
  echo "compute-sanitizer: not in $cuda/bin, not run"
fi
step launches 60 python benchmarks/sweep_launch.py --out "$out/launches.csv"
if [ -n "${UNITE_TEST_TOKENIZERS:-}" ]; then
  step step 180 python benchmarks/bench_step.py --device cuda --out "$out/step_cuda.csv"
else
  echo "benchmarks: UNITE_TEST_TOKENIZERS does not name a folder of tokenizers, not run"
fi
echo "results in $out, $SECONDS s in all"
exit $failed
