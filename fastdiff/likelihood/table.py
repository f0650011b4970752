"""The variational bound term by term: the table that `vlb_terms` reads.

For t >= 1, L_t = KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t)), both Gaussians with the mean c0 x0 + c1 x_t and the model's x̂0
in the data's place; for t = 0 the likelihood of the data itself (Ho et al. 2020, eq. 5 and 13).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import prediction
from ..schedule import Schedule
from ..table import VLB_COLUMNS

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


def vlb_table(
    schedule: Schedule,
    *,
    prediction_type: str = "epsilon",
    variance: str = "fixed_small",
    clip_range: float | None = None,
) -> NDArray[np.float64]:
    """The float64 [T, 9] table of `ops.vlb_terms`, columns `fastdiff.table.VLB_COLUMNS`.

    Args:
        schedule: a discrete one.
        prediction_type: what the network predicts.
        variance: the model's, `fixed_small` (posterior variance β̃_t), `fixed_large` (β_t), `learned` (the output's second
            half v is the log-variance itself), `learned_range` (v in [-1, 1] between log β̃_t and log β_t, Nichol &
            Dhariwal 2021, eq. 15).
        clip_range: x̂0 is held in [-clip_range, clip_range]; None for no clip.

    Raises ValueError for other names and a clip_range that is not positive.
    """
    if variance not in VARIANCES:
        raise ValueError(f"fastdiff.vlb_table: expected variance in {list(VARIANCES)}, got {variance!r}.")
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"fastdiff.vlb_table: expected clip_range > 0 or None, got {clip_range!r}.")
    kept = np.concatenate([[1.0], schedule.alphas_cumprod[:-1]])
    lost = np.concatenate([[0.0], schedule.one_minus_alphas_cumprod[:-1]])
    beta, now = schedule.betas, schedule.one_minus_alphas_cumprod
    small = beta * lost / now
    # at t = 0 the posterior has no variance: the next one stands in (Ho et al. 2020, section 3.2)
    small[0] = small[1] if len(small) > 1 else beta[0]
    table = np.zeros((len(beta), len(VLB_COLUMNS)))
    column = {name: table[:, i] for i, name in enumerate(VLB_COLUMNS)}
    column["x0_x"][:], column["x0_out"][:] = prediction.to_x0_coefficients(
        prediction_type, schedule.alpha, schedule.sigma
    )
    column["clip_bound"][:] = np.inf if clip_range is None else clip_range
    column["mean_x0"][:] = np.sqrt(kept) * beta / now
    column["mean_x"][:] = np.sqrt(1.0 - beta) * lost / now
    column["logvar_q"][:] = np.log(small)
    large = np.log(np.concatenate([small[1:2] if len(small) > 1 else small, beta[1:]]))
    low, high = {
        "fixed_small": (np.log(small), np.log(small)),
        "fixed_large": (large, large),
        # v/2 + 1/2 of the way from -1 to 1 is v
        "learned": (np.full(len(beta), -1.0), np.ones(len(beta))),
        "learned_range": (np.log(small), np.log(beta)),
    }[variance]
    column["logvar_lo"][:], column["logvar_hi"][:] = low, high
    column["first"][0] = 1
    return table
