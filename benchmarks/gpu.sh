#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes: build, tests, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu.sh [folder for results, default benchmarks/results/gpu]
#
# Needs a CUDA build of torch, a CUDA toolkit of the same major version (CUDA_HOME), pytest and pybind11. With
# UNITE_TEST_TOKENIZERS the benchmark uses real vocabularies, else made-up ones of the same sizes. A step that fails is
# reported and does not stop the next one. The benchmark takes the time that the others leave.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-benchmarks/results/gpu}" && cd "${1:-benchmarks/results/gpu}" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"  # the package is built in place
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
  return $code
}

# tool NAME: where the toolkit or the PATH has it.
tool() {
  local found
  for found in "$cuda/bin/$1" "$(command -v "$1")"; do
    [ -x "$found" ] && echo "$found" && return
  done
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$cuda/bin/nvcc" --version | tail -n 2
  python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  git describe --always --dirty 2>/dev/null
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

arch=$(python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
step build 150 env UNITE_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" python setup.py build_ext --inplace
[ $failed = 0 ] || { tail -n 20 "$out/build.log"; exit 1; }

step tests 180 python -m pytest tests/gpu -q --maxfail=20 --junitxml="$out/tests.xml"

sanitizer=$(tool compute-sanitizer)
if [ -n "$sanitizer" ]; then
  pids=()
  for check in memcheck racecheck initcheck synccheck; do  # nothing is timed: all at once
    step "$check" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$check" \
      --kernel-name kernel_substring=unite --error-exitcode 9 python tests/gpu/sanitizer_case.py &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
else
  echo "compute-sanitizer: not found, not run"
fi

left=$((deadline - SECONDS - 75))  # for what follows it
budget=$((left < 260 ? left - 20 : 240))
step step $((left > 20 ? left : 20)) python benchmarks/bench_step.py --device cuda --budget "$budget" \
  --out "$out/step_cuda.csv"
grep -E 'target|amax$' "$out/step.log"
step launches 45 python benchmarks/bench_launch.py --out "$out/launches.csv"

ncu=$(tool ncu)
if [ -n "$ncu" ]; then  # a bonus: where counters are locked, nothing has failed; clocks stay as they are
  (step profile 30 "$ncu" --clock-control none --kernel-name regex:fused_step --launch-count 6 \
    --section SpeedOfLight --section LaunchStats --section Occupancy --section MemoryWorkloadAnalysis \
    --section SchedulerStats --section WarpStateStats python benchmarks/bench_step_cuda.py)
else
  echo "profile: no ncu, not run"
fi
echo "results in $out, $SECONDS s in all"
exit $failed
