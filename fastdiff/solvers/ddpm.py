"""DDPM: ancestral sampling from q(x_s | x_t, x0), with the predicted x0 (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import Annotated

from .grids import Time
from .options import Variance, one_of
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range", "optimal")
VarianceType = Annotated[str, one_of(sorted(VARIANCES))]


@solver(
    "ddpm",
    paper="Ho et al. 2020, eq. 6-7; respaced as Nichol & Dhariwal 2021, eq. 19",
    stochastic=True,
    configurations=[
        Configuration(order=1, tau=1.0),
        Configuration({"variance_type": "learned_range"}),
    ],
    peer=Peer("DDPM", {"clip_sample": False}),
)
def ddpm(
    p: Trace,
    times: Sequence[Time],
    *,
    variance_type: VarianceType = "fixed_small",
    data_variance: Variance = None,
) -> Linear:
    """x_s = c0 x0 + (alpha_ts sigma_s²/sigma_t²) x_t + std z, c0 = alpha_s sigma_ts²/sigma_t².

    variance_type chooses std². The step into clean data has no noise, except with `optimal`.

    - `fixed_small`: beta-tilde = sigma_ts² sigma_s²/sigma_t² (eq. 7);
    - `fixed_large`: beta = sigma_ts² (section 3.2);
    - `learned`: e^v, where v is the second half of the output's channels;
    - `learned_range`: e^(f ln beta + (1 - f) ln beta-tilde), with f = (v + 1)/2 (Nichol & Dhariwal
      2021, eq. 15);
    - `optimal`: beta-tilde + c0² mmse_t with mmse_t = s² sigma_t²/(alpha_t² s² + sigma_t²), exact
      for Gaussian data of variance s² = data_variance (Bao et al. 2022, theorem 1).
    """
    if (variance_type == "optimal") != (data_variance is not None):
        raise ValueError(
            "fastdiff.Sampler: expected data_variance >= 0 with variance_type 'optimal' and with"
            f" no other, got {data_variance!r} with {variance_type!r}."
        )
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        alpha_ts, large = t.transition(s)
        small = large * (s.sigma / t.sigma) ** 2
        to_x0, to_x = s.alpha * large / t.sigma**2, alpha_ts * s.sigma**2 / t.sigma**2
        x = to_x0 * x0 + to_x * p.x()
        if data_variance is not None:
            mmse = data_variance * t.sigma**2 / (t.alpha**2 * data_variance + t.sigma**2)
            x = x + sqrt(small + to_x0**2 * mmse) * p.noise()
        elif s.sigma == 0:
            continue
        elif variance_type in ("learned", "learned_range"):
            # the row's log-variance is lo + (hi - lo)(v + 1)/2, which is v itself between -1 and 1
            bounds = (-1.0, 1.0) if variance_type == "learned" else (log(small), log(large))
            x = x + p.noise(log_variance=bounds)
        else:
            x = x + sqrt(small if variance_type == "fixed_small" else large) * p.noise()
    return x
