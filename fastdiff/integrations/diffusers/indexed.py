"""Drop-ins that count their steps with diffusers' step_index and begin_index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import DropIn
from .state import RunTable, State


class Counted(DropIn):
    """A scheduler with diffusers' counters.

    Attributes:
        step_index: the index of the next step; None before the first one.
        begin_index: the index of the run's first step, if set_begin_index was called.
    """

    _last_for_unknown = False  # whether diffusers takes an unknown timestep for the last one
    # whether a step depends on its timestep, not on its index alone
    _reads_timestep = False

    @property
    def step_index(self) -> int | None:
        return self._state.step_index

    @property
    def begin_index(self) -> int | None:
        return self._state.begin_index

    @property
    def _begin_index(self) -> int | None:
        return self._state.begin_index

    @_begin_index.setter
    def _begin_index(self, value: int | None) -> None:
        self._state.begin_index = value

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index of the run's first step; pipelines that start inside the grid call it."""
        self._state.begin_index = begin_index

    def _index(self, state: State, timestep: Any) -> int | None:
        index = super()._index(state, timestep)
        if index is None:  # diffusers counts the steps and does not read later timesteps
            if state.step_index is not None:
                return state.step_index
            return len(state.values) - 1 if self._last_for_unknown else None
        return index

    def _first_shift(self, state: State, timestep: Any) -> int:
        """The shift at a run's first call, and where its timesteps were assigned.

        diffusers' counter begins at begin_index, or at the second one of two equal timesteps, and
        goes on from there.
        """
        place = state.view_index(timestep) if isinstance(timestep, Tensor) else None
        if place is None:
            return 0
        places = [i for i, t in enumerate(state.values) if t == state.values[place]]
        first = state.step_index if state.step_index is not None else state.begin_index
        if first is None:
            # at the beginning of a whole grid diffusers would then leave the grid at its end
            second = len(places) > 1 and (place > 0 or self.order > 1)
            first = places[1] if second else place
        if self._reads_timestep and first != place:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected the timestep of index {first}, at"
                f" which the run begins, got that of index {place}. Call set_begin_index with the"
                " index of the first timestep."
            )
        return first - place

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The index of a timestep's value.

        Where two are equal it is the second one, at which a run that starts inside the grid begins.
        """
        host = self._state.values if schedule_timesteps is None else schedule_timesteps.tolist()
        found = [i for i, t in enumerate(host) if t == float(timestep)]
        if not found:
            if self._last_for_unknown:
                return len(host) - 1
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected one of scheduler.timesteps, got"
                f" {float(timestep)}."
            )
        return found[1] if len(found) > 1 else found[0]

    def _refuse_integer(self, where: str, timestep: Any) -> None:
        """Raises ValueError for an integer, which diffusers takes for an index."""
        whole = isinstance(timestep, int) or (
            isinstance(timestep, Tensor)
            and timestep.dtype in (torch.int32, torch.int64)
            and timestep.device.type == "cpu"
        )
        if whole:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.{where}: expected one of scheduler.timesteps, got"
                f" an integer {timestep}. Iterate over scheduler.timesteps."
            )


class Indexed(Counted):
    """A scheduler over a table of noise levels.

    Attributes:
        sigmas: the levels of the timesteps and the one that the last step goes to, on the CPU.
    """

    sigmas: Any = RunTable()

    def _adopt(
        self, key: str, known: tuple[str, ...], others: tuple[str, ...], replacement: str
    ) -> None:
        """Replaces a configuration's value that only another scheduler class knows.

        A value in `others` becomes `replacement`. Raises NotImplementedError for a value that is
        not in `known` either.
        """
        value = self.config[key]
        if value in others:
            self.register_to_config(**{key: replacement})
        elif value not in known:
            raise NotImplementedError(
                f"fastdiff.{type(self).__name__}: expected {key} in {list(known)}, got {value!r}."
            )

    def _sigmas_of(self, state: State) -> list[float]:
        """The levels of a state as numbers. Raises ValueError for a negative one."""
        levels = state.tables["sigmas"].tolist()
        if any(v < 0 for v in levels):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected sigmas >= 0, got {min(levels)}."
            )
        return levels

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        """The sample divided by its level's scale, for classes with scales.

        It may be called repeatedly: it does not advance the step. Further arguments have no effect.
        """
        state = self._state
        if state.scales is None:
            return sample
        self.is_scale_input_called = True
        if state.driven is not None:
            return self._peer.scale_model_input(self, sample, timestep)
        index = self._index(state, timestep)
        if index is None:
            index = self.index_for_timestep(timestep)
        if index >= len(state.scales):
            self._refuse_levels("scale_model_input", state, index)
        if state.step_index is None:
            state.step_index = index
        scale = self._stage_scale(state, index)
        return sample / (state.scales[index] if scale is None else scale)

    def _stage_scale(self, state: State, index: int) -> float | None:
        """The divisor of the network's input where it is not that of the index."""
        return None

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise; timesteps [B].

        In a run the level is that of its first step, and later of its next step.
        """
        state = self._state
        if state.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps.tolist()]
        else:
            index = state.begin_index if state.step_index is None else state.step_index
            indices = [index] * timesteps.shape[0]
        chosen = self.sigmas.to(device=original_samples.device, dtype=original_samples.dtype)[
            indices
        ]
        alpha, sigma = self._mixture(chosen.reshape(-1, *(1,) * (original_samples.ndim - 1)))
        return alpha * original_samples + sigma * noise

    def _mixture(self, sigma: Tensor) -> tuple[Any, Tensor]:
        """(alpha, sigma) of the noised state at a level of the table."""
        return 1.0, sigma
