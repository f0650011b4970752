"""DPM-Solver with adaptive steps: orders 1 and 2 or 2 and 3 embedded (Lu et al. 2022a, appendix C).

On x/alpha and rho = sigma/alpha with lambda = -ln rho, DPM-Solver's steps of orders 1 to 3 (ibid.,
algorithms 1 and 2) share their network calls, and the difference of two orders is the error. Each
sample has its own lambda, step size and decision whether a step is taken, so that its path is the
same in every batch. Samples that have arrived wait for the others: every network call has the whole
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...backend.eager.sums import sum_samples
from .control import StepSize

Array = NDArray[np.float64]
CLOSE = 1e-5  # in lambda: a sample this close to the end has arrived


class AdaptiveReport(NamedTuple):
    """What an adaptive run did: int64 [B] steps taken and refused by each sample, and the number of
    network calls, each of the whole batch.
    """

    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    network_calls: int


class Attempt(NamedTuple):
    """One tried step of the batch: the state after it and each sample's numbers [B]."""

    number: int  # of the try, from 0
    x: Tensor
    x0: Tensor  # predicted at the step's start
    before: Array  # lambda at the step's start
    after: Array  # lambda after it: before where it was refused
    error: Array
    h: Array  # for the next try
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    network_calls: int


def ancestral(before: Array, after: Array, end: float, eta: float) -> tuple[Array, Array]:
    """(lambda to step to, deviation of the noise added after the step), which together reach the
    noise level of `after`.
    """
    if not eta:
        return after, np.zeros_like(after)
    rho, rho_s = np.exp(-before), np.exp(-after)
    up = np.minimum(rho_s, eta * rho_s * np.sqrt(np.maximum(rho**2 - rho_s**2, 0.0)) / rho)
    down = np.sqrt(rho_s**2 - up**2)
    reached = np.minimum(end, -np.log(np.maximum(down, np.finfo(np.float64).tiny)))
    return reached, np.sqrt(np.maximum(rho_s**2 - np.exp(-2 * reached), 0.0))


