"""The gradients of the kernels that sum over a sample, in Triton's interpreter, against float64.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import DTYPES, compute, name, poisoned
from fastdiff_kernels import launch
from sums import SEED, SHAPES, VIEWS, Case, normal, rows, views_of, vlb_table
from tolerances import ROUNDING, TRITON_BIN_GRADIENTS, TRITON_GRADIENTS
from torch import Tensor

from fastdiff.reference.discretized_gaussian_nll import bins
from fastdiff.reference.randn import randn


def close(got: Tensor, want: Tensor, tolerances: dict[str, float]) -> None:
    """Compares relative to the largest value, plus one rounding of the stored type.

    A float16 may also lose its last bits below the smallest normal number.
    """
    assert got.shape == want.shape
    if got.numel():
        largest = float(want.abs().max())
        tolerance = tolerances[name(compute(got.dtype))]
        stored = ROUNDING[name(got.dtype)] * want.abs() + (
            1e-7 if got.dtype == torch.float16 else 0
        )
        error = (got.double() - want).abs()
        assert (error <= tolerance * largest + stored).all(), float((error / largest).max())


def autograd(terms: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns the gradients of Σ_b grad_b Σ_i terms_bi to the inputs, in float64; grad is [B]."""
    leaves = [v.double().clone().requires_grad_() for v in inputs]
    (rows(terms(*leaves)).sum(1) * grad.double()).sum().backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def kl_terms(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    d = logvar1 - logvar2
    return 0.5 * (torch.expm1(d) - d + (mean1 - mean2) ** 2 * torch.exp(-logvar2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_gaussian_kl(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = Case("gaussian_kl", shape, dtype)
    inputs = [rows(v) for v in case.values]
    grad = normal(5, shape[0], dtype=compute(dtype))[0]
    want = autograd(kl_terms, inputs, grad)
    gradients = [poisoned(tuple(inputs[0].shape), dtype) for _ in range(4)]
    launch.gaussian_kl_backward(*gradients, grad, *inputs)
    for got, expected in zip(gradients, want, strict=True):
        close(got, expected, TRITON_GRADIENTS)
    for only in range(4):
        given = [poisoned(tuple(inputs[0].shape), dtype) if i == only else None for i in range(4)]
        launch.gaussian_kl_backward(*given, grad, *inputs)
        assert torch.equal(given[only], gradients[only])
    alone = [poisoned(tuple(inputs[0].shape), dtype) for _ in range(2)]
    launch.gaussian_kl_backward(*alone, None, None, grad, *inputs[:2], None, None)
    want = autograd(lambda m, lv: kl_terms(m, lv, 0 * m, 0 * m), inputs[:2], grad)
    for got, expected in zip(alone, want, strict=True):
        close(got, expected, TRITON_GRADIENTS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradient_of_noise_mse(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = Case("noise_mse", shape, dtype)
    prediction, grad = case.values[0], normal(5, shape[0], dtype=compute(dtype))[0]
    noise = torch.from_numpy(
        randn(shape, seed=SEED, sample_ids=case.ids.numpy(), step=3, stream=2, dtype=np.float64)
    )
    for weight in (None, case.weight):
        got = poisoned(shape, dtype)
        launch.noise_mse_backward(got, grad, prediction, weight, SEED, None, case.ids, 3, 2, False)
        w = grad.double() if weight is None else grad.double() * weight
        n = max(1, math.prod(shape[1:]))
        close(
            got,
            (2 * w / n).reshape(-1, *[1] * (len(shape) - 1)) * (prediction.double() - noise),
            TRITON_GRADIENTS,
        )


def bin_gradients(x0: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the NLL's derivatives by mean and log_scale, from central differences of the oracle.

    They are of sixth order, with an error of about 1e-10 of the second derivative's size.
    """
    x, m, s = (v.double().numpy() for v in (x0, mean, log_scale))

    def differences(terms: Callable[[np.ndarray], np.ndarray], step: np.ndarray) -> Tensor:
        weights = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
        total = sum(w * (terms(k * step) - terms(-k * step)) for k, w in weights.items())
        return torch.from_numpy(total / step)

    by_mean = differences(lambda step: bins(x, m + step, s), 2e-3 * np.exp(s))
    return by_mean, differences(lambda step: bins(x, m, s + step), np.full_like(s, 1e-3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_the_nll(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = Case("discretized_gaussian_nll", shape, dtype)
    x0, mean, log_scale = (rows(v) for v in case.values[:3])
    grad = normal(5, shape[0], dtype=compute(dtype))[0] * 1e-3  # the largest stay below float16's
    want = [grad.double()[:, None] * g for g in bin_gradients(x0, mean, log_scale)]
    gradients = [poisoned(tuple(x0.shape), dtype) for _ in range(2)]
    launch.discretized_gaussian_nll_backward(*gradients, grad, x0, mean, log_scale)
    for got, expected in zip(gradients, want, strict=True):
        close(got, expected, TRITON_BIN_GRADIENTS)
    for only in range(2):
        given = [poisoned(tuple(x0.shape), dtype) if i == only else None for i in range(2)]
        launch.discretized_gaussian_nll_backward(*given, grad, x0, mean, log_scale)
        assert torch.equal(given[only], gradients[only])


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (7, 4), (5, 3, 7), (5, 1, 33, 33), (300, 2)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradient_of_vlb_terms(dtype: torch.dtype, shape: tuple[int, ...], learned: bool) -> None:
    case = Case("vlb_terms", shape, dtype, learned)
    x0, x_t, output, _ = case.values
    grad = normal(5, shape[0], dtype=compute(dtype))[0]
    c = [
        torch.from_numpy(v).reshape(-1, *[1] * (len(shape) - 1))
        for v in vlb_table()[case.t.numpy()].T
    ]
    x0_x, x0_out, bound, mean_x0, mean_x, logvar_q, lo, hi, first = c
    out = output.double().requires_grad_()
    prediction, v = (out.chunk(2, 1)) if learned else (out, None)
    held = (x0_x * x_t.double() + x0_out * prediction).clamp(-bound, bound)
    logvar = lo.expand(shape) if v is None else lo + (hi - lo) * ((v + 1) * 0.5)
    d = logvar_q - logvar
    kl = 0.5 * (torch.expm1(d) - d + (mean_x0 * (x0.double() - held)) ** 2 * torch.exp(-logvar))
    mean, log_scale = mean_x0 * held + mean_x * x_t.double(), 0.5 * logvar
    by_mean, by_log_scale = bin_gradients(x0, mean.detach(), log_scale.detach())
    # not the NLL, but linear with its derivatives
    nll = by_mean * mean + by_log_scale * log_scale
    (torch.where(first != 0, nll, kl) * grad.double().reshape(first.shape)).sum().backward()
    got = poisoned(tuple(output.shape), dtype)
    launch.vlb_terms_backward(got, grad, x0, x_t, output, torch.from_numpy(vlb_table()), case.t)
    close(got, out.grad, TRITON_BIN_GRADIENTS)
    launch.check("cpu")


@pytest.mark.parametrize("steps", VIEWS)
def test_gradients_of_views(steps: tuple[int, ...]) -> None:
    inputs = views_of(steps)
    gradients = [poisoned(inputs[0].shape) for _ in range(4)]
    launch.gaussian_kl_backward(*gradients, torch.ones(3), *inputs)
    for got, expected in zip(gradients, autograd(kl_terms, inputs, torch.ones(3)), strict=True):
        close(got, expected, TRITON_GRADIENTS)
