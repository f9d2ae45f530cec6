#!/bin/sh
# Makes .venv: Python 3.10 with the pinned requirements. The make targets call it; it can be run at any time.
#
#   scripts/setup.sh [REQUIREMENTS_FILE]      default: requirements-dev.txt
#
# With BERT_SETUP_KERNELS=yes it compiles the native kernels meanwhile, if there is a compiler.
#
# When .venv is ready, that is all it finds out. A change of the requirements installs them into .venv; a .venv that
# is half built, moved or of another Python is made anew. Exit status: 0 ready, 1 a step failed, 2 something is missing.
#
# .venv/.setup says what .venv is: "incomplete" while it is being built; then its state, as current_state prints it.
# A .venv without this file was made by hand.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

case ${1:-} in
    -h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' scripts/setup.sh; exit ;;
esac
REQUIREMENTS=${1:-requirements-dev.txt}

# Prints the Python that an interpreter was made from (itself, unless it belongs to a virtual environment, which may be
# the .venv that is about to go), provided that it is CPython 3.10.
IS_PYTHON_310='
import os, sys
assert sys.version_info[:2] == (3, 10) and sys.implementation.name == "cpython"
base = os.path.join(sys.base_exec_prefix, "bin", "python3.10")
print(base if os.path.exists(base) else sys.executable)
'
# The same, provided that it can make virtual environments: Debian packages that part separately.
MAKES_VENV="import ensurepip, venv
$IS_PYTHON_310"

say() {
    echo "setup: $*"
}

fail() {
    status=$1
    shift
    echo "setup: error: $*" >&2
    exit "$status"
}

check_platform() {
    platform="$(uname -s) on $(uname -m)"
    if [ "$platform" = "Linux on x86_64" ]; then
        getconf GNU_LIBC_VERSION >/dev/null 2>&1 && return
        platform="$platform without glibc"
    fi
    fail 2 "OneFlow has packages for Linux on x86-64 with glibc only; this is $platform"
}

# What a .venv that is ready depends on; its own place comes last, because the scripts in it hold that path.
current_state() {
    echo "$REQUIREMENTS"
    cat requirements*.txt "$REQUIREMENTS" | sha256sum
    .venv/bin/python -I -c 'import sys; print(sys.version)'
    venv_place
}

venv_place() {
    (cd .venv && pwd -P)
}

is_ready() {
    [ -f .venv/.setup ] && [ "$(cat .venv/.setup)" = "$(current_state 2>/dev/null)" ]
}

# Whether the requirements can be installed into .venv as it is: whole, in its place, of Python 3.10, with pip.
is_usable() {
    if [ -f .venv/.setup ]; then
        [ "$(tail -n 1 .venv/.setup)" = "$(venv_place)" ] || return 1
    fi
    .venv/bin/python -I -c '
import sys
import pip
assert sys.version_info[:2] == (3, 10) and sys.prefix != sys.base_prefix
' 2>/dev/null
}

# The interpreters on PATH, all of them, since the first may be a pyenv shim that does not run; then those of pyenv.
candidates() {
    printf '%s\n' "$PATH" | tr ':' '\n' | sed 's|$|/python3.10|'
    pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME:-}/.pyenv")}
    printf '%s\n' "$pyenv_root"/versions/3.10.*/bin/python3.10
}

# first_that CHECK: runs the interpreters named on stdin until one passes, and prints what that one prints.
first_that() {
    while IFS= read -r candidate; do
        if [ -x "$candidate" ] && "$candidate" -I -c "$1" 2>/dev/null </dev/null; then
            return 0
        fi
    done
    return 1
}

# Only a Python of uv's own is asked for: what is on PATH has been tried. uv downloads it where it has none.
uv_python() (
    cd /
    unset VIRTUAL_ENV CONDA_PREFIX
    export UV_PYTHON_PREFERENCE=only-managed
    if ! uv python find 3.10 2>/dev/null; then
        uv python install 3.10 >&2 && uv python find 3.10
    fi
)

