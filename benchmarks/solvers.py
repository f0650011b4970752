"""Every solver beside diffusers' scheduler and k-diffusion's sampler that take the same number of
network calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.operations import same_bits, truth
from fastdiff import Sampler, Schedule, reference
from fastdiff.solvers import SOLVERS, Plan

STEPS = 50
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
VP, FLOW = Schedule.scaled_linear(1000), Schedule.flow(1000)
LEADING = {"timestep_spacing": "leading"}
DPM, SINGLE = "DPMSolverMultistep", "DPMSolverSinglestep"
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}


class Peer(NamedTuple):
    """What takes a solver's steps elsewhere.

    Attributes:
        scheduler, config: diffusers' class, less "Scheduler", and its configuration. sampler:
            k-diffusion's, less "sample_".
        churn: arguments of the sampler. steps, theirs: how many make the same number of network
            calls on both sides.
        none: why diffusers has no scheduler.
    """

    scheduler: str = ""
    config: dict[str, Any] = {}
    sampler: str = ""
    churn: dict[str, float] = {}
    steps: int = STEPS
    theirs: int = STEPS
    none: str = "has no scheduler for it"


PEERS: dict[str, Peer] = {
    "ddim": Peer("DDIM", {"clip_sample": False}),
    "ddim_inverse": Peer("DDIMInverse", {"clip_sample": False}),
    "ddpm": Peer("DDPM", {"clip_sample": False}),
    "deis": Peer("DEISMultistep", {"solver_order": 3, **LEADING}),
    "dpm++1": Peer(DPM, {"solver_order": 1, **LEADING}),
    "dpm++2m": Peer(DPM, {"solver_order": 2, **LEADING}, "dpmpp_2m"),
    "dpm++2m_sde": Peer(DPM, {"solver_order": 2, **SDE, **LEADING}, "dpmpp_2m_sde"),
    "dpm++2s": Peer(SINGLE, {"solver_order": 2}, steps=25, theirs=49),
    "dpm++2s_ancestral": Peer(sampler="dpmpp_2s_ancestral"),
    "dpm++3m": Peer(DPM, {"solver_order": 3, **LEADING}),
    "dpm++3m_sde": Peer(DPM, {"solver_order": 3, **SDE, **LEADING}, "dpmpp_3m_sde"),
    "dpm++3s": Peer(SINGLE, {"solver_order": 3}, steps=17, theirs=49),
    "dpm++sde": Peer("DPMSolverSDE", LEADING, "dpmpp_sde"),
    "dpm1": Peer(DPM, {"solver_order": 1, **NOISE, **LEADING}),
    "dpm2m": Peer(DPM, {"solver_order": 2, **NOISE, **LEADING}),
    "dpm2s": Peer(SINGLE, {"solver_order": 2, **NOISE}, steps=25, theirs=49),
    "dpm3m": Peer(DPM, {"solver_order": 3, **NOISE, **LEADING}),
    "dpm3s": Peer(SINGLE, {"solver_order": 3, **NOISE}, steps=17, theirs=49),
    "edm": Peer(
        sampler="heun", churn=dict(SOLVERS["edm"].options), none="has Heun's method without churn"
    ),
    "euler": Peer("EulerDiscrete", LEADING, "euler"),
    "euler_ancestral": Peer("EulerAncestralDiscrete", LEADING, "euler_ancestral"),
    "euler_maruyama": Peer(none="has it only among its deprecated schedulers"),
    "flow_euler": Peer("FlowMatchEulerDiscrete"),
    "flow_heun": Peer("FlowMatchHeunDiscrete"),
    "heun": Peer("HeunDiscrete", LEADING, "heun"),
    "ipndm": Peer("IPNDM"),
    "kdpm2": Peer("KDPM2Discrete", LEADING, "dpm_2"),
    "kdpm2_ancestral": Peer("KDPM2AncestralDiscrete", LEADING, "dpm_2_ancestral"),
    "lcm": Peer("LCM"),
    "lms": Peer("LMSDiscrete", LEADING, "lms"),
    "pndm": Peer("PNDM", {"skip_prk_steps": True}, theirs=49),
    "repaint": Peer(steps=20, none="has it only for a known picture"),
    "sa": Peer("SASolver", LEADING),
    "tcd": Peer("TCD"),
    "unipc": Peer("UniPCMultistep", LEADING),
}


def schedule(solver: str) -> Schedule:
    return FLOW if solver.startswith("flow") else VP


def sampler(solver: str, out: Tensor, steps: int | None = None) -> Sampler:
    """Ours, over a network that costs nothing: it always gives the same tensor."""
    kind = "flow" if solver.startswith("flow") else "v" if solver in ("ipndm", "edm") else "epsilon"
    steps = steps or PEERS[solver].steps
    return Sampler(
        lambda x, t: out,
        schedule(solver),
        solver=solver,
        steps=steps,
        prediction_type=kind,
        **LEADING,
    )


def scheduler(solver: str, device: str) -> Any:
    """diffusers' scheduler with its timesteps set, or `Missing`."""
    peer, module = PEERS[solver], peers.diffusers()
    if isinstance(module, peers.Missing) or not peer.scheduler:
        return module if isinstance(module, peers.Missing) else peers.Missing(peer.none)
    betas = (
        {}
        if solver.startswith("flow")
        else {"num_train_timesteps": 1000}
        if solver == "ipndm"
        else BETAS
    )
    try:
        made = getattr(module, f"{peer.scheduler}Scheduler")(**betas, **peer.config)
        made.set_timesteps(peer.theirs, device=device)
    except ImportError as error:  # some need scipy or torchsde
        return peers.Missing(str(error).strip().splitlines()[0])
    return made


