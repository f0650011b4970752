"""SEEDS: exponential integrators of the reverse SDE in stages (Gonzalez et al. 2023).

The linear part, the noise included, is exact on each stage; the noise of all stages of a step is
one path (`exponential.stages`). With H = (1 + eta) h, and phi of -H, the weights are those of the
exponential Runge-Kutta methods in `res`. Steps into clean data and from pure noise have one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from .exponential import Stage, phi, stages, step_size
from .grids import Time
from .options import Factor, Part, Stages
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace


@solver(
    "seeds2",
    paper="Gonzalez et al. 2023 (SEEDS), SEEDS-2 for the data prediction",
    order=1,
    calls=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=4,
    configurations=[
        Configuration(order=1, tau=1.0),
        Configuration({"r": 1.0, "solver_type": "phi_2"}, order=1, tau=1.0),
        Configuration({"eta": 0.36}, order=1, tau=0.6),
        Configuration({"eta": 0.0}, order=2),
        Configuration({"eta": 0.0, "solver_type": "phi_2"}, order=2),
    ],
    peer=Peer(sampler="dpmpp_sde"),
)
def seeds2(
    p: Trace,
    times: Sequence[Time],
    *,
    eta: Factor = 1.0,
    s_noise: Factor = 1.0,
    r: Part = 0.5,
    solver_type: Stages = "phi_1",
) -> Linear:
    """A stage at the fraction r of the step in lambda, then the whole step with both predictions.

    Args:
        eta: factor of the noise: 0 for the probability flow, 1 for the reverse SDE.
        s_noise: another factor, of the noise alone.
        r: in (0, 1]; with 1 and phi_2 it is exponential Heun's method.
        solver_type: the weight of the stage's prediction: `phi_1` (1 - e^-H)/(2r), or `phi_2`
            H phi_2/r, which fulfils all conditions of order 2.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        h = step_size(t, s)
        if h == inf:
            x = stages(p, t, x0, [Stage(s, [])], eta=eta, s_noise=s_noise)
            continue
        whole = (1.0 + eta) * h
        first, second = phi(whole)
        weight = whole * (0.5 * first if solver_type == "phi_1" else second) / r
        middle = s if r == 1 else p.between(t, s, r)
        x = stages(p, t, x0, [Stage(middle, []), Stage(s, [weight])], eta=eta, s_noise=s_noise)
    return x


@solver(
    "seeds3",
    paper="Gonzalez et al. 2023 (SEEDS), SEEDS-3 for the data prediction",
    order=1,
    calls=3,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=6,
    configurations=[
        Configuration(order=1, tau=1.0),
        Configuration({"eta": 0.36}, order=1, tau=0.6),
        Configuration({"eta": 0.0}, order=3),
    ],
)
def seeds3(
    p: Trace,
    times: Sequence[Time],
    *,
    eta: Factor = 1.0,
    s_noise: Factor = 1.0,
    r1: Part = 1 / 3,
    r2: Part = 2 / 3,
) -> Linear:
    """Stages at the fractions r1 and r2 of the step in lambda, then the whole step.

    The first stage's prediction counts (r2/r1) r2 H phi_2(-r2 H) in the second stage, and the
    second's H phi_2/r2 in the step.

    Args:
        eta: factor of the noise: 0 for the probability flow, 1 for the reverse SDE.
        s_noise: another factor, of the noise alone.
        r1, r2: 0 < r1 < r2 <= 1; the order 3 at eta = 0 needs r2 = 2/3.
    """
    if not r1 < r2:
        raise ValueError(
            f"fastdiff.Sampler: expected r1 < r2 for the solver 'seeds3', got {r1!r} and {r2!r}."
        )
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        h = step_size(t, s)
        if h == inf:
            x = stages(p, t, x0, [Stage(s, [])], eta=eta, s_noise=s_noise)
            continue
        whole = (1.0 + eta) * h
        inner = r2 / r1 * (r2 * whole) * phi(r2 * whole)[1]
        middle, late = p.between(t, s, r1), s if r2 == 1 else p.between(t, s, r2)
        weights: list[list[float]] = [[], [inner], [0.0, whole * phi(whole)[1] / r2]]
        x = stages(
            p,
            t,
            x0,
            [Stage(at, w) for at, w in zip((middle, late, s), weights, strict=True)],
            eta=eta,
            s_noise=s_noise,
        )
    return x
