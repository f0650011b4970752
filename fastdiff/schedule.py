"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, as float64 tables.

A discrete variance-preserving schedule is fixed by betas: alpha_t^2 = prod(1 - beta_i) and sigma_t^2 = 1 - alpha_t^2
(Ho et al. 2020, eq. 4). Both halves are kept, because 1 - alpha_t^2 has lost its digits where alpha_t^2 is near one;
log-SNR = ln(alpha_t^2 / sigma_t^2) (Kingma et al. 2021, eq. 2).

Schedules differ in their space, the curve on which (alpha, sigma) lies: `vp` alpha² + sigma² = 1 (variance preserving),
`ve` alpha = 1 (variance exploding), `flow` alpha + sigma = 1 (flow matching). A log-SNR names one point of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SPACES = ("vp", "ve", "flow")


class Time(NamedTuple):
    """A point of a schedule: the time the network is given, and q(x_t | x0) = N(alpha x0, sigma² I) there."""

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def rho(self) -> float:
        """The noise level sigma/alpha, Karras' sigma."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """lambda = ln(alpha/sigma) (Lu et al. 2022)."""
        return 0.5 * self.log_snr

    def transition(self, s: Time) -> tuple[float, float]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s less noisy (Kingma et al. 2021,
        eq. 20–21): alpha_t/alpha_s and -expm1(log_snr_t - log_snr_s)·sigma_t², without cancellation."""
        return self.alpha / s.alpha, -math.expm1(self.log_snr - s.log_snr) * self.sigma**2


CLEAN = Time(t=-1.0, alpha=1.0, sigma=0.0, log_snr=math.inf)


def on_curve(space: str, log_snr: float) -> tuple[float, float]:
    """(alpha, sigma) of this log-SNR in a space, without cancellation."""
    if space == "ve":
        return 1.0, math.exp(-0.5 * log_snr)
    if space == "vp":
        if log_snr > 0:
            low = math.exp(-log_snr)
            return math.exp(-0.5 * math.log1p(low)), math.sqrt(low / (1.0 + low))
        high = math.exp(log_snr)
        return math.sqrt(high / (1.0 + high)), math.exp(-0.5 * math.log1p(high))
    if log_snr > 0:
        rho = math.exp(-0.5 * log_snr)
        return 1.0 / (1.0 + rho), rho / (1.0 + rho)
    rate = math.exp(0.5 * log_snr)
    return rate / (1.0 + rate), 1.0 / (1.0 + rate)


