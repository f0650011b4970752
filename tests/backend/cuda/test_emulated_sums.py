"""The CUDA kernels that sum over a sample, compiled for the host, against the oracle.

Their gradients are compared with autograd of the same formulas in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cuda_library import OPS, Library, array, compute_of, draw, view, workspace
from emulated_cases import (
    SEED,
    SHAPES,
    STEP,
    assert_close,
    every_dtype,
    every_shape,
    name,
    normal,
    poisoned,
    truth,
)
from tolerances import CUDA_BIN_GRADIENTS, CUDA_SUMS, VLB_SUM
from torch import Tensor

from fastdiff.reference.discretized_gaussian_nll import discretized_gaussian_nll
from fastdiff.reference.gaussian_kl import gaussian_kl
from fastdiff.reference.noise_mse import noise_mse
from fastdiff.reference.randn import randn
from fastdiff.reference.vlb_terms import vlb_terms


def _gradients(f: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    """Returns the gradients of Σ g·f(inputs) to the inputs, by autograd in float64."""
    wide = [x.double().requires_grad_() for x in inputs]
    (g.double() * f(*wide)).sum().backward()
    return [np.zeros(tuple(w.shape)) if w.grad is None else w.grad.numpy() for w in wide]


def _per_sample(x: Tensor) -> Tensor:
    return (
        x.reshape(x.size(0), -1).sum(1)
        if x.numel()
        else torch.zeros(x.size(0), dtype=x.dtype) + x.sum()
    )


def _relative(got: Tensor, expected: np.ndarray, compute: torch.dtype) -> None:
    limit = CUDA_SUMS[name(compute)]
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=limit, atol=limit * 1e-2)


@pytest.mark.parametrize("weighted", [False, True])
@every_dtype
@every_shape
def test_noise_mse(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, weighted: bool
) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x, loss = normal(shape, dtype), torch.full((batch,), torch.nan, dtype=compute)
    weight = torch.rand(batch, dtype=compute) + 0.5 if weighted else None
    noise, none = draw(SEED, step=STEP, stream=2), [0, 0]
    cuda.call("noise_mse", x, noise, array(x), weight, loss, workspace(x, compute), 0, none)
    _relative(loss, noise_mse(truth(x), seed=SEED, step=STEP, weight=truth(weight)), compute)
    g, out = normal((batch,), compute, 1), poisoned(x)
    cuda.call("noise_mse", x, noise, array(x), weight, 0, 0, g, array(out))
    eps = torch.from_numpy(randn(shape, seed=SEED, step=STEP, stream=2, dtype=np.float64))
    scale = (1.0 if weight is None else weight.double()) / max(1, int(np.prod(shape[1:])))
    assert_close(out, _gradients(lambda p: scale * _per_sample((p - eps) ** 2), g, x)[0], dtype)


def _kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    d = logvar1 - logvar2
    return _per_sample(0.5 * ((torch.expm1(d) - d) + (mean1 - mean2) ** 2 * torch.exp(-logvar2)))


@pytest.mark.parametrize("second", [False, True])
@every_dtype
@every_shape
def test_gaussian_kl(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, second: bool
) -> None:
    batch, compute = shape[0], compute_of(dtype)
    values = [normal(shape, dtype, i) for i in range(4)]
    views = [view(v) if i < 2 or second else view(None) for i, v in enumerate(values)]
    kl, code = torch.full((batch,), torch.nan, dtype=compute), int(compute == torch.float64)
    none = [[0, 0]] * 4
    cuda.call("gaussian_kl", values[0], code, *views, kl, workspace(values[0], compute), 0, *none)
    wanted = (
        values
        if second
        else [*values[:2], torch.zeros_like(values[0]), torch.zeros_like(values[0])]
    )
    _relative(kl, gaussian_kl(*(truth(v) for v in wanted)), compute)
    g, outs = normal((batch,), compute, 5), [poisoned(v) for v in values[: 4 if second else 2]]
    arrays = [array(out) for out in outs] + none[len(outs) :]
    cuda.call("gaussian_kl", values[0], code, *views, 0, 0, g, *arrays)
    for out, expected in zip(outs, _gradients(_kl, g, *wanted), strict=False):
        assert_close(out, expected, dtype)


def test_views_that_share_a_value_or_stride_over_samples(cuda: Library) -> None:
    """One logvar per sample, one for all samples, and means at every other row of an array."""
    for size in (8, 2052):
        wide = normal((6, size), torch.float32)
        mean, shared, single = (
            wide[::2],
            normal((3, 1), torch.float32, 1),
            normal((1, 1), torch.float32, 2),
        )
        kl, none = torch.empty(3), [[0, 0]] * 4
        cuda.call(
            "gaussian_kl",
            mean,
            0,
            view(wide, 2 * size),
            view(shared, 1, 0),
            view(wide, 0),
            view(single, 0, 0),
            kl,
            workspace(mean, torch.float32),
            0,
            *none,
        )
        _relative(
            kl,
            gaussian_kl(mean.numpy(), shared.numpy(), wide[:1].numpy(), single.numpy()),
            torch.float32,
        )


def _bins(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Returns the negative log-likelihood of each element, from plain torch for autograd.

    It is the logarithm of a difference of two tails, mirrored to the side where both are small.
    """
    level = (127.5 * (x0 + 1)).round().clamp(0, 255)
    first, last = level == 0, level == 255
    center, inverse = level / 127.5 - 1 - mean, torch.exp(-log_scale)
    center = torch.where(first | ((center < 0) & ~last), -center, center)
    near = torch.special.log_ndtr((1 / 255 - center) * inverse)
    far = torch.special.log_ndtr((-1 / 255 - center) * inverse)
    return -near - torch.where(first | last, 0.0, torch.log1p(-torch.exp(far - near)))


