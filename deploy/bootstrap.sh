#!/bin/sh
# Creates the environment in $1 from the locks. Needs git, make and python3 with venv; names a missing one and exits 2.
# With `production` as $2 it has the packages of runtime.lock and the recorder, byte-compiled, and nothing else; it replaces an
# environment that is there.
set -eu
venv=$1
kind=${2:-development}
python=${PYTHON:-python3}

missing() {
    echo "recorder: $1" >&2
    echo "          On Debian or Ubuntu:  apt-get install $2" >&2
    exit 2
}

command -v "$python" >/dev/null 2>&1 || missing "python3 was not found." "python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || missing "Python 3.11 or later is needed; $python is $("$python" -V)." "python3.11 python3.11-venv"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing "Python's venv module is not complete." "python3-venv"
command -v setpriv >/dev/null 2>&1 || missing "setpriv was not found (it ends ffmpeg when the service dies)." "util-linux"

if [ "$kind" = production ]; then
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    trap 'exit 1' HUP INT TERM
    # The build tools are locked as well, and stay outside of the environment.
    "$python" -m venv "$build/venv"
    pip="$build/venv/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install --require-hashes -r bootstrap.lock
    $pip wheel --no-deps --no-build-isolation --require-hashes --wheel-dir "$build/wheels" -r runtime.lock
    "$build/venv/bin/hatchling" build -t wheel -d "$build/wheels" >/dev/null
    "$python" -m venv --clear --without-pip "$venv"
    "$build/venv/bin/uv" pip install --quiet --python "$venv/bin/python" --offline --no-index --no-deps --compile-bytecode \
        "$build"/wheels/*.whl
    exit
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# pip fetches uv and the build tools by their hashes; uv installs the rest in a tenth of pip's time. The only source package
# builds with these same tools, so no build fetches anything outside the lock.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
VIRTUAL_ENV="$venv" "$venv/bin/uv" pip sync --quiet --require-hashes --no-build-isolation requirements.lock
VIRTUAL_ENV="$venv" "$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
