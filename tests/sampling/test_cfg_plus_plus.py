"""CFG++: x0 of the guided output, noise of the unconditional one (Chung et al. 2024)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Plan, Sampler, Schedule, ops
from fastdiff.jobs.spec import plan_from_json, plan_to_json
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.table import VERSIONS, version_of

SCHEDULES = {"epsilon": Schedule.linear(1000), "v": Schedule.cosine(1000), "flow": Schedule.flow()}
SOLVER = {"epsilon": ("ddim", "euler", "dpm++1"), "v": ("ddim", "euler"), "flow": ("flow_euler",)}
CASES = [(kind, solver) for kind in SCHEDULES for solver in SOLVER[kind]]


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Elementwise, with plain arithmetic: the same bits in any batch."""
    column = (-1, *(1,) * (x.ndim - 1))
    return 0.8 * x / (1 + x.abs()) + 0.1 * y.to(x.dtype).view(column)


COND, UNCOND = {"y": torch.tensor([1, 2, 3])}, {"y": torch.zeros(3, dtype=torch.int64)}
BOTH: dict[str, Any] = {"cond": COND, "uncond": UNCOND}
X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sampler(kind: str, solver: str, **options: Any) -> Sampler:
    options = {"guidance_type": "cfg++", "steps": 5} | options
    return Sampler(network, SCHEDULES[kind], solver=solver, prediction_type=kind, **options)


