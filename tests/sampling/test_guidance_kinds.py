"""CFG-Zero* (Fan et al. 2025) and adaptive projected guidance (Sadat et al. 2024) in samplers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Plan, Sampler, Schedule
from fastdiff.jobs.spec import plan_from_json, plan_to_json
from fastdiff.solvers import make_plan
from fastdiff.table import VERSIONS, version_of

SCHEDULES = {"epsilon": Schedule.linear(1000), "v": Schedule.cosine(1000), "flow": Schedule.flow()}
SOLVERS = {"epsilon": "ddim", "v": "ddim", "flow": "flow_euler"}
APG: dict[str, dict[str, Any]] = {
    "projected": {},
    "a part, bounded": {"apg_eta": 0.3, "apg_norm": 0.9},
    "momentum": {"apg_momentum": -0.5, "apg_norm": 1.4},
    "of outputs": {"apg_momentum": -0.75, "apg_space": "output", "apg_norm": 0.5},
}
TYPES: list[dict[str, Any]] = [
    {"guidance_type": "cfg_zero_star"},
    {"guidance_type": "cfg_zero_star", "zero_init_steps": 0},
    *({"guidance_type": "apg", **options} for options in APG.values()),
]
NAMES = ["zero star", "without zeros", *APG]


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Elementwise, with plain arithmetic: the same bits in any batch."""
    column = (-1, *(1,) * (x.ndim - 1))
    y = y.to(x.dtype).view(column)
    return 0.8 * x / (1 + x.abs()) + 0.1 * y + 0.05 * y * x


COND, UNCOND = {"y": torch.tensor([1, 2, 3])}, {"y": torch.zeros(3, dtype=torch.int64)}
BOTH: dict[str, Any] = {"cond": COND, "uncond": UNCOND}
X = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sampler(kind: str, **options: Any) -> Sampler:
    options = {"solver": SOLVERS[kind], "steps": 5} | options
    return Sampler(network, SCHEDULES[kind], prediction_type=kind, **options)


def x0_of(kind: str, x: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    """By the definition of each prediction type."""
    if kind == "epsilon":
        return (x - sigma * out) / alpha
    return alpha * x - sigma * out if kind == "v" else x - sigma * out


def eps_of(kind: str, x: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    if kind == "epsilon":
        return out
    return sigma * x + alpha * out if kind == "v" else x + alpha * out


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, *(1,) * (a.ndim - 1))


def levels(plan: Plan) -> np.ndarray:
    assert plan.levels is not None
    return plan.levels


@pytest.mark.parametrize("gamma", [3.0, 0.0, -0.5])
@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_zero_star_is_the_papers(kind: str, zeros: int, gamma: float, backend: str) -> None:
    """(1 - w) s u + w c, with zeros for the first outputs."""
    ours = sampler(kind, guidance_type="cfg_zero_star", zero_init_steps=zeros)
    x = X
    for row in range(5):
        (alpha, sigma), (alpha_s, sigma_s) = levels(ours.plan)[row : row + 2]
        t = torch.tensor(ours.plan.column("t")[row])
        c, u = network(x, t, COND["y"]), network(x, t, UNCOND["y"])
        s = dot(c, u) / (dot(u, u) + 1e-8)
        out = (1 - gamma) * s * u + gamma * c if row >= zeros else torch.zeros_like(x)
        x0, eps = (of(kind, x, out, alpha, sigma) for of in (x0_of, eps_of))
        if row < zeros and kind == "flow":  # dx = out dt: x stays
            torch.testing.assert_close(alpha_s * x0 + sigma_s * eps, x, rtol=1e-12, atol=0)
        x = alpha_s * x0 + sigma_s * eps
    got = ours.sample(x_T=X, guidance_scale=gamma, **BOTH)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [4.0, 0.0, -0.5])
