"""Score matching: learning grad ln p from samples of p.

The Fisher divergence E_p ‖s(x) - grad ln p(x)‖² (Luo 2022, eq. 157) contains the unknown score.
Three objectives avoid it; each equals half of the divergence up to a constant that does not depend
on s:

    implicit    E_p [tr grad s + ½ ‖s‖²]                               (Hyvärinen 2005, eq. 4)
    sliced      E_p E_z [z^T (grad s) z + ½ ‖s‖²], z random            (Song et al. 2019, eq. 8)
    denoising   ½ E ‖s(x_t) + eps/sigma‖², x_t = alpha x0 + sigma eps  (Vincent 2011, eq. 11)

The denoising objective learns the score of p blurred by noise and needs no second derivative. Over
all noise levels, with weights lambda(t), it trains every score of a diffusion (Song & Ermon 2019,
eq. 6; Song et al. 2021, eq. 7). With s = -eps_hat/sigma it is lambda/sigma² ‖eps_hat - eps‖²: one
`q_sample` and one `noise_mse`, and the noise is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ... import ops, rng
from ...backend.eager.sums import sum_samples
from ...grad_mode import restored
from ...prediction import Parametrization, normalize, to_eps_coefficients
from ...sampling.model_call import ModelCall
from ...schedule import Schedule
from ..tensors import per_sample
from .divergence import exact_trace, probe

Score = Callable[[Tensor], Tensor]


def eps_error(
    call: ModelCall,
    x0: Tensor,
    t: Any,
    alpha: Tensor,
    sigma: Tensor,
    *,
    weight: Tensor | None = None,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """weight·mean_e (eps_hat - eps)² [B] of a network at points of a path.

    Args:
        call: the network's calls. t: its times [B], as `ModelCall` takes them.
        x0: [B, …]. alpha, sigma: float64 [B]. weight: float64 [B], None for 1.
        seed, sample_ids, step: of eps, stream 2 of the noise contract, which is generated again for
            the loss and its gradient.
    """
    counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
    x, kind = ops.q_sample(x0, None, alpha, sigma, **counter), call.parametrization
    if kind.unit_input:
        size = torch.hypot(alpha * kind.sigma_data, sigma)
        x, alpha, sigma = x / per_sample(size, x), alpha * kind.sigma_data / size, sigma / size
    out = call(x, t)
    if normalize(kind.prediction_type) != "epsilon":
        a, b = to_eps_coefficients(kind.prediction_type, alpha, sigma)
        out = per_sample(a, x) * x + per_sample(b, x) * out
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
        model: (x_t, t, **cond) -> output, called as `Sampler` calls it, with gradients.
        x0: [B, …]. schedule: its T points are the noise levels.
        times: int64 [B] in [0, T); None draws them uniformly from stream 4 of the noise contract.
        weighting: lambda. `sigma2` is sigma², which gives all levels the same size (Song & Ermon
            2019, section 4.2); `none` is 1; or a table [T].
        prediction_type: what the network predicts; its output is converted to a score.
        seed, sample_ids, step: of the noise (stream 2) and the times.
        cond: keyword arguments of the network.

    Raises:
        ValueError, IndexError, TypeError: arguments outside these, outputs of another shape.
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
    call = ModelCall(model, schedule, prediction_type, cond=cond, where=where)
    t: Any = times if call.whole_times else [schedule.at(v) for v in times.tolist()]
    weight = table[times] / sigma**2 * max(x0[0].numel(), 1) if len(x0) else sigma
    return eps_error(call, x0, t, alpha, sigma, weight=weight, seed=seed, sample_ids=ids, step=step)


def implicit_score_matching(score: Score, x: Tensor) -> Tensor:
    """tr grad s(x) + ½ ‖s(x)‖², float64 [B] (Hyvärinen 2005, eq. 4).

    It takes one backward pass per dimension.
    """
    value, trace = exact_trace(score, x, create_graph=True)
    return trace + 0.5 * sum_samples(value.double().square())


@restored
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
        score: x [B, …] -> s(x), samples independent of each other; called with gradients.
        x: [B, …].
        probes: the number of directions z per sample. kind: `rademacher` or `gaussian`.
        seed, sample_ids, step: of the probes, stream 5 of the noise contract; probe p is drawn at
            the step step·probes + p.

    Raises:
        ValueError: fewer than one probe, or an unknown kind.
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
