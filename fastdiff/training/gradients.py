"""The loss of a batch and its gradient, in parts, in lower precision, with recomputed activations.

    gradient = Σ_parts Σ_{b in part} ∇loss_b / B

The parts of a batch draw what the whole batch draws (`part` of `System.loss`). Torch's own
generators, from which dropout in a user's network draws, are seeded by (seed, step, position) for
each part, so a resumed run drops the same units; afterwards they are as they were.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data import Condition
from .settings import Settings


def accumulate(
    system: Any,
    batch: tuple[Tensor, Tensor, Condition],
    settings: Settings,
    *,
    step: int,
    start: int,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Adds the gradient of Σ_b loss_b / batch_size to the parameters' gradients.

    Args:
        batch: (index, x0, condition), the positions `start` … of the global batch.

    Returns:
        (Σ_b loss_b / batch_size, the rows that the system left to record, or None).
    """
    index, x0, condition = batch
    total, count = settings.batch_size, len(index)
    loss, rows = torch.zeros((), device=device), []
    for k in range(settings.accumulate):
        a, b = (count * i // settings.accumulate for i in (k, k + 1))
        if a == b:
            continue
        share: dict[str, Any] = {} if b - a == total else {"part": (start + a, total)}
        with _seeded(settings.seed, step, start + a, device), _precision(settings, device):
            losses = system.loss(
                x0[a:b].to(device),
                _to(condition, a, b, device),
                seed=settings.seed,
                sample_ids=index[a:b].to(device),
                step=step,
                **share,
            )
        if losses.shape != (b - a,):
            raise ValueError(
                f"fastdiff.Trainer: expected a loss [{b - a}], got {list(losses.shape)}."
            )
        if losses.dtype in (torch.bfloat16, torch.float16):
            losses = losses.float()
        # a share's part of the mean over the global batch
        mean = losses.sum() / total if share else losses.mean()
        mean.backward()
        loss = loss + mean.detach()
        if hasattr(system, "pending"):
            rows.append(system.pending())
    return loss, torch.cat(rows) if rows else None


def check_parts(system: Any) -> None:
    """Raises TypeError for a system whose loss takes whole batches only."""
    taken = inspect.signature(system.loss).parameters.values()
    if not any(p.name == "part" or p.kind is p.VAR_KEYWORD for p in taken):
        raise TypeError(
            "fastdiff.Trainer: expected a loss with the argument part=(start, total) for several"
            f" ranks or accumulate > 1, got that of {type(system).__name__} without. Add it; see"
            " fastdiff.theory.system."
        )


def recompute_activations(system: Any) -> None:
    """Makes the blocks of the system's networks store no activations, in place.

    The blocks are the members of a network's `blocks`, else of its lists of modules. Weights, their
    names and results stay the same.

    Raises ValueError for a system without such lists.
    """
    blocks: list[nn.Module] = []
    for module in system.modules():
        offered = getattr(module, "blocks", None)
        if isinstance(module, nn.ModuleList) or isinstance(offered, list | tuple):
            blocks += [m for m in (offered or module) if not isinstance(m, nn.ModuleList)]
    unique = list({id(m): m for m in blocks}.values())
    if not unique:
        raise ValueError(
            "fastdiff.Trainer: expected a network with blocks (a ModuleList) for"
            f" checkpoint_activations, got none in {type(system).__name__}. Leave it out."
        )
    for block in unique:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=True
        )


def compile_networks(system: Any) -> None:
    """Compiles the system's network in place, at its first call.

    Raises ValueError for a system without a `network`.
    """
    network = getattr(system, "network", None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            "fastdiff.Trainer: expected a system with a network for compile, got a"
            f" {type(system).__name__}. Leave it out."
        )
    network.compile()


def _to(condition: Condition, a: int, b: int, device: torch.device) -> Any:
    if isinstance(condition, dict):
        return {k: v[a:b].to(device) for k, v in condition.items()}
    return condition[a:b].to(device)


def _precision(settings: Settings, device: torch.device) -> Any:
    half = settings.precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


@contextmanager
def _seeded(seed: int, step: int, position: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        words = np.random.SeedSequence([seed, step, position]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]) >> 1)
        yield
