"""A training step's fused ops compared with eager formulas; the terms of a data set's bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import checks, formulas, harness, peers, training
from benchmarks.tiers import row
from fastdiff import Schedule, reference
from fastdiff.theory.likelihood import elbo, vlb_table

PIECES = tuple(training.pieces(2))
CASES = [
    row(
        "quick" if (name, batch) == ("VDM step", 64) else "default" if batch == 128 else "full",
        name,
        batch,
        id=f"{name}-{batch}",
    )
    for name in PIECES
    for batch in (64, 128, 512)
]


@pytest.mark.parametrize("name, batch", CASES)
def test_training(
    measured: Callable[..., Any], setting: harness.Setting, name: str, batch: int
) -> None:
    with torch.enable_grad():
        piece = training.pieces(batch, setting.device)[name]

    def run(results: Callable[..., Any], **more: Any) -> Any:
        with torch.enable_grad():
            return training.run(piece, results, **more)

    def check(got: Any) -> None:
        with torch.enable_grad():
            training.check(piece, got)

    theirs: dict[str, Any] = {"torch eager": lambda: run(piece.eager, noise=training.fresh)}
    if setting.tier == "full":
        theirs["torch.compile"] = compiled(piece, run)
    work = harness.Workload(
        lambda: run(piece.fused), check, "values and gradients to 1e-5 and 1e-3 of eager's norm"
    )
    case = {"batch": batch, "dtype": "float32", "shape": [batch, *training.IMAGE]}
    measured(work, kind="training", what=f"training {name}", case=case, peers=theirs)


def compiled(piece: training.Piece, run: Callable[..., Any]) -> Any:
    """Returns {mode: arm} of the eager formula and its backward pass, compiled; or `Missing`."""
    with torch.enable_grad():
        made = peers.compiled(
            lambda *leaves: piece.eager(*leaves, noise=training.fresh), *piece.leaves
        )
    if isinstance(made, peers.Missing):
        return made
    found: dict[str, Any] = {}
    for mode, arm in made.items():
        if isinstance(arm, peers.Missing):
            found[mode] = arm
            continue
        found[mode] = peers.Compiled(lambda call=arm.call.func: run(call), arm.seconds)
    return found


MEAN, STD = 0.2, 0.5


class Analytic:
    """The optimal network for data N(MEAN, STD²); its v is one multiplication and one addition."""

    def __init__(self, schedule: Schedule):
        alpha, sigma = schedule.alpha, schedule.sigma
        self.gain = alpha * sigma * (1 - STD**2) / (alpha**2 * STD**2 + sigma**2)
        self.offset = -sigma * MEAN - self.gain * alpha * MEAN

    def at(self, x: Any, t: int) -> Any:
        return self.gain[t] * x + self.offset[t]


@pytest.mark.parametrize(
    "images, steps",
    [
        row("quick", 64, 10, id="64-10"),
        row("default", 1000, 100, id="1000-100"),
        row("full", 10_000, 100, id="10000-100"),
    ],
)
def test_elbo(
    measured: Callable[..., Any], setting: harness.Setting, images: int, steps: int
) -> None:
    """All terms of the bound; the network is a formula. The eager peer computes noise, network and
    term one after the other.
    """
    schedule, device = Schedule.cosine(steps), setting.device
    model, timesteps = Analytic(schedule), iter(())
    levels = torch.arange(images * 4, device=device).view(images, 1, 2, 2) * 37 % 256
    x0 = levels / 127.5 - 1

    def network(x: Tensor, t: Tensor) -> Tensor:
        return model.at(x, next(timesteps))  # `elbo` takes the timesteps in order

    def ours() -> Any:
        nonlocal timesteps
        timesteps = iter(range(steps))
        return elbo(network, x0, schedule, prediction_type="v", variance="fixed_large", seed=5)

    rows = vlb_table(schedule, prediction_type="v", variance="fixed_large")
    table = torch.tensor(rows, device=device)

    def check(got: Any) -> None:
        clean, every = checks.as_numpy(x0[:8]), range(0, steps, 7)
        for t in every:
            noised = reference.q_sample(
                clean, np.full(8, t), schedule.alpha, schedule.sigma, seed=5, step=t
            )
            out = model.at(noised, t).astype(np.float32)
            expected = reference.vlb_terms(clean, noised, out, rows, np.full(8, t))
            term = got.reconstruction[:8] if t == 0 else got.denoising[:8, t]
            np.testing.assert_allclose(checks.as_numpy(term), expected, rtol=2e-4, atol=1e-5)

    alpha, sigma = (
        torch.tensor(v, device=device, dtype=torch.float32)
        for v in (schedule.alpha, schedule.sigma)
    )
    times = torch.arange(steps, device=device)[:, None].expand(steps, images)

    def eager() -> Tensor:
        terms = []
        for k in range(steps):
            t = times[k]
            x_t = formulas.q_sample(torch.randn_like, x0, t, alpha, sigma)
            terms.append(_term(x0, x_t, model.at(x_t, k), table, t))
        return torch.stack(terms, dim=1)

    elements = x0.numel() * steps
    measured(
        harness.Workload(ours, check, "rtol 2e-4 to NumPy"),
        kind="elbo",
        what="elbo",
        peers={"torch eager": eager},
        per="image",
        divide=images,
        elements=elements,
        case={"batch": images, "steps": steps, "shape": list(x0.shape), "dtype": "float32"},
    )


def _term(x0: Tensor, x_t: Tensor, out: Tensor, table: Tensor, t: Tensor) -> Tensor:
    """Returns the terms as formulas.vlb_terms does, with a fixed variance."""
    x0_x, x0_out, _, mean_x0, mean_x, logvar_q, low, _, _ = (
        formulas.wide(c, x0) for c in table[t].unbind(1)
    )
    predicted = x0_x * x_t + x0_out * out
    true, model = mean_x0 * x0 + mean_x * x_t, mean_x0 * predicted + mean_x * x_t
    kl = formulas.gaussian_kl(
        torch.randn_like, true, logvar_q.expand_as(x0), model, low.expand_as(x0)
    )
    first = formulas.discretized_gaussian_nll(
        torch.randn_like, x0, model, (0.5 * low).expand_as(x0)
    )
    return torch.where(t == 0, first, kl)