def of_output(
    kind: str, x: Tensor, out: Tensor, alpha: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """(x0, eps) by the definition of each prediction type."""
    if kind == "epsilon":
        return (x - sigma * out) / alpha, out
    if kind == "v":
        return alpha * x - sigma * out, sigma * x + alpha * out
    return x - sigma * out, x + alpha * out  # flow: out = eps - x0, alpha + sigma = 1


@pytest.mark.parametrize("gamma", [0.6, 0.2, 3.0])
@pytest.mark.parametrize("kind, solver", CASES)
def test_a_step_is_the_papers(kind: str, solver: str, gamma: float, backend: str) -> None:
    """x_s = alpha_s x0(guided) + sigma_s eps(unconditional), on every backend."""
    ours = sampler(kind, solver)
    plan, x = ours.plan, X
    assert plan.levels is not None and version_of(plan.table) == 3
    for row in range(len(plan)):
        (alpha, sigma), (alpha_s, sigma_s) = plan.levels[row], plan.levels[row + 1]
        t = torch.tensor(plan.column("t")[row])
        c, u = network(x, t, COND["y"]), network(x, t, UNCOND["y"])
        x0, _ = of_output(kind, x, u + gamma * (c - u), alpha, sigma)
        _, eps = of_output(kind, x, u, alpha, sigma)
        x = alpha_s * x0 + sigma_s * eps
    got = ours.sample(x_T=X, guidance_scale=gamma, **BOTH)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    plain = sampler(kind, solver, guidance_type="cfg").sample(x_T=X, guidance_scale=gamma, **BOTH)
    assert (got - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    "kind, solver", [*CASES, ("epsilon", "ddpm"), ("epsilon", "euler_ancestral")]
)
def test_where_it_is_off_it_is_plain(kind: str, solver: str, backend: str) -> None:
    """Strength 1 is the conditional network and 0 the unconditional one, to the bit the same as
    numbers and in tensors; rows outside the interval are those of plain guidance.

    A solver written in x and x0 has other coefficients here, so another rounding.
    """
    ours, alone = sampler(kind, solver), sampler(kind, solver, guidance_type="cfg")
    run: dict[str, Any] = {"seed": 5, "x_T": X.float()}
    plain = alone.sample(cond=COND, **run)
    cond = ours.sample(guidance_scale=1.0, **run, **BOTH)
    assert torch.equal(cond, plain) or solver != "ddim"
    assert torch.allclose(cond, plain, rtol=1e-4, atol=1e-4)
    for gamma in (torch.ones(3), torch.tensor([1.0, 0.4, 1.0])):
        mixed = ours.sample(guidance_scale=gamma, **run, **BOTH)
        assert torch.equal(mixed[[0, 2]], cond[[0, 2]])
    assert torch.equal(mixed[1], ours.sample(guidance_scale=0.4, **run, **BOTH)[1])
    zero = ours.sample(guidance_scale=0.0, **run, **BOTH)
    assert torch.equal(ours.sample(guidance_scale=torch.zeros(3), **run, **BOTH), zero)
    assert torch.allclose(zero, alone.sample(cond=UNCOND, **run), rtol=1e-4, atol=1e-4)
    outside = sampler(kind, solver, guidance_interval=(1e6, 1e7))
    assert torch.equal(outside.sample(guidance_scale=0.4, **run, **BOTH), plain)
    assert (
        outside.plan.hash
        == alone.__class__(
            network,
            SCHEDULES[kind],
            solver=solver,
            prediction_type=kind,
            steps=5,
            guidance_interval=(1e6, 1e7),
        ).plan.hash
    )


def test_a_sample_has_the_same_bits_in_any_batch(backend: str) -> None:
    ours = sampler("epsilon", "euler_ancestral", guidance_rescale=0.5)
    gamma = torch.tensor([0.4, 0.7, 1.0])
    x = ours.sample((3, 7), seed=3, guidance_scale=gamma, **BOTH)
    for i in range(3):
        halves = {name: {"y": half["y"][i : i + 1]} for name, half in BOTH.items()}
        for scale in (gamma[i : i + 1], float(gamma[i])):
            one = ours.sample((1, 7), seed=3, sample_ids=[i], guidance_scale=scale, **halves)
            assert torch.equal(one[0], x[i])


@pytest.mark.parametrize("by_strength", [False, True], ids=["vjp", "formula"])
def test_gradients(by_strength: bool) -> None:
    plan = make_plan(
        SCHEDULES["v"], solver="ddim", steps=4, prediction_type="v", guidance_type="cfg++"
    )
    table, row = torch.tensor(plan.table), torch.tensor([1, 1, 2])
    gamma = torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64)[: 3 if not by_strength else 1]
    if by_strength:
        row = row[:1]
    n = len(row)
    x = X[:n].clone().requires_grad_()
    output = torch.randn(2 * n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gamma.requires_grad_(by_strength)

    def step(x: Tensor, output: Tensor, gamma: Tensor) -> Tensor:
        return ops.reverse_step(x, output, table, row, guidance=gamma)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(step, (x, output.requires_grad_(), gamma))


def test_plans_without_it_keep_their_version_and_hash() -> None:
    """A hash is of the columns of the first version that has all that the table uses."""
    settings: dict[str, Any] = {"solver": "ddim", "steps": 5}
    plain = make_plan(SCHEDULES["epsilon"], **settings)
    old = VERSIONS[2]
    digest = hashlib.sha256(f"fastdiff plan 2 {','.join(plain.columns[:old])}\n".encode())
    digest.update(np.ascontiguousarray(plain.table[:, :old], dtype="<f8").tobytes())
    assert old == 56 and plain.hash == digest.hexdigest()
    plus = make_plan(SCHEDULES["epsilon"], guidance_type="cfg++", **settings)
    assert plus.hash != plain.hash and "uncond" in str(plus) and "uncond" not in str(plain)
    for plan, version in ((plain, 2), (plus, 3)):
        value = plan_to_json(plan)
        assert value["schema"] == version
        again: Plan = plan_from_json(value)
        assert again.hash == plan.hash and np.array_equal(again.table, plan.table)
    with pytest.raises(ValueError, match="expected a plan of schema"):
        plan_from_json({**plan_to_json(plain), "schema": max(VERSIONS) + 1})


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_equal_halves_give_plain_samples(solver: str) -> None:
    """For every solver of one call a step; all others are refused in a sentence."""
    kind = "flow" if solver.startswith("flow") else "epsilon"
    try:
        ours = sampler(kind, solver)
    except ValueError as error:
        assert "one network call a step" in str(error) or "epsilon" in str(error)
        return
    run: dict[str, Any] = {"seed": 1, "cond": COND, "dtype": torch.float64}
    got = ours.sample((3, 5), guidance_scale=0.4, uncond=COND, **run)
    want = sampler(kind, solver, guidance_type="cfg").sample((3, 5), **run)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ["dpm++2m", "heun", "unipc", "dpm++2s"])
def test_solvers_of_more_calls_are_refused(solver: str) -> None:
    with pytest.raises(ValueError, match="expected a solver of one network call a step"):
        sampler("epsilon", solver)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="expected guidance_type in"):
        sampler("epsilon", "ddim", guidance_type="cfg+")
    with pytest.raises(ValueError, match="expected guidance_type 'cfg' with guidance="):
        sampler("epsilon", "ddim").sample(
            x_T=X, guidance_scale=0.5, guidance=lambda x0, x, t: x0, **BOTH
        )
