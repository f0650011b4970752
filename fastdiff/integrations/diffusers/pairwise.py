"""Drop-ins whose step depends on its timesteps alone, not on its position on the grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .state import State
from .vp import VariancePreserving


class Pairwise(VariancePreserving):
    """A variance-preserving scheduler that counts no steps: every step is a plan of one row."""

    _compatibles: list[str] = []

    def _index(self, state: State, timestep: Any) -> int | None:
        return None

    @staticmethod
    def _whole(state: State, timestep: Any) -> int:
        """The timestep as an int; the device is not read where it is a view of the grid."""
        index = state.view_index(timestep) if isinstance(timestep, Tensor) else None
        return int(timestep) if index is None else state.values[index]
