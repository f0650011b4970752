"""Times `fastdiff info` and the start of `fastdiff resume` on datasets of very many units.

    python tests/jobs/scale.py --units 100000 --out /dev/shm/many

The dataset is written directly: tiny shards with their records, all but the last unit. CPU times
are reported next to the times, since other work on the machine does not lengthen them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastdiff.jobs import Folder, Job
from fastdiff.jobs.formats import FORMATS, Block, pixels_sha256
from fastdiff.jobs.records import record_name, with_checksum

HERE = Path(__file__).resolve().parent
UNIT = 64


def make(path: Path, units: int) -> Folder:
    """Writes a run of tiny:factory without its last unit; the pixels are not the network's."""
    sys.path.insert(0, str(HERE))
    job = Job.plan("tiny:factory", ids=(0, units * UNIT - 1), unit=UNIT, steps=2, threads=1)
    folder, spec, npy = Folder.create(path, job.spec), job.spec, FORMATS["npy"]
    for kind in ("shards", "units"):
        for part in range(-(-units // 1000)):
            (path / kind / f"{part:05d}").mkdir(parents=True)
    for unit in range(units - 1):
        ids = spec.units.ids(unit)
        array = np.frombuffer(hashlib.sha256(b"%d" % unit).digest() * 8, np.uint8).reshape(
            UNIT, 2, 2, 1
        )
        labels = [i % 1000 for i in ids]
        [(name, content)] = npy.files(Block(unit, ids.start, spec.seed, array, labels), {})
        (path / name).write_bytes(content)
        file = {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record = with_checksum(
            {
                "unit": unit,
                "first": ids.start,
                "stop": ids.stop,
                "seed": spec.seed,
                "labels": labels,
                "shape": list(array.shape),
                "dtype": "uint8",
                "pixels": pixels_sha256(array),
                "made": {
                    "worker": "host-1-00000000",
                    "seconds": 0.1,
                    "at": "2026-01-01T00:00:00.000+00:00",
                    "unix": 1.5,
                },
                "files": [file],
            }
        )
        (path / record_name(unit)).write_text(json.dumps(record) + "\n")
    return folder


def fastdiff(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, "-m", "fastdiff", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def cpu() -> float:
    """Returns the CPU seconds that child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_unit(folder: Path) -> float | None:
    """Returns when the worker of the latest log began its first unit, in seconds since 1970."""
    log = max((folder / "log").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return next(
        (e["unix"] for e in map(json.loads, log.read_text().splitlines()) if e["event"] == "begin"),
        None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument(
        "--out", type=Path, help="an existing folder of this program's is used again"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as place:
        path = args.out or Path(place) / "run"
        if not path.exists():
            make(path, args.units)
        for command in (
            ("info", str(path)),
            ("resume", str(path)),
            ("resume", str(path)),
            ("info", str(path)),
        ):
            begun, clock, before = time.time(), time.monotonic(), cpu()
            done = fastdiff(*command)
            taken = time.monotonic() - clock
            assert done.returncode == 0, done.stderr
            drawn = first_unit(path) if command[0] == "resume" else None
            said = "" if drawn is None else f", first unit begun after {drawn - begun:.2f} s"
            print(f"{command[0]}: {taken:.2f} s, {cpu() - before:.2f} s of CPU{said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
