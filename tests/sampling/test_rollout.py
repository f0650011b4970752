"""`Sampler.rollout` and `Rollout`: transitions, log-probabilities and scores with gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdiff import Rollout, Sampler, Schedule
from fastdiff.solvers import SOLVERS
from fastdiff.table import INDEX

SHAPE = (6, 3, 4, 4)
FLOW = ("flow_sde", "dance_sde", "flow_cps")
BETAS = ("ddpm", "ddim", "euler_ancestral", "dpm++2m_sde", "dpm++2s_ancestral", "er_sde")


class Net(nn.Module):
    def __init__(self, channels: int = 3, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(
            torch.randn(channels, channels, generator=generator).to(dtype) * 0.3
        )
        self.bias = nn.Parameter(torch.zeros(channels, dtype=dtype))

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        out = torch.einsum("oc,bchw->bohw", self.weight, x) + self.bias.view(1, -1, 1, 1)
        out = out + (t.to(x.dtype) / 1000).view(-1, 1, 1, 1)
        return out if shift is None else out + shift.view(-1, 1, 1, 1).to(x.dtype)


def sampler(solver: str, model: Any = None, steps: int = 6, **settings: Any) -> Sampler:
    schedule = Schedule.flow(1000) if solver in FLOW else Schedule.linear(1000)
    if "eta" in SOLVERS[solver].options and solver == "ddim":
        settings.setdefault("eta", 1.0)
    settings.setdefault("prediction_type", "flow" if solver in FLOW else "epsilon")
    return Sampler(
        Net() if model is None else model, schedule, solver=solver, steps=steps, **settings
    )


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("solver", FLOW + BETAS)
def test_samples_states_and_log_probabilities(solver: str) -> None:
    """The samples are those of `sample`; the log-probabilities are torch's Normal of z."""
    s = sampler(solver)
    r = s.rollout(SHAPE, seed=4)
    same(r.samples, s.sample(SHAPE, seed=4))
    assert r.x_t.shape == r.x_s.shape == (len(r.rows), *SHAPE) and r.states.dtype == torch.float32
    assert r.rows == tuple(np.flatnonzero(r.plan.column("x.z")))
    for k, row in enumerate(r.rows):
        z, std = r.noise(k), abs(r.plan.table[row, INDEX["x.z"]])
        normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
        want = normal.log_prob(z.double()).flatten(1).sum(1) - z[0].numel() * math.log(std)
        torch.testing.assert_close(r.log_prob[k].double(), want, rtol=2e-5, atol=2e-4)
    with torch.no_grad():
        same(r.score(), r.log_prob)


@pytest.mark.parametrize("solver", ["flow_sde", "ddpm", "dpm++2m_sde"])
def test_gradients_are_those_of_the_formula(solver: str) -> None:
    model = Net(dtype=torch.float64)
    s = sampler(solver, model)
    r = s.rollout(SHAPE, seed=4, dtype=torch.float64)
    score = r.score()
    assert score.requires_grad
    score.sum().backward()
    got = model.weight.grad.clone()
    model.weight.grad = None

    def mean(k: int) -> Tensor:
        """The row's mean, written out from the table for a solver with at most one slot."""
        row = r.plan.table[r.rows[k]]
        c = {name: row[INDEX[name]] for name in ("x.x", "x.x0", "x.out", "x0_x", "x0_out")}
        t = torch.full((len(r),), float(row[INDEX["t"]]))
        out = model(row[INDEX["input_scale"]] * r.x_t[k], t.long() if solver not in FLOW else t)
        x0 = c["x0_x"] * r.x_t[k] + c["x0_out"] * out
        total = c["x.x"] * r.x_t[k] + c["x.x0"] * x0 + c["x.out"] * out
        if r.slots is not None:
            for i in range(r.slots.shape[1]):
                if row[INDEX[f"x.s{i + 1}"]]:
                    total = total + row[INDEX[f"x.s{i + 1}"]] * r.slots[k, i]
        return total

    total = torch.zeros((), dtype=torch.float64)
    for k, row in enumerate(r.rows):
        std = abs(float(r.plan.table[row, INDEX["x.z"]]))
        total = total + torch.distributions.Normal(mean(k), std).log_prob(r.x_s[k]).sum()
    torch.testing.assert_close(score.sum(), total, rtol=1e-10, atol=1e-9)
    total.backward()
    torch.testing.assert_close(got, model.weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 2, 4])
