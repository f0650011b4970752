"""The likelihood of the probability-flow ODE, by the change of variables along it.

On the circle of fastdiff.theory.score.velocity, y = cos(phi) x0 + sin(phi) eps and dy/dphi = v, so

    ln p(y at phi_min) = ln N(y at phi_max; 0, s²) + ∫ div v dphi,   phi from phi_min to phi_max

with phi_min at the data's end (Chen et al. 2018, theorem 1; Song et al. 2021, eq. 39). The
divergence is exact or estimated with Hutchinson's probes, which are fixed along a path (Grathwohl
et al. 2019). State and divergence are integrated together, with a step size chosen by each sample's
own error (fastdiff.theory.score.embedded).

The result is the density at z = x of the data blurred by the lowest noise level, z = x0 + rho_min
eps. It is the same for every schedule with that rho_min. The prior is the density that samplers
start from. For images see fastdiff.theory.dequantization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...backend.eager.sums import sum_samples
from ...prediction import Parametrization
from ...sampling.adaptive.prepared_run import PreparedRun, ends
from ...schedule import Schedule
from ...whole import whole
from ..dequantization import dequantize, on_levels
from ..score.divergence import exact_trace, probe, quadratic_forms
from ..score.embedded import integrate
from ..score.local_model import local_model
from ..score.velocity import Velocity, angle, radius

DIVERGENCES = ("rademacher", "gaussian", "exact")
_WHERE = "fastdiff.theory.likelihood.nll"


class NLL(NamedTuple):
    """-ln p(x) in nats, its standard error and the network evaluations of each sample, [B].

    The standard error is over the probes: nan for one probe, 0 for the exact divergence.
    """

    nats: Tensor
    stderr: Tensor
    nfe: Tensor


def nll(
    model: Callable[..., Any],
    x: Tensor,
    schedule: Schedule,
    *,
    probes: int = 1,
    divergence: str = "rademacher",
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    step: int = 0,
    dequantization: str | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    network_batch: int | None = None,
    fractional_times: bool = False,
) -> NLL:
    """-ln p(x) of the probability flow (Song et al. 2021, eq. 39 and 40; section 4.3).

    A sample's result does not depend on its batch (for any network, if `network_batch` is given),
    its position or the number of processes. Ranks evaluate their own samples and do not
    communicate, because they need different numbers of evaluations; a model in
    DistributedDataParallel is called without its wrapper.

    Args:
        model, schedule, cond, uncond, guidance_scale, prediction_type: see `Sampler`; the model
            must be differentiable in x.
        x: [B, …], float32 or float64; the state has the same dtype.
        probes: the number of probes. Each takes a backward pass at every evaluation. The exact
            divergence ignores it.
        divergence: `rademacher` or `gaussian` probes, or `exact`, which takes a backward pass for
            every dimension of x.
        seed, sample_ids: of all noise. step: of the dequantisation noise, stream 2 of the noise
            contract; probes are stream 5, with the probe's number as the step.
        dequantization: None if x is continuous; the result is then a density's. `uniform`,
            `centred` or `gaussian` if x is an image in [-1, 1] of 256 levels; the result is then a
            bound of -ln P(x), and bits/dim = nats/(D ln 2) without an offset.
        rtol, atol: tolerances of the state, which has unit size, and of the divergence in nats per
            dimension.
        sigma_max, sigma_min: the noise levels sigma/alpha between which the flow is integrated;
            None for the ends of the schedule. sigma_min should be small compared with the finest
            detail of the data.
        network_batch, fractional_times: see `probability_flow`.

    Returns:
        NLL(nats [B], stderr [B], nfe [B]): float64, float64, int64.

    Raises:
        ValueError, TypeError: arguments outside these, data on 256 levels without dequantization,
            networks that cannot be differentiated or are sharded over ranks, states that are not
            finite.
    """
    _check(x, probes, divergence)
    if dequantization is None and on_levels(x):
        raise ValueError(
            f"{_WHERE}: expected continuous x, got images on 256 levels, where a density has no"
            " bound. Pass dequantization='uniform' or 'gaussian'."
        )
    high, low = ends(schedule, sigma_max, sigma_min)
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    ids, constant = ids.to(x.device), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if dequantization is not None:
        x, constant = dequantize(
            x, dequantization, rho=low.rho, seed=seed, sample_ids=ids, step=step
        )
    run = PreparedRun(
        _WHERE,
        local_model(model, _WHERE),
        schedule,
        high,
        x_T=x,
        seed=seed,
        sample_ids=ids,
        dtype=x.dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        fractional_times=fractional_times,
        network_batch=network_batch,
    )
    velocity, dims = Velocity(run.call, len(x)), math.prod(x.shape[1:])
    zs = []
    if divergence != "exact":
        zs = [
            probe(
                divergence,
                tuple(x.shape),
                p,
                seed=seed,
                sample_ids=ids,
                dtype=x.dtype,
                device=x.device,
            )
            for p in range(probes)
        ]

    def field(state: tuple[Tensor, ...], phi: Any, samples: Tensor) -> tuple[Tensor, ...]:
        def v(y: Tensor) -> Tensor:
            return velocity(y, phi, samples, differentiable=True)

        if divergence == "exact":
            value, trace = exact_trace(v, state[0])
            return value, trace[:, None] / dims
        value, forms = quadratic_forms(v, state[0], [z[samples] for z in zs])
        return value, forms / dims

    scale = low.alpha / radius(low)  # y over x at the data's end
    integral = torch.zeros(len(x), max(len(zs), 1), dtype=torch.float64, device=x.device)
    done = integrate(
        field, (x * scale, integral), angle(low), angle(high), rtol=rtol, atol=atol, where=_WHERE
    )
    y, integral = done.state
    deviation = schedule.prior_std(high) / radius(high)
    prior = -0.5 * sum_samples((y.double() / deviation).square()) - dims * (
        0.5 * math.log(2 * math.pi) + math.log(deviation)
    )
    each = constant[:, None] - (prior + dims * math.log(scale))[:, None] - dims * integral
    return NLL(
        each.mean(1), _stderr(each, len(zs)), torch.from_numpy(done.evaluations).to(x.device)
    )


def _stderr(each: Tensor, probes: int) -> Tensor:
    """The standard error of the mean over probes: nan for one probe, 0 for none."""
    if probes > 1:
        squares = (each - each.mean(1, keepdim=True)).square().sum(1)
        return torch.sqrt(squares / (probes * (probes - 1)))
    return torch.full_like(each[:, 0], math.nan if probes else 0.0)


def _check(x: Tensor, probes: int, divergence: str) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        got = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{_WHERE}: expected x [B, …] of float32 or float64, got {got}. Convert it."
        )
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"{_WHERE}: expected divergence in {list(DIVERGENCES)}, got {divergence!r}."
        )
    if (whole(probes) or 0) < 1:
        raise ValueError(f"{_WHERE}: expected at least one probe, got {probes!r}.")
