"""The conditions of training examples as a network's arguments, and their dropout.

A condition is int64 labels [B], a dict {name of the network's argument: tensor [B, …]}, or None. A
share of the examples is trained without their conditions, so that one network learns p(x|c) and
p(x) (Ho & Salimans 2022, algorithm 1); what stands for none is in `fastdiff.sampling.takes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..models import MODELS
from ..sampling.takes import LABEL, network_arguments, null_arguments, null_label, null_of

Condition = Tensor | Mapping[str, Tensor] | None


class Conditioning:
    """What a network takes, read once when a system is made.

    Labels are passed to a network of fastdiff.models with classes, and to any other network with an
    argument `y`. A network without it is unconditional: labels are not passed.

    Args:
        network: a module (x, t, **cond).
        label_dropout: the share of the examples that are trained without their conditions.
        where: that error messages begin with.
        given: names of arguments that the system itself passes.

    Raises ValueError for label_dropout > 0 with a network that takes labels and does not say which
    one means no class.
    """

    def __init__(self, network: Any, label_dropout: float, where: str, given: tuple[str, ...] = ()):
        names, required = network_arguments(network)
        self.where, self.names = where, names
        self.required = required - set(given)
        self.null = null = null_label(network)
        self.own = MODELS.get(type(network).__name__) is type(network)
        if self.own:
            self.labels = null != 0
        else:
            self.labels = names is not None and LABEL in names or null is not None
        if self.labels and null is None and label_dropout > 0:
            raise ValueError(
                f"{where}: expected null_label of {type(network).__name__}, the label that means no"
                " class, got a network with labels y and without it. Define it, or pass"
                " label_dropout=0."
            )

    def arguments(
        self, network: Any, condition: Condition, x0: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the network's arguments for examples with a condition.

        For None they are those without conditions, as many as x0 has rows.

        Raises ValueError for names that the network does not take, and for None where it needs
        conditions and does not say what none is.
        """
        if condition is None:
            found = (
                {}
                if self.own or x0 is None
                else null_arguments(network, len(x0), x0.device, needs_label=self.labels)
            )
            missing = self.required - found.keys() - ({LABEL} if self.own else set())
            if missing:
                raise ValueError(
                    f"{self.where}: expected null_cond[{min(missing)!r}] of the network for"
                    " examples without conditions, got none. Define it, or pass conditions (in"
                    " `fastdiff eval`, --labels)."
                )
            return found
        if isinstance(condition, Tensor):
            return {LABEL: condition} if self.labels else {}
        unknown = set() if self.names is None else condition.keys() - self.names
        if unknown:
            raise ValueError(
                f"{self.where}: expected conditions among the network's arguments"
                f" {sorted(self.names or ())}, got {min(unknown)!r}."
            )
        return dict(condition)

    def drop(
        self,
        network: Any,
        condition: Condition,
        share: float,
        *,
        seed: int | Tensor,
        sample_ids: Tensor,
        step: int,
    ) -> Condition:
        """Returns the condition, that of each example replaced by none with probability `share`.

        The decision is word 1 of stream 4 of the noise contract, one for all conditions of an
        example.
        """
        if condition is None or not share:
            return condition
        values = {LABEL: condition} if isinstance(condition, Tensor) else condition
        if isinstance(condition, Tensor) and not self.labels:
            return condition
        dropped = rng.uniform(seed=seed, sample_ids=sample_ids, step=step, word=1) < share
        kept = {
            name: torch.where(
                dropped.view(-1, *(1,) * (value.ndim - 1)),
                null_of(network, name, value, self.where, self.null),
                value,
            )
            for name, value in values.items()
        }
        return kept[LABEL] if isinstance(condition, Tensor) else kept


def labels_of(condition: Condition, where: str) -> Tensor:
    """Returns the labels of a condition. Raises ValueError where it has none."""
    found = condition.get(LABEL) if isinstance(condition, Mapping) else condition
    if found is None:
        raise ValueError(f"{where}: expected labels for every example, got none.")
    return found


def is_module(network: Any, where: str) -> nn.Module:
    """Returns the network. Raises TypeError for what training cannot train."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"{where}: expected a network as a torch.nn.Module, or its description, got a"
            f" {type(network).__name__}."
        )
    return network