find_python() {
    candidates | first_that "$MAKES_VENV" && return
    if command -v uv >/dev/null; then
        python=$(uv_python) || fail 2 "uv could not provide Python 3.10 (its message is above): install Python 3.10"
        echo "$python" | first_that "$MAKES_VENV" && return
    fi
    if incomplete=$(candidates | first_that "$IS_PYTHON_310"); then
        fail 2 "$incomplete cannot make virtual environments: install its venv module (Debian, Ubuntu:" \
            "apt install python3.10-venv)"
    fi
    fail 2 "found no Python 3.10, the newest that OneFlow runs on: install it (pyenv install 3.10, or your system's" \
        "python3.10 and python3.10-venv), or install uv, which fetches it"
}

make_venv() {
    python=$(find_python)
    if [ -e .venv ] || [ -L .venv ]; then
        say "making .venv anew: it is half built, moved or not of Python 3.10"
        # Renamed first, so that a half-removed one is never taken for a whole one.
        rm -rf .venv.old && mv .venv .venv.old
    fi
    rm -rf .venv.old
    say "making .venv with $python"
    mkdir .venv
    echo incomplete >.venv/.setup
    "$python" -m venv .venv || fail 1 "$python could not make .venv (its message is above)"
}

# A user's pip configuration may ask for --user, which no virtual environment can do. Python compiles the few modules
# that a run imports faster than pip compiles them all, but where it may not keep them it would at each start.
run_pip() {
    if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then compile=--compile; else compile=--no-compile; fi
    PIP_USER=0 .venv/bin/python -I -m pip install $compile --disable-pip-version-check "$@"
}

# The lines of the requirements for packages whose names match a pattern.
pins() {
    sed -nE "/^($1)==/p" requirements*.txt
}

# Installs the largest packages side by side, as far as pip can: what fails here is left to the pip that installs all.
# With BERT_SETUP_KERNELS the native kernels are compiled as soon as OneFlow and oneDNN are there.
install_largest() {
    [ -n "$(pins oneflow)" ] && ! [ -d "$(.venv/bin/python -I -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/oneflow" ] ||
        return 0
    # shellcheck disable=SC2046  # one argument a package
    run_pip --no-deps $(pins 'nvidia-.*') >>.venv/pip.log 2>&1 &
    cuda=$!
    # shellcheck disable=SC2046
    run_pip --no-deps $(pins 'tensorflow-cpu') >>.venv/pip.log 2>&1 &
    tensorflow=$!
    # shellcheck disable=SC2046
    run_pip --no-deps $(pins 'oneflow|onednn-.*') >>.venv/pip.log 2>&1 &
    if wait $! && [ -n "${BERT_SETUP_KERNELS:-}" ]; then
        .venv/bin/python tools/build_kernels.py --if_possible >.venv/kernels.log 2>&1 &
        compiler=$!
    fi
    wait $cuda || true
    wait $tensorflow || true
}

# Says every few seconds how much is there, until it is killed or this script has ended.
tell_progress() {
    while sleep 10 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        say "$(du -sm .venv | awk '{ printf "%.1f GB are installed so far", $1 / 1000 }')"
    done
}

install_requirements() {
    say "installing $REQUIREMENTS (the first time about 5 GB and some minutes; pip's messages are in .venv/pip.log)"
    echo incomplete >.venv/.setup
    : >.venv/pip.log
    # Not by a redirection of the function: dash keeps a copy of what that closes, and with it the lock.
    (exec 9>&-; tell_progress) &
    telling=$!
    trap 'kill $telling 2>/dev/null || true' EXIT
    compiler=
    install_largest
    status=0
    run_pip -r "$REQUIREMENTS" >>.venv/pip.log 2>&1 || status=$?
    [ -z "$compiler" ] || wait $compiler || true
    kill $telling 2>/dev/null || true
    if [ $status -ne 0 ]; then
        tail -n 20 .venv/pip.log >&2
        fail 1 "pip could not install $REQUIREMENTS (its message is above); run this again when that is put right"
    fi
    current_state >.venv/.setup.new
    mv .venv/.setup.new .venv/.setup
}

[ -r "$REQUIREMENTS" ] || fail 2 "$REQUIREMENTS: no such file in $PWD"
if ! is_ready; then
    check_platform
    [ -w . ] || fail 1 "$PWD is not writable, and .venv has to be made in it"
    # One set-up at a time. The lock is the open file's: it ends with the process, and with a pip that outlives it.
    exec 9>.venv.lock
    flock -n 9 || { say "waiting for another set-up of this folder"; flock 9; }
fi
if ! is_ready; then
    is_usable || make_venv
    install_requirements
fi
say ".venv is ready"
