"""The table of a schedule: alpha_t, sigma_t and log-SNR over t = 0 … T-1, and how it is read.

It has nothing to do with the table of a plan (fastdiff.table).

A discrete variance-preserving schedule is given by alpha_t² and sigma_t² = 1 - alpha_t². Both are
stored, because 1 - alpha_t² loses its digits where alpha_t² is near one. The table of a continuous
schedule holds T points of its curve (fastdiff.schedule.curves), which also gives the points between
them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .curves import Curve
from .points import CLEAN, Time
from .space import VP, Space

Array = NDArray[np.float64]


class NoiseTable:
    """The look-ups of `Schedule`, whose documentation names the attributes."""

    def __init__(
        self,
        alpha: Array,
        sigma: Array,
        config: dict[str, Any],
        squares: tuple[Array, Array] | None = None,
        curve: Curve | None = None,
    ):
        """Called by the constructors of `Schedule` only.

        Args:
            alpha, sigma: float64 [T].
            config: what `to_config` returns.
            squares: alpha² and sigma² with all their digits, of a discrete schedule.
            curve: the curve of a continuous schedule.
        """
        self.alpha, self.sigma = alpha, sigma
        self._squares, self._curve, self._config = squares, curve, config
        self.geometry: Space = VP if curve is None else curve.space
        self.space = self.geometry.name
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
        """Whether networks are given the int64 timestep."""
        return not self.continuous

    def at(self, t: float) -> Time:
        """The point at t.

        Args:
            t: a whole timestep in [0, T), or for a continuous schedule any number above origin;
                beyond T - 1 its curve goes on where it has levels.

        Raises ValueError for other numbers.
        """
        i = int(t) if -1 < t < self.num_train_timesteps else -1
        if self._curve is not None and t != i and self.origin < t < math.inf:
            alpha, sigma = self._curve.point((t - self.origin) / self._span)
            if alpha > 0:
                return Time(float(t), alpha, sigma, 2.0 * (math.log(alpha) - math.log(sigma)))
            i = -1
        if i < 0:
            raise ValueError(
                f"fastdiff.Schedule.at: expected t in [0, {self.num_train_timesteps}), got {t!r}."
            )
        return Time(float(t), float(self.alpha[i]), float(self.sigma[i]), float(self.log_snr[i]))

    def at_log_snr(self, log_snr: float) -> Time:
        """The point at a log-SNR; its t is interpolated linearly in log-SNR if discrete."""
        if self._curve is not None:
            rho = math.inf if log_snr == -math.inf else math.exp(-0.5 * log_snr)
            t = self._curve.time(rho) * self._span + self.origin
        else:
            t = float(np.interp(-log_snr, -self.log_snr, np.arange(self.num_train_timesteps)))
        return Time(t, *self.geometry.point(log_snr), log_snr)

    def prior_std(self, start: Time | None = None) -> float:
        """The standard deviation of the noise that sampling starts from; see `Space.prior_std`.

        Args:
            start: the first point of the run; None for the last timestep, T - 1.
        """
        return self.geometry.prior_std(float(self.sigma[-1]) if start is None else start.sigma)

    def transition(self, t: ArrayLike, s: ArrayLike) -> tuple[Array, Array]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s < t.

        alpha_ts = alpha_t/alpha_s and sigma_ts² = -expm1(log_snr_t - log_snr_s)·sigma_t² (Kingma
        et al. 2021, eq. 20–22). Steps compose: along s < r < t the scales multiply and sigma_ts² =
        alpha_tr² sigma_rs² + sigma_tr² (Luo 2022, eq. 61–70).

        Args:
            t, s: timesteps in [0, T), numbers or arrays that broadcast; s = -1 is clean data, so
                that (t, -1) gives q(x_t | x0). s = t gives (1, 0).

        Returns:
            Two float64 arrays of the shape of t and s.

        Raises:
            ValueError: timesteps outside these, or s > t.
        """
        late, early = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
        inside = (early <= late) & (early >= -1) & (late <= self.num_train_timesteps - 1)
        if self.continuous:
            below = min(self.origin, 0.0)
            inside &= ((late > below) | (late == 0) | (late == -1)) & (
                (early > below) | (early == 0) | (early == -1)
            )
        else:
            inside &= (late == np.floor(late)) & (early == np.floor(early))
        if not inside.all():
            at = np.unravel_index(int(np.argmin(inside)), inside.shape)
            raise ValueError(
                "fastdiff.Schedule.transition: expected timesteps -1 <= s <= t <"
                f" {self.num_train_timesteps}, got t = {late[at]:g} and s = {early[at]:g}. x_t is"
                " the noisier of the two."
            )

        def point(u: float) -> Time:
            return CLEAN if u == -1 else self.at(u)

        pairs = [
            (1.0, 0.0) if a == b else point(float(a)).transition(point(float(b)))
            for a, b in zip(late.ravel(), early.ravel(), strict=True)
        ]
        table = np.array(pairs, np.float64).reshape(*late.shape, 2)
        return table[..., 0], table[..., 1]

    def network_time(self, point: Time) -> float:
        """The time that a network is given at a point.

        It is the timestep in a discrete schedule, and in a continuous one a time in [0, 1]
        (`flow`: sigma).
        """
        return point.t if self._curve is None else self._curve.network_time(point.rho)

    def network_times(self, log_snr: Array) -> Array:
        """`network_time` at log-SNRs [n]; interpolated between the timesteps if discrete."""
        if self._curve is None:
            return np.interp(-log_snr, -self.log_snr, np.arange(float(self.num_train_timesteps)))
        with np.errstate(over="ignore"):
            return np.array(
                [self._curve.network_time(rho) for rho in np.exp(-0.5 * log_snr).tolist()],
                dtype=np.float64,
            )

    @property
    def origin(self) -> float:
        """The lower limit of t, which no point reaches.

        It is -1, where clean data would be, and in the space `ve` 0, the point of sigma_min.
        """
        return -1.0 if self._curve is None else -self._curve.first

    @property
    def _span(self) -> float:
        """The number of timesteps between the curve's times 0 and 1."""
        return max(self.num_train_timesteps - 1 - self.origin, 1.0)

    @property
    def alphas_cumprod(self) -> Array:
        return self._vp("alphas_cumprod")[0]

    @property
    def one_minus_alphas_cumprod(self) -> Array:
        return self._vp("one_minus_alphas_cumprod")[1]

    @property
    def betas(self) -> Array:
        signal, noise = self._vp("betas")
        signal_before = np.concatenate([[1.0], signal[:-1]])
        noise_before = np.concatenate([[0.0], noise[:-1]])
        # the difference is exact while there is little noise, the ratio when there is much
        return np.where(
            noise_before < 0.5, (noise - noise_before) / signal_before, 1.0 - signal / signal_before
        )

    def _vp(self, name: str) -> tuple[Array, Array]:
        """alpha² and sigma² of a discrete schedule; ValueError for a continuous one."""
        if self._squares is None:
            raise ValueError(
                f"fastdiff.Schedule.{name}: expected a variance-preserving schedule, got"
                f" {'the continuous ' if self.continuous else ''}{self!r} in the space"
                f" {self.space!r}. Use alpha, sigma and log_snr, which every schedule has."
            )
        return self._squares
