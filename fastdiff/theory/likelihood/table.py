"""The variational bound's Gaussians as tables: q(x_{t-1}|x_t, x0), and the rows that `vlb_terms`
reads.

For t >= 1, L_t = KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t)), both Gaussians with the mean c0 x0 + c1
x_t and the model's x̂0 in the data's place; for t = 0 the likelihood of the data itself (Ho et al.
2020, eq. 5 and 13).
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
    """The steps t-1 -> t of a schedule as float64 arrays [T]; the step of t = 0 comes from clean
    data.

    q(x_t|x_{t-1}) = N(alpha x_{t-1}, variance I); q(x_{t-1}|x_t, x0) = N(mean_x0 x0 + mean_x x_t,
    posterior I), a point at t = 0 (Luo 2022, eq. 31 and 84; Kingma et al. 2021, eq. 20–25, for any
    alpha and sigma).
    """

    alpha: Array
    variance: Array
    mean_x0: Array
    mean_x: Array
    posterior: Array


def steps(schedule: Schedule) -> Steps:
    """The steps of a schedule, by its log-SNR: variance = -expm1(log_snr_t - log_snr_{t-1})
    sigma_t².
    """
    before_alpha = np.concatenate([[1.0], schedule.alpha[:-1]])
    before_sigma = np.concatenate([[0.0], schedule.sigma[:-1]])
    gained = -np.expm1(
        schedule.log_snr - np.concatenate([[np.inf], schedule.log_snr[:-1]])
    )  # variance/sigma_t²
    alpha, kept = schedule.alpha / before_alpha, (before_sigma / schedule.sigma) ** 2
    return Steps(
        alpha,
        gained * schedule.sigma**2,
        before_alpha * gained,
        alpha * kept,
        gained * before_sigma**2,
    )


def optimal_variance(schedule: Schedule, mmse: ArrayLike) -> Array:
    """sigma*_t² [T] = posterior_t + mean_x0_t² mmse_t: the model's best variance for an optimal
    mean.

    Theorem 1 of Bao et al. 2022 (Analytic-DPM). With it the bound of Gaussian data is tight for
    every T.

    Args:
        schedule: a discrete one. mmse: [T] or a number, E (x0 - x̂0)² per element at every t.

    Raises ValueError for an mmse that is not positive.
    """
    error = np.broadcast_to(np.asarray(mmse, np.float64), schedule.alpha.shape)
    if not (error > 0).all():
        raise ValueError(f"fastdiff.optimal_variance: expected mmse > 0, got {float(error.min())}.")
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
        variance: the model's, `fixed_small` (posterior variance β̃_t), `fixed_large` (β_t),
            `learned` (the output's second half v is the log-variance itself), `learned_range` (v in
            [-1, 1] between log β̃_t and log β_t, Nichol & Dhariwal 2021, eq. 15); or positive
            numbers [T], such as those of `optimal_variance`.
        clip_range: x̂0 is held in [-clip_range, clip_range]; None for no clip.

    Raises ValueError for other names, a clip_range that is not positive, and predictions that say
    nothing of x0 at some t.
    """
    given = None if isinstance(variance, str) else np.asarray(variance, np.float64)
    if given is None and variance not in VARIANCES:
        raise ValueError(
            f"fastdiff.vlb_table: expected variance in {list(VARIANCES)}, got {variance!r}."
        )
    if given is not None and (given.shape != schedule.alpha.shape or not (given > 0).all()):
        raise ValueError(
            "fastdiff.vlb_table: expected variance as a name or positive numbers"
            f" [{len(schedule.alpha)}], got an array of shape {list(given.shape)}"
            + (f" with {given.min()}." if given.size else ".")
        )
    if clip_range is not None and not clip_range > 0:
        raise ValueError(
            f"fastdiff.vlb_table: expected clip_range > 0 or None, got {clip_range!r}."
        )
    step = steps(schedule)
    small = step.posterior.copy()
    # at t = 0 the posterior has no variance: the next one stands in (Ho et al. 2020, section 3.2)
    small[0] = small[1] if len(small) > 1 else step.variance[0]
    table = np.zeros((len(small), len(VLB_COLUMNS)))
    column = {name: table[:, i] for i, name in enumerate(VLB_COLUMNS)}
    with np.errstate(divide="ignore", invalid="ignore"):
        column["x0_x"][:], column["x0_out"][:] = prediction.to_x0_coefficients(
            prediction_type, schedule.alpha, schedule.sigma
        )
    if not np.isfinite(table).all():
        raise ValueError(
            "fastdiff.vlb_table: expected a prediction type that is defined at pure noise, got"
            f" {prediction_type!r} with {schedule!r}. Train v, x0 or flow."
        )
    column["clip_bound"][:] = np.inf if clip_range is None else clip_range
    column["mean_x0"][:], column["mean_x"][:] = step.mean_x0, step.mean_x
    column["logvar_q"][:] = np.log(small)
    if given is not None:
        low = high = np.log(given)
    else:
        large = np.log(np.concatenate([small[:1], step.variance[1:]]))
        low, high = {
            "fixed_small": (np.log(small), np.log(small)),
            "fixed_large": (large, large),
            # v/2 + 1/2 of the way from -1 to 1 is v
            "learned": (np.full(len(small), -1.0), np.ones(len(small))),
            "learned_range": (np.log(small), np.log(step.variance)),
        }[str(variance)]
    column["logvar_lo"][:], column["logvar_hi"][:] = low, high
    column["first"][0] = 1
    return table
