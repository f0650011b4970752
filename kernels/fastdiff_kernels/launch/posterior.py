"""Launches q_posterior and reparameterize."""

from __future__ import annotations

from torch import Tensor

from .common import ERRORS, Call, error_word, int32, noise_arguments, run, tiled


def q_posterior(
    mean: Tensor,
    variance: Tensor,
    log_variance: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
) -> None:
    run(q_posterior_call(mean, variance, log_variance, x0, x_t, t, alphas_cumprod), mean)


def q_posterior_call(
    mean: Tensor,
    variance: Tensor,
    log_variance: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
) -> Call:
    arguments = {
        "mean": mean,
        "variance": variance,
        "log_variance": log_variance,
        "x0": x0,
        "x_t": x_t,
        "t": t,
        "alphas_cumprod": alphas_cumprod,
        "errors": error_word(mean.device),
        "times": len(alphas_cumprod),
        "ERROR": ERRORS["q_posterior"],
    }
    return tiled("q_posterior", mean, arguments)


def reparameterize(
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    run(reparameterize_call(z, mean, logvar, seed, seeds, sample_ids, step, stream, fast), z)


def reparameterize_call(
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    arguments = {"z": z, "mean": mean, "logvar": logvar, "step": int32(step)}
    return tiled(
        "reparameterize",
        z,
        arguments | noise_arguments(True, seed, seeds, sample_ids, stream),
        fast,
    )


def reparameterize_backward(
    g_mean: Tensor | None,
    g_logvar: Tensor | None,
    grad: Tensor,
    logvar: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    call = reparameterize_backward_call(
        g_mean, g_logvar, grad, logvar, seed, seeds, sample_ids, step, stream, fast
    )
    run(call, grad)


def reparameterize_backward_call(
    g_mean: Tensor | None,
    g_logvar: Tensor | None,
    grad: Tensor,
    logvar: Tensor,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    generated = g_logvar is not None
    arguments = {
        "g_mean": g_mean,
        "g_logvar": g_logvar,
        "grad": grad,
        "logvar": logvar if generated else None,
        "step": int32(step),
    } | noise_arguments(generated, seed, seeds, sample_ids, stream)
    return tiled("reparameterize_backward", grad, arguments, fast and generated)
