"""The measurements of `fastdiff bench`: a model's network, whole runs, and the loop without it.

What is compared (an "arm", see fastdiff.cli.timing) is measured in turns. Before anything is timed,
the results are compared: the accelerated network's with the plain network's, a deterministic run's
with that of diffusers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..acceleration import accelerate
from ..backend.choice import backend_for
from ..backend.hardware import network_dtype
from ..grad_mode import restored
from ..jobs.conditions import Conditions
from ..jobs.job import DTYPES, find_device
from ..jobs.models import open_model
from ..sampler import Sampler
from ..sampling.model_call import Network, own_dtype
from ..table import OUTPUTS
from . import bench_diffusers as diffusers
from .timing import Arm, interleave, ratio, spread

# largest difference of an accelerated network, relative to its largest output: sums in another
# order, in this dtype
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# largest difference of a deterministic run from that of diffusers, whose tables are float32,
# relative to the largest value
AGREES = 1e-2


class WrappedNetwork(nn.Module):
    """A network with the attributes that fastdiff.sampling.model_call reads of the wrapped one."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        for name in ("network_time", "network_times", "dtype"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))


class TimedNetwork(WrappedNetwork):
    """Calls a network and adds up the seconds that its calls take."""

    def __init__(self, network: Any):
        super().__init__(network)
        self.seconds = 0.0

    def _time(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        out = call(*arguments, **named)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - begin
        return out

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        return self._time(self.network, x, t, **cond)


class TimedSplitNetwork(TimedNetwork):
    """The same for a network that computes its condition apart (fastdiff.sampling.model_call)."""

    def condition(self, t: Tensor, **cond: Any) -> Tensor:
        return self._time(self.network.condition, t, **cond)

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        return self._time(self.network.decode, x, condition)


class RecordedNetwork(WrappedNetwork):
    """Calls a network and keeps copies of the last call's arguments."""

    def __init__(self, network: Any):
        super().__init__(network)
        self.arguments: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in cond.items()}
        self.arguments = (x.clone(), t.clone(), copies)
        return self.network(x, t, **cond)


def timed_network(network: Any) -> TimedNetwork:
    """Returns the network with its calls timed, split where the network is."""
    split = all(hasattr(type(network), name) for name in ("condition", "decode"))
    return (TimedSplitNetwork if split else TimedNetwork)(network)


