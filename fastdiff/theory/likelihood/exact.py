"""The likelihood of the probability-flow ODE, by the change of variables along it.

On the circle of fastdiff.theory.score.velocity, y = cos(phi) x0 + sin(phi) eps and dy/dphi = v, so

    ln p(y at phi_min) = ln N(y at phi_max; 0, s²) + ∫ div v dphi        from phi_min, the data's end, to phi_max

(Chen et al. 2018, theorem 1; Song et al. 2021, eq. 39), with the trace exactly or by Hutchinson's
probes, which are fixed along a path (Grathwohl et al. 2019). It is integrated with y and the
divergence in one state, by a pair whose step is chosen by each sample's own error
(fastdiff.theory.score.embedded).

What is given is the density of the data blurred by the least noise, z = x0 + rho_min eps, at z = x;
the same for every schedule of the same rho_min. The prior is what samplers begin from. For images
see fastdiff.theory.score.dequantize.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...backend.eager.sums import sum_samples
from ...prediction import Parametrization
from ...sampling.adaptive.start import Start, ends
from ...schedule import Schedule
from ..score.dequantize import dequantize, on_levels
from ..score.divergence import exact_trace, probe, quadratic_forms
from ..score.embedded import integrate
from ..score.velocity import Velocity, angle, local, radius

DIVERGENCES = ("rademacher", "gaussian", "exact")
_WHERE = "fastdiff.theory.likelihood.nll"


class NLL(NamedTuple):
    """-ln p(x) in nats, its standard error over the probes (nan for one probe, 0 for the exact
    divergence) and the evaluations of the network, [B] each.
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

    A sample's numbers do not depend on its batch (with `network_batch`, for any network), its
    position or the number of
    processes. Ranks evaluate their own samples and meet when all are done: nothing in here
        communicates, for they need
    different numbers of evaluations; a model in DistributedDataParallel is called without its
    wrapper.

    Args:
        model, schedule, cond, uncond, guidance_scale, prediction_type: see `Sampler`;
            differentiable in x.
        x: [B, …], float32 or float64, which is the state's dtype too.
        probes: how many of them; each costs a backward pass at every evaluation. Ignored by the
            exact divergence.
        divergence: `rademacher` or `gaussian` probes, or `exact`, with a backward pass for every
            dimension of x.
        seed, sample_ids, step: probes are stream 5 of the noise contract, their number being the
            step; the noise of the dequantisation is stream 2 with this `step`.
        dequantization: None, x is continuous and nats are of a density; `uniform`, `centred` or
            `gaussian`, x is an image in [-1, 1] of 256 levels and nats bound -ln P(x), so bits/dim
            = nats/(D ln 2) with nothing to add.
        rtol, atol: of the state, of unit size, and of the divergence per dimension: of a nat per
            dimension.
        sigma_max, sigma_min: noise levels sigma/alpha to go from and to, default the schedule's
            ends. A sigma_min that is not small beside the data's least detail blurs it.
        network_batch: every call of the network gets exactly so many rows, several calls or filled
            up.
        fractional_times: a discrete schedule's network is told float32 times between its timesteps;
            otherwise the nearest timestep, and the flow has a kink at each.

    Returns:
        NLL(nats [B], stderr [B], nfe [B]): float64, float64, int64.

    Raises:
        ValueError, TypeError: for arguments outside these, data on 256 levels without a
            dequantization, networks that can't be differentiated or whose weights lie on several
            ranks, states that are not finite.
    """
    _check(x, probes, divergence)
    if dequantization is None and on_levels(x):
        raise ValueError(
            f"{_WHERE}: expected continuous x, got images on 256 levels, on which a density has no"
            " bound. Pass dequantization='uniform' or 'gaussian'."
        )
    high, low = ends(schedule, sigma_max, sigma_min)
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    ids, constant = ids.to(x.device), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if dequantization is not None:
        x, constant = dequantize(
            x, dequantization, rho=low.rho, seed=seed, sample_ids=ids, step=step
        )
    start = Start(
        _WHERE,
        local(model, _WHERE),
        schedule,
        None,
        high,
        x,
        seed,
        ids,
        x.dtype,
        cond,
        uncond,
        guidance_scale,
        prediction_type,
        None,
        fractional_times=fractional_times,
    )
    velocity, dims = Velocity(start.network, len(x), network_batch), math.prod(x.shape[1:])
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

    def field(state: tuple[Tensor, ...], phi: Any, rows: Tensor) -> tuple[Tensor, ...]:
        def v(y: Tensor) -> Tensor:
            return velocity(y, phi, rows, differentiable=True)

        if divergence == "exact":
            value, trace = exact_trace(v, state[0])
            return value, trace[:, None] / dims
        value, forms = quadratic_forms(v, state[0], [z[rows] for z in zs])
        return value, forms / dims

    shrink = low.alpha / radius(low)
    gained = torch.zeros(len(x), max(len(zs), 1), dtype=torch.float64, device=x.device)
    done = integrate(
        field, (x * shrink, gained), angle(low), angle(high), rtol=rtol, atol=atol, where=_WHERE
    )
    y, gained = done.state
    deviation = (1.0 if schedule.space == "vp" else high.sigma) / radius(high)
    prior = -0.5 * sum_samples((y.double() / deviation).square()) - dims * (
        0.5 * math.log(2 * math.pi) + math.log(deviation)
    )
    each = constant[:, None] - (prior + dims * math.log(shrink))[:, None] - dims * gained
    return NLL(
        each.mean(1), _stderr(each, len(zs)), torch.from_numpy(done.evaluations).to(x.device)
    )


def _stderr(each: Tensor, probes: int) -> Tensor:
    """Of the mean over probes; one probe says nothing of its error, and without any there is
    none.
    """
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
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"{_WHERE}: expected at least one probe, got {probes!r}.")
