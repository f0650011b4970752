"""Stage g: every op in compute-sanitizer: wrong addresses, then races in shared memory.

    python -m benchmarks.gpu.first_run.sanitized --file FILE [--device cpu]

The runs of all tools and backends go side by side. A row says that an op ended with the right
result under a tool; the row of the run itself, that the tool found nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.first_run.stages import HERE, ROOT, arguments
from benchmarks.gpu.first_run.versions import tool

TOOLS, BACKENDS = ("memcheck", "racecheck"), ("triton", "cuda")
FOUND = 99  # exit status if the tool found something
LONGEST = 6000  # characters of what a tool reports
# blocks of torch's cache would hide addresses behind a tensor's end
SETTINGS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def command(which: str, backend: str, sanitizer: str | None) -> list[str]:
    python = [sys.executable, "-m", f"{HERE}.calls", "--backend", backend]
    if sanitizer is None:
        return python
    return [sanitizer, "--tool", which, "--error-exitcode", str(FOUND), *python]


class Runs:
    """The runs side by side, which write rows into one checkpoint."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self._lock = checkpoint, threading.Lock()

    def run(self, which: str, backend: str, sanitizer: str | None) -> None:
        """Runs a tool and records each op as it ends."""
        title, said = f"{which} {backend}", []
        process = subprocess.Popen(
            command(which, backend, sanitizer),
            cwd=ROOT,
            env=os.environ | SETTINGS,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            how, _, name = line.strip().partition(" ")
            with self._lock:
                if how == "done":
                    self.checkpoint.row(f"{title}: {name}", {"tool": which, "backend": backend})
                elif how == "failed":
                    name, _, reason = name.partition(": ")
                    self.checkpoint.fail(f"{title}: {name}", reason)
        status, text = process.wait(), "".join(said)
        summary = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", text)
        with self._lock:
            if status not in (0, 1):  # 1: ops whose failure is recorded
                self.checkpoint.fail(title, f"status {status}: {text[-LONGEST:]}", LONGEST)
            elif sanitizer is not None and not summary:
                self.checkpoint.fail(title, f"no summary: {text[-LONGEST:]}", LONGEST)
            else:
                self.checkpoint.row(title, {"summary": summary})
            print(title, status, *summary, flush=True)


def main() -> int:
    args = arguments(__doc__).parse_args()
    checkpoint = Checkpoint(args.file, "g-sanitizer", {})
    sanitizer, dry = tool("compute-sanitizer"), args.device == "cpu"
    if not dry and sanitizer is None:
        checkpoint.fail("compute-sanitizer", "expected it on PATH or in CUDA's folder, got none")
        return 1
    if dry:
        sanitizer = None
        checkpoint.leave_out("compute-sanitizer", "there is no GPU: the calls run without it")
    wanted = [("no tool", "cpu")] if dry else [(t, b) for t in TOOLS for b in BACKENDS]
    runs = Runs(checkpoint)
    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(lambda run: runs.run(*run, sanitizer), wanted))
    return 1 if checkpoint.failed else 0


if __name__ == "__main__":
    sys.exit(main())