class Bench:
    """A model that is opened for measuring.

    Args:
        model, shape, device: see `fastdiff.jobs.models.open_model`.
        batch: samples computed together.
        seconds: time of each comparison.
        settings: of the sampler; `steps` is needed.
        dtype: of the network, a name of fastdiff.jobs.job.DTYPES or auto.
        conditions: a file with a line for each sample.

    Raises:
        ValueError, TypeError, ImportError, OSError: in one sentence, if the model cannot be opened
            or sampled like this.
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
        for name, value in (("batch", batch), ("steps", settings["steps"]), ("seconds", seconds)):
            if not value > 0:
                raise ValueError(f"expected --{name} > 0, got {value}.")
        self.name, self.batch, self.seconds, self.steps = model, batch, seconds, settings["steps"]
        self.device = find_device(device)
        opened = open_model(model, shape=shape, device=self.device)
        entries = Conditions.of(opened, ids=(0, batch - 1), file=conditions).entries(0, batch)
        sampler = opened.sampler(**settings)
        opened.check(sampler, entries)
        self.cond, self.uncond = (_moved(half, self.device) for half in opened.conditions(entries))
        gamma = sampler.guidance_scale
        if not isinstance(gamma, float):
            raise ValueError(
                "expected one guidance strength, got one for each row of the plan. Pass --guidance."
            )
        self.gamma, self.plan, self.schedule = gamma, sampler.plan, sampler.schedule
        self.network: Any = sampler.model
        kind = (
            network_dtype()
            if dtype == "auto" and self.device.type == "cpu"
            else DTYPES[dtype.replace("auto", "fp32")]
        )
        if isinstance(self.network, nn.Module) and (dtype != "auto" or kind != torch.float32):
            self.network = copy.deepcopy(self.network).to(kind)
        self.shape = (batch, *opened.shape)
        generator = torch.Generator().manual_seed(0)
        self.start = torch.randn(self.shape, generator=generator).to(self.device)

    @restored
    def rows(self, progress: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
        """Measures everything and returns rows of the benchmarks' schema 1.

        progress: is called with the name of each measurement before it begins.
        """
        with torch.inference_mode():
            progress("the network")
            fast, call = self.one_call()
            progress("whole runs")
            run = self.whole_run(fast)
            progress("the loop")
            return [call, run, self.loop_alone()]

    def one_call(self) -> tuple[Any, dict[str, Any]]:
        """Measures one call of the network, plain and accelerated.

        Returns (the accelerated network, or the plain one where it cannot be accelerated; the row).
        """
        x, t, cond = self.arguments_of_a_call()

        def call_of(network: Any) -> Arm:
            called = Network(network, where=diffusers.WHERE)
            return lambda: called.forward(x, t, cond)

        plain = call_of(self.network)
        missing, arms, checked = None, {"as it is": plain}, "the network itself"
        fast = self.network
        try:
            fast = accelerate(self.network)
        except (TypeError, ValueError) as error:
            missing = str(error)
        if missing is None:
            accelerated = call_of(fast)
            difference = _difference(accelerated(), plain())
            limit = SAME.get(x.dtype, 1e-3)
            if not difference <= limit:
                raise RuntimeError(
                    f"expected the accelerated network within {limit:g} of the plain network,"
                    f" relative to its largest output, got {difference:.1e}. Please report the"
                    " model."
                )
            arms = {"fastdiff.accelerate": accelerated, **arms}
            checked = f"{difference:.1e} from the network as it is"
        row = self.row("network", "network, one call", arms, self.batch, "sample-step", checked)
        if missing is not None:
            row["peers"]["fastdiff.accelerate"] = {"missing": missing}
        return fast, row

    def arguments_of_a_call(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Returns (x, t, condition) of the last call that a run makes."""
        recorded = RecordedNetwork(self.network)
        self.run_of(recorded)()
        assert recorded.arguments is not None
        return recorded.arguments

    def whole_run(self, fast: Any) -> dict[str, Any]:
        """Measures runs by fastdiff, with the accelerated and the plain network, and by diffusers.

        The row also has samples per second and, on the CPU, the share of a run that is spent
        outside the network.
        """
        arms = {"fastdiff": self.run_of(fast)}
        if fast is not self.network:
            arms["fastdiff, network as it is"] = self.run_of(self.network)
        peer, checked = self.diffusers_run(self.network), "finite"
        if not isinstance(peer, str):
            arms["diffusers"] = peer
        result = arms["fastdiff"]()
        if not result.isfinite().all():
            raise RuntimeError(
                "expected finite samples, got others. Check the model's prediction type."
            )
        if not isinstance(peer, str) and not self.stochastic:
            difference = _difference(result, peer())
            agrees = "as" if difference <= AGREES else "NOT as"
            checked = f"{agrees} diffusers' ({difference:.1e})"
        what = f"run, {self.plan.info.get('solver', 'plan')}"
        row = self.row("sampling", what, arms, self.batch * self.steps, "sample-step", checked)
        if isinstance(peer, str):
            row["peers"]["diffusers"] = {"missing": peer}
        row["images_per_s"] = [round(1 / (us * 1e-6 * self.steps), 3) for us in reversed(row["us"])]
        if self.device.type == "cpu":
            row["overhead_percent"] = self.overhead(fast)
        return row

    def loop_alone(self) -> dict[str, Any]:
        """Measures the loop around a network that costs nothing."""
        batch, channels, *rest = self.shape
        if (self.plan.column("noise_mode") != 0).any():
            channels *= 2  # the plan reads a learned variance
        generator = torch.Generator().manual_seed(1)
        out = torch.randn(batch, channels, *rest, generator=generator).to(self.device)
        both_halves = torch.cat([out, out])

        def constant(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return both_halves if len(x) == len(both_halves) else out

        arms = {"fastdiff": self.run_of(constant)}
        peer = self.diffusers_run(constant)
        if not isinstance(peer, str):
            arms["diffusers"] = peer
        row = self.row(
            "loop", "loop, the network costing nothing", arms, self.steps, "step", "finite"
        )
        if isinstance(peer, str):
            row["peers"]["diffusers"] = {"missing": peer}
        return row

    def overhead(self, network: Any, runs: int = 5) -> list[float]:
        """Returns [p20, p50, p80] of the percentage of a run that is spent outside the network."""
        timed = timed_network(network)
        run, shares = self.run_of(timed), []
        for _ in range(runs + 1):
            timed.seconds, begin = 0.0, time.perf_counter()
            run()
            shares.append(100 * (1 - timed.seconds / (time.perf_counter() - begin)))
        return [round(v, 3) for v in spread(shares[1:])]

    def sampler(self, network: Any) -> Sampler:
        """Returns a Sampler of the model's plan around this network."""
        return Sampler(network, self.schedule, plan=self.plan, guidance_scale=self.gamma)

    def run_of(self, network: Any) -> Arm:
        """Returns a whole run by fastdiff around this network."""
        sampler = self.sampler(network)
        return lambda: sampler.sample(x_T=self.start, seed=0, cond=self.cond, uncond=self.uncond)

    def diffusers_run(self, network: Any) -> Arm | str:
        """Returns a whole run by diffusers around this network, or the reason why there is none."""
        try:
            scheduler, step = diffusers.scheduler_of(self.sampler(network), self.name)
        except diffusers.Missing as reason:
            return str(reason)
        start = self.start.to(own_dtype(network, torch.float32))
        return lambda: diffusers.loop(
            scheduler,
            network,
            self.steps,
            start,
            cond=self.cond,
            uncond=self.uncond,
            gamma=self.gamma,
            step=step,
            schedule=self.schedule,
        )

    @property
    def stochastic(self) -> bool:
        """Whether runs draw noise, so that those of diffusers differ."""
        return any((self.plan.column(f"{to}.z") != 0).any() for to in OUTPUTS)

    def row(
        self, kind: str, what: str, arms: dict[str, Arm], count: int, unit: str, checked: str
    ) -> dict[str, Any]:
        """Measures the arms, of which the first is fastdiff's, and returns the row.

        count: how many units one call computes, such as steps times samples of a "sample-step".
        """
        times = self.measured(arms)
        ours, *others = arms
        us = {
            name: [round(1e6 * v / count, 3) for v in spread(values)]
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

    def measured(self, arms: dict[str, Arm]) -> dict[str, list[float]]:
        """Returns interleaved times in seconds: as many rounds as fit the time, at least three."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None

        def finished(arm: Arm) -> Arm:
            return lambda: (arm(), wait())

        arms = {name: finished(arm) for name, arm in arms.items()}
        for arm in arms.values():
            arm()
        begin = time.perf_counter()
        for arm in arms.values():
            arm()
        once = time.perf_counter() - begin
        return interleave(arms, rounds=max(3, min(500, int(self.seconds / once / 2))))


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _moved(half: Mapping[str, Any] | None, device: torch.device) -> dict[str, Any] | None:
    """Returns a half's keyword arguments with their tensors on the device."""
    if half is None:
        return None
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in half.items()}


def _difference(result: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest value expected."""
    largest = expected.double().abs().max()
    return float((result.double() - expected.double()).abs().max() / largest)
