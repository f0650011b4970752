"""`randn` on torch: out[b, e] = normal(seed[b], id[b], stream, step, e)."""

from __future__ import annotations

from torch import Tensor

from .q_sample import regenerate


def randn(
    out: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    if out.numel() == 0:
        return
    draw = (seed, seeds, sample_ids, step, stream, fast)
    out.copy_(regenerate(out, *draw, where="randn"))
