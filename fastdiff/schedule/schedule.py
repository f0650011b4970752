"""The schedule: x_t = alpha_t x0 + sigma_t eps as float64 tables over t = 0 … T-1, data to noise.

A discrete variance-preserving schedule is fixed by its betas: alpha_t² = Π (1 - beta_i) and
sigma_t² = 1 - alpha_t² (Ho et al. 2020, eq. 4). A continuous schedule is a curve
(fastdiff.schedule.curves).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..notebook import html_table
from . import checks
from .curves import Curve, Flow, Karras, SubVp, Ve, Vp
from .noise_table import Array, NoiseTable
from .space import VP


class Schedule(NoiseTable):
    """A noise schedule over t = 0 … T-1.

    Arrays are float64 [T] unless stated.

    Attributes:
        num_train_timesteps: T.
        space: `vp`, `ve`, `flow` or `sub_vp`, the relation of alpha and sigma; geometry: the same
            as an object, see fastdiff.schedule.space.
        continuous: whether networks are given a float32 time in [0, 1] instead of the int64
            timestep.
        alpha, sigma: the two coefficients of q(x_t | x0) = N(alpha_t x0, sigma_t² I).
        log_snr: ln(alpha_t²/sigma_t²), strictly decreasing.
        alphas_cumprod, one_minus_alphas_cumprod: alpha_t² and sigma_t² of a discrete schedule.
        betas: 1 - alpha_t²/alpha_{t-1}² with alpha_{-1} = 1, of a discrete schedule.
    """

    @classmethod
    def linear(
        cls, num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Schedule:
        """beta_t evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4)."""
        config = _between("linear", num_train_timesteps, beta_start, beta_end)
        betas = np.linspace(beta_start, beta_end, config["num_train_timesteps"])
        return cls._from_betas("linear", betas, config)

    @classmethod
    def scaled_linear(
        cls,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
    ) -> Schedule:
        """sqrt(beta_t) evenly spaced, as in latent diffusion (Rombach et al. 2022, table 15)."""
        config = _between("scaled_linear", num_train_timesteps, beta_start, beta_end)
        if not (beta_start > 0 and beta_end > 0):
            raise ValueError(
                f"fastdiff.Schedule.scaled_linear: expected betas in (0, 1), got {beta_start},"
                f" {beta_end}."
            )
        roots = np.linspace(beta_start**0.5, beta_end**0.5, config["num_train_timesteps"])
        return cls._from_betas("scaled_linear", roots**2, config)

    @classmethod
    def sigmoid(
        cls, num_train_timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Schedule:
        """beta_t along a sigmoid from beta_start to beta_end (Xu et al. 2022, GeoDiff).

        beta_t = beta_start + (beta_end - beta_start) sigmoid(v), v evenly spaced over [-6, 6].
        """
        config = _between("sigmoid", num_train_timesteps, beta_start, beta_end)
        fraction = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, config["num_train_timesteps"])))
        return cls._from_betas("sigmoid", beta_start + (beta_end - beta_start) * fraction, config)

    @classmethod
    def cosine(
        cls, num_train_timesteps: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999
    ) -> Schedule:
        """alpha_t² along a squared cosine (Nichol & Dhariwal 2021, eq. 17).

        alpha_t² = f(t)/f(0), f(t) = cos²(pi/2 (t/T + s)/(1 + s)) with the offset s. Betas are
        limited to max_beta.
        """
        config = {
            "name": "cosine",
            "num_train_timesteps": num_train_timesteps,
            "offset": offset,
            "max_beta": max_beta,
        }
        return cls._from_signal(
            config, lambda u: math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        )

    @classmethod
    def exponential(
        cls, num_train_timesteps: int = 1000, *, rate: float = 12.0, max_beta: float = 0.999
    ) -> Schedule:
        """alpha_t² = e^(-rate (t+1)/T): a constant beta, at most max_beta."""
        config = {
            "name": "exponential",
            "num_train_timesteps": num_train_timesteps,
            "rate": rate,
            "max_beta": max_beta,
        }
        return cls._from_signal(config, lambda u: math.exp(-rate * u))

    @classmethod
    def laplace(cls, num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> Schedule:
        """Log-SNRs with the density of a Laplace distribution (Hang et al. 2024, table 1).

        alpha_t² = f(t)/f(0), f² = sigmoid(l), l = -½ sign(½ - u) ln(1 - 2|½ - u| + 1e-6), in the
        form that diffusers uses.
        """

        def f(u: float) -> float:
            level = -0.5 * math.copysign(1.0, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
            return math.sqrt(1.0 / (1.0 + math.exp(-level)))

        config = {
            "name": "laplace",
            "num_train_timesteps": num_train_timesteps,
            "max_beta": max_beta,
        }
        return cls._from_signal(config, f)

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
        """alpha = 1, sigma^(1/rho) evenly spaced (Karras et al. 2022, eq. 5).

        It runs from sigma_min to sigma_max. Continuous.
        """
        checks.levels("karras", sigma_min, sigma_max)
        checks.positive("karras", "rho", rho)
        return cls._on("karras", num_train_timesteps, Karras(sigma_min, sigma_max, rho), rho=rho)

    @classmethod
    def flow(cls, num_train_timesteps: int = 1000, *, shift: float = 1.0) -> Schedule:
        """Flow matching: alpha = 1 - sigma, sigma = shift u/(1 + (shift - 1) u), u = (t + 1)/T.

        It ends in pure noise (Lipman et al. 2023; Esser et al. 2024, eq. 23). Continuous; the
        network's time is sigma. `flow_shift` gives the shift for an image.
        """
        checks.positive("flow", "shift", shift)
        return cls._on("flow", num_train_timesteps, Flow(shift))

    @classmethod
    def vp(
        cls, num_train_timesteps: int = 1000, *, beta_min: float = 0.1, beta_max: float = 20.0
    ) -> Schedule:
        """alpha = e^(-B/2), sigma² = 1 - e^(-B), B = beta_min u + (beta_max - beta_min) u²/2.

        With u = (t + 1)/T (Song et al. 2021, eq. 11 and 29) it is the limit of `linear` with
        beta_max/T as its last beta. Continuous.
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
        """From beta_t [T], each in (0, 1): alpha_t² = Π_{i<=t} (1 - beta_i).

        Ho et al. 2020, eq. 4.
        """
        table = checks.table("from_betas", "betas", betas)
        return cls._from_betas("from_betas", table, {"name": "from_betas", "betas": table.tolist()})

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Schedule:
        """From alpha_t² [T], strictly decreasing in (0, 1)."""
        table = checks.table("from_alphas_cumprod", "alphas_cumprod", alphas_cumprod)
        checks.falling("from_alphas_cumprod", "values", table)
        config = {"name": "from_alphas_cumprod", "alphas_cumprod": table.tolist()}
        return cls._from_squares(table, 1.0 - table, config)

    @classmethod
    def learned(
        cls, log_snr: ArrayLike | Callable[[Array], ArrayLike], num_train_timesteps: int = 1000
    ) -> Schedule:
        """From log-SNRs, such as those of a trained `variational.LearnedGamma`.

        alpha_t² = sigmoid(log_snr_t), sigma_t² = sigmoid(-log_snr_t), log_snr = -gamma (Kingma et
        al. 2021, eq. 3–5; Luo 2022, eq. 111–114).

        Args:
            log_snr: strictly decreasing finite values [T]; or a function of u in [0, 1], which is
                evaluated at u = t/(T - 1).
            num_train_timesteps: T, used only with a function.
        """
        if callable(log_snr):
            size = checks.size("learned", num_train_timesteps)
            log_snr = log_snr(np.linspace(0.0, 1.0, size))
        table = checks.falling("learned", "log_snr", log_snr)
        signal, noise = VP.squares(table)
        return cls._from_squares(signal, noise, {"name": "learned", "log_snr": table.tolist()})

    def rescale_zero_terminal_snr(self) -> Schedule:
        """This schedule with alpha_t shifted and scaled to end at 0 (Lin et al. 2024, algorithm 1).

        The first alpha stays as it is. Predictions of epsilon and the score are undefined at the
        last timestep: train v or x0.
        """
        signal, noise = self._vp("rescale_zero_terminal_snr")
        if self._config.get("zero_terminal_snr") or len(signal) < 2:
            raise ValueError(
                "fastdiff.Schedule.rescale_zero_terminal_snr: expected T > 1 and no rescaling, got"
                f" {self!r}."
            )
        first, last = self.alpha[0], self.alpha[-1]
        alpha = (self.alpha - last) * (first / (first - last))
        # 1 - alpha as a sum of positive terms, which keeps its digits where alpha is near one
        complement = noise[0] / (1.0 + first) + (noise - noise[0]) / (self.alpha + first) * (
            first / (first - last)
        )
        noise = np.where(alpha < 0.5, 1.0 - alpha**2, complement * (1.0 + alpha))
        return Schedule._from_squares(alpha**2, noise, self._config | {"zero_terminal_snr": True})

    @classmethod
    def _from_betas(cls, name: str, betas: Array, config: dict[str, Any]) -> Schedule:
        log_alphas_cumprod = np.cumsum(np.log1p(-checks.table(name, "betas", betas)))
        return cls._from_squares(np.exp(log_alphas_cumprod), -np.expm1(log_alphas_cumprod), config)

    @classmethod
    def _from_squares(cls, signal: Array, noise: Array, config: dict[str, Any]) -> Schedule:
        """From alpha² and sigma² [T]."""
        return cls(np.sqrt(signal), np.sqrt(noise), config, squares=(signal, noise))

    @classmethod
    def _from_signal(cls, config: dict[str, Any], f: Callable[[float], float]) -> Schedule:
        """From alpha² = f(u)/f(0), u = (t + 1)/T, through betas that are limited to max_beta."""
        size = config["num_train_timesteps"] = checks.size(
            config["name"], config["num_train_timesteps"]
        )
        values = [f(i / size) for i in range(size + 1)]
        betas = np.array(
            [min(1 - values[i + 1] / values[i], config["max_beta"]) for i in range(size)]
        )
        return cls._from_betas(config["name"], betas, config)

    @classmethod
    def _on(cls, name: str, num_train_timesteps: int, curve: Curve, **extra: float) -> Schedule:
        """T points of a curve, evenly spaced in its time; extra: further entries of the config."""
        size = checks.size(name, num_train_timesteps)
        span = max(size - 1 + curve.first, 1.0)
        alpha, sigma = np.array(
            [curve.point((t + curve.first) / span) for t in range(size)]
        ).T.copy()
        numbers = {k: v for k, v in vars(curve).items() if k != "power"} | extra
        return cls(
            alpha, sigma, {"name": name, "num_train_timesteps": size, **numbers}, curve=curve
        )

    def to_config(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `from_config` turns into the same schedule."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """The inverse of `to_config`. Raises ValueError for an unknown name or key."""
        arguments = dict(config)
        name, rescaled = arguments.pop("name", None), arguments.pop("zero_terminal_snr", False)
        if name not in CONSTRUCTORS:
            raise ValueError(
                f"fastdiff.Schedule.from_config: expected name in {sorted(CONSTRUCTORS)}, got"
                f" {name!r}."
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

    def _repr_html_(self) -> str:
        last = self.num_train_timesteps - 1
        chosen = sorted({round(last * share / 4) for share in range(5)})
        rows = [
            [str(t), *(f"{column[t]:.6g}" for column in (self.alpha, self.sigma, self.log_snr))]
            for t in chosen
        ]
        return html_table(repr(self), [["t", "alpha", "sigma", "log SNR"], *rows])


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
"""The constructors of `Schedule` whose arguments all have defaults."""
CONSTRUCTORS = (*FORMULAS, "from_betas", "from_alphas_cumprod", "learned")


def _between(name: str, size: int, beta_start: float, beta_end: float) -> dict[str, Any]:
    """The config of a schedule whose betas run from beta_start to beta_end."""
    return {
        "name": name,
        "num_train_timesteps": checks.size(name, size),
        "beta_start": beta_start,
        "beta_end": beta_end,
    }
