"""The schedule: x_t = alpha_t x0 + sigma_t eps as float64 tables over t = 0 … T-1, from data to
noise.

A discrete variance-preserving schedule is fixed by betas: alpha_t^2 = prod(1 - beta_i) and
sigma_t^2 = 1 - alpha_t^2 (Ho et al. 2020, eq. 4). Both halves are kept, because 1 - alpha_t^2 has
lost its digits where alpha_t^2 is near one. A continuous schedule is a curve
(fastdiff.schedule.curves); its table holds T of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .curves import Curve, Flow, Karras, SubVp, Ve, Vp
from .points import Time, on_curve
from .transition import between

Array = NDArray[np.float64]


class Schedule:
    """A noise schedule over t = 0 … T-1.

    Attributes (float64 arrays [T] unless stated):
        num_train_timesteps: T.
        space: `vp`, `ve`, `flow` or `sub_vp`, see fastdiff.schedule.points.
        continuous: whether networks are told a float32 time in [0, 1], instead of the int64
            timestep.
        alpha, sigma: the two coefficients of q(x_t | x0) = N(alpha_t x0, sigma_t^2 I).
        log_snr: ln(alpha_t^2 / sigma_t^2), strictly decreasing.
        alphas_cumprod, one_minus_alphas_cumprod: alpha_t^2 and sigma_t^2 of a variance-preserving
            schedule.
        betas: 1 - alpha_t^2 / alpha_{t-1}^2, with alpha_{-1} = 1, of a variance-preserving
            schedule.
    """

    def __init__(
        self,
        alpha: Array,
        sigma: Array,
        config: dict[str, Any],
        squares: tuple[Array, Array] | None = None,
        curve: Curve | None = None,
    ):
        """For the makers below. squares: alpha² and sigma² with all their digits; without them, the
        curve.
        """
        self.alpha, self.sigma = alpha, sigma
        self._squares, self._curve, self._config = squares, curve, config
        self.space = "vp" if curve is None else curve.space
        self.continuous = curve is not None
        with np.errstate(divide="ignore"):  # pure noise has log-SNR -inf
            self.log_snr = (
                np.log(squares[0]) - np.log(squares[1])
                if squares
                else 2.0 * (np.log(alpha) - np.log(sigma))
            )
        for table in (self.alpha, self.sigma, self.log_snr, *(squares or ())):
            table.flags.writeable = False

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alpha)

    @property
    def whole_times(self) -> bool:
        """Whether networks are told the int64 timestep."""
        return not self.continuous

    def at(self, t: float) -> Time:
        """The schedule's point t in [0, T): a whole timestep, or of a continuous schedule any time
        in (origin, T - 1].
        """
        if self._curve is not None and t != int(t):
            alpha, sigma = self._curve.point((t - self.origin) / self._span)
            return Time(float(t), alpha, sigma, 2.0 * (math.log(alpha) - math.log(sigma)))
        i = int(t)
        return Time(float(t), float(self.alpha[i]), float(self.sigma[i]), float(self.log_snr[i]))

    def at_log_snr(self, log_snr: float) -> Time:
        """The point of this log-SNR; its t lies between the timesteps around it, linear in log-SNR
        if discrete.
        """
        if self._curve is not None:
            t = self._curve.time(_rho(log_snr)) * self._span + self.origin
        else:
            t = float(np.interp(-log_snr, -self.log_snr, np.arange(self.num_train_timesteps)))
        return Time(t, *on_curve(self.space, log_snr), log_snr)

    def transition(self, t: ArrayLike, s: ArrayLike) -> tuple[Array, Array]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s < t (Kingma et
        al. 2021, eq. 20–22).

        alpha_t/alpha_s and -expm1(log_snr_t - log_snr_s)·sigma_t², float64 of the shape of t and s.
        Steps compose: along s < r < t the scales multiply and sigma_ts² = alpha_tr² sigma_rs² +
        sigma_tr² (Luo 2022, eq. 61–70).

        Args:
            t, s: timesteps in [0, T), numbers or arrays that broadcast; s = -1 is clean data, so
                that (t, -1) gives q(x_t | x0). s = t gives (1, 0).

        Raises:
            ValueError: timesteps outside these, or s > t.
        """
        return between(self, t, s)

    def network_time(self, point: Time) -> float:
        """What the network is given as t at a point: the timestep, if continuous a time in [0, 1]
        (`flow`: sigma).
        """
        return point.t if self._curve is None else self._curve.network_time(point.rho)

    def network_times(self, log_snr: Array) -> Array:
        """`network_time` of the points of these log-SNRs, [n], without the points; between
        timesteps if discrete.
        """
        if self._curve is None:
            return np.interp(-log_snr, -self.log_snr, np.arange(float(self.num_train_timesteps)))
        with np.errstate(over="ignore"):
            return np.array(
                [self._curve.network_time(rho) for rho in np.exp(-0.5 * log_snr).tolist()],
                dtype=np.float64,
            )

    @property
    def origin(self) -> float:
        """The t just below which no point lies: -1, where clean data would be; 0 in the space `ve`,
        which has a least.
        """
        return -1.0 if self._curve is None else -self._curve.first

    @property
    def _span(self) -> float:
        """How many timesteps the curve's time from 0 to 1 takes."""
        return max(self.num_train_timesteps - 1 - self.origin, 1.0)

    @property
    def alphas_cumprod(self) -> Array:
        return self._vp("alphas_cumprod")[0]

    @property
    def one_minus_alphas_cumprod(self) -> Array:
        return self._vp("one_minus_alphas_cumprod")[1]

    @property
    def betas(self) -> Array:
        now, now_lost = self._vp("betas")
        kept, lost = np.concatenate([[1.0], now[:-1]]), np.concatenate([[0.0], now_lost[:-1]])
        # the difference has the digits while little is lost, the ratio when much is
        return np.where(lost < 0.5, (now_lost - lost) / kept, 1.0 - now / kept)

    def _vp(self, name: str) -> tuple[Array, Array]:
        if self._squares is None:
            raise ValueError(
                f"fastdiff.Schedule.{name}: expected a variance-preserving schedule, got"
                f" {'the continuous ' if self.continuous else ''}{self!r} in the space"
                f" {self.space!r}. Use alpha, sigma and log_snr, which every schedule has."
            )
        return self._squares

    @classmethod
    def linear(
        cls, num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Schedule:
        """beta_t evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4)."""
        size = checks.size("linear", num_train_timesteps)
        config = {
            "name": "linear",
            "num_train_timesteps": size,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        return cls._from_betas("linear", np.linspace(beta_start, beta_end, size), config)

    @classmethod
    def scaled_linear(
        cls,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
    ) -> Schedule:
        """sqrt(beta_t) evenly spaced, as in latent diffusion (Rombach et al. 2022, table 15)."""
        size = checks.size("scaled_linear", num_train_timesteps)
        config = {
            "name": "scaled_linear",
            "num_train_timesteps": size,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        if not (beta_start > 0 and beta_end > 0):
            raise ValueError(
                f"fastdiff.Schedule.scaled_linear: expected betas in (0, 1), got {beta_start},"
                f" {beta_end}."
            )
        return cls._from_betas(
            "scaled_linear", np.linspace(beta_start**0.5, beta_end**0.5, size) ** 2, config
        )

    @classmethod
    def sigmoid(
        cls, num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Schedule:
        """beta_t = beta_start + (beta_end - beta_start) sigmoid(v), v evenly spaced over [-6, 6]
        (Xu et al. 2022, GeoDiff).
        """
        size = checks.size("sigmoid", num_train_timesteps)
        config = {
            "name": "sigmoid",
            "num_train_timesteps": size,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        share = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, size)))
        return cls._from_betas("sigmoid", beta_start + (beta_end - beta_start) * share, config)

    @classmethod
    def cosine(
        cls, num_train_timesteps: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999
    ) -> Schedule:
        """alpha_t^2 = f(t)/f(0), f(u) = cos^2(pi/2 (u/T + s)/(1 + s)), betas held at max_beta
        (Nichol & Dhariwal 2021, eq. 17).
        """
        config = {
            "name": "cosine",
            "num_train_timesteps": num_train_timesteps,
            "offset": offset,
            "max_beta": max_beta,
        }
        return cls._from_curve(
            config, lambda u: math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        )

    @classmethod
    def exponential(
        cls, num_train_timesteps: int = 1000, *, rate: float = 12.0, max_beta: float = 0.999
    ) -> Schedule:
        """alpha_t^2 = e^(-rate (t+1)/T): a constant beta."""
        config = {
            "name": "exponential",
            "num_train_timesteps": num_train_timesteps,
            "rate": rate,
            "max_beta": max_beta,
        }
        return cls._from_curve(config, lambda u: math.exp(-rate * u))

    @classmethod
    def laplace(cls, num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> Schedule:
        """alpha_t^2 = f(t)/f(0), f² = sigmoid(l), l = -½ sign(½ - u) ln(1 - 2|½ - u| + 1e-6):
        log-SNR spread like a Laplace distribution (Hang et al. 2024, table 1), in the form that
        diffusers gives it.
        """

        def f(u: float) -> float:
            level = -0.5 * math.copysign(1.0, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
            return math.sqrt(1.0 / (1.0 + math.exp(-level)))

        config = {
            "name": "laplace",
            "num_train_timesteps": num_train_timesteps,
            "max_beta": max_beta,
        }
        return cls._from_curve(config, f)

    @classmethod
    def ve(
        cls, num_train_timesteps: int = 1000, *, sigma_min: float = 0.01, sigma_max: float = 50.0
    ) -> Schedule:
        """alpha = 1, sigma geometric from sigma_min to sigma_max (Song et al. 2021, eq. 30).
        Continuous.
        """
        checks.levels("ve", sigma_min, sigma_max)
        return cls._on("ve", num_train_timesteps, Ve(sigma_min, sigma_max))

    @classmethod
    def karras(
        cls,
        num_train_timesteps: int = 1000,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> Schedule:
        """alpha = 1, sigma^(1/rho) even from sigma_min to sigma_max (Karras et al. 2022, eq. 5).
        Continuous.
        """
        checks.levels("karras", sigma_min, sigma_max)
        checks.positive("karras", "rho", rho)
        return cls._on("karras", num_train_timesteps, Karras(sigma_min, sigma_max, rho), rho=rho)

    @classmethod
    def flow(cls, num_train_timesteps: int = 1000, *, shift: float = 1.0) -> Schedule:
        """alpha = 1 - sigma, sigma = shift u/(1 + (shift - 1) u), u = (t + 1)/T (Lipman et al.
        2023; Esser et al. 2024, eq. 23). It ends in pure noise. Continuous; the network's time is
        sigma. See `flow_shift`.
        """
        checks.positive("flow", "shift", shift)
        return cls._on("flow", num_train_timesteps, Flow(shift))

    @classmethod
    def vp(
        cls, num_train_timesteps: int = 1000, *, beta_min: float = 0.1, beta_max: float = 20.0
    ) -> Schedule:
        """alpha = e^(-B/2), sigma² = 1 - e^(-B), B = beta_min u + (beta_max - beta_min) u²/2, u =
        (t + 1)/T (Song et al. 2021, eq. 11 and 29): the limit of `linear` with beta_max/T for its
        last beta. Continuous.
        """
        checks.rates("vp", beta_min, beta_max)
        return cls._on("vp", num_train_timesteps, Vp(beta_min, beta_max))

    @classmethod
    def sub_vp(
        cls, num_train_timesteps: int = 1000, *, beta_min: float = 0.1, beta_max: float = 20.0
    ) -> Schedule:
        """The alpha of `vp` and sigma = 1 - alpha² (Song et al. 2021, eq. 12 and 29).
        Continuous.
        """
        checks.rates("sub_vp", beta_min, beta_max)
        return cls._on("sub_vp", num_train_timesteps, SubVp(beta_min, beta_max))

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> Schedule:
        """From beta_t [T], each inside (0, 1): alpha_t^2 = prod_{i<=t}(1 - beta_i) (Ho et al. 2020,
        eq. 4).
        """
        table = checks.table("from_betas", "betas", betas)
        return cls._from_betas("from_betas", table, {"name": "from_betas", "betas": table.tolist()})

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Schedule:
        """From alpha_t^2 [T], strictly decreasing inside (0, 1)."""
        table = checks.table("from_alphas_cumprod", "alphas_cumprod", alphas_cumprod)
        checks.falling("from_alphas_cumprod", "values", table)
        config = {"name": "from_alphas_cumprod", "alphas_cumprod": table.tolist()}
        return cls._from_squares(table, 1.0 - table, config)

    @classmethod
    def learned(
        cls, log_snr: ArrayLike | Callable[[Array], ArrayLike], num_train_timesteps: int = 1000
    ) -> Schedule:
        """From ln SNR = -gamma: alpha_t^2 = sigmoid(log_snr_t), sigma_t^2 = sigmoid(-log_snr_t)
        (Kingma et al. 2021, eq. 3–5; Luo 2022, eq. 111–114), the table of a trained
        `variational.LearnedGamma`.

        Args:
            log_snr: strictly decreasing finite values [T]; or a function of u in [0, 1], evaluated
                at u = t/(T - 1).
            num_train_timesteps: T, read for a function alone.
        """
        if callable(log_snr):
            size = checks.size("learned", num_train_timesteps)
            log_snr = log_snr(np.linspace(0.0, 1.0, size))
        table = checks.falling("learned", "log_snr", log_snr)
        rising = np.exp(-np.abs(table))  # neither exponential overflows
        larger, smaller = 1.0 / (1.0 + rising), rising / (1.0 + rising)
        kept, lost = np.where(table > 0, larger, smaller), np.where(table > 0, smaller, larger)
        return cls._from_squares(kept, lost, {"name": "learned", "log_snr": table.tolist()})

    def rescale_zero_terminal_snr(self) -> Schedule:
        """This schedule with alpha_t shifted and scaled so that it ends at 0 and begins where it
        did (Lin et al. 2024, algorithm 1). Networks that predict epsilon or the score say nothing
        at the end; train v or x0.
        """
        kept, lost = self._vp("rescale_zero_terminal_snr")
        if self._config.get("zero_terminal_snr") or len(kept) < 2:
            raise ValueError(
                "fastdiff.Schedule.rescale_zero_terminal_snr: expected T > 1 and no rescaling, got"
                f" {self!r}."
            )
        first, last = self.alpha[0], self.alpha[-1]
        alpha = (self.alpha - last) * (first / (first - last))
        # 1 - alpha' as a sum of positive terms, which keeps its digits where alpha' is near one
        short = lost[0] / (1.0 + first) + (lost - lost[0]) / (self.alpha + first) * (
            first / (first - last)
        )
        lost = np.where(alpha < 0.5, 1.0 - alpha**2, short * (1.0 + alpha))
        return Schedule._from_squares(alpha**2, lost, self._config | {"zero_terminal_snr": True})

    @classmethod
    def _from_betas(cls, name: str, betas: Array, config: dict[str, Any]) -> Schedule:
        log_alphas_cumprod = np.cumsum(np.log1p(-checks.table(name, "betas", betas)))
        return cls._from_squares(np.exp(log_alphas_cumprod), -np.expm1(log_alphas_cumprod), config)

    @classmethod
    def _from_squares(cls, kept: Array, lost: Array, config: dict[str, Any]) -> Schedule:
        return cls(np.sqrt(kept), np.sqrt(lost), config, squares=(kept, lost))

    @classmethod
    def _from_curve(cls, config: dict[str, Any], f: Callable[[float], float]) -> Schedule:
        """From alpha² = f(u), u = (t + 1)/T, by its betas, none above max_beta."""
        size = config["num_train_timesteps"] = checks.size(
            config["name"], config["num_train_timesteps"]
        )
        values = [f(i / size) for i in range(size + 1)]
        betas = np.array(
            [min(1 - values[i + 1] / values[i], config["max_beta"]) for i in range(size)]
        )
        return cls._from_betas(config["name"], betas, config)

    @classmethod
    def _on(cls, name: str, num_train_timesteps: int, curve: Curve, **also: float) -> Schedule:
        size = checks.size(name, num_train_timesteps)
        span = max(size - 1 + curve.first, 1.0)
        alpha, sigma = np.array(
            [curve.point((t + curve.first) / span) for t in range(size)]
        ).T.copy()
        numbers = {k: v for k, v in vars(curve).items() if k != "power"} | also
        return cls(
            alpha, sigma, {"name": name, "num_train_timesteps": size, **numbers}, curve=curve
        )

    def to_config(self) -> dict[str, Any]:
        """A JSON-safe dictionary from which `from_config` makes the same schedule."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """The inverse of `to_config`. Raises ValueError for an unknown name or key."""
        arguments = dict(config)
        name, rescaled = arguments.pop("name", None), arguments.pop("zero_terminal_snr", False)
        if name not in MAKERS:
            raise ValueError(
                f"fastdiff.Schedule.from_config: expected name in {sorted(MAKERS)}, got {name!r}."
            )
        try:
            schedule: Schedule = getattr(cls, name)(**arguments)
        except TypeError:
            raise ValueError(
                f"fastdiff.Schedule.from_config: unknown key among {sorted(arguments)} for schedule"
                f" {name!r}."
            ) from None
        return schedule.rescale_zero_terminal_snr() if rescaled else schedule

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{k}={v}" for k, v in self._config.items() if k != "name" and not isinstance(v, list)
        )
        return f"Schedule.{self._config['name']}({shown or f'T={self.num_train_timesteps}'})"


FORMULAS = (
    "linear",
    "scaled_linear",
    "sigmoid",
    "cosine",
    "exponential",
    "laplace",
    "ve",
    "karras",
    "flow",
    "vp",
    "sub_vp",
)
"""Schedules that take no more than their length."""
MAKERS = (*FORMULAS, "from_betas", "from_alphas_cumprod", "learned")


def _rho(log_snr: float) -> float:
    return math.inf if log_snr == -math.inf else math.exp(-0.5 * log_snr)
