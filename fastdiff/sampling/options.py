"""What holds for all samples of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Callback = Callable[[int, Any, Tensor, Tensor], None]  # (row or step, t, x, x0)
Classifier = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> log p(y | x), or its gradient by x
Guidance = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, x, t) -> x0

HOOKS = ("callback", "classifier", "classifier_scale", "guidance", "through_network")
"""The options of a run that are arguments of `Sampler.sample`."""
ON_OOM = ("raise", "split")
GRAPH = (True, False, "auto")


class Watcher(Protocol):
    """Sees every step of a run, as rollouts do (fastdiff.sampling.rollout)."""

    def before(self, stepper: Any, calls: str, out: Tensor | None) -> Tensor | None:
        """Sees the state before a row, what the row calls and the network's output. The result is
        where the row writes its log-probability [B], or None.
        """

    def after(self, stepper: Any) -> None:
        """Sees the state after the row."""


@dataclass(frozen=True)
class RunOptions:
    """The state's device, dtype and shape, the user's functions, and how the network is called.

    Args:
        device, dtype: of the state.
        shape: one sample's.
        inpaints: whether the samples have a mask.
        callback, classifier, classifier_scale, guidance, through_network: see `Sampler.sample`.
        network_batch, on_oom, graph: see `Sampler`.
        differentiable: whether autograd records the steps (fastdiff.sampling.recorded).
        checkpoint: the rows of a segment that the backward pass computes again; 0 stores all.
        last_k: the rows at the end that are recorded; None for all.
        watcher: sees every step; or None.
        window: (offset, size) where the samples are parts of larger ones; None for whole ones.
        keeps_x0: whether rows write their prediction of x0 also without a callback.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]
    inpaints: bool = False
    callback: Callback | None = None
    classifier: Classifier | None = None
    classifier_scale: float = 1.0
    guidance: Guidance | None = None
    through_network: bool = False
    network_batch: int | None = None
    on_oom: str = "raise"
    graph: bool | str = "auto"
    differentiable: bool = False
    checkpoint: int = 0
    last_k: int | None = None
    watcher: Watcher | None = None
    keeps_x0: bool = False
    window: tuple[int, int] | None = None

    @property
    def wants_x0(self) -> bool:
        """Whether every row writes its prediction of x0."""
        return self.callback is not None or self.keeps_x0

    @property
    def capturable(self) -> bool:
        """Whether a step may be captured as a CUDA graph: not with the user's own functions in it,
        which may read the device, nor while autograd records it, nor with a watcher, which a replay
        would not call.
        """
        hooks = (self.classifier, self.guidance, self.watcher)
        return all(hook is None for hook in hooks) and not self.differentiable
