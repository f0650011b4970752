"""One forward call of U-Nets and DiTs: eager, channels_last, torch.compile, accelerated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks import harness, model_zoo
from benchmarks.checks import relative_difference
from benchmarks.gpu.common import MODES, Row, Rows, Target
from benchmarks.peers import compiled

# relative difference from the network's output in float32
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def rows(target: Target) -> Rows:
    names = target.size(model_zoo.NAMES, ("fashion-mnist",))
    for name in names:
        for dtype in target.size((torch.float32, torch.bfloat16), (torch.float32,)):
            for batch in target.size((1, 16, 256), (2,)):
                yield f"{name} {dtype} {batch}", lambda a=(name, dtype, batch): row(target, *a)


def row(target: Target, name: str, dtype: torch.dtype, batch: int) -> Row:
    """Measures one call; fastdiff's arm is the accelerated network."""
    made = model_zoo.make(name, target.device)
    g = torch.Generator(target.device).manual_seed(0)
    x = torch.randn(batch, *made.shape, generator=g, device=target.device)
    t, condition = torch.full((batch,), 500, device=target.device), made.condition(batch)
    exact = model_zoo.call(made.module, x, t, condition)
    network = (
        made.module if dtype == torch.float32 else model_zoo.make(name, target.device, dtype).module
    )
    arms = {
        setting: _call(module, x, t, condition)
        for setting, module in model_zoo.settings(network).items()
    }
    call = _call(fastdiff.accelerate(network), x, t, condition)

    def check(out: Tensor) -> None:
        for arm, got in {
            "fastdiff": out,
            **{setting: run() for setting, run in arms.items()},
        }.items():
            if not relative_difference(got, exact) <= LIMITS[dtype]:
                raise AssertionError(
                    f"{name}, {arm}: expected within {LIMITS[dtype]:g} of float32, got"
                    f" {relative_difference(got, exact):.2g}"
                )

    others: dict[str, Any] = {f"eager, {setting}": arm for setting, arm in arms.items()}
    best = network if "channels_last" not in arms else model_zoo.settings(network)["channels_last"]
    modes = MODES[:1] if target.dry else MODES

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return model_zoo.call(best, x, t, condition)

    others["torch.compile"] = compiled(forward, x, t, modes=modes)
    work = harness.Workload(call, check, f"within {LIMITS[dtype]:g} of float32")
    case = {
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [batch, *made.shape],
        "batch": batch,
    }
    return harness.measure(
        target.setting,
        work,
        kind="network",
        what=name,
        case=case,
        peers=others,
        per="sample",
        divide=batch,
    )


def _call(module: Any, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Any:
    return lambda: model_zoo.call(module, x, t, condition)
