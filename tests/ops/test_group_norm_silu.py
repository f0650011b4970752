"""`group_norm_silu` against the oracle and torch's own operations.

Its bits in every layout, batch, backend and CPU level; its gradients and its errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.cases import DTYPES, name, truth
from ops.sums import normal
from tolerances import GROUP_NORM, GROUP_NORM_GRADIENTS, ROUNDING
from torch.nn import functional as F

from fastdiff import ops, reference
from fastdiff.backend import library

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [
    ((2, 32, 16, 16), 8), ((3, 64, 4, 4), 32), ((1, 320, 7, 9), 32), ((2, 30, 65), 3), ((4, 16), 4),
    ((2, 8, 1, 1), 2), ((2, 33, 10, 10), 1), ((2, 24, 3, 4, 5), 24), ((1, 20, 33, 67), 4),
    ((2, 144, 8, 8), 1), ((5, 1, 9), 1),
]  # fmt: skip
IDS = ["x".join(map(str, shape)) + f"/{groups}" for shape, groups in SHAPES]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, what: str = "all"
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Returns x and the op's optional tensors: none if `what` is plain, else all.

    scale and shift are halves of one tensor, as networks pass them.
    """
    x = normal(shape, dtype, 1, 1.5) + 0.75
    if what == "plain":
        return x, {}
    batch, channels = shape[:2]
    scale, shift = normal((batch, 2 * channels), torch.float32, 2).chunk(2, dim=1)
    weight, bias = normal((channels,), dtype, 3), normal((channels,), torch.float32, 4)
    add = normal((batch, channels), dtype, 5)
    return x, {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "add": add}


