"""Launches randn and q_sample."""

from __future__ import annotations

from torch import Tensor

from .common import ERRORS, Call, error_word, int32, noise_arguments, run, tiled


def randn(
    out: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    run(randn_call(out, seed, seeds, sample_ids, step, stream, fast), out)


def randn_call(
    out: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    noise = noise_arguments(True, seed, seeds, sample_ids, stream)
    return tiled("randn", out, {"out": out, "step": int32(step)} | noise, fast)


def q_sample(
    out: Tensor,
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    run(
        q_sample_call(out, x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast),
        out,
    )


def q_sample_call(
    out: Tensor,
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    arguments = {
        "out": out,
        "x0": x0,
        "t": t,
        "alpha": alpha,
        "sigma": sigma,
        "noise": noise,
        "errors": error_word(out.device),
        "step": int32(step),
        "times": len(alpha),
        "ERROR": ERRORS["q_sample"],
    } | noise_arguments(noise is None, seed, seeds, sample_ids, stream)
    return tiled("q_sample", out, arguments, fast and noise is None)
