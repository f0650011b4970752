"""Steps with a prepass over whole samples in Triton's interpreter against the NumPy oracle.

The prepasses are those of rescaled guidance and of the dynamic threshold.
tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import DTYPES, compute, mask_of, name, numbers, poisoned, same_bits
from fastdiff_kernels import launch

from fastdiff import reference
from fastdiff.ops.step import StepArguments, workspace_for
from fastdiff.reference.reverse_step import Step, _threshold
from fastdiff.table import COLUMNS, INDEX

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (2, 3, 7), (2, 1, 33, 33), (40, 2), (2, 4100)]


def table_of(rescaled: bool) -> tuple[np.ndarray, int]:
    """Returns a table and the bit mask of its columns.

    Some rows have a dynamic threshold and, if `rescaled`, rescaled guidance.
    """
    table = np.zeros((5, len(COLUMNS)))

    def fill(**columns: list[float] | float) -> None:
        for column, value in columns.items():
            table[:, INDEX[column.replace("__", ".")]] = value

    fill(network=1, input_scale=1, x0_x=[1.1, 0, 1.3, 1, 0.7], x0_out=[-0.4, 1, 0.9, 0, -2])
    fill(
        clip_mode=[2, 2, 0, 2, 1], clip_bound=[1.5, 1e9, 0, 2, 1], clip_ratio=[0.995, 0.5, 0, 1, 0]
    )
    fill(guidance_weight=[1, 0.5, 1, 0, 1], out_grad=[0, 0.5, 0, 0, 1], next=[1, 2, 3, 4, 4])
    fill(guidance_rescale=[0.7, 0, 0.3, 0.7, 1] if rescaled else 0)
    fill(x__x0=[1, 1, 0.5, 1, 1], x__out=[0, 0, 1, 0.25, 0], x__x=[0.5, 0, 0, 0, 0])
    return table, mask_of(table)


def run(
    values: list[torch.Tensor], row: torch.Tensor, gamma: torch.Tensor | None, rescaled: bool
) -> tuple[torch.Tensor, torch.Tensor, Step]:
    """Runs one step in place; returns the kernels' next x and x0, and the oracle's step."""
    x_t, output, gradient = values
    table, used = table_of(rescaled)
    with np.errstate(all="ignore"):
        want = reference.reverse_step(
            numbers(x_t),
            numbers(output),
            table,
            row.numpy(),
            gradient=numbers(gradient),
            guidance=None if gamma is None else gamma.numpy(),
        )
    kind = compute(x_t.dtype)
    x0 = poisoned(tuple(x_t.shape), kind)
    x_s = x_t.clone()  # in place
    launch.reverse_step(
        StepArguments(
            x_s,
            output,
            torch.from_numpy(table),
            row,
            out=x_s,
            guidance=gamma,
            gradient=gradient,
            used=used,
            x0_out=x0,
            workspace=workspace_for(x_t).fill_(-777.0),
        )
    )
    launch.check("cpu")
    return x_s, x0, want


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, guided: bool
) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = np.random.default_rng([*shape, 3])
    halves = 1 + guided
    x_t, output, gradient = (
        torch.from_numpy(generator.normal(size=(batch, *shape[1:]))).to(dtype)
        for batch in (shape[0], halves * shape[0], shape[0])
    )
    return [x_t, output, gradient], torch.from_numpy(generator.integers(0, 5, shape[0]))


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dynamic_threshold_has_the_oracles_bits(
    dtype: torch.dtype, shape: tuple[int, ...], guided: bool
) -> None:
    values, row = inputs(shape, dtype, guided)
    gamma = None
    if guided:
        kind = compute(dtype)
        gamma = torch.tensor([2.5, 1.0, 0.0, 7.5] * 75, dtype=kind)[: shape[0]]
    before = launch.launches.copy()
    x_s, x0, want = run(values, row, gamma, rescaled=False)
    same_bits(x_s, want.x_s)
    same_bits(x0, want.x0)
    if values[0].numel():
        assert launch.launches - before == {"reverse_step": 1, "reverse_step_threshold": 1}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_rescaled_guidance(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """To a few roundings: the factor's last bits depend on the order of the statistics' sums."""
    values, row = inputs(shape, dtype, guided=True)
    kind = compute(dtype)
    gamma = torch.tensor([2.5, 1.0, 0.0, 7.5] * 75, dtype=kind)[: shape[0]]
    before = launch.launches.copy()
    x_s, x0, want = run(values, row, gamma, rescaled=True)
    for got, expected in ((x_s, want.x_s), (x0, want.x0)):
        limits = torch.finfo(got.dtype)
        expected = torch.from_numpy(expected.astype(np.float64))
        torch.testing.assert_close(
            got.double(),
            expected,
            rtol=4 * limits.eps,
            atol=16 * torch.finfo(kind).eps,
            equal_nan=True,
        )
    if values[0].numel():
        counts = {"reverse_step": 1, "reverse_step_threshold": 1, "reverse_step_rescale": 1}
        assert launch.launches - before == counts


def test_the_quantile_of_ties_extremes_and_nan() -> None:
    """Row 1 takes the median and row 3 the largest value; each sample is a case of its own."""
    table, used = table_of(rescaled=False)
    table[:, INDEX["x0_x"]], table[:, INDEX["x0_out"]] = 1, 0
    table[:, [INDEX["x.x"], INDEX["x.out"]]], table[:, INDEX["clip_bound"]] = 0, np.inf
    samples = [
        [3.0] * 6, [0.0] * 6, [-0.0, 0.0, 5.0, -5.0, 0.0, 1.0],
        [1e-45, 2e-45, 1.0, 2.0, 3e38, -3e38], [np.nan, 1, 2, 3, 4, 5], [np.nan] * 4 + [1, 2],
        [np.inf, 1, 2, 3, 4, 5], [np.inf] * 4 + [2, 3],
        [4.0, 4.0000005, 4.000001, -4.0000015, 4.000002, 8.0],
    ]  # fmt: skip
    for kind in (torch.float32, torch.float64):
        for row in (1, 3):
            x = torch.tensor(samples, dtype=kind)
            rows = torch.full((len(samples),), row)
            with np.errstate(all="ignore"):
                want = reference.reverse_step(
                    numbers(x), numbers(x), table, rows.numpy(), gradient=numbers(x)
                )
            x0 = poisoned(tuple(x.shape), kind)
            launch.reverse_step(
                StepArguments(
                    x,
                    x,
                    torch.from_numpy(table),
                    rows,
                    out=x,
                    gradient=x,
                    used=used,
                    x0_out=x0,
                    workspace=workspace_for(x),
                )
            )
            same_bits(x0, want.x0)


def test_a_sample_has_the_same_bits_in_any_batch() -> None:
    values, row = inputs((7, 1200), torch.float32, guided=True)
    gamma = torch.tensor([2.5, 1.0, 0.0, 7.5, 3.0, 2.0, 9.0])
    x_s, x0, _ = run(values, row, gamma, rescaled=True)
    for begin, end in [(0, 1), (2, 3), (6, 7), (3, 5)]:
        x_t, output, gradient = (v[begin:end].clone() for v in values)
        output = torch.cat([output, values[1][7 + begin : 7 + end]])
        again = run(
            [x_t, output, gradient], row[begin:end].clone(), gamma[begin:end].clone(), rescaled=True
        )
        assert torch.equal(again[0], x_s[begin:end]) and torch.equal(again[1], x0[begin:end])


LONG = 33_000  # elements of three parts, of which the last is shorter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_a_long_sample_is_read_in_parts(dtype: torch.dtype) -> None:
    """Several programs take a part each. Thresholds have the oracle's bits, factors its value, and
    both are the same in any batch.
    """
    (x_t, output, gradient), _ = inputs((2, LONG), dtype, guided=True)
    x_t[1, ::3] = 0.25  # ties
    row = torch.tensor([0, 1])
    table, used = table_of(rescaled=True)
    table[:, INDEX["guidance_rescale"]] = 0.7

    def prepasses(samples: slice) -> tuple[list[launch.Call], torch.Tensor]:
        x = x_t[samples].clone()
        workspace = workspace_for(x).fill_(torch.nan)
        arguments = StepArguments(
            x,
            torch.cat([output[:2][samples], output[2:][samples]]),
            torch.from_numpy(table),
            row[samples].clone(),
            out=x,
            guidance=torch.tensor([2.5, 7.5], dtype=workspace.dtype)[samples].clone(),
            gradient=gradient[samples].clone(),
            used=used,
            workspace=workspace,
        )
        calls = launch.reverse_step_prepass_calls(launch.reverse_step_call(arguments), workspace)
        for call in calls:
            launch.run(call, x)
        return calls, workspace[:2]  # the factors and the thresholds

    calls, (factor, threshold) = prepasses(slice(None))
    digits = 8 if dtype == torch.float64 else 4
    assert [(call.op.removeprefix("reverse_step_"), call.grid) for call in calls] == [
        ("rescale", (2, 3, 1)),
        ("rescale_combine", (2, 1, 1)),
        *[("threshold_count", (2, 3, 1))] * digits,
        ("threshold_finish", (2, 1, 1)),
    ]
    eps = torch.finfo(threshold.dtype).eps
    for b, gamma in enumerate((2.5, 7.5)):
        c, u = (numbers(output[b + 2 * half]).astype(np.float64) for half in (0, 1))
        g = 1 + table[b, INDEX["guidance_weight"]] * (gamma - 1)
        want = 0.7 * c.std(ddof=1) / (u + g * (c - u)).std(ddof=1) + 0.3
        assert abs(float(factor[b]) - want) <= 4 * eps * want
        out = factor[b] * (output[b + 2] + g * (output[b] - output[b + 2]))
        if table[b, INDEX["out_grad"]]:
            out = out + table[b, INDEX["out_grad"]] * gradient[b]
        x0 = table[b, INDEX["x0_x"]] * x_t[b] + table[b, INDEX["x0_out"]] * out
        if not table[b, INDEX["x0_x"]]:
            x0 = table[b, INDEX["x0_out"]] * out
        bound = numbers(x0).dtype.type(table[b, INDEX["clip_bound"]])
        expected = _threshold(numbers(x0), table[b, INDEX["clip_ratio"]], bound)
        assert float(threshold[b]) == float(expected)
        _, alone = prepasses(slice(b, b + 1))
        assert alone[0] == factor[b] and alone[1] == threshold[b]


def test_the_op_allocates_what_the_launcher_divides() -> None:
    for size in (1, 4096, 32_768, 32_769, 3 * 256**2, 3 * 1024**2, 16_384 * 64 + 1):
        for dtype in (torch.float32, torch.float64):
            x = torch.empty(1, dtype=dtype).expand(2, size)
            call = launch.Call("", "", (0, 0, 0), {"batch": 2, "size": size}, {})
            space = workspace_for(x)
            parts = launch.step._parts(space, call)
            if size <= 32_768:
                assert parts is None and len(space) == launch.step.HEAD_ROWS
                continue
            assert (parts.number - 1) * parts.span < size <= parts.number * parts.span
            assert parts.number <= 64 and parts.span % 4096 == 0
            words = (launch.step.PART_WORDS * parts.number + launch.step.SAMPLE_WORDS) * 2
            assert words <= len(parts.words)


def test_an_empty_sample_needs_no_prepass() -> None:
    x = torch.empty(3, 0)
    table, used = table_of(rescaled=True)
    before = launch.launches.copy()
    launch.reverse_step(
        StepArguments(
            x,
            torch.empty(6, 0),
            torch.from_numpy(table),
            torch.zeros(3, dtype=torch.int64),
            out=x,
            guidance=torch.ones(3),
            gradient=x,
            used=used,
            workspace=workspace_for(x),
        )
    )
    assert launch.launches - before == {"reverse_step": 1}


def test_a_row_outside_the_table_leaves_the_prepasses_alone() -> None:
    values, row = inputs((4, 9), torch.float32, guided=True)
    table, used = table_of(rescaled=True)
    row[:] = torch.tensor([0, 5, -1, 2])
    x_t, output, gradient = values
    workspace = workspace_for(x_t).fill_(-777)
    rescale, threshold = workspace[:2]
    launch.reverse_step(
        StepArguments(
            x_t,
            output,
            torch.from_numpy(table),
            row,
            out=x_t,
            guidance=torch.full((4,), 3.0),
            gradient=gradient,
            used=used,
            workspace=workspace,
        )
    )
    assert x_t.isnan().all(1).tolist() == [False, True, True, False]
    assert rescale.eq(-777).tolist() == [False, True, True, False]
    assert threshold.eq(-777).tolist() == [False, True, True, True]
    with pytest.raises(IndexError, match="reverse_step"):
        launch.check("cpu")
