"""The ops as formulas of torch's differentiable functions.

A kernel has a result and one gradient. What needs more of an op is computed by these formulas:
forward-mode derivatives, the transforms of torch.func, and gradients of gradients. They take the
arguments of the registered ops and compute in float64, so a result differs from the kernel's by the
kernel's own rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backend.eager import log_prob
from ..backend.eager.common import by_sample, checked_index, per_sample
from ..backend.eager.group_norm_silu import moments
from ..backend.eager.q_posterior import coefficients as posterior
from ..backend.eager.q_sample import coefficients, regenerate
from ..backend.eager.reverse_step import evaluate, split
from ..backend.eager.step_log_prob import mean_of
from ..table import OPERANDS
from . import common
from .step import StepArguments


def q_sample(x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast):
    seed = common.unsigned(seed)
    if noise is None:
        noise = regenerate(x0, seed, seeds, sample_ids, step, stream, fast)
    wide = x0.double()
    a, s, valid = coefficients(wide, t, alpha.double(), sigma.double())
    result = a * wide + s * noise.double()
    return _marked(result, valid).to(x0.dtype)


def q_posterior(x0, x_t, t, alphas_cumprod):
    compute = common.compute_dtype(x0)
    on_x0, on_x, variance, valid = posterior(t, alphas_cumprod)
    later = t.clamp(min=1) if len(alphas_cumprod) > 1 else t
    log_variance = (
        posterior(later, alphas_cumprod)[2]
        if len(alphas_cumprod) > 1
        else 1.0 - alphas_cumprod.expand(len(t))
    ).log()
    mean = per_sample(on_x0, x0) * x0.double() + per_sample(on_x, x0) * x_t.double()
    return (
        _marked(mean, valid).to(x0.dtype),
        _marked(variance, valid).to(compute),
        _marked(log_variance, valid).to(compute),
    )


def reparameterize(mean, logvar, seed, seeds, sample_ids, step, stream, fast):
    seed = common.unsigned(seed)
    eps = regenerate(mean, seed, seeds, sample_ids, step, stream, fast).double()
    return (mean.double() + (logvar.double() * 0.5).exp() * eps).to(mean.dtype)


def noise_mse(prediction, weight, seed, seeds, sample_ids, step, stream, fast):
    seed = common.unsigned(seed)
    eps = regenerate(prediction, seed, seeds, sample_ids, step, stream, fast).double()
    loss = by_sample((prediction.double() - eps).square()).mean(1)
    loss = loss if weight is None else weight.double() * loss
    return loss.to(common.compute_dtype(prediction))


def gaussian_kl(mean1, logvar1, mean2, logvar2):
    compute = common.compute_dtype(mean1, logvar1, mean2, logvar2)
    m, v1 = mean1.double(), logvar1.double()
    d, inverse = v1, torch.ones_like(v1)
    if mean2 is not None:
        m, d, inverse = m - mean2.double(), v1 - logvar2.double(), (-logvar2.double()).exp()
    return by_sample(_kl(d, m, inverse)).sum(1).to(compute)


def discretized_gaussian_nll(x0, mean, log_scale):
    compute = common.compute_dtype(x0, mean, log_scale)
    terms = _nll(x0.double(), mean.double(), log_scale.double())
    return by_sample(terms).sum(1).to(compute)


def vlb_terms(x0, x_t, model_output, table, t):
    compute = common.compute_dtype(x0)
    index, valid = checked_index(t, len(table), None)
    x0_x, x0_out, bound, mean_x0, mean_x, logvar_q, lo, hi, first = (
        per_sample(c, x0) for c in table.index_select(0, index).unbind(1)
    )
    x, noisy, output = x0.double(), x_t.double(), model_output.double()
    out, v = split(output, x)
    predicted = x0_x * noisy + x0_out * out
    predicted = torch.where(predicted > bound, bound, predicted)
    predicted = torch.where(predicted < -bound, -bound, predicted)
    logvar = (lo if v is None else lo + (hi - lo) * ((v + 1) * 0.5)).expand_as(x)
    start = first != 0
    # the branch that a sample does not take gets harmless arguments: its derivatives stay finite
    d = torch.where(start, 0.0, logvar_q - logvar)
    kl = _kl(d, mean_x0 * (x - predicted), (-logvar).exp())
    nll = _nll(x, mean_x0 * predicted + mean_x * noisy, torch.where(start, logvar * 0.5, 0.0))
    total = by_sample(torch.where(start, nll, kl)).sum(1)
    return _marked(total, valid).to(compute)


def group_norm_silu(x, groups, weight, bias, scale, shift, add, eps, silu):
    if x.numel() == 0:
        return x.clone()
    batch, channels = x.shape[:2]
    flat = x.reshape(batch, channels, -1).double()
    u = flat if add is None else flat + add.double()[:, :, None]
    mean, rstd = (v.repeat_interleave(channels // groups, 1) for v in moments(u, groups, eps))
    gain = rstd if weight is None else rstd * weight.double()
    offset = torch.zeros_like(gain) if bias is None else bias.double().expand_as(gain)
    if scale is not None:
        wide = 1 + scale.double()
        gain, offset = gain * wide, offset * wide
    if shift is not None:
        offset = offset + shift.double()
    z = (u - mean[:, :, None]) * gain[:, :, None] + offset[:, :, None]
    y = torch.nn.functional.silu(z) if silu else z
    return y.to(x.dtype).view(x.shape)


def reverse_step(*flat: Any):
    step = StepArguments.from_flat(*flat)
    wide = {
        name: value.double()
        for name in ("x_t", "model_output", "slots", "noise", "guidance", "gradient")
        if (value := getattr(step, name)) is not None
    }
    r = evaluate(step._replace(**wide), smooth=True)
    state = common.compute_dtype(step.x_t)
    x = r.combine([(f"x.{o}", r.operands[o]) for o in OPERANDS])
    x = _marked(x, r.valid).to(step.x_t.dtype)
    if step.slots is None:
        return x, x.new_zeros(0, dtype=state)
    new = [torch.where(r.writes(i), r.new_slot(i), s) for i, s in enumerate(wide["slots"])]
    return x, torch.stack(new).to(state)


def step_log_prob(
    x_t, model_output, x_s, table, row, slots, guidance, gradient, used, mean
) -> Tensor:
    x, drawn = x_t.double(), x_s.double()
    given = model_output, slots, guidance, gradient
    output, old, gamma, added = (None if v is None else v.double() for v in given)
    step = StepArguments(x, output, table, row, old, guidance=gamma, gradient=added, used=used)
    r = evaluate(step, smooth=True, scored=True)
    y, _ = log_prob.standardised(r, mean_of(r), drawn)
    terms = 0.5 * y.square()
    if r.half_logvar is not None:
        terms = torch.where(r.coefficient("noise_mode") == 1, terms + r.half_logvar, terms)
    flat = by_sample(terms)
    deviation = by_sample(r.coefficient("x.z"))[:, 0].abs()
    total = log_prob.of_sums(flat.sum(1), deviation, flat.shape[1], average=mean)
    return _marked(total, r.valid).to(common.compute_dtype(x_t))


def _marked(value: Tensor, valid: Tensor | None) -> Tensor:
    """Returns the values with NaN for samples whose index is outside its table."""
    return value if valid is None else torch.where(per_sample(valid, value), value, math.nan)


def _kl(d: Tensor, m: Tensor, inverse: Tensor) -> Tensor:
    """Returns (e^d - 1 - d + m² inverse)/2."""
    near = d.abs() < 0.25
    small = torch.where(near, d, 0.0)
    series = torch.zeros_like(small)
    for n in range(14, 1, -1):
        series = (series + 1 / math.factorial(n)) * (small if n > 2 else 1.0)
    far = torch.where(near, 0.0, d)
    return 0.5 * (torch.where(near, small * small * series, far.expm1() - far) + m * m * inverse)


def _nll(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Returns -log(Phi(b) - Phi(a)) with the edges a, b of each level's bin; ends are open."""
    k = ((x0 + 1) * 127.5).clamp(0, 255).round()
    center, inverse = k / 127.5 - 1 - mean, (-log_scale).exp()
    first, last = k == 0, k == 255
    # the bin moved to the lower half, where log Phi has its precision
    flip = last | (~first & (center > 0))
    center = torch.where(flip, -center, center)
    end = first | last
    upper = torch.special.log_ndtr((center + 1 / 255) * inverse)
    lower = torch.special.log_ndtr((center - 1 / 255) * inverse)
    gap = torch.where(end, -1.0, lower - upper)
    near = gap > -math.log(2)
    inside = torch.where(
        near,
        (-torch.where(near, gap, -1.0).expm1()).log(),
        (-torch.where(near, -1.0, gap).exp()).log1p(),
    )
    return -(upper + torch.where(end, 0.0, inside))
