#!/bin/sh
# Set-up behind the make targets: finds a Python >= 3.11 and lets set_up.py do the rest.
#     sh scripts/setup.sh run|test|docs     PYTHON=... names the interpreter to start from
set -eu

here=$(CDPATH='' cd "$(dirname "$0")" && pwd)

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if new_enough "$PYTHON"; then
        exec "$PYTHON" "$here/set_up.py" "$@"
    fi
    echo "fastdiff set-up: expected PYTHON to name a Python >= 3.11, got '$PYTHON' ($("$PYTHON" -V 2>&1 || true)); name another, or leave PYTHON out to search for one." >&2
    exit 1
fi
for candidate in python3 python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then
        exec "$candidate" "$here/set_up.py" "$@"
    fi
done
found=$(python3 -V 2>/dev/null || echo "no python3")
echo "fastdiff set-up: expected Python >= 3.11 on PATH, found $found; install python3.11 or newer with your system's package manager, or name one with PYTHON=/path/to/python3.11." >&2
exit 1