def test_scores_in_parts_and_with_checkpoints(checkpoint: bool, micro_batch: int | None) -> None:
    model = Net()
    s = sampler("flow_sde", model, network_batch=4)
    r = s.rollout(SHAPE, seed=4)
    score = r.score(micro_batch=micro_batch, checkpoint=checkpoint)
    same(score.detach(), r.log_prob)  # network_batch: the same bits for any number of samples
    score.mean().backward()
    got = model.weight.grad.clone()
    model.weight.grad = None
    r.score().mean().backward()
    torch.testing.assert_close(got, model.weight.grad, rtol=1e-5, atol=1e-7)


def test_the_ratio_of_an_unchanged_network_is_one_and_its_slope_that_of_the_log() -> None:
    model = Net()
    r = sampler("ddpm", model).rollout(SHAPE, seed=0)
    ratio = (r.score() - r.log_prob).exp()
    assert (ratio == 1).all()
    with torch.no_grad():
        model.bias += 0.1
        changed = r.score()
    assert not torch.equal(changed, r.log_prob)
    with torch.no_grad():
        same(r.score(Net()), r.log_prob)


def test_a_group_shares_its_start_and_not_its_noise_or_the_other_way_round() -> None:
    s = sampler("flow_sde")
    r = s.rollout((4, 3, 4, 4), seed=1, sample_ids=[0, 1, 2, 3], start_ids=[9, 9, 9, 9])
    x_T = s.start((1, 3, 4, 4), seed=1, sample_ids=[9]).x
    same(r.states[0], x_T.expand(4, -1, -1, -1))
    assert len({float(v) for v in r.noise(0).flatten(1).sum(1)}) == 4
    other = s.rollout((4, 3, 4, 4), seed=1, sample_ids=[7, 7, 7, 7], start_ids=[0, 1, 2, 3])
    same(other.noise(0), other.noise(0)[:1].expand(4, -1, -1, -1))
    assert len({float(v) for v in other.states[0].flatten(1).sum(1)}) == 4
    same(s.sample((4, 3, 4, 4), seed=1, sample_ids=[7] * 4, start_ids=range(4)), other.samples)


def test_a_rollout_of_ids_is_the_same_in_any_batch() -> None:
    s = sampler("flow_sde", network_batch=4)
    whole = s.rollout((16, 3, 4, 4), seed=2, outputs=True)
    for ids in ([3], list(range(5, 13)), [15, 0]):
        part = s.rollout((len(ids), 3, 4, 4), seed=2, sample_ids=ids, outputs=True)
        same(part.samples, whole.samples[ids])
        same(part.states, whole.states[:, ids])
        same(part.log_prob, whole.log_prob[:, ids])
        for a, b in zip(part.outputs or (), whole.outputs or (), strict=True):
            same(a, b[ids])
        cut = whole[ids]
        same(cut.log_prob, part.log_prob)
        with torch.no_grad():
            same(cut.score(), part.log_prob)


def test_64_samples_at_once_are_64_rollouts_of_one() -> None:
    s = sampler("flow_sde", network_batch=4, steps=4)
    whole = s.rollout((64, 3, 4, 4), seed=2)
    for i in range(64):
        one = s.rollout((1, 3, 4, 4), seed=2, sample_ids=[i])
        same(one.states[:, 0], whole.states[:, i])
        same(one.log_prob[:, 0], whole.log_prob[:, i])


