"""`step_log_prob`, and `log_prob_out` of `reverse_step`: the density of what a row draws.

test_sums.py tests what it shares with the other sums. This file is over 400 lines because both
forms are compared on the same rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import DTYPES, name, outside, random_table, truth
from ops.sums import OPS, normal, score_inputs
from tolerances import LOG_PROB, SUM
from torch import Tensor

import fastdiff
from fastdiff import Schedule, ops, reference
from fastdiff.backend import library
from fastdiff.backend.abi import COUNTED
from fastdiff.ops.step import StepArguments, workspace_for, workspace_rows
from fastdiff.solvers import SOLVERS, Plan, make_plan
from fastdiff.table import INDEX, columns

SCHEDULE = Schedule.scaled_linear(1000)
SHAPES = [(2, 3, 7), (7,), (1, 1), (300, 2), (2, 2, 33, 33), (3, 2, 0), (0, 4)]
ON_Z = INDEX["x.z"]


def _plans() -> dict[str, Plan]:
    """Returns a plan of every configuration of every solver that draws noise for the next x."""
    plans = {}
    for solver in SOLVERS.values():
        for c in solver.configurations:
            try:
                plan = make_plan(SCHEDULE, solver=solver.name, steps=5, clip_range=2.0, **c.options)
            except ValueError:  # of another space, or from data to noise
                continue
            if plan.table[:, ON_Z].any():
                plans[f"{solver.name} {dict(c.options) or ''}".strip()] = plan
    learned = {"variance_type": "learned_range"}
    plans["ddpm, learned"] = make_plan(SCHEDULE, solver="ddpm", steps=5, **learned)
    return plans


PLANS = _plans()


def test_every_stochastic_solver_has_a_plan() -> None:
    found = {name.split()[0].rstrip(",") for name in PLANS}
    stochastic = {s.name for s in SOLVERS.values() if s.stochastic and not s.reverse}
    assert stochastic <= found


def _normal_log_prob(plan: Plan, k: int, given: dict[str, Any], x_s: Tensor) -> Tensor:
    """Returns torch's log-density in float64, from the plan's row alone: x0, then the mean."""
    c = dict(zip(plan.columns, plan.table[k].tolist(), strict=True))
    wide = {key: v.double() for key, v in given.items() if v is not None}
    x, output = wide["x_t"], wide.get("model_output")
    out, v = (
        output.chunk(2, dim=1) if output is not None and output.shape != x.shape else (output, None)
    )
    x0 = c["x0_x"] * x + (c["x0_out"] * out if out is not None else 0)
    x0 = x0.clamp(-c["clip_bound"], c["clip_bound"]) if c["clip_mode"] else x0
    mean = c["x.x"] * x + c["x.x0"] * x0 + (c["x.out"] * out if out is not None else 0)
    for i in range(4):
        if c[f"x.s{i + 1}"]:
            mean = mean + c[f"x.s{i + 1}"] * wide["slots"][i]
    std = torch.full_like(x, abs(c["x.z"]))
    if c["noise_mode"]:
        std = std * torch.exp(
            0.5 * (c["logvar_lo"] + (c["logvar_hi"] - c["logvar_lo"]) * (v + 1) / 2)
        )
    return torch.distributions.Normal(mean, std).log_prob(x_s.double()).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_draws_of_every_solver(plan: Plan, dtype: torch.dtype, backend: str) -> None:
    """Sampled and scored alike, to the bit; equal to NumPy's and to torch.distributions' density.

    float32 is compared in units of a sample's size: a term has the error of (x_s - mean)/std, in
    which the roundings of x_s count by the size of x_s over std.
    """
    shape = (3, 2, 40)
    table = torch.tensor(plan.table)
    learned = bool(plan.column("noise_mode").any())
    given: dict[str, Any] = {
        "x_t": normal(shape, dtype, 1),
        "model_output": normal((3, 4, 40) if learned else shape, dtype, 2),
        "slots": normal((4, *shape), dtype, 3),
    }
    if not plan.column("network").any():
        given["model_output"] = None
    for k in np.flatnonzero(plan.table[:, ON_Z]):
        row = torch.full((3,), int(k))
        x_s, drawn = torch.empty(shape, dtype=dtype), torch.full((3,), math.nan, dtype=dtype)
        keep = given["slots"].clone()
        settings = {"used": plan.used, "seed": 9}
        ops.reverse_step(
            **given, table=table, row=row, out=x_s, slots_out=keep, log_prob_out=drawn, **settings
        )
        bare, _ = ops.reverse_step(**given, table=table, row=row, **settings)  # type: ignore[misc]
        assert torch.equal(bare, x_s)
        scored = ops.step_log_prob(**given, x_s=x_s, table=table, row=row, used=plan.used)
        assert scored.dtype == dtype and torch.equal(scored, drawn)
        numbers = {key: None if v is None else v.numpy() for key, v in given.items()}
        oracle = reference.step_log_prob(
            **numbers, x_s=x_s.numpy(), table=plan.table, row=row.numpy()
        )
        torches = _normal_log_prob(plan, int(k), given, x_s).numpy()
        std = float(plan.table[k, ON_Z]) * (math.exp(plan.column("logvar_lo")[k] / 2))
        if dtype == torch.float64:
            limit = LOG_PROB["float64"]  # the sum of 80 terms may be near 0
            np.testing.assert_allclose(scored, oracle, rtol=limit, atol=limit)
            limit /= min(abs(std), 1)
            np.testing.assert_allclose(scored, torches, rtol=limit, atol=limit)
        else:
            np.testing.assert_allclose(scored, oracle, rtol=SUM["float32"], atol=SUM["float32"])
            limit = LOG_PROB["float32"] * 80 / min(abs(std), 1)
            np.testing.assert_allclose(scored, torches, rtol=LOG_PROB["float32"], atol=limit)


def _random(
    shape: tuple[int, ...], dtype: torch.dtype, *, guided: bool, learned: bool
) -> dict[str, Any]:
    """Returns a step of random rows, all of which draw noise."""
    batch = shape[0]
    learned = learned and len(shape) > 1
    table = random_table(6, 3, learned=learned)
    table[:, ON_Z] = np.where(table[:, ON_Z] == 0, -0.3, table[:, ON_Z])
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    twice = (batch * (1 + guided), *((2 * shape[1],) if learned else shape[1:2]), *shape[2:])
    strength = torch.tensor([1.0, 0.0, 2.5, -1.0, 7.5], dtype=compute)[torch.arange(batch) % 5]
    return {
        "x_t": normal(shape, dtype, 1),
        "model_output": normal(twice, dtype, 2),
        "table": torch.tensor(table),
        "row": torch.arange(batch) % 6,
        "slots": normal((4, *shape), compute, 3),
        "guidance": strength if guided else None,
        "gradient": normal(shape, dtype, 4),
    }


@pytest.mark.parametrize("learned", [False, True], ids=["plain", "learned"])
@pytest.mark.parametrize("guided", [False, True], ids=["", "guided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampling_and_scoring_give_the_same_bits(
    shape: tuple[int, ...], dtype: torch.dtype, guided: bool, learned: bool, backend: str
) -> None:
    """Of the stored x_s, which 16 bits round; also in the memory of x_t. x_s does not change."""
    given = _random(shape, dtype, guided=guided, learned=learned)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    before, _ = ops.reverse_step(**given, seed=5)  # type: ignore[misc]
    drawn = torch.full(shape[:1], math.nan, dtype=compute)
    x_s = given["x_t"].clone()
    ops.reverse_step(**given | {"x_t": x_s}, seed=5, out=x_s, log_prob_out=drawn)
    assert torch.equal(x_s, before)
    assert torch.equal(ops.step_log_prob(x_s=x_s, **given), drawn)
    numbers = {key: None if v is None else truth(v) for key, v in given.items()}
    with np.errstate(all="ignore"):
        oracle = reference.step_log_prob(x_s=truth(x_s), **numbers)
    limit = SUM[name(compute)]
    np.testing.assert_allclose(drawn.numpy(), oracle, rtol=limit, atol=limit)


@pytest.mark.parametrize("settings", [{"guidance_rescale": 0.7}, {"dynamic_threshold": 0.9}])
@pytest.mark.parametrize("shape", [(3, 2, 9), (2, 1, 40_000)], ids=str)
def test_values_of_whole_samples(settings: dict, shape: tuple[int, ...], backend: str) -> None:
    """The rescaled guidance's factor and the dynamic threshold are part of the mean."""
    plan = make_plan(SCHEDULE, solver="ddpm", steps=4, clip_range=3.0, **settings)
    batch = shape[0]
    given: dict[str, Any] = {
        "x_t": normal(shape, torch.float32, 1),
        "model_output": normal((2 * batch, *shape[1:]), torch.float32, 2),
        "table": torch.tensor(plan.table),
        "row": torch.arange(batch) % 2 + 1,
        "guidance": torch.tensor([2.0, 0.5, 1.0])[:batch],
        "used": plan.used,
    }
    drawn, x_s = torch.empty(batch), torch.empty(shape)
    ops.reverse_step(**given, seed=5, out=x_s, log_prob_out=drawn)
    assert torch.equal(ops.step_log_prob(x_s=x_s, **given), drawn)
    numbers = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in given.items()}
    del numbers["used"]
    oracle = reference.step_log_prob(x_s=x_s.numpy(), **numbers)
    np.testing.assert_allclose(drawn, oracle, rtol=LOG_PROB["float32"])


