#!/usr/bin/env bash
# Shows which lines and branches no test reaches: of unite_ext (coverage.py) and of csrc/core (gcov).
#
#   tools/coverage.sh            both; the arguments after a -- go to pytest: tools/coverage.sh -- tests/test_step.py
#   tools/coverage.sh --core     the C++ core alone, by the C++ tests
#
# Needs the package installed in place: pip install --no-build-isolation -e '.[test,coverage]'. Reports go to build/coverage/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/coverage
mkdir -p "$out"
if [ "${1:-}" != --core ]; then
  [ "${1:-}" != -- ] || shift
  export COVERAGE_FILE="$PWD/$out/python"
  python -m coverage erase
  python -m coverage run -m pytest -n 2 --dist loadfile "$@" || echo "some tests failed: what they would have reached is missing" >&2
  python -m coverage combine --quiet
  python -m coverage report --show-missing --skip-covered
  python -m coverage html --quiet --directory "$out/python-html"
fi
cmake -S . -B "$out/cpp" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=--coverage >/dev/null
cmake --build "$out/cpp" --parallel "$(nproc)"
ctest --test-dir "$out/cpp" --output-on-failure
gcovr --root . --filter 'csrc/core/.*' --exclude-throw-branches --txt-metric branch "$out/cpp"
gcovr --root . --filter 'csrc/core/.*' --exclude-throw-branches --txt-metric line --html-details "$out/core.html" "$out/cpp"
