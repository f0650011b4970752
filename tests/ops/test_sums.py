"""The ops that sum over a sample: values, bits in any batch, layouts, gradients, buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.cases import DTYPES, name, truth
from ops.sums import OPS, SHAPES, check, check_batches
from tolerances import SUM, SUM_GRADIENTS

import fastdiff
from fastdiff.backend import library as native

OP = pytest.mark.parametrize("op", list(OPS.values()), ids=list(OPS))


@OP
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_oracle(op, shape, dtype, backend) -> None:
    check(op, shape, dtype)


@OP
@pytest.mark.parametrize("shape", [(7, 3), (7, 2, 700), (7, 33)], ids=str)
def test_a_sample_has_its_bits_in_any_batch(op, shape, backend) -> None:
    check_batches(op, shape, torch.float32)


@OP
@pytest.mark.cpu_only
def test_threads_change_no_bit(op) -> None:
    if not native.available():
        pytest.skip("the C++ library is off")
    before = torch.get_num_threads()
    with fastdiff.use("cpu"):
        inputs = op.inputs((37, 3, 1001), torch.float32)
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(op.run(**inputs))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


@OP
@pytest.mark.cpu_only
def test_levels_give_the_same_bits(op) -> None:
    if not native.available():
        pytest.skip("the C++ library is off")
    inputs = op.inputs((5, 2, 1030), torch.float32)
    results = {}
    with fastdiff.use("cpu"):
        try:
            for level in native.levels():
                native.set_level(level)
                results[level] = op.run(**inputs)
                check(op, (5, 2, 600), torch.bfloat16)
        finally:
            native.set_level(None)
    assert all(torch.equal(r, results["baseline"]) for r in results.values())


@OP
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "batch slices"])
def test_layouts(op, layout, backend) -> None:
    inputs = op.inputs((4, 6, 5, 8), torch.float32)
    change = {
        "channels_last": lambda v: v.contiguous(memory_format=torch.channels_last),
        "transposed": lambda v: v.transpose(1, 3).contiguous().transpose(1, 3),
        "sliced": lambda v: torch.cat([v, v], dim=3)[..., : v.shape[3]],
        "batch slices": lambda v: torch.stack([v, v + 1], dim=1).flatten(0, 1)[::2],
    }[layout]
    moved = {k: change(v) if v.ndim == 4 else v for k, v in inputs.items()}
    assert torch.equal(op.run(**moved), op.run(**inputs))


@OP
def test_gradients(op, backend) -> None:
    inputs = op.inputs((3, 4, 3), torch.float64)
    if "mean" in inputs:  # scales at which the differences of gradcheck keep enough digits
        inputs |= {"log_scale": inputs["log_scale"] * 0.5}
    leaves = {k: inputs[k].clone().requires_grad_() for k in op.grads}
    assert torch.autograd.gradcheck(
        lambda *values: op.run(**inputs | dict(zip(op.grads, values, strict=True))),
        tuple(leaves.values()),
    )


@OP
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_every_dtype_and_chunk(op, dtype, backend) -> None:
    """The gradients equal those in float64, which gradcheck tests.

    A sample has two chunks. A gradient beyond float16's largest number may be infinite.
    """
    inputs = op.inputs((3, 2, 700), dtype)
    weight = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    def grads(dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = {k: inputs[k].to(dtype).requires_grad_() for k in op.grads}
        rest = {
            k: v.to(dtype) if v.is_floating_point() and k != "table" else v
            for k, v in inputs.items()
        }
        total = op.run(**rest | leaves)
        return list(torch.autograd.grad(total, list(leaves.values()), weight.to(total.dtype)))

    rounding = SUM_GRADIENTS[name(dtype)]
    for got, expected in zip(grads(dtype), grads(torch.float64), strict=True):
        assert got.dtype == dtype
        limit = rounding * (1 + expected.abs())
        bad = ~((got.double() - expected).abs() <= limit)
        bad &= ~(got.isinf() & (expected.abs() > torch.finfo(dtype).max * 0.99))
        assert not bad.any(), ((got.double() - expected).abs() / (1 + expected.abs())).max()


@pytest.mark.parametrize("name", [name for name in OPS if name != "step_log_prob"])
def test_out_and_workspace_allocate_nothing(name, backend, monkeypatch) -> None:
    """The workspace of step_log_prob is that of a step: tests/ops/test_step_log_prob.py."""
    op = OPS[name]
    inputs = op.inputs((3, 2, 700), torch.float32)
    expected = op.run(**inputs)
    out, workspace = torch.full((3,), math.nan), torch.full((6,), math.nan)
    if backend != "torch":  # the operations of eager torch make temporaries
        monkeypatch.setattr(torch, "empty", None)
        monkeypatch.setattr(torch, "empty_like", None)
    assert op.run(**inputs, out=out, workspace=workspace) is out
    monkeypatch.undo()
    assert torch.equal(out, expected)
    with pytest.raises(
        ValueError, match="expected a workspace of 6 float32 values with out, got none"
    ):
        op.run(**inputs, out=out)
    with pytest.raises(TypeError, match="expected a contiguous out of dtype float32"):
        op.run(**inputs, out=out.double(), workspace=workspace)


@pytest.mark.parametrize("op", list(OPS))
def test_opcheck(op, backend) -> None:
    case = OPS[op]
    inputs = case.inputs((3, 4, 2), torch.float32)
    given = [v.requires_grad_() if k in case.grads else v for k, v in inputs.items()]
    # no second Gaussian; seed, seeds, sample_ids, step, stream and fast
    # slots, guidance, gradient, the columns in use, and whether the result is a mean
    rest = {
        "standard_kl": (None, None),
        "noise_mse": (5, None, None, 0, 2, False),
        "step_log_prob": (None, None, None, -1, False),
    }.get(op, ())
    registered = getattr(torch.ops.fastdiff, "gaussian_kl" if op == "standard_kl" else op)
    torch.library.opcheck(registered.default, (*given, *rest))


@OP
def test_fullgraph_compilation(op, backend) -> None:
    inputs = op.inputs((3, 4, 2), torch.float32)
    compiled = torch.compile(lambda **k: op.run(**k), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs), op.run(**inputs))


@pytest.mark.parametrize(
    "op", ["gaussian_kl", "discretized_gaussian_nll", "noise_mse", "step_log_prob"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_go_where_the_oracle_sends_them(op, value, backend) -> None:
    case = OPS[op]
    for spoiled in case.inputs((3, 5), torch.float32):
        inputs = case.inputs((3, 5), torch.float32)
        if inputs[spoiled].ndim != 2:
            continue
        inputs[spoiled] = inputs[spoiled].clone()
        inputs[spoiled][1, 3] = value
        got = case.run(**inputs).numpy()
        with np.errstate(all="ignore"):
            expected = case.oracle(**{k: truth(v) for k, v in inputs.items()})
        np.testing.assert_allclose(got, expected, rtol=SUM["float32"], err_msg=f"{spoiled} {value}")


@pytest.mark.parametrize(
    "op", ["gaussian_kl", "discretized_gaussian_nll", "noise_mse", "step_log_prob"]
)
def test_many_short_samples(op, backend) -> None:
    case = OPS[op]
    for shape in ((70_000, 2), (65_536, 32)) if backend == "cpu" else ((70_000, 2),):
        inputs = case.inputs(shape, torch.float32)
        got = case.run(**inputs).numpy()
        tail = {k: v[-50:] for k, v in inputs.items()}
        if op == "noise_mse":
            ids = torch.arange(shape[0])[-50:]
            assert np.array_equal(got[-50:], case.run(**tail, sample_ids=ids).numpy())
        else:
            expected = case.oracle(**{k: truth(v) for k, v in tail.items()})
            np.testing.assert_allclose(
                got[-50:], expected, rtol=SUM["float32"], atol=SUM["float32"]
            )


@pytest.mark.cpu_only
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 1200),
    st.sampled_from(["gaussian_kl", "discretized_gaussian_nll", "noise_mse", "step_log_prob"]),
    st.sampled_from(["torch", "cpu"]),
)
def test_any_size(batch: int, n: int, op: str, backend: str) -> None:
    if fastdiff.backends()[backend].available:
        with fastdiff.use(backend):
            check(OPS[op], (batch, n), torch.float32)
