"""Multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b).

They are exponential integrators that extrapolate from earlier predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from .exponential import data_weights, differences, noise_weights, step_order
from .grids import Time
from .options import Factor, Flag, Strength, one_of
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

SOLVER_TYPES = ("midpoint", "heun")
_TYPE = one_of(SOLVER_TYPES)
SolverType = Annotated[str, _TYPE]
BOTH_TYPES = [
    Configuration({} if kind == "midpoint" else {"solver_type": kind}, order=2)
    for kind in SOLVER_TYPES
]
# the same steps in diffusers
MULTISTEP = "DPMSolverMultistep"
LEADING = {"timestep_spacing": "leading"}
EPSILON = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}

Past = list[tuple[Linear, float]]  # predictions with their lambdas, latest first


def _order(
    times: Sequence[Time], i: int, past: Past, order: int | Sequence[int], falling: bool
) -> int:
    """The order of step i: no higher than the history, the step and `order` allow."""
    highest = order if isinstance(order, int) else order[i]
    return step_order(times, i, len(past), highest, falling)


def data_prediction(
    p: Trace,
    times: Sequence[Time],
    order: int | Sequence[int],
    *,
    sde: bool = False,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    as_published: bool = False,
    lower_order_final: bool = False,
    sde_curvature: float = 0.5,
) -> Linear:
    """x_s = (sigma_s/sigma_t) x + alpha_s ((1 - e^-h) x0 + d1 D1 + d2 D2).

    D1 and D2 are divided differences of the predictions (`exponential.differences`). d1 and d2 are
    the weights of the order and the type (`exponential.data_weights`). A prediction at a level
    equal to the current one gives no slope and is dropped.

    Args:
        order: the highest order, 1 to 3, or that of every step.
        sde: integrate the reverse SDE with eta times its noise instead (Lu et al. 2022b, section 5,
            where eta is 1): (1 + eta) h replaces h in the weights of the predictions, x decays by
            another e^(-eta h), and sigma_s sqrt(1 - e^(-2 eta h)) z, times s_noise, is added.
        solver_type: `midpoint` or `heun`, for steps of order 2.
        as_published: see `exponential.differences`.
        lower_order_final: the order falls to 1 over the last steps, which is more stable with few
            steps.
        sde_curvature: with sde, the constant in D2's weight, which is 1/2; diffusers has -1/2.
    """
    _TYPE.check("solver_type", solver_type)
    eta, curvature = (eta, sde_curvature) if sde else (0.0, 0.5)
    x = p.start
    past: Past = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        lam = t.half_log_snr
        past = [known for known in past if known[1] != lam]
        k = _order(times, i, past, order, lower_order_final)
        middle = k == 2 and solver_type == "midpoint"
        w = data_weights(t, s, midpoint=middle, eta=eta, s_noise=s_noise, curvature=curvature)
        x = w.x * p.x() + w.scale * w.d0 * x0
        if k > 1 and w.d1:
            h = s.half_log_snr - lam
            d1, d2 = differences(x0, past, lam, h, k, as_published)
            x = x + w.scale * w.d1 * d1
            if d2 is not None:
                x = x + w.scale * w.d2 * d2
        if w.z:
            x = x + w.z * p.noise()
        past = [(p.keep(x0), lam), *past][:2]
    return x


def noise_prediction(
    p: Trace,
    times: Sequence[Time],
    order: int | Sequence[int],
    *,
    sde: bool = False,
    solver_type: str = "midpoint",
    as_published: bool = False,
    lower_order_final: bool = False,
    through_x0: bool = True,
) -> Linear:
    """x_s = (alpha_s/alpha_t) x - sigma_s ((e^h - 1) eps + d1 D1 + d2 D2).

    D1 and D2 are divided differences of eps, and d1 and d2 the weights of the order and the type
    (`exponential.noise_weights`). Arguments with the names of `data_prediction`'s mean the same.

    Args:
        sde: integrate the reverse SDE instead: its predictions count twice, and sigma_s
            sqrt(e^2h - 1) z is added.
        through_x0: whether a first-order step of the ODE is alpha_s x0 + sigma_s eps, which is
            finite at clean data and at pure noise.
    """
    _TYPE.check("solver_type", solver_type)
    x = p.start
    past: Past = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, eps = p.predict_eps(x, t)
        lam = t.half_log_snr
        past = [known for known in past if known[1] != lam]
        k = _order(times, i, past, order, lower_order_final)
        if k == 1 and through_x0 and not sde:
            x = s.alpha * x0 + s.sigma * eps
        else:
            w = noise_weights(t, s, midpoint=k == 2 and solver_type == "midpoint", sde=sde)
            change, d2 = w.d0 * eps, None
            if k > 1 and w.d1:
                h = s.half_log_snr - lam
                d1, d2 = differences(eps, past, lam, h, k, as_published)
                change = change + w.d1 * d1
            x = w.x * p.x() + w.scale * change
            if d2 is not None:
                x = x + w.scale * w.d2 * d2
            if w.z:
                x = x + w.z * p.noise()
        past = [(p.keep(eps), lam), *past][:2]
    return x


@solver(
    "dpm++1",
    paper="Lu et al. 2022b (DPM-Solver++), eq. 9 with k = 1",
    order=1,
    peer=Peer(MULTISTEP, {"solver_order": 1, **LEADING}),
)
def dpmpp_1(p: Trace, times: Sequence[Time]) -> Linear:
    return data_prediction(p, times, 1)


@solver(
    "dpm++2m",
    paper="Lu et al. 2022b (DPM-Solver++), algorithm 2",
    order=2,
    arrays=5,
    configurations=BOTH_TYPES,
    peer=Peer(MULTISTEP, {"solver_order": 2, **LEADING}, sampler="dpmpp_2m"),
)
def dpmpp_2m(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: SolverType = "midpoint",
    lower_order_final: Flag = False,
) -> Linear:
    return data_prediction(
        p, times, 2, solver_type=solver_type, lower_order_final=lower_order_final
    )


@solver(
    "dpm++3m",
    paper="Lu et al. 2022b (DPM-Solver++), appendix B, multistep of order 3",
    order=3,
    arrays=6,
    configurations=[Configuration(order=3, exact_start=True)],
    peer=Peer(MULTISTEP, {"solver_order": 3, **LEADING}),
)
def dpmpp_3m(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: Flag = False,
    solver_type: SolverType = "midpoint",
    lower_order_final: Flag = False,
) -> Linear:
    """Multistep of order 3.

    Args:
        as_published: see `exponential.differences`.
        solver_type: of the second step, which has order 2.
        lower_order_final: see `data_prediction`.
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
    noiseless={"eta": 0.0},
    arrays=5,
    configurations=[
        Configuration(order=2, tau=1.0),
        Configuration({"eta": 0.5}, order=2, tau=0.5**0.5),
    ],
    peer=Peer(MULTISTEP, {"solver_order": 2, **SDE, **LEADING}, sampler="dpmpp_2m_sde"),
)
def dpmpp_2m_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: SolverType = "midpoint",
    eta: Strength = 1.0,
    s_noise: Factor = 1.0,
    lower_order_final: Flag = False,
) -> Linear:
    """Multistep of order 2 on the reverse SDE; eta = 0 is dpm++2m."""
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
    noiseless={"eta": 0.0},
    arrays=6,
    peer=Peer(MULTISTEP, {"solver_order": 3, **SDE, **LEADING}, sampler="dpmpp_3m_sde"),
)
def dpmpp_3m_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: Flag = False,
    eta: Strength = 1.0,
    s_noise: Factor = 1.0,
    solver_type: SolverType = "midpoint",
    lower_order_final: Flag = False,
) -> Linear:
    """Multistep of order 3 on the reverse SDE; eta = 0 is dpm++3m.

    Its weak order is 2, because the remembered predictions contain noise. The options are those of
    dpm++3m, and eta and s_noise of `data_prediction`.
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


@solver(
    "dpm1",
    paper="Lu et al. 2022a (DPM-Solver), eq. 3.7",
    order=1,
    peer=Peer(MULTISTEP, {"solver_order": 1, **EPSILON, **LEADING}),
)
def dpm_1(p: Trace, times: Sequence[Time]) -> Linear:
    return noise_prediction(p, times, 1)


@solver(
    "dpm2m",
    paper="Lu et al. 2022a (DPM-Solver), multistep of order 2",
    order=2,
    arrays=5,
    configurations=BOTH_TYPES,
    peer=Peer(MULTISTEP, {"solver_order": 2, **EPSILON, **LEADING}),
)
def dpm_2m(
    p: Trace,
    times: Sequence[Time],
    *,
    solver_type: SolverType = "midpoint",
    lower_order_final: Flag = False,
) -> Linear:
    return noise_prediction(
        p, times, 2, solver_type=solver_type, lower_order_final=lower_order_final
    )


@solver(
    "dpm3m",
    paper="Lu et al. 2022a (DPM-Solver), multistep of order 3",
    order=3,
    arrays=6,
    configurations=[Configuration(order=3, exact_start=True)],
    peer=Peer(MULTISTEP, {"solver_order": 3, **EPSILON, **LEADING}),
)
def dpm_3m(
    p: Trace,
    times: Sequence[Time],
    *,
    as_published: Flag = False,
    solver_type: SolverType = "midpoint",
    lower_order_final: Flag = False,
) -> Linear:
    """Multistep of order 3.

    Args:
        as_published: see `exponential.differences`.
        solver_type: of the second step, which has order 2.
        lower_order_final: see `data_prediction`.
    """
    return noise_prediction(
        p,
        times,
        3,
        as_published=as_published,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
    )
