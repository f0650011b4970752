"""Networks and whole runs: fastdiff compared with diffusers' loop in its best setting and
torch.compile.

On a CPU the default tier runs 3 steps of a batch of at most 16. Times are per sample and step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from benchmarks import harness, model_zoo, peers
from benchmarks.checks import relative_difference
from benchmarks.test_loops import overhead
from benchmarks.tiers import row
from fastdiff import Sampler
from fastdiff.backend.hardware import has_amx

STEPS = {"ddim": 50, "dpm++2m": 20}
FEW = 3
BATCHES = (1, 8, 16, 256)
# relative difference of a run from that of the eager network
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
QUICK = {("fashion-mnist", "ddim", 1)}
DEFAULT = {
    ("fashion-mnist", "ddim", 16),
    ("fashion-mnist", "dpm++2m", 16),
    ("unet-cifar", "dpm++2m", 1),
    ("unet-cifar", "ddim", 8),
    ("dit-b/4", "dpm++2m", 1),
}
CASES = [
    row(
        "quick" if case in QUICK else "default" if case in DEFAULT else "full",
        *case,
        "float32",
        gpu_only=name == "dit-xl/2" or batch == 256,
        id="-".join(map(str, (*case, "float32"))),
    )
    for name in model_zoo.NAMES
    for solver in STEPS
    for batch in BATCHES
    for case in [(name, solver, batch)]
] + [
    row("full", name, "ddim", 16, "bfloat16", id=f"{name}-ddim-16-bfloat16")
    for name in model_zoo.NAMES
]
COMPILED = {("unet-cifar", "ddim", 8)}


def network_or_skip(name: str, device: str, dtype: str) -> model_zoo.Network:
    if dtype == "bfloat16" and device == "cpu" and not has_amx():
        pytest.skip("this processor has no AMX, so bf16 is slow")
    try:
        return model_zoo.make(name, device, getattr(torch, dtype))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def checked_against(
    expected: Callable[[], Tensor], dtype: str
) -> tuple[Callable[[Any], None], str]:
    """Returns (a check against the eager network's result, its description)."""
    results: list[Tensor] = []

    def check(got: Any) -> None:
        if not results:
            results.append(expected())
        error = relative_difference(got, results[0])
        if not error <= TOLERANCE[dtype]:
            raise AssertionError(f"the result is {error:.2g} of its norm from the eager network's")

    return check, f"norm of the difference to the eager network <= {TOLERANCE[dtype]:g}"


def compiled(network: model_zoo.Network, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Any:
    """Returns {mode: arm of one call} of the network by torch.compile; or `Missing`.

    Each mode costs minutes. On a CPU `reduce-overhead` is left out: its code is that of `default`.
    """
    modes = tuple(mode for mode in peers.MODES if x.is_cuda or mode != "reduce-overhead")
    return peers.compiled(
        lambda x, t: model_zoo.call(network.module, x, t, condition), x, t, modes=modes
    )


@pytest.mark.parametrize("name, solver, batch, dtype", CASES)
def test_sampling(
    measured: Callable[..., Any],
    setting: harness.Setting,
    name: str,
    solver: str,
    batch: int,
    dtype: str,
) -> None:
    network = network_or_skip(name, setting.device, dtype)
    many = setting.device == "cuda" or setting.tier == "full"
    steps = STEPS[solver] if many else FEW
    condition, shape = network.condition(batch), (batch, *network.shape)
    options: dict[str, Any] = {
        "solver": solver,
        "steps": steps,
        "prediction_type": network.prediction_type,
    }

    def sampler(module: Any) -> Callable[[], Tensor]:
        made = Sampler(module, network.schedule, **options)
        return lambda: made.sample(shape, seed=1, cond=condition)

    check, words = checked_against(sampler(network.module), dtype)
    theirs: dict[str, Any] = {"diffusers": {}}
    for setting_name, module in model_zoo.settings(network.module).items():
        theirs["diffusers"][setting_name] = model_zoo.pipeline(
            network, solver, steps, lambda x, t, m=module: model_zoo.call(m, x, t, condition), batch
        )
    if setting.tier == "full" or (setting.tier == "default" and (name, solver, batch) in COMPILED):
        x = torch.randn(shape, device=setting.device, dtype=getattr(torch, dtype))
        t = torch.full((batch,), 500, device=setting.device)
        made = compiled(network, x, t, condition)
        if isinstance(made, dict):
            made = {mode: _loop(arm, network, solver, steps, batch) for mode, arm in made.items()}
        theirs["torch.compile"] = made
    work = harness.Workload(sampler(fastdiff.accelerate(network.module)), check, words)
    case = {
        "network": name,
        "solver": solver,
        "batch": batch,
        "dtype": dtype,
        "steps": steps,
        "shape": list(shape),
    }
    measured(
        work,
        kind="sampling",
        what=f"sampling {name} {solver}",
        case=case,
        peers=theirs,
        per="sample-step",
        divide=batch * steps,
    )


def _loop(arm: Any, network: model_zoo.Network, solver: str, steps: int, batch: int) -> Any:
    """Returns diffusers' loop around a compiled network."""
    if isinstance(arm, peers.Missing):
        return arm
    loop = model_zoo.pipeline(network, solver, steps, arm.call.func, batch)
    return loop if isinstance(loop, peers.Missing) else peers.Compiled(loop, arm.seconds)


CALLS = [
    row(
        "quick" if (name, batch) == ("fashion-mnist", 1) else "default" if batch == 1 else "full",
        name,
        batch,
        gpu_only=name == "dit-xl/2" or batch == 256,
        id=f"{name}-{batch}",
    )
    for name in model_zoo.NAMES
    for batch in BATCHES
]


@pytest.mark.parametrize("name, batch", CALLS)
def test_network(
    measured: Callable[..., Any], setting: harness.Setting, name: str, batch: int
) -> None:
    """One call: accelerated, plain in each setting, and compiled."""
    network = network_or_skip(name, setting.device, "float32")
    x = torch.randn(batch, *network.shape, device=setting.device)
    t, condition = torch.full((batch,), 500, device=setting.device), network.condition(batch)

    def arm(module: Any) -> Callable[[], Tensor]:
        return lambda: model_zoo.call(module, x, t, condition)

    check, words = checked_against(arm(network.module), "float32")
    theirs: dict[str, Any] = {
        "torch eager": {k: arm(m) for k, m in model_zoo.settings(network.module).items()}
    }
    if setting.tier == "full":
        theirs["torch.compile"] = compiled(network, x, t, condition)
    case = {"network": name, "batch": batch, "dtype": "float32", "shape": list(x.shape)}
    work = harness.Workload(arm(fastdiff.accelerate(network.module)), check, words)
    measured(
        work,
        kind="network",
        what=f"network {name}",
        case=case,
        peers=theirs,
        per="sample-step",
        divide=batch,
    )


@pytest.mark.parametrize("batch", [row("full", 1), row("default", 8), row("full", 64)])
def test_overhead(
    benchmark: Any, setting: harness.Setting, report_row: Callable[..., None], batch: int
) -> None:
    """The share of a run of the shipped U-Net that the loop, its set-up and the steps take."""
    steps = 3 if setting.tier != "full" else 10
    shares = overhead(batch, runs=setting.rounds + 1, steps=steps)
    run = model_zoo.make("fashion-mnist", "cpu")
    sampler = Sampler(
        run.module, run.schedule, solver="ddim", steps=steps, prediction_type=run.prediction_type
    )
    condition = run.condition(batch)

    def call() -> Tensor:
        return sampler.sample((batch, *run.shape), seed=0, cond=condition)

    check, words = checked_against(call, "float32")
    row = harness.measure(
        setting._replace(device="cpu"),
        harness.Workload(call, check, words),
        kind="sampling",
        peers={},
        per="sample-step",
        what="engine's share",
        case={"network": "fashion-mnist", "batch": batch, "steps": steps},
        divide=batch * steps,
    )
    row["overhead_percent"] = [round(100 * share, 2) for share in harness.spread(shares)]
    report_row(benchmark, row, call)