def test_a_sample_has_its_bits_in_any_batch_at_any_row(backend: str) -> None:
    """Guided samples at different rows, and in parts of the batch; `draw` too."""
    given = _random((7, 2, 700), torch.float32, guided=True, learned=True)
    x_s, drawn = torch.empty_like(given["x_t"]), torch.empty(7)
    ops.reverse_step(**given, seed=5, out=x_s, log_prob_out=drawn)
    for picked in ([2], [5, 2], [6, 3, 1, 2, 0, 4, 5]):
        i = torch.tensor(picked)
        part = {k: v if k in ("table", "slots") else v[i] for k, v in given.items()} | {
            "slots": given["slots"][:, i],
            "model_output": torch.cat([given["model_output"][i], given["model_output"][7 + i]]),
        }
        out, again = torch.empty_like(part["x_t"]), torch.empty(len(i))
        ops.reverse_step(**part, seed=5, sample_ids=i, out=out, log_prob_out=again)
        assert torch.equal(again, drawn[i])
        assert torch.equal(ops.step_log_prob(x_s=x_s[i], **part), drawn[i])


def test_it_is_the_sum_over_the_parts_of_a_sample(backend: str) -> None:
    """Elements are independent: the log-densities of parts add up to that of the sample."""
    inputs = score_inputs((2, 2, 1500), torch.float64)
    whole = ops.step_log_prob(**inputs)
    parts = [
        ops.step_log_prob(
            **{k: v[..., i : i + 500] if v.ndim == 3 else v for k, v in inputs.items()}
        )
        for i in range(0, 1500, 500)
    ]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-12, atol=0)
    mean = ops.step_log_prob(**inputs, reduce="mean")
    torch.testing.assert_close(mean, whole / 3000, rtol=1e-12, atol=0)


