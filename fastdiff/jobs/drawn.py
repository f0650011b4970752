"""What computing a unit gives: its samples, or where they were not finite."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .trajectory import Trajectory


class DrawnUnit(NamedTuple):
    """The samples of a unit that belong to the run, on the device.

    Attributes:
        array: uint8 pictures [n, H, W, C] or float32 data [n, …].
        finite: bool [n], whether all numbers of a sample were finite, before the conversion to 8
            bits.
        labels: class of each sample, None without classes.
        trajectory: of the samples, where the run saves it.
    """

    array: Tensor
    finite: Tensor
    labels: list[int] | None
    trajectory: Trajectory | None = None


class Failure(NamedTuple):
    """Where the samples of a unit were not finite for the first time.

    Attributes:
        sample_id: the sample.
        step: the row of the plan, None for the decoder.
        sigma: noise level before that row, at which the network was called; None where the plan
            knows no levels.
    """

    sample_id: int
    step: int | None
    sigma: float | None

    def __str__(self) -> str:
        where = "in the decoder" if self.step is None else f"after step {self.step}"
        return f"sample {self.sample_id} is not finite {where}" + (
            f", sigma {self.sigma:g}" if self.sigma else ""
        )


class FailureOfDraw(Failure):
    """A failure of a model that draws its samples itself, which has no rows."""

    def __str__(self) -> str:
        return f"sample {self.sample_id} is not finite as the model draws it"
