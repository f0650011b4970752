"""Rollouts from what was stored of them, and states whose steps write log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_rollout import SHAPE, Net, same, sampler

from fastdiff import Rollout, Sampler, Schedule
from fastdiff.sampling.options import RunOptions
from fastdiff.sampling.rollout import places
from fastdiff.sampling.state import Scorer


def ve() -> Sampler:
    """A sampler whose rows scale the network's input."""
    schedule = Schedule.ve()
    return Sampler(Net(), schedule, solver="euler_ancestral", steps=6, prediction_type="v")


def cases() -> dict[str, Sampler]:
    names = ("flow_sde", "ddpm", "dpm++2m_sde", "dpm++2s_ancestral")
    return {**{name: sampler(name) for name in names}, "levels": ve()}


def restored(s: Sampler, r: Rollout, without_x_T: bool, **arguments: Any) -> Rollout:
    return s.stored_rollout(
        r.samples,
        rows=r.rows,
        states=list(r.states)[int(without_x_T) :],
        log_prob=r.log_prob,
        slots=r.slots,
        **arguments,
    )


@pytest.mark.parametrize("name", cases())
def test_a_stored_rollout_is_the_rollout(name: str) -> None:
    s, arguments = cases()[name], dict[str, Any](seed=5, sample_ids=[3, 1, 4, 7, 5, 9])
    for rows in (None, [0, 1, 3]):
        r = s.rollout(SHAPE, rows=rows, **arguments)
        again = restored(s, r, r.rows[0] == 0, **arguments)
        assert again.at == r.at and again.rows == r.rows and again.plan is r.plan
        for field in ("samples", "states", "log_prob", "ids", "start_ids", "seeds"):
            same(getattr(again, field), getattr(r, field))
        same(torch.from_numpy(again.draws), torch.from_numpy(r.draws))
        with torch.no_grad():
            same(again.score(), r.log_prob)
        same(again.noise(0), r.noise(0))


@pytest.mark.parametrize("name", cases())
def test_steps_from_stored_states_have_their_bits(name: str) -> None:
    s = cases()[name]
    r = s.rollout(SHAPE, seed=5)
    state = s.start(SHAPE, seed=5, log_prob=True)
    assert state.log_prob is None
    for row in range(len(r.plan)):
        k = r.rows.index(row) if row in r.rows else None
        if k is not None:
            same(state.x, r.x_t[k])
            state.x.copy_(r.x_t[k])
            if r.slots is not None and state.slots is not None:
                same(state.slots[: r.slots.shape[1]], r.slots[k])
        s.advance(state)
        if k is not None:
            assert state.log_prob is not None
            same(state.x, r.x_s[k])
            same(state.log_prob, r.log_prob[k])
    same(state.x, r.samples)
    assert s.start(SHAPE, seed=5).log_prob is None


def test_guidance_and_starts_of_groups() -> None:
    s = sampler("flow_sde", guidance_scale=2.0)
    arguments: dict[str, Any] = {
        "seed": 1,
        "start_ids": [0, 0, 0, 1, 1, 1],
        "cond": {"shift": torch.arange(6.0)},
        "uncond": {"shift": torch.zeros(6)},
    }
    r = s.rollout(SHAPE, **arguments)
    again = restored(s, r, True, **arguments)
    same(again.states, r.states)
    with torch.no_grad():
        same(again.score(), r.log_prob)


def test_where_states_are() -> None:
    assert places([0, 1, 2]) == ((0, 1, 2), 4)
    assert places([0, 3, 4, 7]) == ((0, 2, 3, 5), 7)
    assert places([]) == ((), 0)


def test_what_is_refused() -> None:
    s = sampler("dpm++2m_sde")
    r = s.rollout(SHAPE, seed=0)
    given: dict[str, Any] = {"rows": r.rows, "states": list(r.states), "slots": r.slots}
    good = {**given, "log_prob": r.log_prob, "seed": 0}
    for name, value, says in (
        ("states", list(r.states)[2:], "expected states of shape"),
        ("states", [x.double() for x in r.states], "expected states in torch.float32"),
        ("log_prob", r.log_prob[1:], "expected log_prob of shape"),
        ("slots", None, "expected slots of shape"),
        ("rows", [9], r"expected different rows in \[0, 6\)"),
    ):
        with pytest.raises(ValueError, match=says):
            s.stored_rollout(r.samples, **{**good, name: value})
    with pytest.raises(TypeError, match="expected arguments among .*, got 'mask'"):
        s.stored_rollout(r.samples, **good, mask=r.samples)


def test_a_step_that_is_watched_is_not_captured() -> None:
    """A replay would not call what watches the step."""
    options = RunOptions(torch.device("cpu"), torch.float32, (3, 4, 4))
    assert options.capturable
    watched = RunOptions(torch.device("cpu"), torch.float32, (3, 4, 4), watcher=Scorer())
    assert not watched.capturable