@pytest.mark.parametrize("options", APG.values(), ids=[*APG])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_apg_is_the_papers(kind: str, options: dict[str, Any], gamma: float, backend: str) -> None:
    """In the space of x0, with the running average of the differences; or of outputs."""
    ours = sampler(kind, guidance_type="apg", **options)
    by_x0 = options.get("apg_space", "x0") == "x0"
    x, average = X, torch.zeros_like(X)
    for row in range(5):
        (alpha, sigma), (alpha_s, sigma_s) = levels(ours.plan)[row : row + 2]
        t = torch.tensor(ours.plan.column("t")[row])
        c, u = network(x, t, COND["y"]), network(x, t, UNCOND["y"])
        on, off = (x0_of(kind, x, o, alpha, sigma) if by_x0 else o for o in (c, u))
        average = on - off + options.get("apg_momentum", 0.0) * average
        v, norm = average, dot(average, average).sqrt()
        if "apg_norm" in options:
            v = v * torch.minimum(torch.ones_like(norm), options["apg_norm"] / norm)
        parallel = dot(v, on) / dot(on, on) * on
        guided = on + (gamma - 1) * (v - parallel + options.get("apg_eta", 0.0) * parallel)
        x0 = guided if by_x0 else x0_of(kind, x, guided, alpha, sigma)
        x = alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma
    got = ours.sample(x_T=X, guidance_scale=gamma, **BOTH)
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", TYPES, ids=NAMES)
@pytest.mark.parametrize("kind, solver", [("epsilon", "dpm++2m"), ("v", "ddpm"), ("flow", "heun")])
def test_a_sample_has_the_same_bits_in_any_batch(
    kind: str, solver: str, options: dict[str, Any], backend: str
) -> None:
    """With strengths as numbers, in a tensor, and in lanes that earlier samples have left."""
    ours = sampler(kind, solver=solver, **options)
    gamma = torch.tensor([4.0, 0.0, 1.0])
    x = ours.sample((3, 2, 5), seed=3, guidance_scale=gamma, **BOTH)
    for i in range(3):
        halves = {name: {"y": half["y"][i : i + 1]} for name, half in BOTH.items()}
        for scale in (gamma[i : i + 1], float(gamma[i])):
            one = ours.sample((1, 2, 5), seed=3, sample_ids=[i], guidance_scale=scale, **halves)
            assert torch.equal(one[0], x[i])
    x = ours.sample((3, 2, 5), seed=3, guidance_scale=4.0, **BOTH)
    lanes = list(ours.stream(3, shape=(2, 5), batch_size=1, seed=3, guidance_scale=4.0, **BOTH))
    assert torch.equal(torch.cat(lanes), x)


@pytest.mark.parametrize("options", TYPES[1:], ids=NAMES[1:])
def test_where_it_is_off_it_is_plain(options: dict[str, Any], backend: str) -> None:
    """Strength 1 is the conditional network, as a number and in a tensor; so is a row outside the
    interval, which makes one call."""
    run: dict[str, Any] = {"seed": 5, "x_T": X.float()}
    plain = sampler("v").sample(cond=COND, **run)
    ours = sampler("v", **options)
    for gamma in (1.0, torch.ones(3)):
        assert torch.equal(ours.sample(guidance_scale=gamma, **run, **BOTH), plain)
    outside = sampler("v", guidance_interval=(1e6, 1e7), **options)
    assert torch.equal(outside.sample(guidance_scale=4.0, **run, **BOTH), plain)
    assert outside.plan.hash == sampler("v", guidance_interval=(1e6, 1e7)).plan.hash
    everything = {"guidance_type": "apg", "apg_eta": 1}
    assert sampler("v", **everything).plan.hash == sampler("v").plan.hash


def test_calls_of_the_network() -> None:
    """The first calls are not made; strength 0 calls both halves, unless there is no kind."""
    rows: list[int] = []

    def counted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows.append(len(x))
        return network(x, t, y)

    settings: dict[str, Any] = {"solver": "flow_euler", "steps": 4, "prediction_type": "flow"}
    for options, expected in (
        ({"guidance_type": "cfg_zero_star", "zero_init_steps": 2}, [6, 6]),
        ({"guidance_type": "apg"}, [6, 6, 6, 6]),
        ({}, [3, 3, 3, 3]),
    ):
        ours = Sampler(counted, SCHEDULES["flow"], **settings, **options)
        assert ours.plan.network_calls == len(expected)
        for scale in (0.0, [0.0] * 4):
            rows.clear()
            ours.sample(x_T=X, guidance_scale=scale, **BOTH)
            assert rows == expected
    ours = Sampler(counted, SCHEDULES["flow"], guidance_type="apg", **settings)
    rows.clear()
    ours.sample(x_T=X, guidance_scale=[3.0, 1.0, 0.0, 2.0], **BOTH)
    assert rows == [6, 3, 6, 6]


def test_momentum_begins_at_the_first_guided_row() -> None:
    """Rows outside the interval remember nothing; a run that begins later has a plan of its own."""
    ours = sampler("v", guidance_interval=(0.2, 2.0), **TYPES[4])
    assert ours.plan.slots == 4
    kinds, momentum = (ours.plan.column(f"guidance_{n}")[:-1] for n in ("kind", "momentum"))
    guided = np.flatnonzero(ours.plan.column("guidance_weight")[:-1])
    assert 1 < len(guided) < 5 and set(np.flatnonzero(kinds)) == set(guided)
    assert momentum[guided[0]] == 0 and (momentum[guided[1:]] != 0).all()
    whole = sampler("v", **TYPES[4])
    assert [whole.plan.enterable(row) for row in range(5)] == [True, *[False] * 4]
    later = whole.sample(x_T=X, start=2, guidance_scale=4.0, **BOTH)
    assert later.isfinite().all()
    zeros = sampler("flow", guidance_type="cfg_zero_star", zero_init_steps=3)
    assert zeros.plan.enterable(2)


