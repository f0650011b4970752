"""Where a drop-in, used in some way, differs from its peer on purpose, each with the reason.

A test fails where a listed pair of way and row no longer differs, so the table stays true.
"""

from __future__ import annotations

from typing import NamedTuple

import driving
import ways_arguments  # noqa: F401  # registers its ways
import ways_runs  # noqa: F401
import ways_states  # noqa: F401
import ways_wrong  # noqa: F401
from driving import ROWS


class Deviation(NamedTuple):
    """Ways in which rows differ.

    rows: their ids; `but` instead names the only rows that do not differ.
    """

    ways: str
    reason: str
    rows: str = ""
    but: str | None = None


# classes whose steps follow from the timestep alone; diffusers' other classes count their steps
_UNCOUNTED = (
    "UnCLIP DDPM DDPM(learned) DDPMParallel DDIM DDIM(eta) DDIM(threshold) DDIMParallel DDIMInverse"
    " RePaint CogVideoXDDIM CogVideoXDPM FlowMapEulerDiscrete"
    " DDPMWuerstchen"
)
# whose numbers no generator repeats, so that only shapes are compared
_UNSEEN = "CosineDPMSolverMultistep"
_EULER = (
    "EDMEuler EDMEuler(churn) EulerAncestralDiscrete EulerDiscrete EulerDiscrete(churn)"
    " EulerDiscrete(karras)"
)
_DECIDES = (
    "the timestep that is passed decides which step is taken, so that a callback may skip or repeat"
    " steps; the peer counts its calls, and leaves its tables at the end"
)
_REMEMBERS = (
    "what a step remembers is its own; the peer keeps the user's tensor itself, and computes with"
    " what was written into it"
)
_SHOWN = "pred_original_sample has the state's dtype; the peer's is float32"
_WIDE = "the result has the state's precision; the peer's tables of float64 widen it"
_TREE = "the peer's Brownian tree cannot be copied or pickled, or has the first batch's shape"

