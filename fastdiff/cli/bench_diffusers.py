"""The sampling loop of diffusers, for comparison: its scheduler around the same network.

x ← scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..sampler import Sampler

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
        "timestep_spacing": info.get("timestep_spacing", "trailing"),
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
    file = folder / "scheduler_config.json"
    name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise Missing(f"diffusers has no scheduler {name}")
    return cls.from_pretrained(str(folder))


def loop(
    scheduler: Any,
    network: Callable[..., Any],
    steps: int,
    start: Tensor,
    *,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    gamma: float,
    step: Mapping[str, Any],
) -> Tensor:
    """Returns the state after the scheduler's steps from `start`, noise of standard deviation 1.

    cond, uncond: the network's keyword arguments for the halves of classifier-free guidance of
        strength gamma; 1 calls with cond alone, 0 with uncond alone.
    step: further arguments of the scheduler's step.
    """
    both = gamma not in (0.0, 1.0)
    arguments = dict((uncond if gamma == 0.0 else cond) or {})
    if both:
        arguments = {k: _joined((uncond or {}).get(k), v) for k, v in (cond or {}).items()}
    scheduler.set_timesteps(steps, device=start.device)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        network_input = scheduler.scale_model_input(torch.cat([x, x]) if both else x, t)
        out = network(network_input, t.expand(len(network_input)), **arguments)
        out = getattr(out, "sample", out)
        if both:
            without, out = out.chunk(2)
            out = without + gamma * (out - without)
        x = scheduler.step(out, t, x, return_dict=False, **step)[0]
    return x


def _joined(without: Any, value: Any) -> Any:
    """Returns an argument of both halves, the unconditional one first as diffusers does."""
    if isinstance(value, Tensor) and isinstance(without, Tensor):
        return torch.cat([without, value])
    return value