def oracle(x: torch.Tensor, groups: int, options: dict[str, Any]) -> np.ndarray:
    """Returns the oracle's result, computed in float64."""
    arrays = {k: truth(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return reference.group_norm_silu(truth(x).astype(np.float64), groups, **arrays)


def close(got: torch.Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    """Compares relative to the largest value, plus one rounding of the stored type."""
    size = max(float(np.abs(expected).max()), 1e-30)
    limit = GROUP_NORM["float64" if dtype == torch.float64 else "float32"] * size
    bound = np.abs(expected) * ROUNDING[name(dtype)] + limit
    assert (np.abs(truth(got).astype(np.float64) - expected) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=IDS)
def test_values(shape: tuple[int, ...], groups: int, dtype: torch.dtype, backend: str) -> None:
    for what in ("plain", "all"):
        x, options = inputs(shape, dtype, what)
        for silu in (True, False):
            got = ops.group_norm_silu(x, groups, silu=silu, **options)
            assert got.dtype == dtype and got.shape == x.shape and got.is_contiguous()
            close(got, oracle(x, groups, options | {"silu": silu}), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "shape, groups", [s for s in SHAPES if len(s[0]) in LAST], ids=lambda v: str(v)
)
def test_channels_last_gives_the_same_bits_in_its_own_format(shape, groups, dtype, backend) -> None:
    x, options = inputs(shape, dtype)
    last = x.contiguous(memory_format=LAST[x.ndim])
    got = ops.group_norm_silu(last, groups, **options)
    assert got.stride() == last.stride()
    assert torch.equal(got, ops.group_norm_silu(x, groups, **options))


@pytest.mark.parametrize("silu", [True, False])
def test_torch_agrees(silu: bool, backend: str) -> None:
    x, options = inputs((2, 64, 16, 16), torch.float32)
    weight, bias, scale, shift, add = options.values()
    for eps in (1e-6, 1e-5, 0.5):
        y = F.group_norm(x + add[:, :, None, None], 32, weight, bias, eps)
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        expected = F.silu(y) if silu else y
        got = ops.group_norm_silu(x, 32, eps=eps, silu=silu, **options)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=IDS)
def test_every_backend_and_level_gives_the_same_bits(shape, groups, dtype, backend) -> None:
    for what in ("plain", "all"):
        x, options = inputs(shape, dtype, what)
        expected = ops.group_norm_silu(x, groups, backend="torch", **options)
        levels = library.levels() if backend == "cpu" else [None]
        for level in levels:
            if level:
                library.set_level(level)
            try:
                assert torch.equal(ops.group_norm_silu(x, groups, **options), expected), level
            finally:
                if level:
                    library.set_level(None)


@pytest.mark.parametrize("last", [False, True])
def test_batch_and_threads_change_no_bit(last: bool, backend: str) -> None:
    x, options = inputs((5, 64, 12, 11), torch.float32)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    whole = ops.group_norm_silu(x, 16, **options)
    for b in range(5):
        one = {k: v if v.ndim == 1 else v[b : b + 1] for k, v in options.items()}
        assert torch.equal(ops.group_norm_silu(x[b : b + 1], 16, **one), whole[b : b + 1])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(ops.group_norm_silu(x, 16, **options), whole)
    finally:
        torch.set_num_threads(threads)


def test_a_large_mean_does_no_harm(backend: str) -> None:
    """The kernel sums squares of distances and subtracts no squares, which would cancel."""
    for groups, shape in ((4, (2, 16, 40, 40)), (2, (2, 8, 5))):
        x = normal(shape, torch.float32, 1) + 3000
        got = ops.group_norm_silu(x, groups, silu=False)
        expected = oracle(x, groups, {"silu": False})
        # the mean is rounded once, to 2^-13 at 3000
        assert np.abs(got.double().numpy() - expected).max() < 2.0**-12
        assert abs(float(got.double().var(correction=0)) - 1) < 1e-4


def test_one_far_value_and_constant_groups(backend: str) -> None:
    x = torch.zeros(1, 8, 9, 9)
    x[0, 0, 0, 0] = 1e4  # the pivot of its group
    close(ops.group_norm_silu(x, 2), oracle(x, 2, {}), torch.float32)
    y = ops.group_norm_silu(torch.full((2, 4, 70), 7.0), 2, bias=torch.ones(4))
    torch.testing.assert_close(
        y, torch.full_like(y, float(F.silu(torch.ones(())))), rtol=1e-6, atol=0
    )


def test_extremes_of_silu(backend: str) -> None:
    """silu(z) of a large z is z or 0, and NaN stays; the shift sets z."""
    z = torch.tensor([[-1e38, -200.0, -88.0, -80.0, -1.0, 0.0, 1.0, 80.0, 100.0, 3e38]])
    x = torch.zeros(1, 10, 3)
    got = ops.group_norm_silu(x, 10, shift=z)[0, :, 0]
    np.testing.assert_allclose(got.numpy(), F.silu(z.double())[0].numpy(), rtol=1e-6, atol=1e-36)
    assert ops.group_norm_silu(x, 10, shift=z * float("nan")).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_in_place_and_into_a_part(dtype: torch.dtype, backend: str) -> None:
    for last in (False, True):
        x, options = inputs((2, 48, 9, 10), dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        expected = ops.group_norm_silu(x, 8, **options)
        out = torch.full_like(x, float("nan"))
        assert ops.group_norm_silu(x, 8, out=out, **options) is out and torch.equal(out, expected)
        # half of the channels of a wider tensor, which is how a concatenation is written in parts
        wide = torch.zeros((2, 96, 9, 10), dtype=dtype)
        wide = wide.contiguous(memory_format=torch.channels_last) if last else wide
        ops.group_norm_silu(x, 8, out=wide[:, 48:], **options)
        assert torch.equal(wide[:, 48:], expected) and wide[:, :48].eq(0).all()
        assert torch.equal(ops.group_norm_silu(wide[:, 48:], 8), ops.group_norm_silu(expected, 8))
        ops.group_norm_silu(x, 8, out=x, **options)
        assert torch.equal(x, expected)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.permutations(range(4)),
    st.lists(st.integers(1, 2), min_size=4, max_size=4),
    st.integers(0, 3),
)
def test_any_layout(backend: str, order: list[int], steps: list[int], offset: int) -> None:
    shape = (2, 6, 5, 7)
    buffer = torch.randn(
        [shape[i] * steps[i] + offset for i in order], generator=torch.Generator().manual_seed(1)
    )
    view = buffer.permute([order.index(i) for i in range(4)])
    x = view[tuple(slice(offset, offset + n * k, k) for n, k in zip(shape, steps, strict=True))]
    assert torch.equal(
        ops.group_norm_silu(x, 3),
        ops.group_norm_silu(x.clone(memory_format=torch.contiguous_format), 3),
    )
    wide = x[:, :1].expand(shape)
    assert torch.equal(ops.group_norm_silu(wide, 3), ops.group_norm_silu(wide.contiguous(), 3))


def test_empty(backend: str) -> None:
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 0)):
        x = torch.zeros(shape)
        assert ops.group_norm_silu(x, 2).shape == x.shape
        assert ops.group_norm_silu(x, 2, out=x) is x


