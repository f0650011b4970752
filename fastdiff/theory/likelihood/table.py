"""The Gaussians of the variational bound as tables: the posterior, and the rows of `vlb_terms`.

For t >= 1, L_t = KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t)). Both are Gaussians. Their means are
c0 x0 + c1 x_t, with x̂0 in place of x0 for the model p. For t = 0 the term is the likelihood of the
data (Ho et al. 2020, eq. 5 and 13).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import prediction
from ...schedule import Schedule
from ...table import VLB_COLUMNS

Array = NDArray[np.float64]
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


class Steps(NamedTuple):
    """The steps t-1 -> t of a schedule as float64 arrays [T]; step 0 starts from clean data.

    q(x_t|x_{t-1}) = N(alpha x_{t-1}, variance I) and q(x_{t-1}|x_t, x0) = N(mean_x0 x0 + mean_x
    x_t, posterior I). alpha is the ratio alpha_t/alpha_{t-1} of the schedule's alpha, √α_t in Luo's
    notation. The variance `posterior` is 0 at t = 0 (Luo 2022, eq. 31, 85 and 93; Kingma et al.
    2021, eq. 20–25, for any alpha and sigma).
    """

    alpha: Array
    variance: Array
    mean_x0: Array
    mean_x: Array
    posterior: Array


def steps(schedule: Schedule) -> Steps:
    """The steps of a schedule: variance = -expm1(log_snr_t - log_snr_{t-1}) sigma_t²."""
    before_alpha = np.concatenate([[1.0], schedule.alpha[:-1]])
    before_sigma = np.concatenate([[0.0], schedule.sigma[:-1]])
    new_fraction = -np.expm1(
        schedule.log_snr - np.concatenate([[np.inf], schedule.log_snr[:-1]])
    )  # variance/sigma_t²
    alpha, old_fraction = schedule.alpha / before_alpha, (before_sigma / schedule.sigma) ** 2
    return Steps(
        alpha,
        new_fraction * schedule.sigma**2,
        before_alpha * new_fraction,
        alpha * old_fraction,
        new_fraction * before_sigma**2,
    )


def optimal_variance(schedule: Schedule, mmse: ArrayLike) -> Array:
    """The best variance of the model, given an optimal mean: posterior_t + mean_x0_t² mmse_t, [T].

    Theorem 1 of Bao et al. 2022 (Analytic-DPM). For Gaussian data it makes the bound tight for
    every T.

    Args:
        schedule: its timesteps are the steps of the bound.
        mmse: E (x0 - x̂0)² per element at every t, [T] or a number.

    Raises:
        ValueError: an mmse that is not positive.
    """
    error = np.broadcast_to(np.asarray(mmse, np.float64), schedule.alpha.shape)
    if not (error > 0).all():
        raise ValueError(
            "fastdiff.theory.likelihood.optimal_variance: expected mmse > 0, got"
            f" {float(error.min())}."
        )
    step = steps(schedule)
    return step.posterior + step.mean_x0**2 * error


def vlb_table(
    schedule: Schedule,
    *,
    prediction_type: str = "epsilon",
    variance: str | ArrayLike = "fixed_small",
    clip_range: float | None = None,
) -> Array:
    """The float64 [T, 9] table of `ops.vlb_terms`, columns `fastdiff.table.VLB_COLUMNS`.

    Args:
        schedule: its timesteps are the steps of the bound.
        prediction_type: what the network predicts.
        variance: of the model. `fixed_small` is the posterior variance β̃_t and `fixed_large` is
            β_t. `learned` takes the log-variance from the second half v of the output;
            `learned_range` interpolates from log β̃_t at v = -1 to log β_t at v = 1 (Nichol &
            Dhariwal 2021, eq. 15). Or positive numbers [T], such as those of `optimal_variance`.
        clip_range: the bound of x̂0; None for no clip.

    Raises:
        ValueError: unknown names, a clip_range that is not positive, a prediction type from which
            x0 does not follow at some t.
    """
    numbers = None if isinstance(variance, str) else np.asarray(variance, np.float64)
    if numbers is None and variance not in VARIANCES:
        raise ValueError(
            f"fastdiff.theory.likelihood.vlb_table: expected variance in {list(VARIANCES)}, got"
            f" {variance!r}."
        )
    if numbers is not None and (numbers.shape != schedule.alpha.shape or not (numbers > 0).all()):
        raise ValueError(
            "fastdiff.theory.likelihood.vlb_table: expected variance as a name or positive numbers"
            f" [{len(schedule.alpha)}], got an array of shape {list(numbers.shape)}"
            + (f" with {numbers.min()}." if numbers.size else ".")
        )
    if clip_range is not None and not clip_range > 0:
        raise ValueError(
            "fastdiff.theory.likelihood.vlb_table: expected clip_range > 0 or None, got"
            f" {clip_range!r}."
        )
    step = steps(schedule)
    small = step.posterior.copy()
    # at t = 0 the posterior has no variance: use the next one (Ho et al. 2020, section 3.2)
    small[0] = small[1] if len(small) > 1 else step.variance[0]
    table = np.zeros((len(small), len(VLB_COLUMNS)))
    column = {name: table[:, i] for i, name in enumerate(VLB_COLUMNS)}
    with np.errstate(divide="ignore", invalid="ignore"):
        column["x0_x"][:], column["x0_out"][:] = prediction.to_x0_coefficients(
            prediction_type, schedule.alpha, schedule.sigma
        )
    if not np.isfinite(table).all():
        raise ValueError(
            "fastdiff.theory.likelihood.vlb_table: expected a prediction type that is defined at"
            " pure noise, got"
            f" {prediction_type!r} with {schedule!r}. Train v, x0 or flow."
        )
    column["clip_bound"][:] = np.inf if clip_range is None else clip_range
    column["mean_x0"][:], column["mean_x"][:] = step.mean_x0, step.mean_x
    column["logvar_q"][:] = np.log(small)
    if numbers is not None:
        low = high = np.log(numbers)
    else:
        large = np.log(np.concatenate([small[:1], step.variance[1:]]))
        low, high = {
            "fixed_small": (np.log(small), np.log(small)),
            "fixed_large": (large, large),
            # the log-variance is low + (high - low)(v + 1)/2, which is v for low = -1, high = 1
            "learned": (np.full(len(small), -1.0), np.ones(len(small))),
            "learned_range": (np.log(small), np.log(step.variance)),
        }[str(variance)]
    column["logvar_lo"][:], column["logvar_hi"][:] = low, high
    column["first"][0] = 1
    return table