@every_dtype
@every_shape
def test_discretized_gaussian_nll(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x0 = normal(shape, dtype).clamp(-1, 1)
    mean, log_scale = (
        (x0 + 0.05 * normal(shape, dtype, 1)).to(dtype),
        (normal(shape, dtype, 2) * 0.5 - 3).to(dtype),
    )
    nll, code = torch.full((batch,), torch.nan, dtype=compute), int(compute == torch.float64)
    views, space, none = [view(x0), view(mean), view(log_scale)], workspace(x0, compute), [0, 0]
    cuda.call("discretized_gaussian_nll", x0, code, *views, nll, space, 0, none, none)
    _relative(nll, discretized_gaussian_nll(truth(x0), truth(mean), truth(log_scale)), compute)
    g, g_mean, g_scale = normal((batch,), compute, 3), poisoned(x0), poisoned(x0)
    cuda.call("discretized_gaussian_nll", x0, code, *views, 0, 0, g, array(g_mean), array(g_scale))
    _, *expected = _gradients(lambda *v: _per_sample(_bins(*v)), g, x0, mean, log_scale)
    for out, want in zip((g_mean, g_scale), expected, strict=True):
        assert_close(out, want, dtype, CUDA_BIN_GRADIENTS)


def _vlb_table() -> np.ndarray:
    rows = np.array([
        # x0_x, x0_out, clip, mean_x0, mean_x, logvar_q, logvar_lo, logvar_hi, first
        [1.02, -0.2, 0.9873, 1.0, 0.0, -6.0, -6.5, -5.0, 1.0],
        [1.10, -0.5, 0.9873, 0.4, 0.6, -6.0, -6.2, -4.0, 0.0],
        [1.50, -1.1, np.inf, 0.1, 0.9, -4.0, -4.3, -3.0, 0.0],
    ])  # fmt: skip
    assert rows.shape == (3, 9)
    return rows


@pytest.mark.parametrize("learned", [False, True])
@every_dtype
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_vlb_terms(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, learned: bool
) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x0, x_t = (0.7 * normal(shape, dtype)).clamp(-1, 1), normal(shape, dtype, 1)
    out = normal((batch, shape[1] * (2 if learned else 1), *shape[2:]), dtype, 2)
    # x_t near what the output predicts of x0, so that terms are moderate
    half = out[:, : shape[1]]
    x_t = ((x0.double() + 0.3 * half.double()) / 1.1 + 0.02 * x_t.double()).to(dtype)
    table, t = torch.from_numpy(_vlb_table()), torch.arange(batch) % 3
    if batch == 2:
        t[:] = torch.tensor([2, 0])
    terms, size = torch.full((batch,), torch.nan, dtype=compute), out[0].numel() if batch else 0
    inputs = [array(x0), array(x_t), array(out), size, table, 3, t]
    cuda.call("vlb_terms", x0, *inputs, terms, workspace(x0, compute), 0, [0, 0])
    expected = vlb_terms(truth(x0), truth(x_t), truth(out), table.numpy(), t.numpy())
    np.testing.assert_allclose(terms.double().numpy(), expected, rtol=VLB_SUM[name(compute)])

    def bound(out: Tensor) -> Tensor:
        c = [table[t, i].reshape(-1, *[1] * (x0.dim() - 1)) for i in range(9)]
        prediction = torch.maximum(
            torch.minimum(c[0] * x_t.double() + c[1] * out[:, : shape[1]], c[2]), -c[2]
        )
        logvar = (
            c[6] + (c[7] - c[6]) * (out[:, shape[1] :] + 1) / 2
            if learned
            else c[6].expand(x0.shape)
        )
        d = c[5] - logvar
        term = 0.5 * (
            (torch.expm1(d) - d) + (c[3] * (x0.double() - prediction)) ** 2 * torch.exp(-logvar)
        )
        bins = _bins(x0.double(), c[3] * prediction + c[4] * x_t.double(), 0.5 * logvar)
        return _per_sample(torch.where(c[8] != 0, bins, term))

    g, g_out = normal((batch,), compute, 3), poisoned(out)
    cuda.call("vlb_terms", x0, *inputs, 0, 0, g, array(g_out))
    assert_close(g_out, _gradients(bound, g, out)[0], dtype, CUDA_BIN_GRADIENTS)


@pytest.mark.parametrize("size", [5, 1500])
def test_a_term_outside_its_table_is_nan(cuda: Library, size: int) -> None:
    x, table, t = torch.zeros(3, size), torch.from_numpy(_vlb_table()), torch.tensor([1, 3, -1])
    terms, g, g_out = torch.zeros(3), torch.ones(3), torch.zeros(3, size)
    inputs = [array(x), array(x), array(x), size, table, 3, t]
    cuda.call("vlb_terms", x, *inputs, terms, workspace(x, torch.float32), 0, [0, 0])
    assert (
        terms.isnan().tolist() == [False, True, True] and cuda.error() == OPS.index("vlb_terms") + 1
    )
    cuda.call("vlb_terms", x, *inputs, 0, 0, g, array(g_out))
    assert (
        g_out.isnan().all(1).tolist() == [False, True, True]
        and cuda.error() == OPS.index("vlb_terms") + 1
    )


@pytest.mark.parametrize("size", [1, 2, 5, 100, 513, 1024, 1025, 5000])
def test_a_samples_sum_has_the_same_bits_in_any_batch(cuda: Library, size: int) -> None:
    mean, logvar, none = (
        normal((7, size), torch.float32),
        normal((7, size), torch.float32, 1),
        [[0, 0]] * 4,
    )

    def run(first: int, last: int) -> Tensor:
        m, v, kl = mean[first:last], logvar[first:last], torch.empty(last - first)
        space = workspace(m, torch.float32)
        cuda.call(
            "gaussian_kl", m, 0, view(m), view(v), view(None), view(None), kl, space, 0, *none
        )
        return kl

    whole = run(0, 7)
    for batch in (1, 2):
        for first in range(8 - batch):
            assert torch.equal(run(first, first + batch), whole[first : first + batch])


def test_many_short_samples(cuda: Library) -> None:
    """One launch each, without a second pass for the sums."""
    n = 70_000  # more than the second and third axis of a grid of blocks can have
    out = torch.empty(n, 2)
    before = cuda.launches("randn"), cuda.launches("gaussian_kl"), cuda.launches("sum_chunks")
    cuda.call("randn", out, draw(SEED), array(out))
    assert torch.equal(out, torch.from_numpy(randn((n, 2), seed=SEED)))
    kl = torch.empty(n)
    none = [[0, 0]] * 4
    cuda.call("gaussian_kl", out, 0, view(out), view(out), view(None), view(None), kl, 0, 0, *none)
    _relative(kl, gaussian_kl(out.numpy(), out.numpy()), torch.float32)
    after = cuda.launches("randn"), cuda.launches("gaussian_kl"), cuda.launches("sum_chunks")
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 0]
