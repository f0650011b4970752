#!/bin/sh
# Tests and measures on a GPU in one command of at most 10 minutes:
#   sh scripts/gpu_first_run.sh --out results
# It runs on the source tree with the Python that set-up chose or, without a set-up, with $PYTHON or python3.
# gpu_first_run.py next to it has the options.
set -eu

root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
if [ -s "$root/.setup/python" ]; then
    python=$(cat "$root/.setup/python")
else
    python=${PYTHON:-python3}
fi
exec "$python" "$root/scripts/gpu_first_run.py" "$@"
