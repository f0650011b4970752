"""The formulas that users write in place of the fused ops, for torch eager and torch.compile.

Every formula is called as formula(normal, *inputs), where normal(like) draws noise of that shape.
Sums are taken in float32, as training code does for half precision, and in float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Normal = Callable[[Tensor], Tensor]


def wide(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, …] in the dtype of `like`."""
    return values.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def randn(normal: Normal, like: Tensor) -> Tensor:
    return normal(like)


def q_sample(normal: Normal, x0: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return wide(alpha[t], x0) * x0 + wide(sigma[t], x0) * normal(x0)


def q_posterior(
    normal: Normal, x0: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> tuple[Tensor, ...]:
    previous = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    beta, rest = 1 - alphas_cumprod / previous, 1 - alphas_cumprod
    on_x0 = previous.sqrt() * beta / rest
    on_x = (1 - beta).sqrt() * (1 - previous) / rest
    variance = beta * (1 - previous) / rest
    # the log-variance at t = 0 is that of t = 1
    log_variance = torch.cat([variance[1:2], variance[1:]]).log()
    mean = wide(on_x0[t], x0) * x0 + wide(on_x[t], x0) * x_t
    return mean, variance[t].float(), log_variance[t].float()


def reverse_step(normal: Normal, x: Tensor, out: Tensor, numbers: tuple[float, ...]) -> Tensor:
    """A row without slots (DDPM, DDIM): x0, then the next x from x, x0, the output and noise.

    numbers: the coefficients of x and the output in x0, then those of x, x0, the output and the
    noise in the next x. Terms with coefficient 0 are left out.
    """
    on_x, on_out, *others = numbers
    x0 = on_x * x + on_out * out
    terms = [c * v for c, v in zip(others, (x, x0, out), strict=False) if c]
    if others[-1]:
        terms.append(others[-1] * normal(x))
    return sum(terms[1:], terms[0])


def step_log_prob(
    normal: Normal, x: Tensor, out: Tensor, x_s: Tensor, numbers: tuple[float, ...]
) -> Tensor:
    """The density of a drawn step by torch's Normal; numbers: as of `reverse_step`."""
    on_x, on_out, next_x, next_x0, next_out, std = numbers
    x0 = on_x * x + on_out * out
    terms = [c * v for c, v in ((next_x, x), (next_x0, x0), (next_out, out)) if c]
    mean = sum(terms[1:], terms[0])
    return torch.distributions.Normal(mean, abs(std)).log_prob(x_s).flatten(1).sum(1)


def reparameterize(normal: Normal, mean: Tensor, logvar: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * logvar) * normal(mean)


def noise_mse(normal: Normal, prediction: Tensor) -> Tensor:
    return (prediction.float() - normal(prediction).float()).square().flatten(1).mean(1)


def _kl(m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor) -> Tensor:
    return (
        (0.5 * (-1.0 + v2 - v1 + torch.exp(v1 - v2) + (m1 - m2) ** 2 * torch.exp(-v2)))
        .flatten(1)
        .sum(1)
    )


def gaussian_kl(normal: Normal, *moments: Tensor) -> Tensor:
    return _kl(*(v.to(_sum(v)) for v in moments))


def discretized_gaussian_nll(normal: Normal, x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """By guided-diffusion's tanh approximation of the normal distribution function, clamped."""
    x0, mean, log_scale = (v.to(_sum(v)) for v in (x0, mean, log_scale))

    def cdf(v: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (v + 0.044715 * v**3)))

    centred, inverse = x0 - mean, torch.exp(-log_scale)
    high, low = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    middle = (high - low).clamp(min=1e-12).log()
    ends = torch.where(x0 > 0.999, (1 - low).clamp(min=1e-12).log(), middle)
    return -torch.where(x0 < -0.999, high.clamp(min=1e-12).log(), ends).flatten(1).sum(1)


def vlb_terms(
    normal: Normal, x0: Tensor, x_t: Tensor, output: Tensor, table: Tensor, t: Tensor
) -> Tensor:
    """The bound's term at each sample's timestep, with a learned range of variances."""
    x0, x_t, output = (v.to(_sum(v)) for v in (x0, x_t, output))
    x0_x, x0_out, _, mean_x0, mean_x, logvar_q, low, high, _ = (
        wide(c, x0) for c in table[t].unbind(1)
    )
    eps, half = output.chunk(2, dim=1)
    predicted = (x0_x * x_t + x0_out * eps).clamp(-1, 1)
    true, model = mean_x0 * x0 + mean_x * x_t, mean_x0 * predicted + mean_x * x_t
    v = low + (high - low) * (half + 1) / 2
    kl = _kl(true, logvar_q.expand_as(x0), model, v)
    return torch.where(t == 0, discretized_gaussian_nll(normal, x0, model, 0.5 * v), kl)


def group_norm_silu(
    normal: Normal, x: Tensor, groups: int, weight: Tensor, bias: Tensor, add: Tensor | None
) -> Tensor:
    """The start of a residual block: add the time embedding, GroupNorm, SiLU."""
    if add is not None:
        x = x + add[:, :, None, None]
    return F.silu(F.group_norm(x, groups, weight, bias, 1e-5))


def _sum(v: Tensor) -> torch.dtype:
    """Returns the dtype in which sums over a sample are taken."""
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def arms(
    formula: Callable[..., Any], inputs: tuple[Any, ...]
) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Returns (the formula as a function of its inputs, to compile; the eager arm).

    Both draw with torch's own generator.
    """

    def bare(*inputs: Any) -> Any:
        return formula(torch.randn_like, *inputs)

    return bare, lambda: bare(*inputs)
