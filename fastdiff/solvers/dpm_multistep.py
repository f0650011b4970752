"""DPM-Solver and DPM-Solver++, multistep: exponential integrators with remembered predictions (Lu
et al. 2022a, 2022b).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, sqrt

from .exponential import differences, first_order, history
from .grids import Time
from .registry import solver
from .trace import Linear, Trace

SOLVER_TYPES = ("midpoint", "heun")


def _check(solver_type: str) -> None:
    if solver_type not in SOLVER_TYPES:
        raise ValueError(
            f"fastdiff.Sampler: expected solver_type in {list(SOLVER_TYPES)}, got {solver_type!r}."
        )


def data_prediction(
    p: Trace,
    times: Sequence[Time],
    order: int,
    *,
    sde: bool = False,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    as_published: bool = False,
    lower_order_final: bool = False,
) -> Linear:
    """x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^-h) x0 + alpha_s (psi D1 - chi D2), psi and chi of
    the order and type.

    sde: the reverse SDE with eta times its noise instead (Lu et al. 2022b, section 5, where eta is
        1): (1 + eta) h in
    h's place for the predictions, e^-eta·h more decay of x, and sigma_s sqrt(1 - e^-2 eta h) z,
    times s_noise.
    lower_order_final, here and below: the order falls to 1 over the last steps, steadier with few
        of them.
    """
    _check(solver_type)
    eta = eta if sde else 0.0
    x, past = p.start, []  # type: ignore[var-annotated]  # predictions with their lambdas, latest first
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        h, k = history(times, i, len(past), order, lower_order_final)
        if k == 1 and not (eta and s.sigma > 0):
            x = first_order(p, t, s, x0)
        else:
            e = (1 + eta) * h
            gain = -expm1(-e)  # 1 - e^-h
            x = (s.sigma / t.sigma) * exp(-eta * h) * p.x() + s.alpha * gain * x0
            if k > 1:
                d1, d2 = differences(x0, past, t.half_log_snr, h, k, as_published)
                psi = 0.5 * gain if k == 2 and solver_type == "midpoint" else 1.0 - gain / e
                x = x + s.alpha * psi * d1
                if d2 is not None:
                    x = x + s.alpha * ((gain - e) / e**2 + 0.5) * d2
            if eta and s_noise:
                x = x + s.sigma * s_noise * sqrt(-expm1(-2 * eta * h)) * p.noise()
        if i < len(times) - 2:
            past = [(p.keep(x0), t.half_log_snr), *past][: order - 1]
    return x


def noise_prediction(
    p: Trace,
    times: Sequence[Time],
    order: int,
    *,
    solver_type: str = "midpoint",
    as_published: bool = False,
    lower_order_final: bool = False,
) -> Linear:
    """x_s = (alpha_s/alpha_t) x - sigma_s ((e^h - 1) eps + psi D1 + chi D2)."""
    _check(solver_type)
    x, past = p.start, []  # type: ignore[var-annotated]
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, eps = p.predict_eps(x, t)
        h, k = history(times, i, len(past), order, lower_order_final)
        x = s.alpha * x0 + s.sigma * eps
        if k > 1:
            gain = expm1(h)  # e^h - 1
            d1, d2 = differences(eps, past, t.half_log_snr, h, k, as_published)
            psi = 0.5 * gain if k == 2 and solver_type == "midpoint" else gain / h - 1.0
            x = (s.alpha / t.alpha) * p.x() - s.sigma * (gain * eps + psi * d1)
            if d2 is not None:
                x = x - s.sigma * ((gain - h) / h**2 - 0.5) * d2
        if i < len(times) - 2:
            past = [(p.keep(eps), t.half_log_snr), *past][: order - 1]
    return x


@solver("dpm++1", paper="Lu et al. 2022b (DPM-Solver++), eq. 9 with k = 1", order=1)
def dpmpp_1(p: Trace, times: Sequence[Time]) -> Linear:
    return data_prediction(p, times, 1)


@solver("dpm++2m", paper="Lu et al. 2022b (DPM-Solver++), algorithm 2", order=2)
def dpmpp_2m(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    return data_prediction(
        p, times, 2, solver_type=solver_type, lower_order_final=lower_order_final
    )


@solver(
    "dpm++3m", paper="Lu et al. 2022b (DPM-Solver++), appendix B, multistep of order 3", order=3
)
def dpmpp_3m(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    """as_published: the published code's second difference, of order 2 (exponential.differences);
    solver_type: of the second step, which is of order 2.
    """
    return data_prediction(
        p,
        times,
        3,
        as_published=as_published,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
    )


@solver(
    "dpm++2m_sde",
    paper="Lu et al. 2022b (DPM-Solver++), SDE-DPM-Solver++(2M), section 5",
    order=2,
    stochastic=True,
)
def dpmpp_2m_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: str = "midpoint",
    eta: float = 1.0,
    s_noise: float = 1.0,
    lower_order_final: bool = False,
) -> Linear:
    """eta = 0 is dpm++2m."""
    return data_prediction(
        p,
        times,
        2,
        sde=True,
        eta=eta,
        s_noise=s_noise,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
    )


@solver(
    "dpm++3m_sde",
    paper="Lu et al. 2022b (DPM-Solver++), section 5 at order 3",
    order=2,
    stochastic=True,
)
def dpmpp_3m_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: bool = False,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    """Of weak order 2: the remembered predictions carry noise. as_published: see dpm++3m; eta = 0
    is dpm++3m;
    solver_type: of the second step, which is of order 2.
    """
    return data_prediction(
        p,
        times,
        3,
        sde=True,
        eta=eta,
        s_noise=s_noise,
        solver_type=solver_type,
        as_published=as_published,
        lower_order_final=lower_order_final,
    )


@solver("dpm1", paper="Lu et al. 2022a (DPM-Solver), eq. 3.7", order=1)
def dpm_1(p: Trace, times: Sequence[Time]) -> Linear:
    return noise_prediction(p, times, 1)


@solver("dpm2m", paper="Lu et al. 2022a (DPM-Solver), multistep of order 2", order=2)
def dpm_2m(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    return noise_prediction(
        p, times, 2, solver_type=solver_type, lower_order_final=lower_order_final
    )


@solver("dpm3m", paper="Lu et al. 2022a (DPM-Solver), multistep of order 3", order=3)
def dpm_3m(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Linear:
    """as_published: the published code's second difference, of order 2 (exponential.differences);
    solver_type: of the second step, which is of order 2.
    """
    return noise_prediction(
        p,
        times,
        3,
        as_published=as_published,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
    )
