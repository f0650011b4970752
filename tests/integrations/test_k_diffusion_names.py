"""Solvers that are named as k-diffusion's samplers, against those functions over full loops.

Both sides run in float64 on the same noise levels, in the space alpha = 1, and get the same draws
in the same order. ComfyUI's and A1111's samplers of these names are k-diffusion's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peer import SHAPE, close, load, network
from tolerances import K_DIFFUSION

import fastdiff
from fastdiff import ops
from fastdiff.integrations.k_diffusion import get_sigmas_karras
from fastdiff.solvers import Plan, make_plan
from fastdiff.solvers.aliases import COMFYUI
from fastdiff.table import OUTPUTS

theirs = load()

# the options with which k-diffusion's functions have the steps of a name, and ours
FUNCTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    name: (name, {}, {}) for name in COMFYUI.samplers if hasattr(theirs, f"sample_{name}")
}
FUNCTIONS["dpmpp_2m_sde_heun"] = ("dpmpp_2m_sde", {"solver_type": "heun"}, {})
# both draws of a step are those of one Brownian path, which the caller evaluates
FUNCTIONS["dpmpp_sde"] = ("dpmpp_sde", {}, {"nested": True})
# the same formulas under names that k-diffusion does not have
FUNCTIONS["seeds2"] = ("dpmpp_sde", {"eta": 0.0}, {"eta": 0.0})
FUNCTIONS["gradient_estimation"] = ("euler", {}, {"gamma": 1.0})
FUNCTIONS["er_sde"] = ("euler", {}, {"phi": 0.0, "order": 1})
FUNCTIONS["rk"] = ("heun", {}, {"tableau": "heun"})
FUNCTIONS["ipndm_v"] = ("lms", {}, {})
SCHEDULE = fastdiff.Schedule.ve(1000, sigma_min=0.05, sigma_max=50.0)


def levels(steps: int, clean: bool) -> torch.Tensor:
    """Karras' levels from 20 to 0.1, and 0 at the end."""
    sigmas = get_sigmas_karras(steps, 0.1, 20.0).double()
    return sigmas if clean else sigmas[:-1]


def draws(plan: Plan) -> list[int]:
    """Returns the rows that draw noise, in their order."""
    drawn = sum(plan.column(f"{to}.z") != 0 for to in OUTPUTS)
    return [k for k in range(len(plan)) if drawn[k]]


def noise(k: int) -> torch.Tensor:
    return fastdiff.randn(SHAPE, seed=4, step=k, stream=1, dtype=torch.float64)


def ours(plan: Plan, x: torch.Tensor) -> torch.Tensor:
    assert plan.levels is not None
    table, slots = torch.tensor(plan.table), torch.zeros(4, *SHAPE, dtype=torch.float64)
    for k in range(len(plan)):
        sigma = torch.full((SHAPE[0],), plan.levels[k, 1], dtype=torch.float64)
        x, slots = ops.reverse_step(
            x,
            network(x, sigma),
            table,
            torch.full((SHAPE[0],), k),
            slots=slots,
            noise=noise(k),
            used=plan.used,
        )
    return x


def test_the_names_of_k_diffusion_are_there() -> None:
    """Two of its samplers choose their own levels, so they are functions and not solvers."""
    functions = {n.removeprefix("sample_") for n in dir(theirs) if n.startswith("sample_")}
    assert functions == ({*FUNCTIONS} & functions) | {"dpm_fast", "dpm_adaptive"}
    assert len({*FUNCTIONS} & functions) == 11


# ipndm_v's step into clean data is Euler's, that of k-diffusion's lms is not
CASES = [(name, clean) for name in FUNCTIONS for clean in (False, True) if name != "ipndm_v"]
CASES.append(("ipndm_v", False))


@pytest.mark.parametrize("steps", [2, 3, 10, 40])
@pytest.mark.parametrize("name, clean", CASES)
def test_a_name_has_the_steps_of_k_diffusion(name: str, steps: int, clean: bool) -> None:
    function, arguments, options = FUNCTIONS[name]
    sigmas = levels(steps, clean)
    times = [SCHEDULE.at_log_snr(-2 * math.log(s)) for s in sigmas.tolist() if s > 0]
    if clean:
        times.append(fastdiff.schedule.CLEAN)
    plan = make_plan(
        SCHEDULE,
        solver=name,
        steps=len(times) - 1,
        times=times,
        prediction_type="x0",
        **options,
    )
    x = fastdiff.randn(SHAPE, seed=steps, dtype=torch.float64) * 20.0
    run = getattr(theirs, f"sample_{function}")
    rows: Iterator[int] = iter(draws(plan))
    given = dict(arguments)
    if "noise_sampler" in inspect.signature(run).parameters:
        # the step into clean data asks for noise that it multiplies by 0
        given["noise_sampler"] = lambda *_: noise(next(rows, 0))
    expected = run(network, x, sigmas, disable=True, **given)
    close(ours(plan, x), expected, K_DIFFUSION["float64"])
    assert next(rows, None) is None or not given, "both draw the same number of times"
