"""The four measures of the three kinds of distribution; see the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from .distributions import (
    LOG_2PI,
    Estimate,
    Gaussian,
    Sampled,
    distribution,
    log_density,
    log_probabilities,
    sum_members,
)

UNITS = {"nats": 1.0, "bits": 1 / math.log(2)}


def surprise(p: Any, x: Any = None, *, logits: bool = False, unit: str = "nats") -> Tensor:
    """Returns the surprise -log p(x) of an outcome (Shannon 1948).

    It is 1 bit for either side of a fair coin.

    Args:
        p: the probabilities of the outcomes, in any shape; or a distribution, with the outcome in
            x.
        x: the outcome under p: indices int64 [...] into the last dimension of a discrete p, a point
            [B, ...] for a Gaussian, the argument of log_prob for a `Sampled` or a log-density.
        logits: whether p contains unnormalised log-probabilities over its last dimension.
        unit: `nats` or `bits`.

    Returns:
        The shape of p without x, otherwise the batch shape of x; infinite where p is 0.

    Raises:
        ValueError: for probabilities outside [0, 1], indices outside the outcomes, or an unknown
            unit.
        TypeError: for a p of another kind, or a density without x.
    """
    scale, p = _unit("surprise", unit), distribution("surprise", "p", p)
    if not isinstance(p, Tensor):
        if x is None:
            raise TypeError(
                "fastdiff.theory.information.surprise: expected x with a density, got None. Pass"
                " the outcome."
            )
        return _surprises(log_density(p)(x)) * scale
    log_p = log_probabilities("surprise", "p", p, logits, normalised=x is not None)
    if x is None:
        return _surprises(log_p) * scale
    index, outcomes = torch.as_tensor(x, device=log_p.device), log_p.shape[-1]
    if index.dtype != torch.int64 or bool(((index < 0) | (index >= outcomes)).any()):
        raise ValueError(
            f"fastdiff.theory.information.surprise: expected x as int64 indices in [0, {outcomes}),"
            f" got {str(index.dtype).removeprefix('torch.')} {index.flatten()[:8].tolist()}."
        )
    shape = torch.broadcast_shapes(index.shape, log_p.shape[:-1])
    chosen = log_p.expand(*shape, outcomes).gather(-1, index.expand(shape)[..., None])[..., 0]
    return _surprises(chosen) * scale


def entropy(
    p: Any, *, logits: bool = False, samples: int = 10_000, seed: int = 0, unit: str = "nats"
) -> Any:
    """Returns the entropy H(p) = E_p[-log p] (Shannon 1948, theorem 2).

    It is in [0, log K] for K outcomes, and ½ Σ log(2πe σ²) for a Gaussian.

    Args:
        p: a distribution, see the package's docstring.
        logits: whether p contains unnormalised log-probabilities over its last dimension.
        samples, seed: of the Monte-Carlo mean, for a `Sampled`.
        unit: `nats` or `bits`.

    Returns:
        [...] for probabilities [..., K] (0 log 0 = 0), [B] for a Gaussian, an `Estimate` for a
        `Sampled`.

    Raises:
        ValueError: for probabilities that are negative or do not sum to 1, fewer than two samples,
            or an unknown unit.
        TypeError: for a p of another kind.
    """
    scale, p = _unit("entropy", unit), distribution("entropy", "p", p)
    if isinstance(p, Tensor):
        log_p = log_probabilities("entropy", "p", p, logits)
        return _weighted(log_p, _surprises(log_p)).sum(-1) * scale
    if isinstance(p, Gaussian):
        return 0.5 * sum_members((p.logvar + (1 + LOG_2PI)).expand(p.shape), len(p.shape)) * scale
    return _mean("entropy", p, lambda x: _surprises(log_density(p)(x)) * scale, samples, seed)


def cross_entropy(
    p: Any,
    q: Any,
    *,
    logits: bool = False,
    samples: int = 10_000,
    seed: int = 0,
    unit: str = "nats",
) -> Any:
    """Returns the cross-entropy H(p, q) = E_p[-log q] = H(p) + KL(p‖q) >= H(p).

    It is the mean surprise under q of outcomes that are drawn from p. For Gaussians it is
    ½ Σ (log 2π + log σ_q² + (σ_p² + (μ_p - μ_q)²)/σ_q²).

    Args:
        p, q: distributions, see the package's docstring; discrete ones broadcast against each
            other.
        logits: whether discrete p and q contain unnormalised log-probabilities over their last
            dimension.
        samples, seed: of the Monte-Carlo mean over draws of p, if p or q has no closed form.
        unit: `nats` or `bits`.

    Returns:
        As `entropy`; infinite where q = 0 < p.

    Raises: as `entropy`.
    """
    scale = _unit("cross_entropy", unit)
    p, q = _pair("cross_entropy", p, q)
    if isinstance(p, Tensor):
        log_p, log_q = _discrete("cross_entropy", p, q, logits)
        return _weighted(log_p, _surprises(log_q)).sum(-1) * scale
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        square = torch.exp(p.logvar - q.logvar) + (p.mean - q.mean).square() * torch.exp(-q.logvar)
        terms = q.logvar + LOG_2PI + square
        return 0.5 * sum_members(terms, terms.ndim) * scale
    return _mean("cross_entropy", p, lambda x: _surprises(log_density(q)(x)) * scale, samples, seed)


def kl(
    p: Any,
    q: Any,
    *,
    logits: bool = False,
    samples: int = 10_000,
    seed: int = 0,
    unit: str = "nats",
) -> Any:
    """Returns KL(p‖q) = E_p[log p - log q] >= 0, which is 0 if and only if p = q.

    (Kullback & Leibler 1951, lemma 3.1.) For discrete distributions it is computed as
    Σ (p log(p/q) - p + q), where every term is >= 0 and none cancels near p = q; for Gaussians by
    `ops.gaussian_kl`.

    Args:
        p, q: distributions, see the package's docstring; discrete ones broadcast against each
            other.
        logits: whether discrete p and q contain unnormalised log-probabilities over their last
            dimension.
        samples, seed: of the Monte-Carlo mean over draws of p, if p or q has no closed form.
        unit: `nats` or `bits`.

    Returns:
        As `entropy`; infinite if q = 0 < p for an outcome. Where p = 0, q may have any value.

    Raises: as `entropy`.
    """
    scale = _unit("kl", unit)
    p, q = _pair("kl", p, q)
    if isinstance(p, Tensor):
        log_p, log_q = _discrete("kl", p, q, logits)
        absent = torch.isneginf(log_p)
        y = torch.where(absent, 0.0, log_q - torch.where(absent, 0.0, log_p))
        return (
            torch.where(absent, torch.exp(log_q), torch.exp(log_p) * (torch.expm1(y) - y)).sum(-1)
            * scale
        )
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        single = max(len(p.shape), len(q.shape)) == 0  # the op takes a batch
        values = [v[None] if single else v for v in (*p, *q)]
        result = ops.gaussian_kl(*values) * scale
        return result[0] if single else result
    return _mean("kl", p, lambda x: (log_density(p)(x) - log_density(q)(x)) * scale, samples, seed)


def _unit(where: str, unit: str) -> float:
    if unit not in UNITS:
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected unit in {list(UNITS)}, got {unit!r}."
        )
    return UNITS[unit]


def _pair(where: str, p: Any, q: Any) -> tuple[Any, Any]:
    p, q = distribution(where, "p", p), distribution(where, "q", q)
    if isinstance(p, Tensor) != isinstance(q, Tensor):
        raise TypeError(
            f"fastdiff.theory.information.{where}: expected p and q both discrete or both"
            " densities, got one of each."
        )
    return p, q


def _discrete(where: str, p: Tensor, q: Tensor, logits: bool) -> tuple[Tensor, Tensor]:
    log_p, log_q = (
        log_probabilities(where, "p", p, logits),
        log_probabilities(where, "q", q, logits),
    )
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected p and q over the same outcomes, got"
            f" {log_p.shape[-1]} and {log_q.shape[-1]}."
        )
    return log_p, log_q


def _surprises(log_p: Tensor) -> Tensor:
    """Returns -log p; a log p of 0 gives 0, where its negative would be printed as -0."""
    return 0.0 - log_p


def _weighted(log_p: Tensor, value: Tensor) -> Tensor:
    """Returns p · value, and 0 where p is 0 for any value."""
    absent = torch.isneginf(log_p)
    return torch.where(absent, 0.0, torch.exp(log_p) * torch.where(absent, 0.0, value))


def _mean(where: str, p: Any, f: Callable[[Tensor], Tensor], samples: int, seed: int) -> Estimate:
    """Returns E_p[f] with its standard error, estimated from `samples` draws of p."""
    if not isinstance(p, (Gaussian, Sampled)):
        raise TypeError(
            f"fastdiff.theory.information.{where}: expected p with draws, got a function. Pass"
            " Sampled(log_prob, sample)."
        )
    if samples < 2:
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected samples >= 2 for a standard error, got"
            f" {samples}."
        )
    values = f(p.sample(samples, seed))
    if values.ndim < 1 or values.shape[0] != samples:
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected log_prob to return [{samples}, ...] for"
            f" {samples} draws, got {list(values.shape)}."
        )
    return Estimate(values.mean(0), values.std(0) / math.sqrt(samples))
