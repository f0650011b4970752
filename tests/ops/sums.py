"""Inputs, oracles and checks of the ops that sum over a sample, for the tests of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ops.cases import truth
from tolerances import SUM, VLB_SUM

from fastdiff import Schedule, ops, reference
from fastdiff.table import COLUMNS, INDEX
from fastdiff.theory.likelihood import vlb_table

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (3, 0), (2, 3, 7), (2, 4, 33, 33), (300, 2), (2, 1, 1024)]


class Op(NamedTuple):
    """An op, its oracle, and its inputs for a shape [B, …]; `grads` names those with gradients."""

    run: Callable[..., torch.Tensor]
    oracle: Callable[..., np.ndarray]
    inputs: Callable[[tuple[int, ...], torch.dtype], dict[str, torch.Tensor]]
    grads: tuple[str, ...]


def normal(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0
) -> torch.Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * scale
    ).to(dtype)


def levels(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Returns pixels of 256 levels in [-1, 1], many of them at both ends."""
    g = torch.Generator().manual_seed(5)
    return (torch.randint(-40, 296, shape, generator=g).clamp(0, 255) / 127.5 - 1).to(dtype)


def kl_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = ("mean1", "logvar1", "mean2", "logvar2")
    return {name: normal(shape, dtype, i, 1.5) for i, name in enumerate(names)}


def nll_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Returns scales far below and far above a bin's width, means near and many deviations away."""
    x0, log_scale = levels(shape, dtype), normal(shape, dtype, 1, 2.5) - 3
    return {"x0": x0, "mean": (x0 + normal(shape, dtype, 2, 0.4)).to(dtype), "log_scale": log_scale}


SCHEDULE = Schedule.linear(100)
TABLE = vlb_table(SCHEDULE, variance="learned_range", clip_range=1.0)


def vlb_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    x0, twice = levels(shape, dtype), shape
    if len(shape) > 1 and shape[1] % 2 == 0:
        twice = (shape[0], 2 * shape[1], *shape[2:])
    t = torch.arange(shape[0]) * 7 % 100  # the first sample is at t = 0
    alpha, sigma = (
        torch.tensor(v)[t].view(-1, *(1,) * (len(shape) - 1))
        for v in (SCHEDULE.alpha, SCHEDULE.sigma)
    )
    x_t = (alpha * x0.double() + sigma * normal(shape, torch.float64, 3)).to(dtype)
    return {
        "x0": x0,
        "x_t": x_t,
        "model_output": normal(twice, dtype, 4),
        "table": torch.tensor(TABLE),
        "t": t,
    }


def score_table(*, learned: bool) -> np.ndarray:
    """Returns rows with noise of both signs, clipped or not, with learned variance or not."""
    table = np.zeros((4, len(COLUMNS)))
    columns = {
        "network": [1, 1, 1, 1],
        "x0_x": [1.1, 1.4, 1.0, 2.0],
        "x0_out": [-0.4, -1.0, 0.0, -0.7],
        "clip_mode": [0, 1, 0, 1],
        "clip_bound": [0, 1, 0, 1.5],
        "noise_mode": [0, learned, learned, 0],
        "logvar_lo": [0, -2.0, -1.5, 0],
        "logvar_hi": [0, -1.0, 0.5, 0],
        "next": [1, 2, 3, 3],
        "x.x": [0.9, 0.0, 0.5, 0.2],
        "x.x0": [0.1, 0.9, 0.5, 0.7],
        "x.out": [0.0, 0.3, 0.0, -0.4],
        "x.z": [0.4, -0.5, 1.3, 0.6],
    }
    for name, values in columns.items():
        table[:, INDEX[name]] = values
    return table


def score_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    learned = len(shape) > 1 and shape[1] % 2 == 0 and shape[1] > 0
    twice = (shape[0], 2 * shape[1], *shape[2:]) if learned else shape
    return {
        "x_t": normal(shape, dtype, 0),
        "model_output": normal(twice, dtype, 1, 0.7),
        "x_s": normal(shape, dtype, 2),
        "table": torch.tensor(score_table(learned=learned)),
        "row": torch.arange(shape[0]) % 4,
    }


OPS = {
    "gaussian_kl": Op(
        ops.gaussian_kl, reference.gaussian_kl, kl_inputs, ("mean1", "logvar1", "mean2", "logvar2")
    ),
    "standard_kl": Op(
        ops.gaussian_kl,
        reference.gaussian_kl,
        lambda shape, dtype: {k: v for k, v in kl_inputs(shape, dtype).items() if k.endswith("1")},
        ("mean1", "logvar1"),
    ),
    "discretized_gaussian_nll": Op(
        ops.discretized_gaussian_nll,
        reference.discretized_gaussian_nll,
        nll_inputs,
        ("mean", "log_scale"),
    ),
    "vlb_terms": Op(ops.vlb_terms, reference.vlb_terms, vlb_inputs, ("model_output",)),
    "step_log_prob": Op(
        ops.step_log_prob, reference.step_log_prob, score_inputs, ("x_t", "model_output", "x_s")
    ),
    "noise_mse": Op(
        lambda prediction, weight, **k: ops.noise_mse(
            prediction, weight=weight, seed=2**63 + 9, step=3, **k
        ),
        lambda prediction, weight: reference.noise_mse(
            prediction, weight=weight, seed=2**63 + 9, step=3
        ),
        lambda shape, dtype: {
            "prediction": normal(shape, dtype, 6),
            "weight": 0.5 + torch.arange(shape[0]) % 4,
        },
        ("prediction",),
    ),
}


def check(op: Op, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compares the op with its oracle for the same inputs, and checks its dtype and shape."""
    inputs = op.inputs(shape, dtype)
    got = op.run(**inputs)
    expected = op.oracle(**{k: truth(v) for k, v in inputs.items()})
    assert (
        got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        and got.shape == shape[:1]
    )
    limit = (VLB_SUM if "x0" in inputs and "table" in inputs else SUM)[
        "float64" if dtype == torch.float64 else "float32"
    ]
    np.testing.assert_allclose(got.numpy(), expected, rtol=limit, atol=limit)


def check_batches(op: Op, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Checks that a sample's sum has the same bits in batches of any size, at any position."""
    inputs = op.inputs(shape, dtype)
    whole = op.run(**inputs)
    rows = shape[0]
    for picked in ([2], [5, 2], [6, 3, 1, 2, 0, 4, 5]):
        index = torch.tensor(picked) % rows
        kwargs = {} if "prediction" not in inputs else {"sample_ids": index}
        part = op.run(**{k: v[index] if k != "table" else v for k, v in inputs.items()}, **kwargs)
        assert torch.equal(part, whole[index])
