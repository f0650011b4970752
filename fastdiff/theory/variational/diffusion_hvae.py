"""A diffusion as a Markovian hierarchical autoencoder (Luo 2022, eq. 30–33).

If the latents have the size of x, the encoder is the fixed linear
q(x_t|x_{t-1}) = N(√α_t x_{t-1}, (1 - α_t) I) of a schedule and the top level is noise, then the
Markovian hierarchy is a variational diffusion model. Its bound equals `likelihood.elbo` in
expectation and `likelihood.elbo_two_variable` for every draw. If p is the true reverse process, it
is -ln p(x0) for every draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import ops
from ...models import build, describe
from ...prediction import normalize
from ...rng import STREAM_FORWARD
from ...sampling.model_call import ModelCall
from ...schedule import Schedule
from ...table import VLB_COLUMNS
from ..dequantization import LIKELIHOODS
from ..information import Gaussian
from ..likelihood.table import steps, vlb_table
from .markovian import Chain


class DiffusionHVAE(Chain):
    """The Markovian hierarchy with a schedule as its encoder.

    Levels are timesteps: z_{t+1} is x_t of `Schedule`.

    Args:
        network: (x_t, t, **cond) -> output as `Sampler` calls it, or the description of a network
            of fastdiff.models.
        schedule: a `Schedule`, or its config.
        prediction_type, variance, likelihood, clip_range: see `likelihood.elbo`.
        cond: keyword arguments of the network.

    Raises:
        ValueError: for other names.
        TypeError: from `config`, if the network is not of fastdiff.models.
    """

    stream = STREAM_FORWARD  # the stream of the bounds in `likelihood`

    def __init__(
        self,
        network: Callable[..., Any] | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        *,
        prediction_type: str = "epsilon",
        variance: str | ArrayLike = "fixed_small",
        likelihood: str = "discretized",
        clip_range: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                "fastdiff.theory.variational.DiffusionHVAE: expected likelihood in"
                f" {list(LIKELIHOODS)}, got {likelihood!r}."
            )
        self.schedule = Schedule.from_config(schedule) if isinstance(schedule, dict) else schedule
        self.network: Any = build(network) if isinstance(network, dict) else network
        self.depth = self.schedule.num_train_timesteps
        self.prediction_type, self.variance, self.likelihood = (
            normalize(prediction_type),
            variance,
            likelihood,
        )
        self.clip_range, self.cond = clip_range, dict(cond or {})
        table = vlb_table(
            self.schedule, prediction_type=prediction_type, variance=variance, clip_range=clip_range
        )
        self._rows = [dict(zip(VLB_COLUMNS, row.tolist(), strict=True)) for row in table]
        self._steps = steps(self.schedule)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them, without cond.

        Raises TypeError if the network is not of fastdiff.models.
        """
        variance = self.variance
        stored = (
            variance if isinstance(variance, str) else np.asarray(variance, np.float64).tolist()
        )
        return {
            "network": describe(self.network),
            "schedule": self.schedule.to_config(),
            "prediction_type": self.prediction_type,
            "variance": stored,
            "likelihood": self.likelihood,
            "clip_range": self.clip_range,
        }

    def encode(self, level: int, z: Tensor) -> Gaussian:
        """Returns q(x_t|x_{t-1}) = N(alpha x_{t-1}, variance I), t = level (Luo 2022, eq. 31)."""
        logvar = torch.tensor(
            math.log(self._steps.variance[level]), dtype=torch.float64, device=z.device
        )
        return Gaussian(self._steps.alpha[level] * z, logvar.to(z.dtype))

    def decode(self, level: int, z: Tensor) -> Gaussian:
        """Returns p(x_{t-1}|x_t) at x_t = z, t = level (Luo 2022, eq. 94)."""
        call = ModelCall(
            self.network,
            self.schedule,
            self.prediction_type,
            cond=self.cond,
            where="fastdiff.theory.variational.DiffusionHVAE",
            learned=True,
        )
        row, out = self._rows[level], call(z, self.schedule.at(level))
        raw = None
        if out.shape != z.shape:
            out, raw = out.chunk(2, dim=1)
        x0 = (row["x0_x"] * z + row["x0_out"] * out).clamp(-row["clip_bound"], row["clip_bound"])
        share = z.new_zeros(()) if raw is None else (raw + 1) / 2
        logvar = row["logvar_lo"] + (row["logvar_hi"] - row["logvar_lo"]) * share
        return Gaussian(row["mean_x0"] * x0 + row["mean_x"] * z, logvar)

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        p = self.decode(0, z)
        if self.likelihood == "discretized":
            return -ops.discretized_gaussian_nll(x0, p.mean, 0.5 * p.logvar)
        return p.log_prob(x0)

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns ln p(x_{T-1}) [B] of N(0, s² I), s = schedule.prior_std()."""
        variance = self.schedule.prior_std() ** 2
        return -0.5 * (z.square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)

    def loss(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns -ELBO [B] in nats along one trajectory of all T steps.

        labels, part: not used.
        """
        return torch.stack(
            list(self.terms(x0, seed=seed, sample_ids=sample_ids, step=step).values())
        ).sum(0)

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Returns the terms of one trajectory, [B] each in nats.

        They are reconstruction, consistency (the sum of T - 1 terms) and prior.
        """
        terms = self.terms(x0, seed=seed, sample_ids=sample_ids, step=step)
        between = [v for name, v in terms.items() if name.startswith("consistency")]
        zero = torch.zeros_like(terms["prior"])
        consistency = torch.stack(between).sum(0) if between else zero
        return {
            "reconstruction": terms["reconstruction"],
            "consistency": consistency,
            "prior": terms["prior"],
        }
