"""What a data set is to the trainer, to evaluation and to metrics."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Condition = Tensor | dict[str, Tensor]
"""Labels int64 [B], or {a keyword argument of the network: a tensor [B, …]}."""


class Data(Protocol):
    """A data set of numbered examples.

    It may also have `origin`, a dict that JSON can hold: where the examples come from, as a model
    folder's config.json keeps it (`fastdiff.data.reopen`).
    """

    @property
    def examples(self) -> int:
        """Their number."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        ...

    @property
    def levels(self) -> int | None:
        """Of a pixel, 256; None for continuous data."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels; none for data without labels."""
        ...

    @property
    def name(self) -> str:
        """The data set and its split, for provenance: other examples have another name."""
        ...

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Condition]:
        """Returns (x0 float32 [B, *shape], condition) of the examples `index`, int64 [B].

        Whatever is drawn (flips, crops, noise within a level, latents) is a pure function of
        (seed, epoch, index), so the batch that an example is in does not matter. The data set is
        not changed, except for caches.
        """
        ...