def test_the_gradient_of_a_mean_is_that_of_the_sum_over_the_elements(backend: str) -> None:
    """And the gradients to x_t, the network's output, x_s and the slots are right together."""
    given = _random((2, 2, 9), torch.float64, guided=False, learned=True)
    given["table"][:, INDEX["clip_mode"]] = 0
    x_s = normal((2, 2, 9), torch.float64, 8)
    leaves = [given["x_t"], given["model_output"], x_s, given["slots"]]

    def call(x: Tensor, out: Tensor, drawn: Tensor, slots: Tensor, reduce: str = "sum") -> Tensor:
        changed = {"x_t": x, "model_output": out, "slots": slots}
        return ops.step_log_prob(x_s=drawn, **given | changed, reduce=reduce)

    leaves = [v.requires_grad_() for v in leaves]
    assert torch.autograd.gradcheck(call, tuple(leaves))
    total = torch.autograd.grad(call(*leaves).sum(), leaves)
    mean = torch.autograd.grad(call(*leaves, reduce="mean").sum(), leaves)
    for a, b in zip(total, mean, strict=True):
        torch.testing.assert_close(a / 18, b, rtol=1e-12, atol=1e-15)


def test_the_score_function_has_mean_zero() -> None:
    """E[d log p/d mean] = 0 and E[(d log p/d mean)²] = 1/std², over draws of the row.

    They are 200,000 normals: the limits are five standard errors.
    """
    plan = make_plan(SCHEDULE, solver="ddpm", steps=5)
    n, k = 200_000, 1
    x, out = torch.zeros(1, n), torch.zeros(1, n, requires_grad=True)
    table, row = torch.tensor(plan.table), torch.tensor([k])
    x_s = ops.reverse_step(x, out.detach(), table, row, seed=3, used=plan.used)
    (g,) = torch.autograd.grad(
        ops.step_log_prob(x, out, x_s, table, row, used=plan.used).sum(),  # type: ignore[arg-type]
        out,
    )
    slope = plan.table[k, INDEX["x.x0"]] * plan.table[k, INDEX["x0_out"]]
    score = g / slope * plan.table[k, ON_Z]
    assert abs(score.mean()) < 5 / math.sqrt(n)
    assert abs(score.square().mean() - 1) < 5 * math.sqrt(2 / n)


