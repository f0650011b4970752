"""`noise_mse` on torch: w mean (prediction - eps)² of every sample."""

from __future__ import annotations

from torch import Tensor

from .common import compute_dtype, per_sample
from .q_sample import regenerate
from .sums import sum_samples


def noise_mse(
    loss: Tensor,
    workspace: Tensor | None,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    batch, n = _size(prediction)
    if n == 0:
        loss.zero_()
        return
    draw = (seed, seeds, sample_ids, step, stream, fast)
    d = _difference(prediction, *draw, where="noise_mse")
    mean = sum_samples(d * d) / n
    loss.copy_(mean if weight is None else weight.double() * mean)


def noise_mse_backward(
    g_prediction: Tensor,
    grad: Tensor,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    n = _size(prediction)[1]
    if n == 0:
        return
    d = _difference(prediction, seed, seeds, sample_ids, step, stream, fast)
    factor = 2 * grad.double() * (1.0 if weight is None else weight.double()) / n
    g_prediction.copy_(per_sample(factor.to(d.dtype), d) * d)


def _size(prediction: Tensor) -> tuple[int, int]:
    batch = len(prediction)
    return batch, prediction.numel() // batch if batch else 0


def _difference(
    prediction: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
    *,
    where: str | None = None,
) -> Tensor:
    compute = compute_dtype(prediction)
    draw = (seed, seeds, sample_ids, step, stream, fast)
    eps = regenerate(prediction, *draw, where=where)
    return prediction.to(compute) - eps.to(compute)
