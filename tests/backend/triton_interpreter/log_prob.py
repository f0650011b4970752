"""step_log_prob and log_prob_out of reverse_step in Triton's interpreter.

A step that is sampled and one that is scored give the same bits; the values are compared with the
NumPy oracle. tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, compute, mask_of, name, numbers, random_table
from chunks import same, unwritten
from fastdiff_kernels import launch
from sums import normal
from tolerances import TRITON_SUMS
from torch import Tensor

from fastdiff import Schedule, reference
from fastdiff.ops.step import StepArguments, workspace_for
from fastdiff.solvers import make_plan
from fastdiff.table import INDEX

SHAPES = [(13, 2, 5), (2, 2, 33, 17), (3, 2, 0), (0, 2, 4)]
SEED, ROWS = 2**63 + 5, 6
ON_Z = INDEX["x.z"]


def noisy_table(learned: bool) -> tuple[np.ndarray, int]:
    """Returns random rows, all of which draw noise, and the mask of their columns."""
    table, _ = random_table(np.random.default_rng([4, learned]), learned)
    table[:, ON_Z] = np.where(table[:, ON_Z] == 0, -0.4, table[:, ON_Z])
    # variances at which float32 keeps the digits of a squared distance
    table[:, [INDEX["logvar_lo"], INDEX["logvar_hi"]]] = -3, 1
    return table, mask_of(table)


def step_of(
    shape: tuple[int, ...], dtype: torch.dtype, guided: bool, learned: bool
) -> dict[str, Any]:
    batch = shape[0]
    table, used = noisy_table(learned)
    twice = ((1 + guided) * batch, (1 + learned) * shape[1], *shape[2:])
    gamma = torch.tensor([0, 1, 2.5, -0.3] * 5)[:batch].to(compute(dtype))
    return {
        "x_t": normal(1, *shape, dtype=dtype)[0],
        "model_output": normal(2, *twice, dtype=dtype)[0],
        "table": torch.from_numpy(table),
        "row": torch.arange(batch) % ROWS,
        "slots": normal(4, 4, *shape, dtype=compute(dtype))[0],
        "guidance": gamma if guided else None,
        "gradient": normal(5, *shape, dtype=dtype)[0],
        "used": used,
    }


def sampled(given: dict[str, Any], x_s: Tensor, drawn: Tensor, **more: Any) -> None:
    x_t = given["x_t"]
    space = workspace_for(x_t, log_prob=True).fill_(torch.nan)
    launch.reverse_step(
        StepArguments(**given, seed=SEED, out=x_s, log_prob_out=drawn, workspace=space, **more)
    )


def scored(given: dict[str, Any], x_s: Tensor, *, mean: bool = False) -> Tensor:
    x_t = given["x_t"]
    result = unwritten(len(x_t), dtype=compute(x_t.dtype))
    space = workspace_for(x_t, log_prob=True).fill_(torch.nan)
    step = StepArguments(**given, out=x_s, log_prob_out=result, workspace=space)
    launch.step_log_prob(step, mean)
    return result


@pytest.mark.parametrize(
    "dtype, shape, guided, learned",
    [
        *((torch.float32, SHAPES[0], g, v) for g in (False, True) for v in (False, True)),
        *((torch.float32, shape, True, True) for shape in SHAPES[1:]),
        *((dtype, SHAPES[0], True, True) for dtype in DTYPES if dtype != torch.float32),
    ],
    ids=lambda v: name(v) if isinstance(v, torch.dtype) else str(v),
)
def test_a_step_is_scored_with_the_bits_it_was_sampled_with(
    dtype: torch.dtype, shape: tuple[int, ...], guided: bool, learned: bool
) -> None:
    """In the memory of x_t, and x_s is the one of a step without log_prob_out."""
    given = step_of(shape, dtype, guided, learned)
    x_s, bare = given["x_t"].clone(), torch.empty_like(given["x_t"])
    drawn = unwritten(shape[0], dtype=compute(dtype))
    sampled(given | {"x_t": x_s}, x_s, drawn)
    launch.reverse_step(StepArguments(**given, seed=SEED, out=bare))
    assert torch.equal(bare, x_s)
    assert torch.equal(scored(given, x_s), drawn)
    known = {k: numbers(v) for k, v in given.items() if isinstance(v, Tensor)}
    known["row"] = given["row"].numpy()
    expected = reference.step_log_prob(x_s=numbers(x_s), **known)
    limit = TRITON_SUMS[name(compute(dtype))]
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=limit, atol=limit * 4)
    mean = scored(given, x_s, mean=True)
    np.testing.assert_allclose(mean * max(x_s[:1].numel(), 1), drawn, rtol=limit, atol=limit)
    launch.check("cpu")


@pytest.mark.parametrize("size", [6, 1400])
def test_rows_without_noise_and_outside_the_table(size: int) -> None:
    """A step writes 0 for the former; scoring makes both NaN and reports them."""
    given = step_of((6, 2, size // 2), torch.float32, False, False)
    given["table"][2, ON_Z] = 0
    given["row"][5] = ROWS
    x_s, drawn = torch.empty_like(given["x_t"]), unwritten(6)
    sampled(given, x_s, drawn)
    assert drawn.isnan().tolist() == [False] * 5 + [True] and drawn[2] == 0
    with pytest.raises(IndexError, match="reverse_step"):
        launch.check("cpu")
    result = scored(given, x_s)
    assert result.isnan().tolist() == [False, False, True, False, False, True]
    assert torch.equal(result[[0, 1, 3, 4]], drawn[[0, 1, 3, 4]])
    with pytest.raises(IndexError, match="step_log_prob: expected row among the table's rows with"):
        launch.check("cpu")
    launch.check("cpu")


def test_values_of_whole_samples() -> None:
    plan = make_plan(
        Schedule.linear(1000),
        solver="ddpm",
        steps=4,
        clip_range=3.0,
        guidance_rescale=0.7,
        dynamic_threshold=0.9,
    )
    given = {
        "x_t": normal(1, 3, 2, 40)[0].float(),
        "model_output": normal(2, 6, 2, 40)[0].float(),
        "table": torch.from_numpy(plan.table.copy()),
        "row": torch.tensor([1, 2, 1]),
        "guidance": torch.tensor([2.0, 0.5, 1.0]),
        "used": plan.used,
    }
    x_s, drawn = torch.empty(3, 2, 40), unwritten(3)
    sampled(given, x_s, drawn)
    assert torch.equal(scored(given, x_s), drawn)
    known = {k: v.numpy() for k, v in given.items() if isinstance(v, Tensor)}
    np.testing.assert_allclose(drawn, reference.step_log_prob(x_s=x_s.numpy(), **known), rtol=1e-5)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_programs_of_several_chunks(guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = step_of((2, 2, 2250), torch.float32, guided, True)

    def step() -> list[Tensor]:
        x_s, drawn = torch.empty_like(given["x_t"]), unwritten(2)
        sampled(given, x_s, drawn)
        return [x_s, drawn]

    same(step, monkeypatch)
    x_s, drawn = step()
    same(lambda: [scored(given, x_s)], monkeypatch)
    assert torch.equal(scored(given, x_s), drawn)


def test_launches() -> None:
    """One, and of samples of more than 1,024 elements the second pass of the sum."""
    for size, passes in ((512, 0), (513, 1)):
        given = step_of((2, 2, size), torch.float32, False, False)
        x_s, drawn = torch.empty_like(given["x_t"]), unwritten(2)
        for op in ("reverse_step", "step_log_prob"):
            before = dict(launch.launches)
            if op == "reverse_step":
                sampled(given, x_s, drawn)
            else:
                scored(given, x_s)
            after = {k: v - before.get(k, 0) for k, v in launch.launches.items()}
            assert {k: v for k, v in after.items() if v} == {op: 1} | (
                {"sum_chunks": 1} if passes else {}
            )
