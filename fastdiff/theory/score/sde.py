"""Stochastic differential equations that turn data into noise: dx = f(t) x dt + g(t) dw, t from 0
to 1.

A linear drift keeps q(x_t | x0) = N(alpha(t) x0, sigma(t)² I) with dalpha/dt = f alpha and
dsigma²/dt = 2 f sigma² + g² (Song et al. 2021, eq. 5 and 29; B(t) = ∫ beta):

    VP       f = -beta/2    g² = beta                    alpha = e^(-B/2)   sigma² = 1 - e^(-B)            (eq. 11)
    sub-VP   f = -beta/2    g² = beta (1 - e^(-2B))      alpha = e^(-B/2)   sigma = 1 - e^(-B)             (eq. 12)
    VE       f = 0          g² = 2 sigma² ln(max/min)    alpha = 1          sigma = min (max/min)^t        (eq. 9)

Time runs back along dx = [f x - (1 + eta²)/2 g² score] dt + eta g dw, which has the same marginals
for every eta: the reverse SDE for eta = 1 (Anderson 1982; Song et al. 2021, eq. 6), the
probability-flow ODE for eta = 0 (eq. 13).

`schedule()` gives the same path as a `Schedule`: what trained a score then serves every sampler,
and the reverse SDE by Euler–Maruyama is the plan `euler_maruyama`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ... import ops, prediction
from ...backend.eager.sums import sum_samples
from ...schedule import Schedule

Score = Callable[[Tensor, Tensor], Tensor]
"""(x [B, …], t [B]) -> the score of p_t at x."""


class SDE:
    """dx = f(t) x dt + g(t) dw. Times are float64 tensors in [0, 1], [] or [B], or numbers; see
    VPSDE, VESDE, SubVPSDE.
    """

    name: ClassVar[str]

    def f(self, t: Tensor | float) -> Tensor:
        """f(t), float64 like t."""
        raise NotImplementedError

    def g2(self, t: Tensor | float) -> Tensor:
        """g(t)², float64 like t."""
        raise NotImplementedError

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of q(x_t | x0), float64 like t."""
        raise NotImplementedError

    def time(self, log_snr: Tensor | float) -> Tensor:
        """t where ln(alpha²/sigma²) has this value, the inverse of `log_snr`."""
        raise NotImplementedError

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        """This path as a continuous schedule; its network's time is t."""
        raise NotImplementedError

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """f(t) x for x [B, …] and t [B] or a number."""
        return _beside(self.f(_time(t, x)), x) * x

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t), float64 like t."""
        return self.g2(t).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """ln(alpha²/sigma²), which falls with t."""
        alpha, sigma = self.marginal(t)
        return 2.0 * (alpha.log() - sigma.log())

    def rate(self, t: Tensor | float) -> Tensor:
        """-d log_snr/dt = g²/sigma²: half of it weighs ‖eps - eps_hat‖² in the likelihood (Song,
        Durkan et al. 2021).
        """
        return self.g2(t) / self.marginal(t)[1] ** 2

    @property
    def prior_std(self) -> float:
        """Deviation of the noise that the reverse process begins from."""
        return 1.0

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: int | Tensor,
        sample_ids: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """x_1 ~ N(0, prior_std² I) by stream 0 of the noise contract."""
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
        self, model: Callable[..., Any], prediction_type: str = "score", **cond: Any
    ) -> Score:
        """The score that a network's output means: (x, t [B]) -> [B, …]; the network is called with
        float32 times.
        """

        def score(x: Tensor, t: Tensor) -> Tensor:
            out = model(x, t.to(torch.float32), **cond)
            alpha, sigma = (_beside(v, x) for v in self.marginal(_time(t, x)))
            return prediction.convert(
                prediction_type, "score", getattr(out, "sample", out), x, alpha, sigma
            )

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
    """dx = [f x - (1 + eta²)/2 g² score] dt + eta g dw, to be integrated towards t = 0 (Song et al.
    2021, eq. 6 and 13).
    """

    sde: SDE
    score: Score
    eta: float

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """[B, …] for t [B] or a number."""
        t = _time(t, x)
        share = 0.5 * (1.0 + self.eta**2)
        return self.sde.drift(x, t) - _beside(share * self.sde.g2(t), x) * self.score(x, t)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """eta g(t), float64 like t."""
        return self.eta * self.sde.diffusion(t)


@dataclass(frozen=True)
class VPSDE(SDE):
    """Variance preserving: beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021, eq. 11;
    appendix C).

    The limit of DDPM's chain for ever more steps. Raises ValueError unless 0 < beta_min <=
    beta_max.
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

    def beta(self, t: Tensor | float) -> Tensor:
        """The rate at time t."""
        return self.beta_min + (self.beta_max - self.beta_min) * _double(t)

    def integral(self, t: Tensor | float) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = _double(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def f(self, t: Tensor | float) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: Tensor | float) -> Tensor:
        return self.beta(t)

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        total = self.integral(t)
        return torch.exp(-0.5 * total), torch.sqrt(-torch.expm1(-total))

    def time(self, log_snr: Tensor | float) -> Tensor:
        return self._inverse(softplus(-_double(log_snr), threshold=700.0))

    def _inverse(self, total: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * total))

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.vp(num_train_timesteps, beta_min=self.beta_min, beta_max=self.beta_max)


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """VP's drift with less noise, g² = beta (1 - e^(-2B)), so that sigma = 1 - alpha² (Song et al.
    2021, eq. 12).
    """

    name: ClassVar[str] = "sub_vp"

    def g2(self, t: Tensor | float) -> Tensor:
        return self.beta(t) * -torch.expm1(-2.0 * self.integral(t))

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        total = self.integral(t)
        return torch.exp(-0.5 * total), -torch.expm1(-total)

    def time(self, log_snr: Tensor | float) -> Tensor:
        return self._inverse(2.0 * torch.asinh(0.5 * torch.exp(-0.5 * _double(log_snr))))

    @property
    def prior_std(self) -> float:
        return float(self.marginal(1.0)[1])

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.sub_vp(num_train_timesteps, beta_min=self.beta_min, beta_max=self.beta_max)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: sigma(t) = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, eq. 9;
    appendix C).

    The limit of annealed Langevin sampling for ever more levels; at t = 0 the data are blurred by
    sigma_min. Raises ValueError unless 0 < sigma_min < sigma_max.
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
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def f(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def g2(self, t: Tensor | float) -> Tensor:
        return 2.0 * self._log_ratio * self.marginal(t)[1] ** 2

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        sigma = self.sigma_min * torch.exp(self._log_ratio * _double(t))
        return torch.ones_like(sigma), sigma

    def time(self, log_snr: Tensor | float) -> Tensor:
        return (-0.5 * _double(log_snr) - math.log(self.sigma_min)) / self._log_ratio

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def schedule(self, num_train_timesteps: int = 1000) -> Schedule:
        return Schedule.ve(num_train_timesteps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)


SDES: dict[str, type[SDE]] = {kind.name: kind for kind in (VPSDE, VESDE, SubVPSDE)}


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _time(t: Tensor | float, x: Tensor) -> Tensor:
    """t [B] float64 beside x [B, …]."""
    return _double(t).to(x.device).expand(len(x))


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """Numbers [B] to multiply x [B, …] with, in its dtype."""
    return values.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
