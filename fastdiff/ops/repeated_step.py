"""`reverse_step` on buffers that stay: checked once, launched many times.

A sampling loop calls the op with the same state, slots and outputs at every step; only the
network's output and the rows move. Checking and packing all of it again costs more than a small
step itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backend import choice as backends
from . import common
from .reverse_step import checked_arguments, checked_outputs, launch_arguments, reverse_step


class RepeatedStep:
    """reverse_step(x, model_output, table, row, …, out=x, slots_out=slots), all fixed but
    model_output and the rows.

    Arguments as for `reverse_step`, errors included. The first call of each kind is checked as the
    op checks; later ones, with an output of the same shape, dtype and device, launch the kernel
    alone. `guided` chooses per call whether guidance is applied. Where ops are being watched (fake
    tensors, dispatch modes, tracing) every call goes through the op.
    """

    def __init__(
        self,
        x: Tensor,
        table: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        used: int | None = None,
        slots: Tensor | None = None,
        x0_out: Tensor | None = None,
        input_out: Tensor | None = None,
        workspace: Tensor | None = None,
    ):
        self._x, self._table, self._guidance = x, table, guidance
        self._seed, self._ids, self._used = seed, sample_ids, used
        self._slots, self._others = slots, (x0_out, input_out)
        self._workspace = workspace
        self._known: dict[
            Any, tuple[Callable[..., None], Any]
        ] = {}  # with the tensors whose memory is packed
        self._written = [
            value for value in (x, slots, x0_out, input_out, workspace) if value is not None
        ]

    def __call__(
        self,
        model_output: Tensor | None,
        row: Tensor,
        row_out: Tensor,
        *,
        guided: bool = False,
        noise: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """Executes row[b] for every sample in place and writes the next rows to row_out."""
        x = self._x
        key: tuple[Any, ...] | None = None
        if noise is None and gradient is None and common.unobserved(x, row, row_out):
            if model_output is None:
                key = (guided,)
            elif type(model_output) is Tensor and model_output.is_contiguous():
                key = (guided, model_output.shape, model_output.dtype, model_output.device)
            known = self._known.get(key) if key else None
            if known is None and key:
                known = self._bind(key, model_output, row, row_out, guided)
            if known is not None:
                known[0](model_output, row, row_out)
                if not x.is_inference():
                    torch.autograd.graph.increment_version([*self._written, row_out])
                return
        x0_out, input_out = self._others
        reverse_step(
            x,
            model_output,
            self._table,
            row,
            guidance=self._guidance if guided else None,
            noise=noise,
            gradient=gradient,
            slots=self._slots,
            workspace=self._workspace,
            out=x,
            slots_out=self._slots,
            x0_out=x0_out,
            input_out=input_out,
            row_out=row_out,
            seed=self._seed,
            sample_ids=self._ids,
            used=self._used,
        )

    def _bind(
        self,
        key: tuple[Any, ...],
        model_output: Tensor | None,
        row: Tensor,
        row_out: Tensor,
        guided: bool,
    ) -> tuple[Callable[..., None], Any] | None:
        """The first call of a kind: what the op would check is checked, and what it would launch is
        packed.
        """
        bind = backends.binder("reverse_step", self._x.device)
        if bind is None:
            return None
        checked = checked_arguments(
            self._x,
            model_output,
            self._table,
            row,
            self._slots,
            None,
            self._seed,
            self._ids,
            self._guidance if guided else None,
            None,
            1,
            "exact",
            self._used,
            self._slots,
            self._others[0],
        )
        outputs: Any = (self._x, self._slots, *self._others, row_out, self._workspace)
        checked_outputs(self._x, *outputs)
        everything: Any = (*checked, *outputs)
        arguments = launch_arguments(*everything)
        self._known[key] = known = bind(*arguments), arguments
        return known
