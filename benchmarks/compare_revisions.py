"""Compares the speed of two checkouts of fastdiff, measured interleaved in one run.

    python benchmarks/compare_revisions.py OLD_TREE NEW_TREE --rounds 15

Each checkout runs in its own persistent process, which imports fastdiff from that folder only. Both
processes are pinned to the same core and use one thread, and they take turns in the order old, new,
new, old for every row of every round. So both revisions see the same state of the machine, whatever
else runs on it. A ratio is old / new of two neighbouring measurements: above 1 the new revision is
faster. The table gives its median with the 20th and 80th percentile.

The time that counts is the CPU time of the thread (`time.thread_time`), from which other processes
take nothing; `--clock wall` counts elapsed time. What a process's memory does moves its times for
as long as it lives. So the workers' allocator keeps freed memory (glibc otherwise gives large
buffers back to the system or not, as other allocations happen to lie: 0 or 1,500 page faults in the
same call), and `--processes 5` measures five pairs of new processes and pools their ratios.

Before anything is timed, each row's result is compared between the two checkouts, bit by bit. The
workloads use public names only, so they run in old and new revisions alike. The native library of
each checkout must be built (fastdiff/lib).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STEPS = 50  # of a Sampler loop around a network that costs nothing
DROP_IN_STEPS = 20
NETWORK_STEPS = 4  # of a run of the shipped U-Net
SHORTEST = 5e-3  # seconds: quicker calls are repeated until a measurement lasts this long
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 31), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
WARM = 20e-3  # seconds: quicker calls are made once, untimed, before each measurement
CLOCKS = {"cpu": time.thread_time, "wall": time.perf_counter}
SOLVERS = ("ddim", "dpm++2m", "unipc", "euler_ancestral")
DROP_INS = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler")
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


# The worker's side: these functions import fastdiff from the worker's checkout.


def workloads() -> dict[str, Callable[[], Any]]:
    """Returns {row: a call that returns its result}, made with the fastdiff of this process."""
    calls: dict[str, Callable[[], Any]] = {}
    for batch in (256, 1):
        for solver in ("ddpm", "ddim"):
            calls[f"reverse_step {solver} {batch}x3x32x32"] = _reverse_step(solver, batch)
    for batch in (256, 16, 1):
        for solver in SOLVERS:
            calls[f"loop {solver} {batch}x3x32x32, {STEPS} steps"] = _loop(solver, batch)
    for name in DROP_INS:
        calls[f"drop-in {name} 1x4x8x8, {DROP_IN_STEPS} steps"] = _drop_in(name)
    for batch in (8, 1):
        calls[f"sampling fashion-mnist batch {batch}, {NETWORK_STEPS} steps"] = _sampling(batch)
    return calls


def _tensors(*shape: int) -> tuple[Any, Any]:
    """Returns two tensors of normal numbers, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _sampler(solver: str, output: Any) -> Any:
    """Returns a Sampler around a network that costs nothing: it always returns the same tensor."""
    import fastdiff

    schedule = fastdiff.Schedule.scaled_linear(1000)
    return fastdiff.Sampler(lambda x, t: output, schedule, solver=solver, steps=STEPS)


