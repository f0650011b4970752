"""What `fastdiff bench` measures: a model's network, whole runs of it, and the loop without it.

Arms are interleaved (fastdiff.cli.timing). Before anything is timed, what is compared is held to
the same result: the accelerated network to the network as it is, a deterministic run to diffusers'
run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff

from ..backend.choice import backend_for
from ..backend.hardware import network_dtype
from ..jobs.conditions import Conditions
from ..jobs.job import DTYPES, find_device
from ..jobs.models import open_model
from ..sampler import Sampler
from ..solvers import SOLVERS
from . import bench_peers as peers
from .timing import Arm, interleave, ratio, spread

# relative to the network's largest output: a float32 sum in another order, a half-precision one
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# a deterministic run next to diffusers', whose tables are float32, relative to the largest value
AGREES = 1e-2


class Timed(nn.Module):
    """A network that adds up the time spent in it and counts its calls; `last` are the latest
    call's arguments.
    """

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.seconds = network, 0.0
        self.last: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def _time(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        out = call(*arguments, **named)
        self.seconds += time.perf_counter() - begin
        return out

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        self.last = (
            x.clone(),
            t.clone(),
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in cond.items()},
        )
        return self._time(self.network, x, t, **cond)


class TimedParts(Timed):
    """The same of a network whose conditions are computed apart (fastdiff.sampling.model_call)."""

    def condition(self, t: Tensor, **cond: Any) -> Tensor:
        return self._time(self.network.condition, t, **cond)

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        return self._time(self.network.decode, x, condition)


class Bench:
    """A model opened for measuring. Raises ValueError, TypeError, ImportError, OSError in one
    sentence for what can't be.

    Args:
        model, shape, device: see `fastdiff.jobs.models.open_model`.
        batch: samples together. settings: the sampler's. dtype: the network's. conditions: a file,
            a line a sample.
        seconds: of each comparison.
    """

    def __init__(
        self,
        model: str,
        *,
        batch: int,
        seconds: float,
        settings: dict[str, Any],
        shape: tuple[int, ...] | None = None,
        device: str | None = None,
        dtype: str = "auto",
        conditions: str | None = None,
    ):
        if batch < 1 or settings["steps"] < 1 or not seconds > 0:
            raise ValueError(
                "fastdiff bench: expected batch, steps and seconds above 0, got others."
            )
        self.name, self.batch, self.seconds, self.steps = model, batch, seconds, settings["steps"]
        self.device = find_device(device)
        opened = open_model(model, shape=shape, device=self.device)
        entries = Conditions.of(opened, ids=(0, batch - 1), file=conditions).entries(0, batch)
        sampler = opened.sampler(**settings)
        opened.check(sampler, entries)
        halves = [
            None if half is None else {k: self._here(v) for k, v in half.items()}
            for half in opened.conditions(entries)
        ]
        self.halves: peers.Halves = (halves[0], halves[1])
        gamma = sampler.guidance_scale
        if not isinstance(gamma, float):
            raise ValueError(
                "fastdiff bench: expected one guidance strength, got one per row. Name --guidance."
            )
        self.gamma, self.plan, self.schedule = gamma, sampler.plan, sampler.schedule
        kind = (
            network_dtype()
            if dtype == "auto" and self.device.type == "cpu"
            else DTYPES[dtype.replace("auto", "fp32")]
        )
        self.network = sampler.model
        if isinstance(self.network, nn.Module) and (dtype != "auto" or kind != torch.float32):
            self.network = copy.deepcopy(self.network).to(kind)
        self.shape = (batch, *opened.shape)
        generator = torch.Generator().manual_seed(0)
        self.start = torch.randn(self.shape, generator=generator).to(self.device)

    def rows(self, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
        """All measurements, as rows of the benchmarks' schema 1."""
        with torch.inference_mode():
            say("the network")
            fast, row = self.one_call()
            say("whole runs")
            runs = self.whole(fast)
            say("the loop")
            return [row, runs, self.alone()]

    def one_call(self) -> tuple[Any, dict[str, Any]]:
        """One call of the network as it is, and accelerated: (the faster kind of network to go on
        with, its row).
        """
        seen = Timed(self.network)
        self.sampler(seen).sample(
            x_T=self.start, seed=0, cond=self.halves[0], uncond=self.halves[1]
        )
        assert seen.last is not None
        x, t, cond = seen.last
        plain: Arm = lambda: self.network(x, t, **cond)  # noqa: E731
        missing, arms, checked = None, {"as it is": plain}, "the network itself"
        fast = self.network
        try:
            fast = fastdiff.accelerate(self.network)
        except (TypeError, ValueError) as error:
            missing = str(error)
        if missing is None:
            off = _off(_tensor(fast(x, t, **cond)), _tensor(plain()))
            limit = SAME.get(x.dtype, 1e-3)
            if not off <= limit:
                raise RuntimeError(
                    f"fastdiff bench: expected the accelerated network within {limit:g} of the"
                    f" network as it is, relative to its largest output, got {off:.1e}. Please"
                    " report the model."
                )
            arms = {"fastdiff.accelerate": lambda: fast(x, t, **cond), **arms}
            checked = f"{off:.1e} from the network as it is"
        row = self.row("network", "network, one call", arms, self.batch, "sample-step", checked)
        if missing is not None:
            row["peers"]["fastdiff.accelerate"] = {"missing": missing}
        return fast, row

    def whole(self, fast: Any) -> dict[str, Any]:
        """Runs: fastdiff's with the accelerated network, with the network as it is, and diffusers'
        loop; the overhead.
        """

        def run(network: Any) -> Arm:
            sampler = self.sampler(network)
            return lambda: sampler.sample(
                x_T=self.start, seed=0, cond=self.halves[0], uncond=self.halves[1]
            )

        arms = {"fastdiff": run(fast)}
        if fast is not self.network:
            arms["fastdiff, network as it is"] = run(self.network)
        theirs, why, checked = self.diffusers(self.network), None, "finite"
        if isinstance(theirs, str):
            why = theirs
        else:
            arms["diffusers"] = theirs
        result = arms["fastdiff"]()
        if not result.isfinite().all():
            raise RuntimeError(
                "fastdiff bench: expected finite samples, got others. Is this the model's"
                " prediction type?"
            )
        if why is None and not self.stochastic and self.start.shape == result.shape:
            off = _off(result, _tensor(arms["diffusers"]()))
            agrees = "as" if off <= AGREES else "NOT as"
            checked = f"{agrees} diffusers' ({off:.1e})"
        what = f"run, {self.plan.info.get('solver', 'plan')}"
        row = self.row("sampling", what, arms, self.batch * self.steps, "sample-step", checked)
        if why is not None:
            row["peers"]["diffusers"] = {"missing": why}
        low, middle, high = (
            self.batch / (u * 1e-6 * self.batch * self.steps) for u in reversed(row["us"])
        )
        row["images_per_s"] = [round(v, 3) for v in (low, middle, high)]
        if self.device.type == "cpu":
            row["overhead_percent"] = self.overhead(fast)
        return row

    def alone(self) -> dict[str, Any]:
        """The loop around a network that costs nothing."""
        out = torch.randn(self.shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        twice = torch.cat([out, out])

        def nothing(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return twice if len(x) == len(twice) else out

        sampler = self.sampler(nothing)
        arms: dict[str, Arm] = {
            "fastdiff": lambda: sampler.sample(
                x_T=self.start, seed=0, cond=self.halves[0], uncond=self.halves[1]
            )
        }
        theirs = self.diffusers(nothing)
        if not isinstance(theirs, str):
            arms["diffusers"] = theirs
        row = self.row(
            "loop", "loop, the network costing nothing", arms, self.steps, "step", "finite"
        )
        if isinstance(theirs, str):
            row["peers"]["diffusers"] = {"missing": theirs}
        return row

    def overhead(self, network: Any, runs: int = 5) -> list[float]:
        """[p20, p50, p80] of the share of a run, in percent, that is spent outside the network."""
        parts = all(hasattr(type(network), name) for name in ("condition", "decode"))
        timed = (TimedParts if parts else Timed)(network)
        sampler, shares = self.sampler(timed), []
        for _ in range(runs + 1):
            timed.seconds, begin = 0.0, time.perf_counter()
            sampler.sample(x_T=self.start, seed=0, cond=self.halves[0], uncond=self.halves[1])
            shares.append(100 * (1 - timed.seconds / (time.perf_counter() - begin)))
        return [round(v, 3) for v in spread(shares[1:])]

    def sampler(self, network: Any) -> Sampler:
        return Sampler(network, self.schedule, plan=self.plan, guidance_scale=self.gamma)

    @property
    def stochastic(self) -> bool:
        found = SOLVERS.get(str(self.plan.info.get("solver")))
        return bool(self.plan.info.get("eta")) or found is None or found.stochastic

    def diffusers(self, network: Any) -> Arm | str:
        """diffusers' loop around a network, or why there is none."""
        try:
            scheduler, step = peers.scheduler_of(self.sampler(network), self.name)
        except peers.Missing as reason:
            return str(reason)
        kind = (
            next((p.dtype for p in network.parameters()), torch.float32)
            if isinstance(network, nn.Module)
            else torch.float32
        )
        start = self.start.to(kind)
        return lambda: peers.loop(
            scheduler, network, self.steps, start, self.halves, self.gamma, step
        )

    def row(
        self, kind: str, what: str, arms: dict[str, Arm], per: int, unit: str, checked: str
    ) -> dict[str, Any]:
        """Times the arms, the first of which is ours; `per`: how many units one call is."""
        times = self.timed(arms)
        ours, *others = arms
        us = {
            name: [round(1e6 * v / per, 3) for v in spread(values)]
            for name, values in times.items()
        }
        found: dict[str, Any] = {
            name: {"us": us[name], "faster": ratio(times[ours], times[name])} for name in others
        }
        best = min(found, key=lambda name: found[name]["faster"]["median"], default=None)
        case = {
            "shape": list(self.shape),
            "batch": self.batch,
            "steps": self.steps,
            "guidance": self.gamma,
            "model": self.name,
        }
        return {
            "schema": 1,
            "kind": kind,
            "what": what,
            "case": case,
            "device": device_name(self.device),
            "arm": ours,
            "backend": backend_for("reverse_step", self.device),
            "threads": torch.get_num_threads(),
            "cache": "warm",
            "per": unit,
            "us": us[ours],
            "elements": None,
            "bytes_floor": None,
            "GB_per_s": None,
            "copy_GB_per_s": None,
            "percent_of_copy": None,
            "instructions": None,
            "peers": found,
            "best_peer": None if best is None else {"name": best, **found[best]["faster"]},
            "compile_s": None,
            "extra_bytes": None,
            "checked": checked,
        }

    def timed(self, arms: dict[str, Arm]) -> dict[str, list[float]]:
        """Interleaved times, at least three rounds, else as many as fit the seconds."""
        settle = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None

        def settled(arm: Arm) -> Arm:
            return lambda: (arm(), settle())

        arms = {name: settled(arm) for name, arm in arms.items()}
        for arm in arms.values():
            arm()
        begin = time.perf_counter()
        for arm in arms.values():
            arm()
        once = time.perf_counter() - begin
        return interleave(arms, rounds=max(3, min(500, int(self.seconds / once / 2))))

    def _here(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _tensor(out: Any) -> Tensor:
    return getattr(out, "sample", out)


def _off(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
