"""Distributions: probabilities, diagonal Gaussians, and densities with draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ops

LOG_2PI = math.log(2 * math.pi)


class Estimate(NamedTuple):
    """A mean over independent draws and its standard error, std/√n with the n - 1 variance."""

    value: Tensor
    stderr: Tensor


class Gaussian(NamedTuple):
    """N(mean, exp(logvar)) with independent elements; the arguments broadcast to [B, ...]."""

    mean: Tensor
    logvar: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.broadcast_shapes(self.mean.shape, self.logvar.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log N(x; mean, exp(logvar)) in nats, summed over the elements of each member.

        x: [..., B, ...]; the result is [..., B].

        Raises ValueError for an x that does not broadcast against the batch.
        """
        shape = self.shape
        if x.ndim < len(shape) or (
            x.ndim == len(shape) and shape[:1] not in ((), (1,), x.shape[:1])
        ):
            raise ValueError(
                "fastdiff.theory.information.Gaussian: expected x of shape [...,"
                f" {', '.join(map(str, shape))}], got {list(x.shape)}. Pass one batch of points for"
                " each member of the batch."
            )
        terms = self.logvar + LOG_2PI + (x - self.mean).square() * torch.exp(-self.logvar)
        return -0.5 * sum_members(terms, len(shape))

    def sample(self, n: int, seed: int) -> Tensor:
        """Returns n draws [n, B, ...] of every member of the batch, with gradients.

        Draw i is the same for every n.
        """
        mean, logvar = torch.broadcast_tensors(self.mean, self.logvar)
        return ops.reparameterize(mean.expand(n, *mean.shape), logvar, seed=seed)


class Sampled(NamedTuple):
    """A distribution defined by its log-density and its draws.

    Attributes:
        log_prob: x [n, ...] -> [n], or [n, B] for a batch of distributions; nats.
        sample: (n, seed) -> n independent draws [n, ...].
    """

    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int, int], Tensor]


def distribution(where: str, name: str, value: Any) -> Any:
    """Returns `value` as a Tensor of probabilities, a Gaussian, a Sampled or a log-density.

    Raises TypeError for another kind. where, name: of the function and its argument, for the
    message.
    """
    if isinstance(value, (Tensor, Gaussian, Sampled)) or callable(value):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, Tensor) for v in value):
        return Gaussian(*value)
    if isinstance(value, (float, int, Sequence)) and not isinstance(value, (str, tuple)):
        return torch.as_tensor(value, dtype=torch.float64)
    raise TypeError(
        f"fastdiff.theory.information.{where}: expected {name} as probabilities, Gaussian(mean,"
        f" logvar) or Sampled(log_prob, sample), got {type(value).__name__}."
    )


def log_density(p: Any) -> Callable[[Tensor], Tensor]:
    """Returns the log-density of a Gaussian or a Sampled; another p is the log-density."""
    return p.log_prob if isinstance(p, (Gaussian, Sampled)) else p


def log_probabilities(
    where: str, name: str, p: Tensor, logits: bool, normalised: bool = True
) -> Tensor:
    """Checks probabilities and returns log p, -inf where p is 0; for logits their log-softmax."""
    if not p.is_floating_point():
        raise TypeError(
            f"fastdiff.theory.information.{where}: expected {name} of a floating dtype, got"
            f" {p.dtype}."
        )
    tolerance = 1e-4
    if p.dtype in (torch.float16, torch.bfloat16):
        tolerance, p = 1e-2, p.to(torch.float32)
    if (normalised or logits) and p.ndim < 1:
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected {name} of shape [..., K], got a scalar."
        )
    if logits:
        return torch.log_softmax(p, -1)
    values = p.detach()
    if not bool(((values >= 0) & (values <= 1 + tolerance)).all()):
        raise ValueError(
            f"fastdiff.theory.information.{where}: expected probabilities {name} in [0, 1], got"
            f" values in [{values.min():.6g}, {values.max():.6g}]. Pass logits=True for"
            " unnormalised log-probabilities."
        )
    if normalised and values.numel():
        off = (values.sum(-1) - 1).abs().max()
        if off > tolerance:
            raise ValueError(
                f"fastdiff.theory.information.{where}: expected probabilities {name} that sum to 1"
                f" over the last dimension, got a sum {off:.6g} away. Divide by the sum."
            )
    # the inner `where` keeps the infinite slope of log at 0 out of the gradient
    return torch.where(p > 0, torch.log(torch.where(p > 0, p, 1.0)), -math.inf)


def sum_members(terms: Tensor, ndim: int) -> Tensor:
    """Sums terms [..., B, ...] over the dimensions after B.

    ndim: the number of dimensions of [B, ...].
    """
    return terms.flatten(1 - ndim).sum(-1) if ndim > 1 else terms
