#!/usr/bin/env bash
# Every CPU benchmark in one command, about ten minutes on two quiet cores; then the figures and the tables.
#
#   benchmarks/cpu.sh [folder for results, default benchmarks/results]
#   benchmarks/cpu.sh --quick [folder]      few shapes, short samples; the default is a new temporary folder
#
# Needs the package installed (pip install -e .), matplotlib, and UNITE_TEST_TOKENIZERS, a folder with the tokenizers
# llama-3, qwen2, mistral-7b-v0.3 and deepseek-v3. Rows are appended to the CSV files in the folder. Figures and tables
# in docs/ are made anew only from benchmarks/results; another folder gets its own figures. A step that fails is
# reported and does not stop the next one.
set -u
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,10s/^# \{0,1\}//p' "$here/cpu.sh"; }
quick=
folder=
for argument in "$@"; do
  case $argument in
    --quick) quick=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "unknown option $argument" >&2; usage >&2; exit 2 ;;
    *) [ -z "$folder" ] || { echo "more than one folder" >&2; exit 2; }; folder=$argument ;;
  esac
done

for name in llama-3 qwen2 mistral-7b-v0.3 deepseek-v3; do
  if [ ! -d "${UNITE_TEST_TOKENIZERS:-}/$name" ]; then
    echo "UNITE_TEST_TOKENIZERS must name a folder with the tokenizers llama-3, qwen2, mistral-7b-v0.3, deepseek-v3:" \
      "it is '${UNITE_TEST_TOKENIZERS:-}', and $name is not there" >&2
    exit 2
  fi
done
(cd "$here" && python -c 'import matplotlib, unite_ext') || { echo "needs unite_ext and matplotlib: pip install" >&2; exit 2; }

own=$here/results
[ -n "$folder" ] || { [ -n "$quick" ] && folder=$(mktemp -d) || folder=$own; }
out=$(mkdir -p "$folder" && cd "$folder" && pwd) || exit 2
if [ -n "$quick" ] && [ "$out" = "$own" ]; then
  echo "--quick is not for $own: what it measures is no record" >&2
  exit 2
fi
failed=0

# step SCRIPT ARGUMENTS...: runs it and says how it went.
step() {
  local start=$SECONDS code
  echo "== $*"
  python "$here/$1.py" "${@:2}"
  code=$?
  echo "== $1: $([ $code = 0 ] && echo ok || echo "FAILED ($code)") in $((SECONDS - start)) s"
  [ $code = 0 ] || failed=1
}

step bench_step --out "$out/step_cpu.csv" ${quick:+--seconds 0.02}
step bench_sweep --out "$out/sweep_cpu.csv" ${quick:+--quick}
step bench_decode --out "$out/decode_cpu.csv" ${quick:+--quick}
[ -n "$quick" ] || step bench_holes --out "$out/holes_cpu.csv"
step bench_text_sync --out "$out/text_sync.csv"
step bench_few_rows --out "$out/few_rows_cpu.csv" ${quick:+--quick}
step bench_passes --out "$out/passes_cpu.csv"
step bench_leaving --out "$out/leaving_cpu.csv" ${quick:+--quick}
step bench_alignment --out "$out/alignment.csv"
if command -v chromium chromedriver >/dev/null && python -c 'import selenium' 2>/dev/null; then
  step bench_trace --out "$out/trace_page.csv" ${quick:+--tokens 100}
else
  echo "== bench_trace: needs chromium, chromedriver and selenium, not run"
fi
if [ "$out" = "$own" ]; then
  step lib/plot
  step lib/tables
else
  step lib/plot --results "$out" --out "$out/figures"
  echo "tables: left alone, they are made from $own"
fi
echo "results in $out, $SECONDS s in all"
exit $failed