DEVIATIONS = [
    Deviation("a_second_run_without_set_timesteps timesteps_in_reverse", _DECIDES, but=_UNCOUNTED),
    Deviation(
        "a_step_after_the_end", _DECIDES, but=f"{_UNCOUNTED} TCD PNDM PNDM(prk) LTXEulerAncestralRF"
    ),
    Deviation(
        "every_second_timestep", _DECIDES, but=f"{_UNCOUNTED} {_UNSEEN} FlowMatchEulerDiscrete"
    ),
    Deviation("a_skipped_step", _DECIDES, but=f"{_UNCOUNTED} {_UNSEEN}"),
    Deviation(
        "a_repeated_step",
        _DECIDES,
        but=f"{_UNCOUNTED} {_UNSEEN} FlowMatchEulerDiscrete FlowMatchHeunDiscrete",
    ),
    Deviation(
        "a_begin_index_for_a_foreign_timestep",
        "steps that depend on their timestep are refused at another index's",
        "SASolver TCD LCM MiniMaxH3",
    ),
    Deviation("a_begin_index_beyond_the_grid", "is refused; the peer leaves its tables", "TCD LCM"),
    Deviation(
        "timesteps_assigned_in_reverse",
        "refused: a posterior towards noise has a negative variance, NaN in the peer",
        "DDPM(learned)",
    ),
    Deviation(
        "timesteps_as_floats",
        "a float that equals a timestep is one; the peer indexes its tables with it",
        "UnCLIP TCD LCM PNDM PNDM(prk) DDPM DDPM(learned) DDPMParallel DDIM DDIM(eta)"
        " DDIM(threshold) DDIMParallel DDIMInverse RePaint CogVideoXDDIM CogVideoXDPM",
    ),
    Deviation(
        "an_odd_begin_index",
        "the peer's steps from a second call on have no width, and divide by 0 at the end",
        "DPMSolverSDE KDPM2AncestralDiscrete",
    ),
    Deviation("a_step_at_an_unknown_timestep", "is refused; the peer counts its calls", "PNDM"),
    Deviation("a_deep_copy_in_a_run", _TREE, "DPMSolverSDE CosineDPMSolverMultistep"),
    Deviation("a_deep_copy_leaves_the_first_alone", _TREE, "DPMSolverSDE CosineDPMSolverMultistep"),
    Deviation(
        "a_pickle_in_a_run",
        "the peer holds functions that cannot be pickled",
        "DPMSolverSDE CosineDPMSolverMultistep SASolver SASolver(3,4) SASolver(eps)",
    ),
    Deviation(
        "the_given_state_is_edited_after_the_step",
        _REMEMBERS,
        "DPMSolverSDE SASolver SASolver(3,4) SASolver(eps) UniPCMultistep UniPCMultistep(3)"
        " UniPCMultistep(flow) DPMSolverSinglestep DPMSolverSinglestep(3) DPMSolverSinglestep(sde)"
        " FlowMatchHeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete HeunDiscrete PNDM PNDM(prk)",
    ),
    Deviation(
        "the_output_is_edited_after_the_step",
        _REMEMBERS,
        "PNDM PNDM(prk) DPMSolverMultistep(eps) SASolver(eps)",
    ),
    Deviation("another_batch_size_in_a_run another_shape_in_a_run", _TREE, "DPMSolverSDE"),
    Deviation(
        "states_in_float16 states_in_bfloat16 outputs_in_float16_for_states_in_float32"
        " outputs_in_bfloat16_for_states_in_float64",
        _SHOWN,
        _EULER,
    ),
    Deviation(
        "outputs_in_float32_for_states_in_float16 another_dtype_in_a_run",
        "dtypes mix; the peer multiplies matrices of different ones",
        "UniPCMultistep(3)",
    ),
    Deviation(
        "another_dtype_in_a_run",
        "the result has the given state's dtype, the peer's that of the run's first state",
        "SASolver SASolver(3,4) SASolver(eps) UniPCMultistep UniPCMultistep(flow)",
    ),
    Deviation(
        "states_with_values_that_are_not_finite",
        "an operand with the coefficient 0 is not read; in the peer 0 times infinity is NaN",
        "DDIMInverse",
    ),
    Deviation("another_order_at_every_step", "a run has one order", "LMSDiscrete"),
    Deviation(
        "another_churn_at_every_step",
        "both calls of a step have one churn",
        "FlowMatchHeunDiscrete FlowMatchHeunDiscrete(churn)",
    ),
    Deviation(
        "no_steps",
        "is refused; the peer's loop then does nothing",
        "DPMSolverSDE EDMDPMSolverMultistep EDMEuler FlowMatchLCM UnCLIP FlowMatchHeunDiscrete"
        " FlowMatchEulerDiscrete IPNDM CosineDPMSolverMultistep LTXEulerAncestralRF"
        " FlowMapEulerDiscrete SCM DDPMWuerstchen",
    ),
    Deviation(
        "a_negative_number_of_steps",
        "is refused; the peer computes some grid",
        but="DPMSolverSDE EDMDPMSolverMultistep EDMEuler DPMSolverSinglestep FlowMatchLCM TCD LCM"
        " FlowMatchHeunDiscrete FlowMatchEulerDiscrete IPNDM CosineDPMSolverMultistep"
        " LTXEulerAncestralRF FlowMapEulerDiscrete SCM DDPMWuerstchen MiniMaxH3",
    ),
    Deviation(
        "a_fraction_of_steps",
        "is refused; the peer computes some grid",
        "SASolver DEISMultistep UniPCMultistep DPMSolverMultistepInverse DPMSolverMultistep"
        " CMStochasticIterative EulerAncestralDiscrete KDPM2AncestralDiscrete KDPM2Discrete"
        " HeunDiscrete LMSDiscrete DDPMParallel EulerDiscrete DDPM MiniMaxH3",
    ),
    Deviation(
        "more_steps_than_were_trained",
        "refused where two timesteps would be equal or beyond the table",
        "UnCLIP LMSDiscrete PNDM",
    ),
    Deviation("an_output_of_one_sample", "is refused; the peer spreads it over the batch", but=""),
    Deviation(
        "an_output_of_no_dimension",
        "is refused; the peer spreads it over the state",
        but="SASolver UnCLIP CMStochasticIterative TCD LCM EulerAncestralDiscrete DDPMParallel DDPM"
        " RePaint FlowMapEulerDiscrete SCM",
    ),
    Deviation("an_integer_state", "the noise of the peer's tree has no integers", "DPMSolverSDE"),
    Deviation(
        "an_integer_state",
        "is refused; the peer rounds the result",
        "UniPCMultistep LTXEulerAncestralRF MiniMaxH3",
    ),
    Deviation(
        "a_begin_index_beyond_the_grid",
        "is refused; the peer returns the state as it is",
        "LTXEulerAncestralRF",
    ),
    Deviation(
        "noise_added_before_set_timesteps lengths_and_scales",
        "the peer has no timesteps before set_timesteps, and no length",
        "DDPMWuerstchen",
    ),
    Deviation(
        "a_step_at_an_unknown_timestep",
        "is refused where it goes towards noise; the peer takes the root of a negative variance",
        "DDPMWuerstchen",
    ),
    Deviation("states_in_bfloat16", "x0 is not rounded to bfloat16 on the way to float32", "SCM"),
    Deviation(
        "timesteps_of_a_whole_batch",
        "are refused; the peer takes the first one",
        "FlowMapEulerDiscrete",
    ),
    Deviation("timesteps_of_one_element", _WIDE, "CogVideoXDDIM CogVideoXDPM"),
    Deviation("an_integer_state", _WIDE, "CogVideoXDDIM"),
    Deviation(
        "a_repeated_step",
        "is refused with its own timestep as the one before; the peer divides by zero",
        "CogVideoXDPM",
    ),
]


def _pairs() -> dict[tuple[str, str], str]:
    pairs: dict[tuple[str, str], str] = {}
    for deviation in DEVIATIONS:
        for way in deviation.ways.split():
            applying = {row.id for row in ROWS if driving.applies(way, row)}
            rows = set(deviation.rows.split())
            if deviation.but is not None:
                rows = applying - set(deviation.but.split())
            unknown = rows - applying
            assert not unknown, f"{way}: no such rows: {unknown}"
            for row_id in rows:
                assert (way, row_id) not in pairs, f"{way} is listed twice for {row_id}"
                pairs[way, row_id] = deviation.reason
    return pairs


PAIRS = _pairs()
"""The reason of every (way, row's id) that differs."""