def diffusers_loop(solver: str, start: Tensor, out: Tensor) -> Any:
    """A pipeline's loop with the network that costs nothing; or `Missing`."""
    made = scheduler(solver, start.device.type)
    if isinstance(made, peers.Missing):
        return made
    scaled = getattr(made, "scale_model_input", None)
    steps, deviation = PEERS[solver].theirs, getattr(made, "init_noise_sigma", 1.0)

    def loop() -> Tensor:
        made.set_timesteps(steps, device=start.device)
        x = start * deviation
        for t in made.timesteps:
            if scaled is not None:
                scaled(x, t)
            x = made.step(out, t, x, return_dict=False)[0]
        return x

    return loop


def k_diffusion_loop(solver: str, start: Tensor, out: Tensor) -> Any:
    """k-diffusion's sampler with a denoiser that costs nothing, over the same noise levels; None
    where it has none.
    """
    module, name = peers.k_diffusion(), PEERS[solver].sampler
    if not name or isinstance(module, peers.Missing):
        return module if name else None
    levels = sampler("euler", out, PEERS[solver].steps).plan.levels
    assert levels is not None
    ratios = levels[: PEERS[solver].steps, 1] / levels[: PEERS[solver].steps, 0]
    sigmas = torch.tensor([*ratios, 0.0], dtype=torch.float32, device=start.device)
    churn = PEERS[solver].churn
    run, begin = getattr(module, f"sample_{name}"), start * sigmas[0]
    return lambda: run(lambda x, sigma, **_: out, begin, sigmas, disable=True, **churn)


def diffusers_step(solver: str, x: Tensor, out: Tensor, k: int) -> Any:
    """The scheduler's step of the loop's k-th call, with the memory of those before; or `Missing`.

    What a step changes in the scheduler is put back before each, which costs a fraction of a
    microsecond.
    """
    made = scheduler(solver, x.device.type)
    if isinstance(made, peers.Missing):
        return made
    for t in made.timesteps[:k]:
        if hasattr(made, "scale_model_input"):
            made.scale_model_input(x, t)
        made.step(out, t, x, return_dict=False)
    t, before = made.timesteps[k], dict(vars(made))
    made.step(out, t, x, return_dict=False)
    changed = {name: value for name, value in before.items() if vars(made)[name] is not value}

    def step() -> Any:
        vars(made).update(changed)
        return made.step(out, t, x, return_dict=False)

    return step


def oracle(plan: Plan, x: np.ndarray, out: np.ndarray, *, seed: int, ids: list[int]) -> np.ndarray:
    """The plan's rows one after the other, by NumPy."""
    slots, k = np.zeros((max(plan.slots, 1), *x.shape), x.dtype), 0
    while k < len(plan):
        given = out if plan.column("network")[k] else None
        step = reference.reverse_step(
            x, given, plan.table, k, slots=slots, seed=seed, sample_ids=ids
        )
        x, slots, k = step.x_s, step.slots, int(plan.column("next")[k])
    return x


def check_loop(plan: Plan, start: Tensor, out: Tensor, seed: int) -> Callable[[Any], None]:
    """Compares the first and last sample of a loop with NumPy's, bit by bit."""
    which = sorted({0, len(start) - 1})
    expected: list[np.ndarray] = []

    def check(x: Tensor) -> None:
        if not expected:
            expected.append(
                oracle(plan, truth(start[which]), truth(out[which]), seed=seed, ids=which)
            )
        same_bits(x[which], expected[0], "loop")

    return check


assert PEERS.keys() == SOLVERS.keys(), "every solver has its row"
