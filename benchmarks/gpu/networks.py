"""One forward call of U-Nets and DiTs in each mode: eager, channels_last, torch.compile's modes,
fastdiff.accelerate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks import harness, networks
from benchmarks.gpu.common import MODES, Place, Row, Rows, off
from benchmarks.peers import compiled

LIMITS = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
}  # of the network's output in float32, by the norm


def rows(place: Place) -> Rows:
    names = place.size(networks.NAMES, ("fashion-mnist",))
    for name in names:
        for dtype in place.size((torch.float32, torch.bfloat16), (torch.float32,)):
            for batch in place.size((1, 16, 256), (2,)):
                yield f"{name} {dtype} {batch}", lambda a=(name, dtype, batch): row(place, *a)


def row(place: Place, name: str, dtype: torch.dtype, batch: int) -> Row:
    """Ours is the accelerated network."""
    made = networks.make(name, place.device)
    g = torch.Generator(place.device).manual_seed(0)
    x = torch.randn(batch, *made.shape, generator=g, device=place.device)
    t, condition = torch.full((batch,), 500, device=place.device), made.condition(batch)
    exact = networks.call(made.module, x, t, condition)
    network = (
        made.module if dtype == torch.float32 else networks.make(name, place.device, dtype).module
    )
    arms = {
        setting: _call(module, x, t, condition)
        for setting, module in networks.settings(network).items()
    }
    call = _call(fastdiff.accelerate(network), x, t, condition)

    def check(out: Tensor) -> None:
        for arm, got in {
            "fastdiff": out,
            **{setting: run() for setting, run in arms.items()},
        }.items():
            if not off(got, exact) <= LIMITS[dtype]:
                raise AssertionError(
                    f"{name}, {arm}: expected within {LIMITS[dtype]:g} of float32, got"
                    f" {off(got, exact):.2g}"
                )

    others: dict[str, Any] = {f"eager, {setting}": arm for setting, arm in arms.items()}
    best = network if "channels_last" not in arms else networks.settings(network)["channels_last"]
    modes = MODES[:1] if place.dry else MODES

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return networks.call(best, x, t, condition)

    others["torch.compile"] = compiled(forward, x, t, modes=modes)
    work = harness.Work(call, check, f"within {LIMITS[dtype]:g} of float32")
    case = {
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [batch, *made.shape],
        "batch": batch,
    }
    return harness.measure(
        place.setting,
        work,
        kind="network",
        what=name,
        case=case,
        peers=others,
        per="sample",
        divide=batch,
    )


def _call(module: Any, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Any:
    return lambda: networks.call(module, x, t, condition)
