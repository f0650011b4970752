"""Kills workers of batch jobs many times, and compares the datasets with undisturbed runs.

    python tests/jobs/chaos.py --kills 100 --seed 0 --engines shard,torchrun --minutes 30

Runs of a tiny network are made in all picture formats by 1 to 4 workers of changing engines. The
workers are killed with SIGKILL at random instants, and also immediately before and after calls of
fsync, rename, link and unlink (tests/jobs/tiny.py). After each round no unit may be damaged, and no
finished unit may be missing. In the end the digest and every byte of the data files must be those
of an undisturbed run, and no worker may have left a file behind. The last line of the output is
JSON with the figures; a difference raises AssertionError.

Most workers are forked from this process, which has imported torch already; those of the engine
`fresh` and of torchrun are separate processes. A kill counts as one within a unit when the log of
the worker has begun a unit and not finished it, and the unit's record is not from this worker.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `patience`, outside pytest
from workers import Worker, kill, wait  # noqa: E402

from fastdiff.jobs.folder import Folder  # noqa: E402
from fastdiff.jobs.formats import FORMATS  # noqa: E402
from fastdiff.jobs.records import read_record, unit_files  # noqa: E402
from fastdiff.jobs.verify import verify  # noqa: E402

HERE = Path(__file__).resolve().parent
PICTURES = [name for name, fmt in FORMATS.items() if fmt.holds((8, 8, 1), "uint8")]
PATIENCE = 240.0  # seconds after which a round without an end is a failure


def unfinished(folder: Folder) -> dict[int, bool]:
    """Returns {process id: whether it was computing a unit} of the workers that were killed.

    Workers that were killed before their log began are not included.
    """
    killed = {}
    for path in (folder.path / "log").glob("*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if any(event["event"] == "stop" for event in events):
            continue
        units = {
            name: {e["unit"] for e in events if e["event"] == name} for name in ("begin", "unit")
        }
        open = [folder.record_path(unit) for unit in units["begin"] - units["unit"]]
        mine = [
            p.exists() and read_record(p, int(p.stem))["made"]["worker"] == path.stem for p in open
        ]
        killed[int(path.stem.split("-")[-2])] = not all(mine)
    return killed


class Campaign:
    """A dataset whose workers are killed, and the same dataset from an undisturbed run."""

    patience = PATIENCE

    def __init__(
        self,
        place: Path,
        format: str,
        units: int,
        draw: random.Random,
        engines: Sequence[str],
        name: str | None = None,
    ):
        self.path, self.draw, self.engines = (
            place / (name or f"{format}-{len(os.listdir(place))}"),
            draw,
            engines,
        )
        self.output = self.path.with_suffix(".txt")
        self.asked = [
            "--model",
            "tiny:factory",
            "--ids",
            f"3-{units * 8 - 2}",
            "--unit",
            "8",
            "--steps",
            "3",
            "--seed",
            "5",
            "--threads",
            "1",
            "--format",
            format,
        ]
        self.undisturbed = place / f"{format}-{units}-undisturbed"
        self.kills: Counter[str] = Counter()
        self.rounds: Counter[str] = Counter()
        self.done: set[int] = set()
        self.dead: set[int] = set()
        if not self.undisturbed.exists():
            worker = Worker(
                "forked", ["sample", "--out", str(self.undisturbed), *self.asked], {}, self.output
            )
            wait([worker])
            assert worker.status == 0, self.tail()

    def command(self) -> list[str]:
        """Returns the arguments that start or restart a worker, in one of the two possible ways."""
        if self.begun and self.draw.random() < 0.5:
            return ["resume", str(self.path), "--trust"]
        return ["sample", "--out", str(self.path), *self.asked]

    @property
    def begun(self) -> bool:
        return (self.path / "spec.json").exists()

    def complete(self) -> bool:
        return self.begun and len(self.done) == len(Folder(self.path).spec.units)

    def round(self) -> None:
        """Starts workers, kills them one after another, and checks what they leave."""
        draw = self.draw
        number, slow = (
            sum(self.rounds.values()),
            [e for e in self.engines if e in ("torchrun", "ray")],
        )
        turn = number % 6 == 5 and slow  # the slow engines are certain to be used
        engine, world = (
            (slow[number // 6 % len(slow)] if turn else draw.choice(self.engines)),
            draw.randint(1, 4),
        )
        if engine == "torchrun":
            world = draw.randint(1, 2)  # each imports torch
        self.rounds[f"{engine} x{world}"] += 1
        workers = []
        for number in range(1 if engine in ("torchrun", "ray") else world):
            arguments = self.command()
            if engine == "ray":
                arguments += ["--engine", "ray", "--workers", str(world)]
            elif engine != "torchrun":
                arguments += ["--shard", f"{number}/{world}"]
            environment = {"TINY_SLEEP": "0.005"}
            if draw.random() < 0.5:
                # Ray restarts dead workers, which then import torch, and a round of Ray ends only
                # with the run
                often = draw.choice([0.003, 0.01, 0.1]) if engine != "ray" else 0.003
                environment["TINY_KILL"] = f"{often}:{draw.getrandbits(32)}"
            workers.append(Worker(engine, arguments, environment, self.output, world))
        self._fire(engine, workers)
        self.check()

    def check(self) -> None:
        """Raises AssertionError for damaged units, and for finished units that are gone."""
        if self.begun:
            folder = Folder(self.path)
            check = verify(folder)
            assert not check.bad, f"damaged by a kill: {check.bad}"
            done = folder.done()
            assert self.done <= done, f"units gone: {sorted(self.done - done)}"
            self.done = done

    def _fire(self, engine: str, workers: list[Worker]) -> None:
        draw, logs, end = self.draw, self.path / "log", time.monotonic() + self.patience
        agent = engine in ("torchrun", "ray")
        early = not agent and draw.random() < 0.15  # kill some before they have begun
        fired: set[int] = set()
        while not all(worker.ended() for worker in workers):
            assert time.monotonic() < end, f"{engine} hangs:\n{self.tail()}"
            if agent and fired:
                time.sleep(0.05)  # the agent lets the other workers finish their units
                continue
            targets = [
                pid
                for w in workers
                if not w.ended()
                for pid in ([w.pid] if early else w.at_work(logs))
            ]
            if not targets:
                time.sleep(0.02)
                continue
            time.sleep(draw.expovariate(3.0))
            victims = targets if draw.random() < 0.2 else [draw.choice(targets)]
            for pid in victims:
                if kill(pid):
                    fired.add(pid)
        for worker in workers:
            if agent:
                worker.end()
                assert worker.status != 2, self.tail()
            else:
                assert worker.status in (
                    0,
                    75,
                    -signal.SIGKILL,
                ), f"status {worker.status}:\n{self.tail()}"
        dead = {w.pid for w in workers if w.status == -signal.SIGKILL} if not agent else fired
        if agent and self.begun:
            dead |= unfinished(Folder(self.path)).keys() - self.dead
        for pid in dead:
            self.kills[f"{engine}, {'from outside' if pid in fired else 'in a commit'}"] += 1
        self.dead |= dead

    def finish(self) -> Counter[str]:
        """Lets one worker complete the run, and compares the result.

        Returns how many workers were killed after their start, and how many of them within a unit.
        """
        worker = Worker("forked", self.command(), {}, self.output)
        wait([worker])
        assert worker.status == 0, f"status {worker.status}:\n{self.tail()}"
        said = self.path.with_suffix(".json")
        worker = Worker("forked", ["verify", str(self.path), "--json"], {}, said)
        wait([worker])
        assert worker.status == 0, said.read_text()
        check, folder = json.loads(said.read_text()), Folder(self.path)
        assert check["fine"] and not check["foreign"], check
        assert check["digest"] == verify(Folder(self.undisturbed)).digest, (
            "another digest than that of the undisturbed run"
        )
        assert _tree(self.path) == _tree(self.undisturbed), (
            "other shards than those of the undisturbed run"
        )
        assert [unit for unit, _ in unit_files(self.path)] == list(folder.spec.units.numbers)
        left = [p.name for p in self.path.iterdir() if p.name.startswith(".")] + os.listdir(
            self.path / "tmp"
        )
        assert not left, f"left behind: {left}"
        killed = unfinished(folder)
        return Counter(killed_after_start=len(killed), killed_within_a_unit=sum(killed.values()))

    def tail(self) -> str:
        return self.output.read_text()[-3000:] if self.output.exists() else "no output"


def every_instant(place: Path, draw: random.Random, stride: int) -> Counter[str]:
    """Kills the worker of a run of three units before call 0, 1, 2 … that puts a file on disk.

    The calls are those of tests/jobs/tiny.py; every run is a new one.
    """
    kills: Counter[str] = Counter()
    for call in range(draw.randrange(stride), 10_000, stride):
        campaign = Campaign(place, "npy", 3, draw, [], name=f"instant-{call}")
        worker = Worker("forked", campaign.command(), {"TINY_KILL": f"@{call}"}, campaign.output)
        wait([worker])
        if worker.status == 0:
            break
        assert worker.status == -signal.SIGKILL, campaign.tail()
        kills["forked, at every instant of a commit"] += 1
        campaign.check()
        kills += campaign.finish()
    return kills


def _tree(path: Path) -> dict[str, str]:
    files = (
        p
        for p in path.rglob("*")
        if p.is_file() and p.relative_to(path).parts[0] not in ("log", "units", "tmp")
    )
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--units", type=int, default=400, help="of each run")
    parser.add_argument("--engines", default="shard,torchrun,ray", help="(all that are installed)")
    parser.add_argument(
        "--stride",
        type=int,
        default=1,
        help="of the calls that are died at one after another (0: none)",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no more is begun")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        help="seconds that a round may take on a busy machine",
    )
    args = parser.parse_args()
    Campaign.patience = args.patience
    engines = [e for e in args.engines.split(",") if e != "ray" or importlib.util.find_spec("ray")]
    # most rounds are of forked workers, which start fast
    choice = [c for e in engines for c in (["forked"] * 8 + ["fresh"] if e == "shard" else [e])]
    draw, begun = random.Random(args.seed), time.monotonic()
    kills: Counter[str] = Counter()
    rounds: Counter[str] = Counter()
    found: Counter[str] = Counter()
    runs = 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:

        def late() -> bool:
            return time.monotonic() - begun > 60 * args.minutes

        if args.stride:
            found = every_instant(Path(place), draw, args.stride)
            kills["forked, at every instant of a commit"] = found.pop(
                "forked, at every instant of a commit"
            )
            print(f"{sum(kills.values())} instants of a commit: digest as undisturbed", flush=True)
        wanted = args.kills + sum(kills.values())
        while sum(kills.values()) < wanted and not late():
            campaign = Campaign(
                Path(place), PICTURES[runs % len(PICTURES)], args.units, draw, choice
            )
            before = sum(kills.values())
            while (
                not campaign.complete()
                and before + sum(campaign.kills.values()) < wanted
                and not late()
            ):
                campaign.round()
            found += campaign.finish()
            kills, rounds, runs = kills + campaign.kills, rounds + campaign.rounds, runs + 1
            line = (
                f"run {runs} ({campaign.path.name}): {sum(campaign.kills.values())} kills, digest"
                " as undisturbed"
            )
            print(line, flush=True)
    figures = {
        "runs": runs,
        "kills": sum(kills.values()),
        **found,
        "by": dict(kills),
        "rounds": dict(rounds),
        "seed": args.seed,
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