def test_rows_without_noise(backend: str) -> None:
    """A step writes 0 for them; scoring refuses them, and on GPUs gives NaN and reports them."""
    given = score_inputs((4, 3, 5), torch.float32)
    given["table"][1, ON_Z] = 0.0
    x_s = given.pop("x_s")
    drawn, out = torch.full((4,), math.nan), torch.empty_like(x_s)
    ops.reverse_step(**given, seed=1, out=out, log_prob_out=drawn)
    others = [0, 2, 3]
    assert drawn[1] == 0 and drawn[others].ne(0).all() and not drawn.isnan().any()
    if backend in ("cpu", "torch"):
        message = "expected rows that draw noise, got row 1 at index 1, which draws none. A step"
        with pytest.raises(ValueError, match=rf"^fastdiff\.step_log_prob: {message}"):
            ops.step_log_prob(x_s=out, **given)
        return
    scored = ops.step_log_prob(x_s=out, **given)
    assert scored[1].isnan()
    torch.testing.assert_close(scored[others], drawn[others], rtol=1e-6, atol=0)
    with pytest.raises(IndexError, match="expected row among the table's rows with noise"):
        fastdiff.backend.check(scored.device)


def test_samples_without_elements_have_a_density_of_1(backend: str) -> None:
    """At any row of the table: nothing was drawn."""
    given = score_inputs((2, 3, 0), torch.float32)
    given["table"][0, ON_Z] = 0.0
    drawn = torch.full((2,), math.nan)
    assert ops.step_log_prob(**given).eq(0).all()
    out = torch.empty(2, 3, 0)
    step = {k: v for k, v in given.items() if k != "x_s"}
    ops.reverse_step(**step, seed=1, out=out, log_prob_out=drawn)
    assert drawn.eq(0).all()


@pytest.mark.parametrize("size", [5, 1500])
def test_noise_whose_coefficient_underflows_is_none(size: int, backend: str) -> None:
    """1e-60 is 0 in float32, and no 0 in float64."""
    given = score_inputs((2, 3, size), torch.float32)
    given["table"][:, ON_Z] = 1e-60
    drawn, out = torch.full((2,), math.nan), torch.empty(2, 3, size)
    step = {k: v for k, v in given.items() if k != "x_s"}
    ops.reverse_step(**step, seed=1, out=out, log_prob_out=drawn)
    assert drawn.eq(0).all()
    if backend in ("cpu", "torch"):
        with pytest.raises(ValueError, match="expected rows that draw noise, got row 0 at index 0"):
            ops.step_log_prob(**given)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    assert ops.step_log_prob(**wide).isfinite().all()


@pytest.mark.parametrize("size", [5, 1500])
def test_bad_rows_raise_before_anything_is_written(size: int, backend: str) -> None:
    inputs = score_inputs((3, 2, size), torch.float32)
    out = torch.full((3,), 7.0)
    for bad in (-1, 4):
        rows = {"row": torch.tensor([3, bad, 2])}
        message = f"fastdiff.step_log_prob: expected row in [0, 4), got {bad} at index 1"
        outside(backend, lambda rows=rows: ops.step_log_prob(**inputs | rows, out=out), message, 1)
        assert backend in ("cuda", "triton") or out.eq(7).all()


def test_what_a_row_does_not_read_for_its_next_x_may_be_missing(backend: str) -> None:
    """A slot that only another slot reads, and the seed of the noise."""
    inputs = score_inputs((4, 3, 5), torch.float32)
    more = inputs["table"].clone()
    more[:, INDEX["s1.s2"]] = more[:, INDEX["s2.z"]] = 1.0
    expected = ops.step_log_prob(**inputs)
    assert torch.equal(ops.step_log_prob(**inputs | {"table": more}), expected)
    used = columns("s1.s2", *(c for c in INDEX if inputs["table"][:, INDEX[c]].any()))
    assert torch.equal(ops.step_log_prob(**inputs | {"table": more}, used=used), expected)
    if backend in ("cpu", "torch"):
        more[2, INDEX["x.s3"]] = 1.0
        with pytest.raises(
            ValueError, match=r"^fastdiff\.step_log_prob: expected .*3 (slots|entr)"
        ):
            ops.step_log_prob(**inputs | {"table": more})


