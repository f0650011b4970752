"""Stochastic differential equations that turn data into noise: dx = f(t) x dt + g(t) dw.

t runs from 0 to 1. A linear drift keeps q(x_t | x0) = N(alpha(t) x0, sigma(t)² I), with dalpha/dt =
f alpha and dsigma²/dt = 2 f sigma² + g² (Song et al. 2021, eq. 5 and 29). With B(t) the integral of
beta:

    VP      f = -beta/2  g² = beta                  alpha = e^(-B/2)  sigma² = 1 - e^(-B)
    sub-VP  f = -beta/2  g² = beta (1 - e^(-2B))    alpha = e^(-B/2)  sigma = 1 - e^(-B)
    VE      f = 0        g² = 2 sigma² ln(max/min)  alpha = 1         sigma = min (max/min)^t

(eq. 11, 12 and 9; min and max stand for sigma_min and sigma_max.)

alpha and sigma come from the same curves as those of `Schedule` (fastdiff.schedule.curves); this
module adds f and g. The reverse process dx = [f x - (1 + eta²)/2 g² score] dt + eta g dw has the
same marginals for every eta: the reverse SDE for eta = 1 (Anderson 1982; Song et al. 2021, eq. 6),
the probability-flow ODE for eta = 0 (eq. 13).

`schedule()` returns the same path as a `Schedule`, so every sampler can use a score that was
trained on the SDE. The reverse SDE solved by Euler–Maruyama is the plan `euler_maruyama`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import ops, prediction
from ...backend.eager.sums import sum_samples
from ...prediction import Parametrization
from ...sampling.model_call import ModelCall
from ...schedule import Schedule, Time
from ...schedule.curves import Curve, SubVp, Ve, Vp
from ..tensors import per_sample

Score = Callable[[Tensor, Tensor], Tensor]
"""(x [B, …], t [B]) -> the score of p_t at x."""


class SDE:
    """dx = f(t) x dt + g(t) dw; see VPSDE, SubVPSDE and VESDE.

    Times are numbers or float64 tensors in [0, 1], [] or [B].
    """

    name: ClassVar[str]

    @property
    def curve(self) -> Curve:
        """alpha and sigma over time."""
        raise NotImplementedError

    def f(self, t: Tensor | float) -> Tensor:
        """f(t), float64, of t's shape."""
        raise NotImplementedError

    def g2(self, t: Tensor | float) -> Tensor:
        """g(t)², float64, of t's shape."""
        raise NotImplementedError

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        """This path as a continuous schedule; its network's time is t."""
        raise NotImplementedError

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of q(x_t | x0), float64, of t's shape."""
        return self.curve.point(_double(t))

    def at_log_snr(self, log_snr: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR ln(alpha²/sigma²), float64, of its shape."""
        return self.curve.space.point(_double(log_snr))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The time t at a log-SNR, the inverse of `log_snr`."""
        return self.curve.time(torch.exp(-0.5 * _double(log_snr)))

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """f(t) x for x [B, …] and t [B] or a number."""
        return per_sample(self.f(_times(t, x)), x) * x

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t), float64, of t's shape."""
        return self.g2(t).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """ln(alpha²/sigma²), which decreases with t."""
        alpha, sigma = self.marginal(t)
        return 2.0 * (alpha.log() - sigma.log())

    def rate(self, t: Tensor | float) -> Tensor:
        """-d log_snr/dt = g²/sigma².

        Half of it is the weight of ‖eps - eps_hat‖² in the likelihood (Song, Durkan et al. 2021).
        """
        return self.g2(t) / self.marginal(t)[1] ** 2

    @property
    def prior_std(self) -> float:
        """The standard deviation of the noise that the reverse process starts from."""
        return self.curve.space.prior_std(float(self.marginal(1.0)[1]))

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: int | Tensor,
        sample_ids: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """x_1 ~ N(0, prior_std² I), drawn from stream 0 of the noise contract."""
        return (
            ops.randn(shape, seed=seed, sample_ids=sample_ids, dtype=dtype, device=device)
            * self.prior_std
        )

    def log_prior(self, x: Tensor) -> Tensor:
        """ln N(x; 0, prior_std² I), float64 [B], in nats."""
        n, s = x[0].numel(), self.prior_std
        return -0.5 * sum_samples((x.double() / s).square()) - n * (
            0.5 * math.log(2 * math.pi) + math.log(s)
        )

    def score(
        self,
        model: Callable[..., Any],
        prediction_type: str | Parametrization = "score",
        **cond: Any,
    ) -> Score:
        """The score that follows from a network's output: (x, t [B]) -> [B, …].

        The network gets float32 times t in [0, 1], or its own time if it defines `network_time`.
        The point passed to `network_time` then has this t too; it is not the timestep that a point
        of `Schedule.at` has, so `network_time` should read the point's log-SNR, alpha or sigma.
        cond: keyword arguments of the network.
        """
        where = f"fastdiff.theory.score.{type(self).__name__}"
        call = ModelCall(model, None, prediction_type, cond=cond, where=where)
        kind = call.parametrization

        def score(x: Tensor, t: Tensor) -> Tensor:
            times = _times(t, x)
            at = self.marginal(times)
            network_times: Any = times.to(torch.float32)
            if call.own_time:
                numbers = (v.tolist() for v in (times, *at, self.log_snr(times)))
                network_times = [Time(*point) for point in zip(*numbers, strict=True)]
            alpha, sigma = (per_sample(v, x) for v in at)
            if not kind.unit_input:
                out = call(x, network_times)
                return prediction.convert(kind.prediction_type, "score", out, x, alpha, sigma)
            size = torch.hypot(alpha * kind.sigma_data, sigma)
            unit = (x / size, alpha * kind.sigma_data / size, sigma / size)
            out = call(unit[0], network_times)
            return -prediction.convert(kind.prediction_type, "epsilon", out, *unit) / sigma

        return score

    def reverse(self, score: Score, eta: float = 1.0) -> Reverse:
        """The process that runs back from t = 1; see the module. Raises ValueError for eta < 0."""
        if not eta >= 0:
            raise ValueError(
                f"fastdiff.theory.score.{type(self).__name__}: expected eta >= 0, got {eta!r}."
            )
        return Reverse(self, score, float(eta))