class Schedule:
    """A discrete variance-preserving noise schedule over t = 0 … T-1.

    Attributes (float64 arrays [T] unless stated):
        num_train_timesteps: T.
        alphas_cumprod: alpha_t^2, strictly decreasing, inside (0, 1).
        one_minus_alphas_cumprod: sigma_t^2.
        alpha, sigma: the two coefficients of q(x_t | x0) = N(alpha_t x0, sigma_t^2 I).
        log_snr: ln(alpha_t^2 / sigma_t^2).
        betas: 1 - alpha_t^2 / alpha_{t-1}^2, with alpha_{-1} = 1.
    """

    def __init__(self, alphas_cumprod: Array, one_minus: Array, config: dict[str, Any]):
        self.alphas_cumprod = alphas_cumprod
        self.one_minus_alphas_cumprod = one_minus
        self.alpha = np.sqrt(alphas_cumprod)
        self.sigma = np.sqrt(one_minus)
        self.log_snr = np.log(alphas_cumprod) - np.log(one_minus)
        self.space = "vp"
        self.continuous = False
        self._config = config
        for table in (self.alphas_cumprod, self.one_minus_alphas_cumprod, self.alpha, self.sigma, self.log_snr):
            table.flags.writeable = False

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def at(self, t: float) -> Time:
        """The schedule's point t, an index in [0, T)."""
        i = int(t)
        return Time(float(t), float(self.alpha[i]), float(self.sigma[i]), float(self.log_snr[i]))

    def at_log_snr(self, log_snr: float) -> Time:
        """The point of this log-SNR; its t lies between the timesteps around it, linear in log-SNR."""
        t = float(np.interp(-log_snr, -self.log_snr, np.arange(self.num_train_timesteps)))
        return Time(t, *on_curve(self.space, log_snr), log_snr)

    def network_time(self, point: Time) -> float:
        """What the network is given as t at a point: the timestep, a whole number unless `continuous`."""
        return point.t

    @property
    def betas(self) -> Array:
        kept = np.concatenate([[1.0], self.alphas_cumprod[:-1]])
        lost = np.concatenate([[0.0], self.one_minus_alphas_cumprod[:-1]])
        # the difference has the digits while little is lost, the ratio when much is
        return np.where(lost < 0.5, (self.one_minus_alphas_cumprod - lost) / kept, 1.0 - self.alphas_cumprod / kept)

    @classmethod
    def linear(cls, num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """beta_t evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4)."""
        size = _size("linear", num_train_timesteps)
        config = {"name": "linear", "num_train_timesteps": size, "beta_start": beta_start, "beta_end": beta_end}
        return cls._from_betas("linear", np.linspace(beta_start, beta_end, size), config)

    @classmethod
    def scaled_linear(
        cls, num_train_timesteps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Schedule:
        """sqrt(beta_t) evenly spaced, as in latent diffusion (Rombach et al. 2022, table 15)."""
        size = _size("scaled_linear", num_train_timesteps)
        config = {"name": "scaled_linear", "num_train_timesteps": size, "beta_start": beta_start, "beta_end": beta_end}
        if not (beta_start > 0 and beta_end > 0):
            raise ValueError(
                f"fastdiff.Schedule.scaled_linear: expected betas in (0, 1), got {beta_start}, {beta_end}."
            )
        return cls._from_betas("scaled_linear", np.linspace(beta_start**0.5, beta_end**0.5, size) ** 2, config)

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
        """alpha_t^2 = f(t)/f(0), f(u) = cos^2(pi/2 (u/T + s)/(1 + s)), betas held at max_beta (Nichol & Dhariwal 2021,
        eq. 17)."""
        size = _size("cosine", num_train_timesteps)
        config = {"name": "cosine", "num_train_timesteps": size, "offset": offset, "max_beta": max_beta}
        f = [math.cos((i / size + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(size + 1)]
        betas = np.array([min(1 - f[i + 1] / f[i], max_beta) for i in range(size)])
        return cls._from_betas("cosine", betas, config)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> Schedule:
        """From beta_t [T], each inside (0, 1): alpha_t^2 = prod_{i<=t}(1 - beta_i) (Ho et al. 2020, eq. 4)."""
        table = _table("from_betas", "betas", betas)
        return cls._from_betas("from_betas", table, {"name": "from_betas", "betas": table.tolist()})

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Schedule:
        """From alpha_t^2 [T], strictly decreasing inside (0, 1)."""
        table = _table("from_alphas_cumprod", "alphas_cumprod", alphas_cumprod)
        if (np.diff(table) >= 0).any():
            at = int(np.argmax(np.diff(table) >= 0)) + 1
            raise ValueError(
                f"fastdiff.Schedule.from_alphas_cumprod: expected strictly decreasing values, got {table[at]} at index "
                f"{at} after {table[at - 1]}. Noise grows with t."
            )
        return cls(table, 1.0 - table, {"name": "from_alphas_cumprod", "alphas_cumprod": table.tolist()})

    @classmethod
    def _from_betas(cls, name: str, betas: Array, config: dict[str, Any]) -> Schedule:
        table = _table(name, "betas", betas)
        log_alphas_cumprod = np.cumsum(np.log1p(-table))
        return cls(np.exp(log_alphas_cumprod), -np.expm1(log_alphas_cumprod), config)

    def to_config(self) -> dict[str, Any]:
        """A JSON-safe dictionary from which `from_config` makes the same schedule."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """The inverse of `to_config`. Raises ValueError for an unknown name or key."""
        arguments = dict(config)
        name = arguments.pop("name", None)
        makers = {
            m.__name__: m for m in (cls.linear, cls.scaled_linear, cls.cosine, cls.from_betas, cls.from_alphas_cumprod)
        }
        if name not in makers:
            raise ValueError(f"fastdiff.Schedule.from_config: expected name in {sorted(makers)}, got {name!r}.")
        try:
            return makers[name](**arguments)
        except TypeError:
            raise ValueError(
                f"fastdiff.Schedule.from_config: unknown key among {sorted(arguments)} for schedule {name!r}."
            ) from None

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self._config.items() if k != "name" and not isinstance(v, list))
        return f"Schedule.{self._config['name']}({shown or f'T={self.num_train_timesteps}'})"


def _size(where: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"fastdiff.Schedule.{where}: expected num_train_timesteps >= 1, got {value!r}.")
    return int(value)


def _table(where: str, name: str, values: ArrayLike | Sequence[float]) -> Array:
    """`values` as a float64 copy [T]; every entry must lie inside (0, 1)."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(f"fastdiff.Schedule.{where}: expected {name} of shape [T], got shape {list(table.shape)}.")
    inside = (table > 0) & (table < 1)  # False for NaN too
    if not inside.all():
        at = int(np.argmin(inside))
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected {name} inside (0, 1), got {float(table[at])} at index {at}."
        )
    return table