def test_windows_per_sample() -> None:
    s = sampler("flow_sde", steps=6)
    windows = [(0, 2), (2, 4), (1, 6)]
    r = s.rollout((3, 3, 4, 4), seed=0, sde_rows=windows)
    assert len(r.plans) == 3
    for i, (first, last) in enumerate(windows):
        alone = sampler("flow_sde", steps=6, sde_rows=(first, last)).rollout(
            (1, 3, 4, 4), seed=0, sample_ids=[i]
        )
        same(r.samples[i : i + 1], alone.samples)
        inside = [first <= row < last for row in r.rows]
        noisy = [row in alone.rows for row in r.rows]
        assert r.draws[:, i].tolist() == noisy and all(
            a <= b for a, b in zip(noisy, inside, strict=True)
        )
        assert ((r.log_prob[:, i] != 0).numpy() == np.array(noisy)).all()
    score = r.score()
    same(score.detach(), r.log_prob)
    score.sum().backward()
    with pytest.raises(ValueError, match="Use plans and plan_of"):
        _ = r.plan
    with pytest.raises(ValueError, match=r"expected sde_rows as two rows \(i, j\)"):
        s.rollout((3, 3, 4, 4), seed=0, sde_rows=(4, 2))


@pytest.mark.parametrize("scale", [3.0, "tensor", 1.0])
def test_guidance_is_in_the_policy(scale: Any) -> None:
    model = Net()
    s = sampler("flow_sde", model, steps=4)
    gamma = torch.tensor([0.5, 1.0, 3.0]) if scale == "tensor" else scale
    arguments = {
        "cond": {"shift": torch.tensor([0.1, -0.2, 0.3])},
        "uncond": {"shift": torch.zeros(3)},
        "guidance_scale": gamma,
    }
    r = s.rollout((3, 3, 4, 4), seed=0, outputs=True, **arguments)
    same(r.samples, s.sample((3, 3, 4, 4), seed=0, **arguments))
    assert r.outputs is not None and len(r.outputs[0]) == (3 if scale == 1.0 else 6)
    score = r.score()
    same(score.detach(), r.log_prob)
    score.sum().backward()
    assert model.weight.grad.abs().max() > 0
    part = r[[2, 0]]
    same(part.log_prob, r.log_prob[:, [2, 0]])
    with torch.no_grad():
        torch.testing.assert_close(part.score(), part.log_prob, rtol=1e-5, atol=1e-4)


def test_a_network_in_bfloat16_leaves_the_state_and_the_scores_in_float32() -> None:
    model = Net(dtype=torch.bfloat16)
    r = sampler("flow_sde", model).rollout(SHAPE, seed=0)
    assert r.states.dtype == r.log_prob.dtype == torch.float32
    score = r.score()
    same(score.detach(), r.log_prob)
    score.sum().backward()
    assert model.weight.grad is not None


def test_learned_variance_is_in_the_policy() -> None:
    class Wide(Net):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            out = super().forward(x, t)
            return torch.cat([out, 0.3 * out.tanh()], dim=1)

    s = sampler("ddpm", Wide(), variance_type="learned_range")
    r = s.rollout(SHAPE, seed=0)
    same(r.samples, s.sample(SHAPE, seed=0))
    score = r.score()
    same(score.detach(), r.log_prob)
    score.sum().backward()


def test_chosen_rows_and_rows_without_noise() -> None:
    s = sampler("flow_sde", steps=6)
    r = s.rollout(SHAPE, seed=0, rows=[0, 3, 5])
    full = s.rollout(SHAPE, seed=0)
    assert r.rows == (0, 3, 5) and r.states.shape[0] == 6
    for k, row in enumerate(r.rows):
        if row in full.rows:
            same(r.log_prob[k], full.log_prob[full.rows.index(row)])
            same(r.x_t[k], full.x_t[full.rows.index(row)])
    ode = sampler("ddpm").rollout(SHAPE, seed=0, rows=[5])
    last = ode.plan.table[5, INDEX["x.z"]] != 0
    assert last == ode.draws[0, 0] and bool((ode.log_prob != 0).all()) == last
    with torch.no_grad():
        same(r.score(rows=[3]), r.log_prob[1:2])


def test_minibatches_are_a_function_of_seed_and_epoch() -> None:
    r = sampler("flow_sde").rollout((7, 3, 4, 4), seed=0)
    first = [m.ids.tolist() for m in r.minibatches(3, seed=5, epoch=1)]
    again = [m.ids.tolist() for m in r.minibatches(3, seed=5, epoch=1)]
    other = [m.ids.tolist() for m in r.minibatches(3, seed=5, epoch=2)]
    assert first == again != other
    assert [len(m) for m in first] == [3, 3, 1]
    assert sorted(sum(first, [])) == list(range(7))
    for m in r.minibatches(3):
        same(m.samples, r.samples[m.ids])