def integrate(
    denoise: Callable[[Tensor, Array], Tensor],
    x: Tensor,
    start: float,
    end: float,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise: Callable[[int, Array, Array], Tensor] | None = None,
    watch: Callable[[Attempt], None] | None = None,
) -> tuple[Tensor, AdaptiveReport]:
    """Solves from lambda = start to end.

    The error of a step is the root mean square over elements of (low - high)/max(atol, rtol |x|).
    |x| is the larger of the states before and after the step, as published: a step that crosses
    many noise levels is measured by the noisier one, so loose tolerances can miss the solution.

    Args:
        denoise: (x, lambda [B]) -> x0.
        x: [B, …], state over alpha.
        order: 2 (orders 1 and 2) or 3 (orders 2 and 3), which is also the number of calls of a
            step.
        rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety: see `dpm_adaptive`.
        eta, s_noise, noise: with eta each step goes to a lower noise level, and noise(attempt,
            before, after) [B, …] is added to return to the step's own.
        watch: called after each attempt. It may write into the state x.

    Returns:
        (x [B, …] over alpha at the end, report).

    Raises:
        ValueError: for another order, eta on the way from data to noise, tolerances that are not
            positive, an error that is not finite and a step too small to move.
    """
    where, batch = "fastdiff.sampling.adaptive", x.shape[0]
    if order not in (2, 3):
        raise ValueError(f"{where}: expected order 2 or 3, got {order!r}.")
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0 and h_init != 0):
        raise ValueError(
            f"{where}: expected tolerances >= 0 and h_init, got {rtol!r}, {atol!r} and {h_init!r}."
        )
    if eta and not (end > start and noise is not None):
        raise ValueError(f"{where}: expected eta = 0 on the way from data to noise, got {eta!r}.")
    way = 1.0 if end > start else -1.0
    limit, at = (np.minimum if way > 0 else np.maximum), np.full(batch, float(start))
    steps = StepSize(
        way * abs(h_init),
        batch,
        order=1.5 if eta else order,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
    )
    accepted, rejected, calls, index = np.zeros(batch, int), np.zeros(batch, int), 0, 0
    elements, previous = max(x[0].numel(), 1) if batch else 1, x
    while (active := way * (end - at) > CLOSE).any():
        goal = np.where(active, limit(end, at + steps.h), at)
        stuck = active & (goal == at)
        if stuck.any():
            i = int(np.argmax(stuck))
            raise ValueError(
                f"{where}: expected steps that move, got h = {steps.h[i]:.3g} at lambda ="
                f" {at[i]:.6g} in sample {i}. Raise rtol or atol."
            )
        reached, up = ancestral(at, goal, end, eta)
        low, high, x0 = _embedded(denoise, x, at, np.where(active, reached, at), order)
        scale = (rtol * torch.maximum(low.abs(), previous.abs())).clamp_(min=atol)
        error = np.array((sum_samples(((low - high) / scale).square_()) / elements).sqrt().tolist())
        calls += order
        if not np.isfinite(error[active]).all():
            i = int(np.argmax(active & ~np.isfinite(error)))
            raise ValueError(
                f"{where}: expected finite states, got an error of {error[i]} at lambda ="
                f" {at[i]:.6g}."
            )
        taken = steps.propose(error, active)
        if eta and taken.any():
            assert noise is not None
            high = high + column(up * s_noise, x) * noise(index, at, goal)
        if taken.any():  # otherwise x stays the tensor that it is, for a watch that writes into it
            chosen = torch.from_numpy(taken).to(x.device).view(-1, *(1,) * (x.ndim - 1))
            x, previous = torch.where(chosen, high, x), torch.where(chosen, low, previous)
        before, at = at, np.where(taken, goal, at)
        accepted, rejected = accepted + taken, rejected + (active & ~taken)
        if watch is not None:
            watch(Attempt(index, x, x0, before, at, error, steps.h, accepted, rejected, calls))
        index += 1
    return x, AdaptiveReport(accepted, rejected, calls)


def column(values: Array, like: Tensor) -> Tensor:
    """Numbers [B] as a tensor [B, 1, …] to be multiplied with `like` [B, …]."""
    return (
        torch.as_tensor(values, dtype=like.dtype).to(like.device).view(-1, *(1,) * (like.ndim - 1))
    )


def _embedded(
    denoise: Callable[[Tensor, Array], Tensor], x: Tensor, t: Array, s: Array, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_s of order - 1, x_s of this order, x0 at t). A sample with s = t keeps its state.

    `second` is the step of order 2, the higher of orders 1 and 2 or the lower of 2 and 3.
    """
    h = s - t
    # the divisor: coefficients of a step of length 0 are set to zero below
    inside = np.where(h == 0, 1.0, h)

    def predict(x: Tensor, at: Array) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, at)
        return x0, (x - x0) * column(np.exp(at), x)

    def move(to: Array, slope: Array, eps: Tensor, change: Tensor | None = None) -> Tensor:
        """x - rho_to ((e^(to - t) - 1) eps + slope change)."""
        rho = np.exp(-to)
        moved = x - column(rho * np.expm1(to - t), x) * eps
        return moved if change is None else moved - column(rho * slope, x) * change

    x0, eps = predict(x, t)
    r = 1.0 / order
    first = t + r * h
    _, e1 = predict(move(first, h, eps), first)
    second = move(s, np.expm1(h) / (2 * r), eps, e1 - eps)
    if order == 2:
        return move(s, h, eps), second, x0
    late, g = t + 2 * r * h, 2 * r * inside
    _, e2 = predict(
        move(late, np.where(h == 0, 0.0, 2 * (np.expm1(g) / g - 1)), eps, e1 - eps), late
    )
    high = move(s, np.where(h == 0, 0.0, (np.expm1(inside) / inside - 1) / (2 * r)), eps, e2 - eps)
    return second, high, x0
