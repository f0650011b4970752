"""Compares a batch job with the bare loop, and two workers with one; measures resident memory.

    python -m benchmarks.jobs --samples 100000 --out benchmarks/results/jobs-….json

The job and a bare loop of `Sampler.sample` take turns of a few units in one process; the ratio of
their speeds is a median over the turns. Then one and two single-threaded workers, each a process,
make a dataset in turns; their speeds come from the events in their logs, without the start-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from fastdiff import jobs, to_uint8
from fastdiff.jobs import machine
from fastdiff.jobs.log import resident


def bare(job: jobs.Job, units: list[int]) -> list[np.ndarray]:
    """Returns the images of these units, made by a loop as a user would write it."""
    sampler, model, made = job.sampler, job.model, []
    for unit in units:
        block = job.spec.units.block(unit)
        cond, uncond = model.conditions(job.conditions.entries(block.start, block.stop))
        x = sampler.sample(
            (len(block), *model.shape),
            seed=job.spec.seed,
            sample_ids=block,
            cond=cond,
            uncond=uncond,
        )
        made.append(to_uint8(x).permute(0, 2, 3, 1).contiguous().cpu().numpy())
    return made


def next_to_bare_loop(samples: int, steps: int, unit: int, turn: int, every: int) -> dict[str, Any]:
    """Returns the speed of a whole job relative to the bare loop, and its resident memory.

    The bare loop runs in every `every`th turn of `turn` units.
    """
    job = jobs.Job.plan(
        "fashion-mnist",
        ids=(0, samples - 1),
        unit=unit,
        steps=steps,
        guidance_scale=1.0,
        solver="ddim",
    )
    with tempfile.TemporaryDirectory() as out, machine.settled(job.spec.threads):
        bare(job, [0])
        work = jobs.finished(job, out)
        ratios, memory, seconds, made, count = [], [], 0.0, 0, len(job.spec.units)
        for number in itertools.count():
            measured, bare_first = number % every == 0, number % (2 * every) == 0  # A B B A
            units = [(number * turn + i) % count for i in range(turn)]

            def alone(units: list[int] = units) -> float:
                start = time.perf_counter()
                bare(job, units)
                return time.perf_counter() - start

            before = alone() if measured and bare_first else None
            start, done = time.perf_counter(), 0
            for _ in itertools.islice(work, turn):
                done += 1
            took = time.perf_counter() - start
            if done == 0:
                break
            seconds, made = seconds + took, made + done
            if measured and done == turn:
                ratios.append((before if before is not None else alone()) / took)
            memory.append(resident())
        found = jobs.Folder(out)
        assert len(found.done()) == count and made == count
    warm = memory[len(memory) // 10 :]
    low, median, high = harness.spread(ratios)
    return {
        "samples": samples,
        "steps": steps,
        "unit": unit,
        "threads": job.spec.threads,
        "images_per_second": round(samples / seconds, 1),
        "of_bare_loop": {
            "median": round(median, 4),
            "p20": round(low, 4),
            "p80": round(high, 4),
            "turns": len(ratios),
        },
        "resident_mib": {
            "after_10_percent": warm[0],
            "least": min(warm),
            "most": max(warm),
            "last": warm[-1],
        },
    }


def speeds(
    worlds: list[int], samples: int, steps: int, unit: int, rounds: int
) -> dict[int, list[float]]:
    """Returns {n: images per second of n single-threaded workers together, round by round}."""
    found: dict[int, list[float]] = {world: [] for world in worlds}
    for world in [*worlds, *reversed(worlds)] * rounds:
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable,
                "-m",
                "fastdiff",
                "sample",
                "--out",
                out,
                "--ids",
                f"0-{samples * world - 1}",
                "--unit",
                str(unit),
                "--steps",
                str(steps),
                "--guidance",
                "1",
                "--solver",
                "ddim",
                "--threads",
                "1",
            ]
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running = [
                subprocess.Popen([*command, "--shard", f"{i}/{world}"], **quiet)
                for i in range(world)
            ]
            assert [p.wait() for p in running] == [0] * world
            lines = [
                [json.loads(x) for x in log.read_text().splitlines()]
                for log in Path(out, "log").glob("*.jsonl")
            ]
            ends = [[e for e in log if e["event"] == "unit"] for log in lines]
            # while all of them work
            begin, end = max(log[0]["unix"] for log in ends), min(log[-1]["unix"] for log in ends)
            within = [e for log in ends for e in log if begin < e["unix"] <= end]
            found[world].append(sum(e["images"] for e in within) / (end - begin))
    return found


def workers(samples: int, steps: int, unit: int, rounds: int) -> dict[str, Any]:
    """Returns the speed of two single-threaded workers together, relative to one."""
    found = speeds([1, 2], samples, steps, unit, rounds)
    each = {str(k): [round(v, 1) for v in s] for k, s in found.items()}
    return {
        "samples_each": samples,
        "images_per_second": each,
        "ratio": harness.ratio(found[1], found[2]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--unit", type=int, default=64)
    parser.add_argument("--turn", type=int, default=8, help="units per turn")
    parser.add_argument(
        "--every", type=int, default=4, help="turns of the job for each turn of the bare loop"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="of one, two, two, one workers; 0 for none"
    )
    parser.add_argument("--worker-samples", type=int, default=4096)
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine.describe(torch.device("cpu")),
        "python": platform.python_version(),
    }
    found["job"] = next_to_bare_loop(args.samples, args.steps, args.unit, args.turn, args.every)
    print(json.dumps(found["job"], indent=1), flush=True)
    if args.rounds:
        found["workers"] = workers(args.worker_samples, args.steps, args.unit, args.rounds)
        print(json.dumps(found["workers"], indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
