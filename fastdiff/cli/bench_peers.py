"""The loop that a user of diffusers runs: its scheduler around the same network, with the same
configuration.

x ← scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..sampler import Sampler

# diffusers' class of a solver, and what makes it take the same formula
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
KINDS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
STEP = {
    "ddim": ("eta", "use_clipped_model_output")
}  # settings that are arguments of a class's step
Halves = tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]


class Missing(Exception):
    """Why there is nothing of diffusers to compare with."""


def scheduler_of(sampler: Sampler, model: str) -> tuple[Any, dict[str, Any]]:
    """(diffusers' scheduler with the sampler's configuration, arguments of its step); the
    pipeline's own for its folder.

    Raises Missing with the reason.
    """
    try:
        import diffusers
    except ImportError:
        raise Missing("diffusers is not installed") from None
    info = sampler.plan.info
    folder = Path(model) / "scheduler"
    if folder.is_dir():
        name = diffusers.SchedulerMixin.load_config(str(folder)).get("_class_name")
        return getattr(diffusers, name).from_pretrained(str(folder)), {}
    solver = str(info.get("solver"))
    if solver not in CLASSES:
        raise Missing(f"no scheduler of diffusers is known here for {solver}")
    if info.get("prediction_type") not in KINDS:
        raise Missing(
            f"diffusers' {CLASSES[solver][0]} has no prediction type {info.get('prediction_type')}"
        )
    try:
        betas = None if sampler.schedule is None else sampler.schedule.betas
    except ValueError:
        betas = None
    if betas is None:
        raise Missing(f"diffusers' {CLASSES[solver][0]} has no such noise schedule")
    name, config = CLASSES[solver]
    config = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": KINDS[info["prediction_type"]],
        "timestep_spacing": info.get("timestep_spacing", "trailing"),
        **config,
    }
    clip, cls = info.get("clip_range"), getattr(diffusers, name)
    if name in ("DDPMScheduler", "DDIMScheduler"):
        config |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    known = (
        cls.__init__.__wrapped__.__code__.co_varnames
        if hasattr(cls.__init__, "__wrapped__")
        else tuple(config)
    )
    return cls(**{k: v for k, v in config.items() if k in known}), {
        k: info[k] for k in STEP.get(solver, ()) if k in info
    }


def loop(
    scheduler: Any,
    network: Callable[..., Any],
    steps: int,
    start: Tensor,
    halves: Halves,
    gamma: float,
    step: Mapping[str, Any],
) -> Tensor:
    """The state after the scheduler's steps from noise, with classifier-free guidance of strength
    gamma.
    """
    cond, uncond = halves
    both = gamma not in (0.0, 1.0)
    arguments = dict((uncond if gamma == 0.0 else cond) or {})
    if both:
        arguments = {k: _joined((uncond or {}).get(k), v) for k, v in (cond or {}).items()}
    scheduler.set_timesteps(steps, device=start.device)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(torch.cat([x, x]) if both else x, t)
        out = network(given, t.expand(len(given)), **arguments)
        out = getattr(out, "sample", out)
        if both:
            without, out = out.chunk(2)
            out = without + gamma * (out - without)
        x = scheduler.step(out, t, x, return_dict=False, **step)[0]
    return x


def _joined(without: Any, given: Any) -> Any:
    return (
        torch.cat([without, given])
        if isinstance(given, Tensor) and isinstance(without, Tensor)
        else given
    )
