"""Kernel launches of the bound, and its largest evaluation against NumPy, term by term.

A term takes two kernels and one network call: `q_sample` draws x_t, and `vlb_terms` sums the term
over each sample's elements from (x0, x_t, output). The prior is one `gaussian_kl`. There is no
other pass over the images.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import VLB_SUM
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import Schedule, reference
from fastdiff.backend import library as native
from fastdiff.backend.eager.sums import CHUNK
from fastdiff.theory.likelihood import elbo

MEAN, STD = 0.1, 0.6


def levels(images: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(1)
    return torch.randint(0, 256, (images, *shape), generator=generator).to(dtype) / 127.5 - 1


class Analytic:
    """v of the best denoiser of N(m, s²): one multiplication and one addition per call."""

    def __init__(self, schedule: Schedule):
        alpha, sigma = schedule.alpha, schedule.sigma
        total = alpha**2 * STD**2 + sigma**2
        self.gain = alpha * sigma * (1 - STD**2) / total
        self.offset = -sigma * MEAN - self.gain * alpha * MEAN
        self.called: list[int] = []

    def __call__(self, x: Any, t: Any) -> Any:
        t = int(t[0])
        self.called.append(t)
        return self.gain[t] * x + self.offset[t]


class Seen(TorchDispatchMode):
    """Records the ops that use a tensor of at least `size` elements."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.names = size, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if any(isinstance(v, torch.Tensor) and v.numel() >= self.size for v in (*args, out)):
            self.names[func.name().split(".")[0]] += 1
        return out


@pytest.mark.cpu_only
@pytest.mark.parametrize("likelihood", ["discretized", "gaussian"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5), (CHUNK + 7,)], ids=str)
def test_a_term_is_one_kernel_on_either_side_of_the_network(
    shape: tuple[int, ...], likelihood: str
) -> None:
    if not native.available():
        pytest.skip(f"the C++ library is off: {native.reason()}")
    schedule, size = Schedule.linear(10), 64
    x0, model = levels(size, *shape, dtype=torch.float32), Analytic(schedule)
    arguments: dict[str, Any] = {
        "prediction_type": "v",
        "variance": "fixed_small",
        "seed": 3,
        "likelihood": likelihood,
    }
    with fastdiff.use("cpu"):
        for times, count in ((None, 10), ([7, 2, 9], 4), ([], 1)):
            model.called.clear()
            before = {op: native.launches(op) for op in native.COUNTED}
            elbo(model, x0, schedule, times=times, **arguments)
            launched = {
                op: native.launches(op) - n for op, n in before.items() if native.launches(op) != n
            }
            assert launched == {"q_sample": count, "vlb_terms": count, "gaussian_kl": 1}, times
            assert len(model.called) == count, "one call of the network a term"
        with Seen(x0.numel()) as seen:
            elbo(model, x0, schedule, **arguments)
    # the network's two ops a call, and the prior's mean
    kernels = {"fastdiff::q_sample": 10, "fastdiff::vlb_terms": 10, "fastdiff::gaussian_kl": 1}
    assert {k: n for k, n in seen.names.items() if k.startswith("fastdiff::")} == kernels
    passes = {
        k: n
        for k, n in seen.names.items()
        if k in ("aten::mul", "aten::add", "aten::copy_", "aten::_to_copy")
    }
    assert passes == {"aten::mul": 11, "aten::add": 10}, seen.names
    views = {"aten::view", "aten::expand", "aten::as_strided", "aten::empty", "aten::detach"}
    assert set(seen.names) <= views | set(kernels) | set(passes), (
        "nothing else passes over the images"
    )


def test_every_term_of_a_large_evaluation_is_numpy_s() -> None:
    """10,000 images and 100 timesteps in float64 against the closed formulas.

    The sum of each timestep and the total of each image are compared.
    """
    schedule, n = Schedule.cosine(100), 10_000
    x0, model = levels(n, 1, 2, 2, dtype=torch.float64), Analytic(schedule)
    result = elbo(model, x0, schedule, prediction_type="v", variance="fixed_large", seed=5)
    assert model.called == list(range(100))
    clean, alpha, signal, noise = (
        x0.numpy(),
        schedule.alpha,
        schedule.alphas_cumprod,
        schedule.one_minus_alphas_cumprod,
    )
    terms = np.zeros((n, 100))
    for t in range(100):
        eps = reference.randn(clean.shape, seed=5, step=t, stream=2, dtype=np.float64)
        x_t = alpha[t] * clean + schedule.sigma[t] * eps
        predicted = alpha[t] * x_t - schedule.sigma[t] * model(x_t, [t])
        if t == 0:
            # DDPM's first step uses the posterior variance of the next one
            first = (noise[1] - noise[0]) / signal[0] * noise[0] / noise[1]
            terms[:, 0] = reference.discretized_gaussian_nll(
                clean, predicted, np.full_like(clean, 0.5 * math.log(first))
            )
            continue
        beta = (noise[t] - noise[t - 1]) / signal[t - 1]
        small, gain = beta * noise[t - 1] / noise[t], alpha[t - 1] * beta / noise[t]
        distance = ((gain * (clean - predicted)) ** 2).reshape(n, -1).sum(1)
        terms[:, t] = 0.5 * (4 * (math.log(beta / small) - 1 + small / beta) + distance / beta)
    limit = VLB_SUM["float64"] * 10  # differences of cumulated products here, sums of 10,000
    np.testing.assert_allclose(result.reconstruction.numpy(), terms[:, 0], rtol=1e-10)
    got = result.denoising.numpy()
    np.testing.assert_allclose(got.sum(0)[1:], terms.sum(0)[1:], rtol=limit)
    np.testing.assert_allclose(got[:, 1:], terms[:, 1:], rtol=1e-9, atol=1e-9)
    mean = clean * alpha[-1]
    prior = 0.5 * (mean**2 + noise[-1] - 1 - math.log(noise[-1])).reshape(n, -1).sum(1)
    np.testing.assert_allclose(result.prior.numpy(), prior, rtol=1e-9, atol=1e-12)
    assert result.total().sum().item() == pytest.approx(terms.sum() + prior.sum(), rel=limit)
    bits = result.bits_per_dim(4).mean().item()
    assert bits == pytest.approx((terms.sum() + prior.sum()) / (n * 4 * math.log(2)), rel=limit)


def test_the_large_evaluation_is_the_same_by_parts(backend: str) -> None:
    """100 images evaluated alone have the same terms as in the large batch."""
    schedule, n = Schedule.cosine(20), 600
    x0, arguments = (
        levels(n, 1, 2, 2, dtype=torch.float32),
        {"prediction_type": "v", "variance": "fixed_large", "seed": 5},
    )
    whole = elbo(Analytic(schedule), x0, schedule, **arguments)  # type: ignore[arg-type]
    ids = torch.arange(250, 350)
    part = elbo(Analytic(schedule), x0[ids], schedule, sample_ids=ids, **arguments)  # type: ignore[arg-type]
    for name in ("reconstruction", "prior", "denoising"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[ids]), name