@dataclass(frozen=True)
class Reverse:
    """dx = [f x - (1 + eta²)/2 g² score] dt + eta g dw, to be integrated towards t = 0.

    Song et al. 2021, eq. 6 (eta = 1) and 13 (eta = 0).
    """

    sde: SDE
    score: Score
    eta: float

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The drift [B, …] at x [B, …] for t [B] or a number."""
        t = _times(t, x)
        weight = 0.5 * (1.0 + self.eta**2) * self.sde.g2(t)
        return self.sde.drift(x, t) - per_sample(weight, x) * self.score(x, t)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """eta g(t), float64, of t's shape."""
        return self.eta * self.sde.diffusion(t)


@dataclass(frozen=True)
class VPSDE(SDE):
    """Variance preserving: beta(t) = beta_min + t (beta_max - beta_min).

    The limit of DDPM's chain for many steps (Song et al. 2021, eq. 11; appendix C). Raises
    ValueError unless 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    name: ClassVar[str] = "vp"

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"fastdiff.theory.score.{type(self).__name__}: expected 0 < beta_min <= beta_max,"
                f" got {self.beta_min!r} and {self.beta_max!r}."
            )

    @property
    def curve(self) -> Vp:
        return Vp(self.beta_min, self.beta_max)

    def beta(self, t: Tensor | float) -> Tensor:
        """The rate at time t."""
        return self.curve.rate(_double(t))

    def integral(self, t: Tensor | float) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return self.curve.integral(_double(t))

    def f(self, t: Tensor | float) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: Tensor | float) -> Tensor:
        return self.beta(t)

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.vp(num_train_timesteps, beta_min=self.beta_min, beta_max=self.beta_max)


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """The drift of VP with less noise: g² = beta (1 - e^(-2B)), so that sigma = 1 - alpha².

    Song et al. 2021, eq. 12.
    """

    name: ClassVar[str] = "sub_vp"

    @property
    def curve(self) -> SubVp:
        return SubVp(self.beta_min, self.beta_max)

    def g2(self, t: Tensor | float) -> Tensor:
        return self.beta(t) * -torch.expm1(-2.0 * self.integral(t))

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.sub_vp(num_train_timesteps, beta_min=self.beta_min, beta_max=self.beta_max)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    The limit of annealed Langevin sampling for many levels (Song et al. 2021, eq. 9; appendix C).
    At t = 0 the data are blurred by sigma_min. Raises ValueError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    name: ClassVar[str] = "ve"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "fastdiff.theory.score.VESDE: expected 0 < sigma_min < sigma_max, got"
                f" {self.sigma_min!r} and {self.sigma_max!r}."
            )

    @property
    def curve(self) -> Ve:
        return Ve(self.sigma_min, self.sigma_max)

    def f(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def g2(self, t: Tensor | float) -> Tensor:
        return 2.0 * math.log(self.sigma_max / self.sigma_min) * self.marginal(t)[1] ** 2

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.ve(num_train_timesteps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)


SDES: dict[str, type[SDE]] = {kind.name: kind for kind in (VPSDE, VESDE, SubVPSDE)}
"""The SDEs by their space."""


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _times(t: Tensor | float, x: Tensor) -> Tensor:
    """t as float64 [B] on x's device, for x [B, …]."""
    return _double(t).to(x.device).expand(len(x))
