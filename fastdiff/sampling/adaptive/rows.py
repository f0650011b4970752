"""A plan run row by row with noise and onlookers of the caller's: what samplers outside `Sampler`
share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import ops
from ...solvers import Plan


def run(
    plan: Plan,
    predict: Callable[[int, Tensor], Tensor],
    x: Tensor,
    *,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    noise: Callable[[int], Tensor] | None = None,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
    correct: Callable[[int, Tensor], Tensor] | None = None,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """x after all rows, one kernel each; nothing is read from the device.

    Args:
        predict: (row, network input in x's dtype) -> the network's output.
        x: [B, …], any floating dtype; the state is float32, or float64 for float64.
        seed, sample_ids: of the noise contract, or noise(row) for each row that draws.
        watch: (row, network input, output) after each call, before the row. With it every row's
            state has memory of its own, so that what was seen may be kept.
        correct: (row, state) -> the state to go on with, after each row.
        done: called with each row after it.
    """
    batch, wide = x.shape[0], torch.float64 if x.dtype == torch.float64 else torch.float32
    if not len(plan):
        return x
    state = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    narrow = torch.empty_like(state, dtype=x.dtype) if x.dtype != wide else None
    scaled = bool((plan.column("input_scale") != 1).any())
    if scaled and narrow is None:
        narrow = torch.empty_like(state)
    if narrow is not None:
        narrow.copy_(state * float(plan.column("input_scale")[0]))
    table = torch.tensor(plan.table, device=x.device)
    rows = torch.arange(len(plan), device=x.device)[:, None].expand(-1, batch).contiguous()
    slots = (
        torch.empty((plan.slots, *state.shape), dtype=wide, device=x.device) if plan.slots else None
    )
    network, draws = plan.column("network"), draws_noise(plan)
    for k in range(len(plan)):
        given, out = state if narrow is None else narrow, None
        if network[k]:
            out = predict(k, given)
            if watch is not None:
                watch(k, given, out)
        fresh = torch.empty_like(state) if watch is not None else state
        if narrow is not None and watch is not None:
            narrow = torch.empty_like(narrow)
        ops.reverse_step(
            state,
            out,
            table,
            rows[k],
            slots=slots,
            used=plan.used,
            sample_ids=sample_ids,
            seed=seed if noise is None else 0,
            noise=noise(k) if noise is not None and draws[k] else None,
            out=fresh,
            slots_out=slots,
            input_out=narrow,
        )
        state = fresh
        if correct is not None:
            state = correct(k, state).contiguous()
            if narrow is not None:
                narrow.copy_(state * float(plan.column("input_scale")[k + 1]))
        if done is not None:
            done(k)
    return state.to(x.dtype)


def draws_noise(plan: Plan) -> list[bool]:
    """Whether each row draws noise."""
    columns = [plan.column(f"{to}.z") != 0 for to in ("x", "s1", "s2", "s3", "s4")]
    return [any(bool(c[k]) for c in columns) for k in range(len(plan))]
