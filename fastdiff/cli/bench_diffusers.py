"""The sampling loop of diffusers, for comparison: its scheduler around the same network.

x ← scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pretrained.files import read_json
from ..sampler import Sampler
from ..sampling.conditions import conditions
from ..sampling.model_call import Network
from ..schedule import Schedule

WHERE = "fastdiff.cli.bench_diffusers"

# solver: diffusers' class, and the configuration with which it takes the same formula
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
    "dpm++2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"final_sigmas_type": "zero"}),
    "deis": ("DEISMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
SPACINGS = ("leading", "linspace", "trailing")
# solver: its settings that are arguments of `step` in diffusers
STEP_ARGUMENTS = {"ddim": ("eta", "use_clipped_model_output")}


class Missing(Exception):
    """The reason why there is nothing of diffusers to compare with."""


def scheduler_of(sampler: Sampler, model: str) -> tuple[Any, dict[str, Any]]:
    """Returns (diffusers' scheduler with the sampler's configuration, arguments of its step).

    model: the model's name. The scheduler of a pipeline's folder is the pipeline's own.

    Raises Missing with the reason where diffusers has no such scheduler.
    """
    try:
        import diffusers
    except ImportError:
        raise Missing("diffusers is not installed") from None
    folder = Path(model) / "scheduler"
    if folder.is_dir():
        return _of_pipeline(diffusers, folder), {}
    info = sampler.plan.info
    solver = str(info.get("solver"))
    if solver not in CLASSES:
        raise Missing(f"no scheduler of diffusers for {solver}")
    name, config = CLASSES[solver]
    if info.get("prediction_type") not in PREDICTION_TYPES:
        raise Missing(f"diffusers' {name} has no prediction type {info.get('prediction_type')}")
    spacing = info.get("timestep_spacing", "trailing")
    if spacing not in SPACINGS:
        raise Missing(f"diffusers' {name} has no grid {spacing}")
    try:
        betas = None if sampler.schedule is None else sampler.schedule.betas
    except ValueError:
        betas = None
    if betas is None:
        raise Missing(f"diffusers' {name} has no such noise schedule")
    config = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": PREDICTION_TYPES[info["prediction_type"]],
        "timestep_spacing": spacing,
        **config,
    }
    clip, cls = info.get("clip_range"), getattr(diffusers, name)
    if name in ("DDPMScheduler", "DDIMScheduler"):
        config |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    known = inspect.signature(cls.__init__).parameters
    step = {k: info[k] for k in STEP_ARGUMENTS.get(solver, ()) if k in info}
    return cls(**{k: v for k, v in config.items() if k in known}), step


def _of_pipeline(diffusers: Any, folder: Path) -> Any:
    """Returns diffusers' scheduler of the class and configuration in a pipeline's folder."""
    config = read_json(folder / "scheduler_config.json", finite=False)
    name = config.get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise Missing(f"diffusers has no scheduler {name}")
    return cls.from_config(config)


def loop(
    scheduler: Any,
    network: Callable[..., Any],
    steps: int,
    start: Tensor,
    *,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    gamma: float = 1.0,
    step: Mapping[str, Any] | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Returns the state after the scheduler's steps from `start`, noise of standard deviation 1.

    Args:
        network: called as (x, t, **cond), in its own dtype (fastdiff.sampling.model_call).
        start: [B, …], in the dtype of the state.
        cond, uncond: the network's keyword arguments for the halves of classifier-free guidance of
            strength gamma; 1 calls with cond alone, 0 with uncond alone.
        step: further arguments of the scheduler's step.
        schedule: of a network that defines its own time.
    """
    call = Network(network, where=WHERE)
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    both = gamma not in (0.0, 1.0)
    if gamma == 0.0:
        cond = uncond
    halves = conditions(cond, uncond, len(start), start.device, both=both, where=WHERE)
    arguments = {**halves.shared, **halves.cond}
    if both:  # diffusers' order: the unconditional half first
        joined = {k: torch.cat([halves.uncond[k], v]) for k, v in halves.cond.items()}
        arguments = {**halves.shared, **joined}
    scheduler.set_timesteps(steps, device=start.device)
    # the flow schedulers have neither
    x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    times = _times(scheduler.timesteps, network, schedule)
    for t, time in zip(scheduler.timesteps, times, strict=True):
        inputs = call.input(scaled(torch.cat([x, x]) if both else x, t))
        out = call.forward(inputs, time.expand(len(inputs)), arguments, learned=learned)
        if both:
            without, out = out.chunk(2)
            out = without + gamma * (out - without)
        x = scheduler.step(out.to(x.dtype), t, x, return_dict=False, **(step or {}))[0]
    return x


def _times(timesteps: Tensor, network: Any, schedule: Schedule | None) -> Tensor:
    """Returns the network's times at the scheduler's timesteps [n]."""
    own = getattr(network, "network_time", None)
    if own is None or schedule is None:
        return timesteps
    log_snr = schedule.log_snr
    points = [
        schedule.at_log_snr(float(np.interp(t, np.arange(len(log_snr)), log_snr)))
        if t != int(t)
        else schedule.at(t)
        for t in timesteps.tolist()
    ]
    return torch.tensor([own(point) for point in points], dtype=torch.float32).to(timesteps.device)