def test_a_bound_step_writes_its_log_probability(backend: str) -> None:
    """Into one place, or into one that moves with the call."""
    given = _random((3, 2, 700), torch.float32, guided=True, learned=True)
    out, fixed = torch.empty_like(given["x_t"]), torch.empty(3)
    step = StepArguments(
        **given,
        seed=5,
        out=out,
        log_prob_out=fixed,
        workspace=workspace_for(given["x_t"], log_prob=True),
    )
    bound, moving = step.bind("x_t", "seed"), step.bind("x_t", "log_prob_out", "seed")
    for seed in (3, 4, 4):
        expected, x = torch.empty(3), given["x_t"] + seed
        ops.reverse_step(**given | {"x_t": x}, seed=seed, out=out, log_prob_out=expected)
        bound(x, seed)
        assert torch.equal(fixed, expected)
        elsewhere = torch.full((3,), math.nan)
        moving(x, elsewhere, seed)
        assert torch.equal(elsewhere, expected)


def test_with_a_workspace_nothing_is_allocated(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = score_inputs((3, 2, 700), torch.float32)
    expected = ops.step_log_prob(**inputs)
    out = torch.full((3,), math.nan)
    rows = workspace_rows(1400, torch.float32, log_prob=True)
    workspace = torch.full((rows, 3), math.nan)
    if backend != "torch":  # the operations of eager torch make temporaries
        monkeypatch.setattr(torch, "empty", None)
        monkeypatch.setattr(torch, "empty_like", None)
    version = out._version
    assert ops.step_log_prob(**inputs, out=out, workspace=workspace) is out
    monkeypatch.undo()
    assert torch.equal(out, expected) and out._version > version
    assert torch.equal(ops.step_log_prob(**inputs, out=torch.empty(3)), expected)
    for wrong, message in (
        ({"out": out.double()}, "expected a contiguous out of torch.float32, got torch.float64"),
        ({"workspace": workspace}, "expected out together with workspace"),
        ({"out": out, "workspace": workspace[1:]}, f"expected workspace of shape .{rows}, 3.,"),
        ({"reduce": "max"}, r"expected reduce in \['sum', 'mean'\], got 'max'"),
        ({"out": inputs["x_s"].view(-1)[:3]}, "expected out in the memory of an input or apart"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^fastdiff\.step_log_prob: {message}"):
            ops.step_log_prob(**inputs, **wrong)
    step = {k: v for k, v in inputs.items() if k != "x_s"} | {"seed": 1}
    with pytest.raises(ValueError, match="expected out together with the other outputs"):
        ops.reverse_step(**step, log_prob_out=out)
    with pytest.raises(TypeError, match="expected a contiguous log_prob_out of torch.float32"):
        ops.reverse_step(**step, out=torch.empty(3, 2, 700), log_prob_out=out.double())


@pytest.mark.cpu_only
def test_threads_and_levels_change_no_bit_of_a_sampled_score() -> None:
    given = _random((37, 2, 1001), torch.float32, guided=True, learned=True)
    found = []
    before = torch.get_num_threads()
    with fastdiff.use("cpu"):
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                out, drawn = torch.empty_like(given["x_t"]), torch.empty(37)
                ops.reverse_step(**given, seed=5, out=out, log_prob_out=drawn)
                found.append(drawn)
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(v, found[0]) for v in found)


def test_a_second_pass_is_one_launch_more(backend: str) -> None:
    if backend == "torch":
        pytest.skip("eager torch counts no launches")
    for size, expected in ((1024, 0), (1025, 1)):
        given = OPS["step_log_prob"].inputs((2, size), torch.float32)
        step = {k: v for k, v in given.items() if k != "x_s"}
        out, drawn = torch.empty(2, size), torch.empty(2)
        for op, call in (
            ("step_log_prob", lambda given=given: ops.step_log_prob(**given)),
            (
                "reverse_step",
                lambda s=step, o=out, d=drawn: ops.reverse_step(**s, seed=1, out=o, log_prob_out=d),
            ),
        ):
            before = _launches(backend)
            call()
            after = {k: v - before[k] for k, v in _launches(backend).items() if v != before[k]}
            second = {"sum_chunks": 1} if expected and backend != "cpu" else {}
            assert after == {op: 1} | second


def _launches(backend: str) -> dict[str, int]:
    if backend == "triton":
        from fastdiff_kernels import launch

        return {name: launch.launches[name] for name in COUNTED}
    return {name: library.launches(name, backend) for name in COUNTED}