def test_a_start_from_data_or_a_state() -> None:
    s = sampler("ddpm", steps=8)
    image = torch.zeros(SHAPE)
    r = s.rollout(seed=0, image=image, strength=0.5)
    same(r.samples, s.sample(seed=0, image=image, strength=0.5))
    assert min(r.rows) == 4
    x = torch.ones(SHAPE)
    r = s.rollout(seed=0, x_T=x, start=2)
    same(r.x_t[0], x)
    assert r.rows[0] == 2


def test_what_is_refused() -> None:
    ode = Sampler(Net(), Schedule.flow(1000), solver="flow_euler", prediction_type="flow", steps=4)
    with pytest.raises(ValueError, match="expected a solver whose rows draw noise, got none of 4"):
        ode.rollout(SHAPE, seed=0)
    s = sampler("flow_sde", steps=6)
    with pytest.raises(ValueError, match=r"expected different rows in \[0, 6\), got \[6\]"):
        s.rollout(SHAPE, seed=0, rows=[6])
    with pytest.raises(ValueError, match=r"expected different rows in \[0, 6\), got \[1, 1\]"):
        s.rollout(SHAPE, seed=0, rows=[1, 1])
    with pytest.raises(TypeError, match="expected arguments among .*, got 'mask'"):
        s.rollout(SHAPE, seed=0, mask=torch.ones(SHAPE))
    with pytest.raises(ValueError, match="expected one start and one number of rows"):
        s.rollout((2, 3, 4, 4), seed=0, steps=[3, 4])
    with pytest.raises(ValueError, match="expected at least one sample"):
        s.rollout((0, 3, 4, 4), seed=0)
    r = s.rollout(SHAPE, seed=0, rows=[0, 1])
    with pytest.raises(ValueError, match=r"expected rows among the recorded \[0, 1\], got \[2\]"):
        r.score(rows=[2])
    with pytest.raises(ValueError, match="expected micro_batch >= 1, got 0"):
        r.score(micro_batch=0)
    with pytest.raises(ValueError, match="expected size >= 1, got 0"):
        next(r.minibatches(0))
    with pytest.raises(IndexError, match="expected numbers of 6 samples"):
        r[[6]]
    copied = sampler("flow_sde", network_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="got a copy whose weights would get the gradients"):
        copied.rollout(SHAPE, seed=0).score()


def test_a_short_description() -> None:
    r = sampler("flow_sde", steps=3).rollout(SHAPE, seed=0)
    assert isinstance(r, Rollout) and "samples, rows [0, 1" in repr(r)


def test_parts_of_samples_are_those_of_the_whole() -> None:
    """A rank with half the channels of each sample, under a network without sums over channels."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x

    s = Sampler(network, Schedule.flow(1000), solver="flow_sde", prediction_type="flow", steps=5)
    whole = s.rollout((3, 4, 6, 6), seed=0)
    parts = [s.rollout((3, 2, 6, 6), seed=0, window=(offset, 72)) for offset in (0, 72)]
    same(torch.cat([p.samples for p in parts], 1), whole.samples)
    same(torch.cat([p.noise(1) for p in parts], 1), whole.noise(1))
    total = parts[0].log_prob + parts[1].log_prob
    torch.testing.assert_close(total, whole.log_prob, rtol=1e-5, atol=1e-4)
    half = s.sample((3, 2, 6, 6), seed=0, window=(72, 72))
    same(half, whole.samples[:, 2:])
    image = torch.ones(3, 4, 6, 6)
    edited = s.sample(image=image, strength=0.6, seed=0)
    same(
        s.sample(image=image[:, :2].contiguous(), strength=0.6, seed=0, window=(0, 72)),
        edited[:, :2],
    )
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        s.sample((3, 2, 6, 6), seed=0, window=(6, 72))
    thresholded = sampler("ddpm", dynamic_threshold=0.9)
    with pytest.raises(ValueError, match="which need whole samples"):
        thresholded.sample(SHAPE, seed=0, window=(48, 48))