@pytest.mark.parametrize("options", TYPES, ids=NAMES)
def test_gradients_of_a_run(options: dict[str, Any]) -> None:
    """Through all steps, to the strength too."""
    ours = sampler("v", steps=3, **options)
    gamma = torch.tensor([2.5, 0.5, -1.0], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, gamma: Tensor) -> Tensor:
        return ours.sample(x_T=x, guidance_scale=gamma, differentiable=True, **BOTH)

    assert torch.autograd.gradcheck(run, (X.clone().requires_grad_(), gamma))


@pytest.mark.parametrize("options", TYPES, ids=NAMES)
def test_versions_and_text(options: dict[str, Any]) -> None:
    plan = make_plan(SCHEDULES["v"], solver="ddim", steps=4, **options)
    assert version_of(plan.table) == 4 and "guided by" in str(plan)
    value = plan_to_json(plan)
    assert value["schema"] == 4
    again = plan_from_json(value)
    assert again.hash == plan.hash and np.array_equal(again.table, plan.table)
    plain = make_plan(SCHEDULES["v"], solver="ddim", steps=4, guidance_type="cfg++")
    digest = hashlib.sha256(f"fastdiff plan 3 {','.join(plain.columns[: VERSIONS[3]])}\n".encode())
    digest.update(np.ascontiguousarray(plain.table[:, : VERSIONS[3]], dtype="<f8").tobytes())
    assert plain.hash == digest.hexdigest() and "guided by" not in str(plain)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guidance_type": "apg", "zero_init_steps": 1}, "expected guidance_type 'cfg_zero_star' with"),
    ({"apg_norm": 2.0}, "expected guidance_type 'apg' with apg_norm, got 'cfg'"),
    ({"guidance_type": "cfg_zero_star", "apg_eta": 0}, "expected guidance_type 'apg' with apg_eta"),
    ({"guidance_type": "apg", "apg_norm": 0}, "expected apg_norm > 0 and finite"),
    ({"guidance_type": "apg", "apg_eta": "a"}, "expected apg_eta as a finite number"),
    ({"guidance_type": "apg", "apg_momentum": float("nan")}, "expected apg_momentum as a finite"),
    ({"guidance_type": "apg", "apg_space": "v"}, "expected apg_space in"),
    ({"guidance_type": "cfg_zero_star", "zero_init_steps": 0.5}, "expected zero_init_steps as a"),
    (
        {"guidance_type": "apg", "apg_momentum": -0.5, "solver": "pndm", "runge_kutta": True},
        "fewer",
    ),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler("epsilon", **options)


def test_refusals_of_a_run() -> None:
    ours = sampler("epsilon", **TYPES[4])
    with pytest.raises(ValueError, match="expected strengths other than 1 with apg_momentum"):
        ours.sample(x_T=X, guidance_scale=[2.0, 1.0, 2.0, 2.0, 2.0], **BOTH)
    with pytest.raises(ValueError, match="expected apg_momentum 0 with guidance="):
        ours.sample(x_T=X, guidance_scale=2.0, guidance=lambda x0, x, t: x0, **BOTH)


@pytest.mark.parametrize("options", [TYPES[0], TYPES[2], TYPES[3]], ids=str)
def test_a_guidance_of_x0_that_changes_nothing(options: dict[str, Any], backend: str) -> None:
    """The row in two parts gives the samples of the whole row."""
    ours = sampler("v", **options)
    run: dict[str, Any] = {"x_T": X, "guidance_scale": 4.0, **BOTH}
    whole = ours.sample(**run)
    parts = ours.sample(guidance=lambda x0, x, t: x0, **run)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_type": "apg"},
        {"guidance_rescale": 0.5},
        {"guidance_interval": (0.1, 2.0)},
        {"clip_range": 1.0},
        {"dynamic_threshold": 0.9},
        {"timesteps": [3, 1]},
        {"solver": "dpm++2m"},  # a default value is refused too
        {"steps": 25},
        {"prediction_type": "epsilon"},
        {"timestep_spacing": "trailing"},
        {"guidance_rescale": 0.0},
        {"guidance_type": "cfg"},
        {"eta": 0.5},
        {"stepz": 3},
    ],
    ids=str,
)
def test_a_ready_plan_refuses_settings_of_a_plan(settings: dict[str, Any]) -> None:
    """It would leave them out in silence."""
    plan = make_plan(SCHEDULES["v"], solver="ddim", steps=4, prediction_type="v")
    with pytest.raises(ValueError, match=f"with a ready plan, got '{next(iter(settings))}'"):
        Sampler(network, plan=plan, **settings)


def test_a_ready_plan_accepts_an_eta_of_zero_where_it_is_true() -> None:
    settings = {"solver": "ddim", "steps": 4, "prediction_type": "v"}
    still, noisy = (make_plan(SCHEDULES["v"], **settings, eta=eta) for eta in (0.0, 1.0))
    assert Sampler(network, plan=still, eta=0.0, clip_range=None).plan is still
    with pytest.raises(ValueError, match="with a ready plan, got 'eta'. Make the plan with them"):
        Sampler(network, plan=noisy, eta=0.0)
