"""EDM's sampler with its published argument names (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..sampler import Sampler
from ..schedule import Schedule
from ..solvers.grids import karras_levels
from .networks import Adapter, DenoiserAdapter


def sampler(
    network: Callable[..., Any],
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    S_noise: float = 1.0,
    **settings: Any,
) -> Sampler:
    """Returns a `Sampler` of algorithm 2 on the levels of eq. 5, ending in clean data.

    With the defaults it is algorithm 1.

    Args:
        network: D(x, sigma, **cond) -> x0, or an Adapter. Its conditions are passed as
            `sample(cond={"class_labels": …})`.
    """
    model = network if isinstance(network, Adapter) else DenoiserAdapter(network)
    schedule = Schedule.karras(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    ramp = [i / max(num_steps - 1, 1) for i in range(num_steps)]
    levels = [karras_levels(u, sigma_max, sigma_min, rho) for u in ramp]
    return Sampler(
        model,
        schedule,
        solver="edm",
        steps=num_steps,
        sigmas=levels,
        prediction_type=model.parametrization,
        s_churn=S_churn,
        s_tmin=S_min,
        s_tmax=S_max,
        s_noise=S_noise,
        **settings,
    )
