"""`randn` on torch: out[b, e] = normal(seed[b], id[b], stream, step, e)."""

from __future__ import annotations

from torch import Tensor

from ... import rng
from .common import iota


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
    batch = out.shape[0]
    z = rng.normals(
        out.numel() // batch,
        seed=seed if seeds is None else seeds,
        sample_ids=iota(batch, out.device) if sample_ids is None else sample_ids,
        step=step,
        stream=stream,
        fast=fast,
    )
    out.copy_(z.view(out.shape))