@pytest.mark.parametrize("last", [False, True])
def test_gradients(last: bool) -> None:
    """The gradients of every input, of first and second order, equal finite differences."""
    x, options = inputs((2, 6, 3, 4), torch.float64)
    tensors = [v.double().detach().requires_grad_() for v in (x, *options.values())]
    names = tuple(options)

    def run(x: torch.Tensor, *rest: torch.Tensor, silu: bool = True) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        return ops.group_norm_silu(x, 3, silu=silu, **dict(zip(names, rest, strict=True)))

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradcheck(lambda *v: run(*v, silu=False), tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_gradients_equal_those_of_torch(dtype: torch.dtype) -> None:
    x, options = inputs((2, 32, 16, 15), dtype)
    given = {"x": x, **options}
    ours = {k: v.clone().requires_grad_() for k, v in given.items()}
    theirs = {k: v.double().requires_grad_() for k, v in given.items()}
    w, b, scale, shift, add = (theirs[k] for k in options)
    y = F.group_norm(theirs["x"] + add[:, :, None, None], 8, w, b)
    F.silu(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]).square().sum().backward()
    ops.group_norm_silu(
        ours["x"], 8, **{k: ours[k] for k in options}
    ).double().square().sum().backward()
    for k, v in given.items():
        got, expected = ours[k].grad, theirs[k].grad
        assert got is not None and expected is not None and got.dtype == v.dtype
        assert (got.double() - expected).abs().max() <= GROUP_NORM_GRADIENTS[
            name(dtype)
        ] * expected.abs().max(), k


def test_partial_gradients() -> None:
    """Only some inputs require a gradient, and others are absent."""
    x = normal((2, 8, 5), torch.float32, 1).requires_grad_()
    ops.group_norm_silu(x, 2).sum().backward()
    assert x.grad is not None
    weight = torch.ones(8, requires_grad=True)
    ops.group_norm_silu(x.detach(), 2, weight).sum().backward()
    assert weight.grad is not None
    assert not ops.group_norm_silu(x, 2, out=torch.empty_like(x)).requires_grad


def test_opcheck_and_compile() -> None:
    x, options = inputs((2, 16, 6, 6), torch.float32)
    for layout in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x[:, :, ::2],
        x.transpose(2, 3),
    ):
        arguments = (
            layout,
            4,
            *(options[k] for k in ("weight", "bias", "scale", "shift", "add")),
            1e-5,
            True,
        )
        torch.library.opcheck(torch.ops.fastdiff.group_norm_silu.default, arguments)
    grown = (x.clone().requires_grad_(), 4, None, None, None, None, None, 1e-5, True)
    torch.library.opcheck(torch.ops.fastdiff.group_norm_silu.default, grown)
    torch.library.opcheck(
        torch.ops.fastdiff.group_norm_silu_out.default,
        (x, 4, None, None, None, None, None, 1e-5, True, torch.empty_like(x)),
    )
    compiled = torch.compile(
        lambda v: ops.group_norm_silu(v * 2, 4, **options) + 1, fullgraph=True, backend="aot_eager"
    )
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(compiled(layout), ops.group_norm_silu(layout * 2, 4, **options) + 1)


def test_bad_input() -> None:
    x = torch.zeros(2, 6, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    for call, kind, message in [
        (
            lambda: ops.group_norm_silu(torch.zeros(3), 1),
            ValueError,
            "expected x of shape [B, C, …], got [3]",
        ),
        (
            lambda: ops.group_norm_silu(x.int(), 1),
            TypeError,
            "expected x of dtype float64, float32, float16 or bfloat16",
        ),
        (
            lambda: ops.group_norm_silu(x, 4),
            ValueError,
            "expected groups that divide the 6 channels, got 4",
        ),
        (
            lambda: ops.group_norm_silu(x, 0),
            ValueError,
            "expected groups that divide the 6 channels, got 0",
        ),
        (lambda: ops.group_norm_silu(x, 2.0), TypeError, "expected groups as an int, got float"),
        (
            lambda: ops.group_norm_silu(x, 2, eps=-1.0),
            ValueError,
            "expected eps of at least 0, got -1.0",
        ),
        (
            lambda: ops.group_norm_silu(x, 2, torch.ones(5)),
            ValueError,
            "expected weight of shape [6], got [5]",
        ),
        (
            lambda: ops.group_norm_silu(x, 2, scale=torch.ones(6)),
            ValueError,
            "expected scale of shape [2, 6], got [6]",
        ),
        (
            lambda: ops.group_norm_silu(x, 2, out=torch.zeros(2, 6, 9)),
            ValueError,
            "expected out of shape [2, 6, 3, 3]",
        ),
        (
            lambda: ops.group_norm_silu(x, 2, out=last),
            ValueError,
            "expected out with the dtype and memory format of x",
        ),
        (
            lambda: ops.group_norm_silu(x, 2, out=x.half()),
            ValueError,
            "expected out with the dtype and memory format of x",
        ),
    ]:
        with pytest.raises(kind) as error:
            call()
        assert message in str(error.value) and str(error.value).startswith(
            "fastdiff.group_norm_silu: "
        )
