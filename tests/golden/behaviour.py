"""Digests of what a change of structure must not change: plans, samples, drop-ins, small jobs.

The bits of plans and of networks depend on the machine and on torch, so no digests are stored in
the repository. Write them with the old code and compare them with the new code's:

    python tests/golden/behaviour.py --out before.json           # in a checkout of the old revision
    python tests/golden/behaviour.py --compare before.json       # in this one

Exit status 1 where a digest differs or is missing; the names of those that differ are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the folder of the cases, which an old revision may have elsewhere
CASES = next(path.parent for path in (ROOT / "tests").rglob("cases_integrators.py"))
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(CASES), str(ROOT / "tests")]

FORMATS = ("npy", "npz", "png", "webdataset", "safetensors")
SPACINGS = ("trailing", "linspace", "karras")
PREDICTIONS = ("epsilon", "x0", "v")


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def plans() -> Iterator[tuple[str, str]]:
    """Every solver × three grids × three prediction types, on a VP and, for flow solvers, a flow
    schedule.
    """
    from fastdiff import Schedule
    from fastdiff.solvers import SOLVERS, make_plan

    schedules = {"vp": Schedule.linear(1000), "flow": Schedule.flow(1000)}
    for space, schedule in schedules.items():
        for solver in SOLVERS:
            for spacing in SPACINGS:
                for prediction in PREDICTIONS:
                    try:
                        plan = make_plan(
                            schedule,
                            solver=solver,
                            steps=12,
                            prediction_type=prediction,
                            timestep_spacing=spacing,
                        )
                        value = plan.hash
                    except ValueError as error:
                        value = f"refused: {type(error).__name__}"
                    yield f"plan/{space}/{solver}/{spacing}/{prediction}", value


def drop_ins() -> Iterator[tuple[str, str]]:
    """Ten steps of every configuration of the conformance suite, in float32, with a generator's
    draws.
    """
    import torch
    from cases import both, set_timesteps, start
    from loops import IDS, RUNS, loop

    for (case, kind), name in zip(RUNS, IDS, strict=True):
        _, ours = both(case, kind)
        steps = 10 if 10 in case.steps else max(case.steps)
        set_timesteps(case, ours, steps)
        generator = torch.Generator().manual_seed(5)
        try:
            states = loop(case, kind, ours, start(ours, torch.float32), generator)
        except ValueError as error:
            yield f"drop_in/{name}", f"refused: {type(error).__name__}"
            continue
        yield f"drop_in/{name}", digest(*(x.numpy().tobytes() for x in states))


def drop_ins_own_noise() -> Iterator[tuple[str, str]]:
    """Ten steps of each class's first configuration, with fastdiff's own noise where it draws
    any.
    """
    import torch
    from cases import CASES as cases
    from cases import CLASSES, both, network, set_timesteps, start
    from loops import scaled

    for name in CLASSES:
        case = next(c for c in cases if c.name == name)
        _, ours = both(case, case.kinds[0])
        torch.manual_seed(3)
        set_timesteps(case, ours, 10 if 10 in case.steps else max(case.steps))
        x, states = start(ours, torch.float32), []
        for t in ours.timesteps:
            out = network(scaled(ours, x, t), case.kinds[0], case.learned)
            x = ours.step(out, t, x, **case.step, return_dict=False)[0]
            states.append(x.numpy().tobytes())
        yield f"drop_in_own_noise/{name}", digest(*states)


def samples() -> Iterator[tuple[str, str]]:
    """Small runs of `Sampler` with the shipped network: every solver that takes v-prediction."""
    import torch

    from fastdiff import Sampler
    from fastdiff.solvers import SOLVERS

    torch.set_num_threads(1)
    y = torch.tensor([0, 3, 8])
    for solver in SOLVERS:
        try:
            sampler = Sampler.from_pretrained("fashion-mnist", solver=solver, steps=4)
            x = sampler.sample(
                (3, 1, 28, 28), seed=2, cond={"y": y}, uncond={"y": torch.full_like(y, 10)}
            )
        except ValueError as error:
            yield f"sample/{solver}", f"refused: {type(error).__name__}"
            continue
        yield f"sample/{solver}", digest(x.numpy().tobytes())


def jobs() -> Iterator[tuple[str, str]]:
    """A dataset of 10 samples in every format: its digest and the bytes of its shards."""
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "set"
            flags = ["--num", "10", "--steps", "3", "--unit", "4", "--seed", "9", "--threads", "1"]
            fastdiff("sample", "--out", str(out), "--format", name, *flags)
            report = json.loads(fastdiff("verify", str(out), "--json"))
            yield f"job/{name}/digest", str(report.get("digest"))
            shards = sorted(p for p in out.rglob("*") if p.is_file() and "shards" in p.parts)
            shards = shards or sorted(
                p
                for p in out.rglob("*")
                if p.suffix in (".npy", ".npz", ".png", ".tar", ".safetensors")
            )
            yield (
                f"job/{name}/bytes",
                digest(*(p.read_bytes() for p in shards)) + f" {len(shards)} files",
            )


def fastdiff(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fastdiff", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"fastdiff {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def collect() -> dict[str, str]:
    found: dict[str, str] = {}
    for part in (plans, samples, drop_ins, drop_ins_own_noise, jobs):
        found |= dict(part())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the digests here")
    parser.add_argument("--compare", type=Path, help="compare with the digests in this file")
    options: Any = parser.parse_args()
    now = collect()
    if options.out:
        options.out.write_text(json.dumps(now, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(now)} digests")
    if not options.compare:
        return 0
    before = json.loads(options.compare.read_text(encoding="utf-8"))
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    print(f"{len(before.keys() & now.keys()) - len(different)} equal, {len(different)} different")
    for name in different:
        print(f"  {name}: {before.get(name)} -> {now.get(name)}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
