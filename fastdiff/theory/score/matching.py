"""Score matching: learning grad ln p from samples of p alone.

The Fisher divergence E_p ‖s(x) - grad ln p(x)‖² (Luo 2022, eq. 157) needs the score that is to be
learnt. Three ways around, each equal to half of it up to a constant that does not depend on s:

    implicit    E_p [tr grad s + ½ ‖s‖²]                                    (Hyvärinen 2005, eq. 4)
    sliced      E_p E_z [z^T (grad s) z + ½ ‖s‖²], z a random direction      (Song et al. 2019, eq. 8)
    denoising   ½ E ‖s(x_t) + eps/sigma‖², x_t = alpha x0 + sigma eps       (Vincent 2011, eq. 11)

The last one matches the score of p blurred and needs no second derivative. Over all noise levels at
once, weighted by lambda(t), it trains every score of a diffusion (Song & Ermon 2019, eq. 6; Song et
al. 2021, eq. 7). With s = -eps_hat/sigma it is lambda/sigma² ‖eps_hat - eps‖², so one `q_sample`
and one `noise_mse` do it and the noise is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ... import ops, rng
from ...backend.eager.sums import sum_samples
from ...prediction import Parametrization, normalize, to_eps_coefficients
from ...schedule import Schedule
from .divergence import exact_trace, probe

Score = Callable[[Tensor], Tensor]


def eps_error(
    model: Callable[..., Any],
    x0: Tensor,
    t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    prediction_type: str | Parametrization,
    weight: Tensor | None = None,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """w mean_e (eps_hat - eps)² [B] of a network at points (alpha, sigma) [B] float64, told the
    times t [B].

    eps is stream 2 of the noise contract, made again for the loss and its gradient.
    """
    counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
    x_t = ops.q_sample(x0, None, alpha, sigma, **counter)
    kind = (
        prediction_type
        if isinstance(prediction_type, Parametrization)
        else Parametrization(prediction_type)
    )
    given, data = x_t, kind.sigma_data
    if kind.unit_input:
        size = torch.hypot(alpha * data, sigma)
        given, alpha, sigma = x_t / _beside(size, x_t), alpha * data / size, sigma / size
    out = model(given, t, **(cond or {}))
    out = getattr(out, "sample", out)
    if normalize(kind.prediction_type) != "epsilon":
        a, b = to_eps_coefficients(kind.prediction_type, alpha, sigma)
        out = _beside(a, x_t) * given + _beside(b, x_t) * out
    return ops.noise_mse(out, weight=weight, **counter)


def denoising_score_matching(
    model: Callable[..., Any],
    x0: Tensor,
    schedule: Schedule,
    *,
    times: Tensor | None = None,
    weighting: str | Tensor = "sigma2",
    prediction_type: str | Parametrization = "score",
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """lambda(t) ‖s(x_t, t) + eps/sigma_t‖² [B] (Song & Ermon 2019, eq. 5 and 6; Luo 2022, eq. 160).

    Args:
        model: (x_t, t, **cond) -> output, told times as `Sampler` does; gradients flow to it.
        x0: [B, …]. schedule: its T points are the noise levels.
        times: int64 [B] in [0, T); None draws them uniformly, stream 4 of the noise contract.
        weighting: `sigma2` for lambda = sigma², all levels of one size (ibid., section 4.2); `none`
            for 1; or a table [T].
        prediction_type: what the network predicts; its output is converted to a score.
        seed, sample_ids, step: of the noise (stream 2) and the times.

    Raises:
        ValueError, IndexError, TypeError: for arguments outside these.
    """
    where, device = "fastdiff.theory.score.denoising_score_matching", x0.device
    ids = torch.arange(len(x0), device=device) if sample_ids is None else sample_ids
    if times is None:
        times = rng.randint(schedule.num_train_timesteps, seed=seed, sample_ids=ids, step=step)
    sigma_table = torch.tensor(schedule.sigma, device=device)
    if isinstance(weighting, Tensor):
        if weighting.shape != sigma_table.shape:
            raise ValueError(
                f"{where}: expected a table of weights {list(sigma_table.shape)}, got"
                f" {list(weighting.shape)}."
            )
        table = weighting.to(device, torch.float64)
    elif weighting in ("sigma2", "none"):
        table = sigma_table**2 if weighting == "sigma2" else torch.ones_like(sigma_table)
    else:
        raise ValueError(
            f"{where}: expected weighting in ['sigma2', 'none'] or a table, got {weighting!r}."
        )
    if (
        times.numel()
        and not 0 <= int(times.min()) <= int(times.max()) < schedule.num_train_timesteps
    ):
        raise IndexError(
            f"{where}: expected times in [0, {schedule.num_train_timesteps}), got {times.tolist()}."
        )
    alpha, sigma = torch.tensor(schedule.alpha, device=device)[times], sigma_table[times]
    told = times
    own = getattr(model, "network_time", None)
    if own is not None or schedule.continuous:
        tell = own or schedule.network_time
        told = torch.tensor(
            [tell(schedule.at(t)) for t in times.tolist()], dtype=torch.float32, device=device
        )
    weight = table[times] / sigma**2 * max(x0[0].numel(), 1) if len(x0) else sigma
    return eps_error(
        model,
        x0,
        told,
        alpha,
        sigma,
        prediction_type=prediction_type,
        weight=weight,
        seed=seed,
        sample_ids=ids,
        step=step,
        cond=cond,
    )


def implicit_score_matching(score: Score, x: Tensor) -> Tensor:
    """tr grad s(x) + ½ ‖s(x)‖², float64 [B], by one backward pass a dimension (Hyvärinen 2005, eq.
    4).
    """
    value, trace = exact_trace(score, x, create_graph=True)
    return trace + 0.5 * sum_samples(value.double().square())


def sliced_score_matching(
    score: Score,
    x: Tensor,
    *,
    probes: int = 1,
    kind: str = "rademacher",
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """z^T (grad s) z + ½ ‖s(x)‖², float64 [B], averaged over probes z (Song et al. 2019, eq. 8).

    Args:
        score: x [B, …] -> s(x), samples apart; gradients flow to it.
        probes, kind: how many directions, `rademacher` or `gaussian`, stream 5 of the noise
            contract; probe p of a training step is drawn at step step·probes + p.

    Raises:
        ValueError: no probe, or another kind.
    """
    if isinstance(probes, bool) or probes < 1:
        raise ValueError(
            "fastdiff.theory.score.sliced_score_matching: expected at least one probe, got"
            f" {probes!r}."
        )
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        value = score(leaf)
        total = 0.5 * sum_samples(value.double().square())
        for p in range(probes):
            z = probe(
                kind,
                tuple(x.shape),
                step * probes + p,
                seed=seed,
                sample_ids=sample_ids,
                dtype=x.dtype,
                device=x.device,
            )
            (back,) = torch.autograd.grad(value, leaf, z, create_graph=True)
            total = total + sum_samples(back.double() * z) / probes
    return total


def _beside(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