def _reverse_step(solver: str, batch: int) -> Callable[[], Any]:
    """Returns a call of `fastdiff.reverse_step` with `out=` on a row in the middle of a plan."""
    import torch

    import fastdiff

    x, output = _tensors(batch, 3, 32, 32)
    plan = _sampler(solver, output).plan
    table = torch.tensor(plan.table)
    row = torch.full((batch,), STEPS // 2)
    result = torch.empty_like(x)
    step: Any = fastdiff.reverse_step

    def call() -> Any:
        step(x, output, table, row, seed=1, used=plan.used, out=result)
        return result

    return call


def _loop(solver: str, batch: int) -> Callable[[], Any]:
    """Returns a run of `Sampler` around a network that costs nothing."""
    start, output = _tensors(batch, 3, 32, 32)
    sampler = _sampler(solver, output)
    return lambda: sampler.sample(x_T=start, seed=1)


def _drop_in(name: str) -> Callable[[], Any]:
    """Returns the loop of a diffusers pipeline with fastdiff's scheduler class of this name."""
    import fastdiff

    scheduler = getattr(fastdiff, name)(**({} if name.startswith("Flow") else BETAS))
    start, output = _tensors(1, 4, 8, 8)

    def call() -> Any:
        scheduler.set_timesteps(DROP_IN_STEPS)
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return x

    return call


def _sampling(batch: int) -> Callable[[], Any]:
    """Returns a guided run of the shipped U-Net."""
    import torch

    import fastdiff
    from fastdiff.pretrained import load

    network, schedule, settings = load("fashion-mnist")
    sampler = fastdiff.Sampler(network, schedule, **{**settings, "steps": NETWORK_STEPS})
    label = torch.arange(batch) % 10
    cond, uncond = {"y": label}, {"y": torch.full_like(label, 10)}
    return lambda: sampler.sample((batch, 1, 28, 28), seed=0, cond=cond, uncond=uncond)


def serve() -> None:
    """Runs a worker: answers each line of JSON on stdin with a line of JSON on stdout.

    {"do": "rows"} → {"rows": [names], "tree": the folder that fastdiff was imported from}
    {"do": "check", "row": name} → {"digest": SHA-256 of the result, "seconds": of one call}
    {"do": "time", "row": name, "repeat": n, "warm": bool, "clock": name} → {"seconds": per call}
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # a library's prints must not mix with the answers
    import torch

    import fastdiff

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    calls = workloads()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "rows":
            answer = {"rows": list(calls), "tree": str(Path(fastdiff.__file__).parent.parent)}
        elif request["do"] == "check":
            answer = _check(calls[request["row"]])
        else:
            clock = CLOCKS[request["clock"]]
            answer = {"seconds": _time(calls[request["row"]], clock, request)}
        print(json.dumps(answer), file=answers, flush=True)


def _check(call: Callable[[], Any]) -> dict[str, Any]:
    result = call()
    digest = hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()
    begin = time.perf_counter()
    call()
    return {"digest": digest, "seconds": time.perf_counter() - begin}


def _time(call: Callable[[], Any], clock: Callable[[], float], request: dict[str, Any]) -> float:
    if request["warm"]:
        call()
    begin = clock()
    for _ in range(request["repeat"]):
        call()
    return (clock() - begin) / request["repeat"]


# The parent's side: the standard library only, no fastdiff.


class Worker:
    """A process that measures one checkout, pinned to one core where the system can pin."""

    def __init__(self, tree: Path, core: int | None):
        self.tree = tree.resolve()
        if not (self.tree / "fastdiff" / "__init__.py").is_file():
            raise ValueError(f"expected a checkout of fastdiff, got {tree}.")
        environment = {
            **os.environ,
            **KEEP_MEMORY,
            "PYTHONPATH": os.pathsep.join([str(self.tree), str(self.tree / "kernels")]),
            "OMP_NUM_THREADS": "1",
        }
        # -P: the folder of this script holds modules of this checkout, which must not be imported
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.tree,
            env=environment,
        )
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer. Raises RuntimeError if the worker has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(
                f"expected an answer from the worker of {self.tree}, got none: it ended with status"
                f" {self.process.wait()}. Its message is above."
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


class Row(NamedTuple):
    """One row's measurements: seconds of neighbouring pairs, and whether the results agree.

    Measurements of several pairs of processes follow each other in `old` and `new`.
    """

    name: str
    old: list[float]
    new: list[float]
    same: bool

    def __str__(self) -> str:
        low, middle, high = percentiles([a / b for a, b in zip(self.old, self.new, strict=True)])
        old, new = (1e6 * statistics.median(times) for times in (self.old, self.new))
        different = "" if self.same else "  DIFFERENT RESULT"
        return (
            f"{self.name:<56} {old:>12,.1f} {new:>12,.1f}  {middle:.3f} [{low:.3f}, {high:.3f}]"
            f"{different}"
        )

    def joined(self, other: Row) -> Row:
        """Returns this row with the measurements of another pair of processes."""
        assert self.name == other.name
        return Row(self.name, self.old + other.old, self.new + other.new, self.same and other.same)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns (20th percentile, median, 80th percentile)."""
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], statistics.median(values), cuts[3]


def compare(
    old: Worker, new: Worker, *, rounds: int, clock: str = "cpu", only: str = ""
) -> list[Row]:
    """Measures the rows whose name contains `only`, in turns, `rounds` times old, new, new, old."""
    for worker in (old, new):
        found = worker.ask(do="rows")["tree"]
        if Path(found).resolve() != worker.tree:
            raise RuntimeError(f"expected fastdiff from {worker.tree}, got it from {found}.")
    names = [name for name in old.ask(do="rows")["rows"] if only in name]
    if not names:
        raise ValueError(f"expected --only with a part of a row's name, got {only!r}.")
    rows, requests = [], {}
    for name in names:
        checks = [worker.ask(do="check", row=name) for worker in (old, new)]
        once = checks[0]["seconds"]
        requests[name] = {
            "do": "time",
            "row": name,
            "repeat": max(1, int(SHORTEST / once)),
            "warm": once < WARM,
            "clock": clock,
        }
        rows.append(Row(name, [], [], checks[0]["digest"] == checks[1]["digest"]))
    for _ in range(rounds):
        for row in rows:
            for worker in (old, new, new, old):
                times = row.old if worker is old else row.new
                times.append(worker.ask(**requests[row.name])["seconds"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if the results of a row differ between the checkouts."""
    parser = argparse.ArgumentParser(
        description="Compare the speed of two checkouts of fastdiff, interleaved in one run.",
        epilog="Exit status: 0 done, 1 a row's results differ or a worker failed, 2 wrong usage.",
    )
    parser.add_argument("old", type=Path, help="a checkout, with fastdiff/lib built")
    parser.add_argument("new", type=Path, help="the checkout to compare with it")
    parser.add_argument("--rounds", type=int, default=15, help="of old, new, new, old (15)")
    parser.add_argument(
        "--processes", type=int, default=1, help="pairs of new processes, each all rounds (1)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="cpu", help="the thread's CPU time, or wall (cpu)"
    )
    parser.add_argument("--core", type=int, help="the core of both processes (the last usable)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"expected --rounds >= 1, got {args.rounds}.")
    if args.processes < 1:
        parser.error(f"expected --processes >= 1, got {args.processes}.")
    core = args.core
    if core is None and hasattr(os, "sched_getaffinity"):
        core = max(os.sched_getaffinity(0))
    rows: list[Row] = []
    workers: list[Worker] = []
    try:
        for _ in range(args.processes):
            workers = [Worker(tree, core) for tree in (args.old, args.new)]
            more = compare(*workers, rounds=args.rounds, clock=args.clock, only=args.only)
            rows = [a.joined(b) for a, b in zip(rows, more, strict=True)] if rows else more
            for worker in workers:
                worker.close()
    except ValueError as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(f"compare_revisions: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers:
            worker.close()
    print(f"{'':<56} {'old µs':>12} {'new µs':>12}  old / new [p20, p80]")
    for row in rows:
        print(row)
    return 0 if all(row.same for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve()
    else:
        sys.exit(main())
