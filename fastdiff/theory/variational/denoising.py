"""Losses of a denoiser with a discrete schedule: of `Denoiser`, and for loops of your own.

One timestep per sample.

    L_simple   mean_e (eps - eps^)²                                        (Ho et al. 2020, eq. 14)
    weighted   w(SNR_t)·L_simple                            (fastdiff.theory.variational.weights)
    L_vlb      T·L_t in bits per dimension, L_t a term of the bound        (Ho et al. 2020, eq. 5)
    L_hybrid   L_simple + share·L_vlb, L_vlb without a gradient to the mean
                                                                (Nichol & Dhariwal 2021, eq. 16)

The network's output is converted to eps^, so that one fused kernel, `noise_mse`, serves every
prediction type; the bound's terms are computed by `vlb_terms`. For timesteps drawn uniformly from
0 … T-1 the mean of L_vlb is the bound without its prior term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import ops
from ...prediction import normalize, to_eps_coefficients
from ...sampling.model_call import ModelCall
from ...schedule import Schedule
from ..likelihood.table import vlb_table
from .weights import WEIGHTINGS, weight

OBJECTIVES = (*WEIGHTINGS, "vlb", "hybrid")


class DenoisingLoss:
    """The loss of a network under a schedule, by one of OBJECTIVES.

    Args:
        schedule: the schedule of the timesteps; for epsilon and score without pure noise.
        prediction_type: what the network predicts.
        objective: one of OBJECTIVES.
        vlb_share: the factor of L_vlb in `hybrid`.
        variance: of p(x_{t-1}|x_t) in `vlb` and `hybrid`, see `likelihood.vlb_table`. With a
            learned variance the network's output has twice the channels; the other objectives read
            the first half.
        cap, sigma_data: see `weight`.
        weights: [T] instead of the objective's weighting, factors of (eps - eps^)² such as
            `timestep_weights` returns for epsilon.

    Raises ValueError for other names.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction_type: str = "epsilon",
        objective: str = "simple",
        variance: str | ArrayLike = "fixed_small",
        vlb_share: float = 1e-3,
        cap: float = 5.0,
        sigma_data: float = 0.5,
        weights: Tensor | None = None,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(
                "fastdiff.theory.variational.DenoisingLoss: expected objective in"
                f" {list(OBJECTIVES)}, got {objective!r}."
            )
        if not vlb_share >= 0:
            raise ValueError(
                "fastdiff.theory.variational.DenoisingLoss: expected vlb_share >= 0, got"
                f" {vlb_share}."
            )
        self.schedule, self.prediction_type = schedule, normalize(prediction_type)
        self.objective, self.vlb_share = objective, vlb_share
        self._alpha, self._sigma = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)
        weighting = objective if objective in WEIGHTINGS else "simple"
        self._weight = (
            weight(weighting, torch.tensor(schedule.log_snr), cap=cap, sigma_data=sigma_data)
            if weights is None
            else weights.double()
        )
        self._table: Tensor | None = None
        if objective in ("vlb", "hybrid"):
            table = vlb_table(schedule, prediction_type=self.prediction_type, variance=variance)
            self._table = torch.tensor(table)

    def __call__(
        self,
        model: Callable[..., Any],
        x0: Tensor,
        t: Tensor,
        *,
        seed: int | Tensor,
        sample_ids: Tensor | None = None,
        step: int = 0,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Returns the loss [B] at the timesteps t.

        Args:
            model: (x_t, t, **cond) -> output, as `Sampler` calls it.
            x0: [B, …].
            t: int64 [B] in [0, T).
            seed, sample_ids, step: of the noise, stream 2.
            cond: keyword arguments of the network.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        alpha, sigma = (v.to(x0.device) for v in (self._alpha, self._sigma))
        x_t = ops.q_sample(x0, t, alpha, sigma, **counter)
        call = ModelCall(
            model,
            self.schedule,
            self.prediction_type,
            cond=cond,
            where="fastdiff.theory.variational.DenoisingLoss",
            learned=True,
        )
        out = call(x_t, t)
        if self.objective == "vlb":
            return self._vlb(x0, x_t, out, t)
        output = out if out.shape == x_t.shape else out.chunk(2, dim=1)[0]
        on_x_t, on_output = to_eps_coefficients(self.prediction_type, alpha[t], sigma[t])
        wide = (-1,) + (1,) * (x0.ndim - 1)
        coefficients = (
            torch.as_tensor(v, dtype=torch.float64, device=x0.device).expand(len(t))
            for v in (on_x_t, on_output)
        )
        a, b = (v.view(wide).to(output.dtype) for v in coefficients)
        loss = ops.noise_mse(a * x_t + b * output, weight=self._weight.to(x0.device)[t], **counter)
        if self.objective != "hybrid":
            return loss
        if out.shape != x_t.shape:
            out = torch.cat([output.detach(), out.chunk(2, dim=1)[1]], 1)
        else:
            out = out.detach()
        return loss + self.vlb_share * self._vlb(x0, x_t, out, t)

    def _vlb(self, x0: Tensor, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Returns T·L_t [B] in bits per dimension."""
        assert self._table is not None
        scale = self.schedule.num_train_timesteps / (math.prod(x0.shape[1:]) * math.log(2))
        return scale * ops.vlb_terms(x0, x_t, out, self._table.to(x0.device), t)
