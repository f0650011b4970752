"""The state of a trainer as tensors by name, for a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from . import ranks
from .settings import RESOURCES, Settings

_MOMENTS = ("exp_avg", "exp_avg_sq")
# what else in `machine` may change without a change of bits
_HARMLESS = ("checkpoint_activations", "workers")


def tensors_of(trainer: Any) -> dict[str, Tensor]:
    """Returns the weights, buffers, averages and the optimiser's moments."""
    tensors: dict[str, Tensor] = {}
    for name, system in (("system", trainer.system), ("ema", trainer.ema)):
        tensors |= {f"{name}.{k}": v for k, v in system.state_dict().items()}
    for i, (name, parameter) in enumerate(trainer.system.named_parameters()):
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        for j, average in enumerate(trainer.averages):
            tensors[f"average.{j}.{name}"] = average.values[i]
    return tensors


def restore(trainer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Puts the tensors of a checkpoint of the same run into a trainer."""
    for name, system in (("system", trainer.system), ("ema", trainer.ema)):
        system.load_state_dict({k: tensors[f"{name}.{k}"] for k in system.state_dict()})
    fused = any(group.get("fused") for group in trainer.optimizer.param_groups)
    for i, (name, parameter) in enumerate(trainer.system.named_parameters()):
        if f"adam.step.{name}" in tensors:
            step = tensors[f"adam.step.{name}"]
            # the fused kernel reads the step on the device; moments have the parameter's layout
            state = {"step": step.to(trainer.device) if fused else step}
            for key in _MOMENTS:
                state[key] = torch.empty_like(parameter).copy_(tensors[f"adam.{key}.{name}"])
            trainer.optimizer.state[parameter] = state
        for j, average in enumerate(trainer.averages):
            average.values[i].copy_(tensors[f"average.{j}.{name}"])


def machine(settings: Settings) -> dict[str, Any]:
    """Returns what else the arithmetic of a run depends on, and how it is computed."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "ranks": ranks.world(),
        **{k: v for k, v in asdict(settings).items() if k in RESOURCES},
    }


def differences(saved: Mapping[str, Any], settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (before, now)} where another machine may round differently."""
    defaults = {"ranks": 1, **{k: getattr(Settings(steps=1), k) for k in RESOURCES}}
    before = defaults | dict(saved)
    return {
        k: (before.get(k), v)
        for k, v in machine(settings).items()
        if before.get(k) != v and k not in _HARMLESS
    }
