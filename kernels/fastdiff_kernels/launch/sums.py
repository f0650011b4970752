"""Launches the ops that sum over a sample, and their gradients.

They are noise_mse, gaussian_kl, discretized_gaussian_nll and vlb_terms. For a sample of more than
TILE elements the first kernel writes partial sums to the workspace, and a second small one adds
them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import (
    ERRORS,
    TILE,
    WARPS,
    Call,
    error_word,
    extent,
    int32,
    noise_arguments,
    options,
    run,
    tiled,
)

# Of a program of sum_chunks: the samples, one per thread, and the partial sums that each loads at
# once. Samples of more chunks have a program each, so that its loads are side by side.
_SAMPLES, _FLIGHT, _LONG_FLIGHT = 32, 16, 64
_BIN_WARPS = (
    8  # 4 elements per thread where a bin's mass is computed: float64 has enough registers too
)


def noise_mse(
    loss: Tensor,
    workspace: Tensor | None,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    call = noise_mse_call(
        loss, workspace, prediction, weight, seed, seeds, sample_ids, step, stream, fast
    )
    _run_sum(call, loss, weight, mean=True)


def noise_mse_call(
    loss: Tensor,
    workspace: Tensor | None,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    arguments = {"loss": loss, "prediction": prediction, "weight": weight, "step": int32(step)}
    arguments |= noise_arguments(True, seed, seeds, sample_ids, stream)
    return _sum("noise_mse", prediction, workspace, arguments, fast)


def noise_mse_backward(
    g_prediction: Tensor,
    grad: Tensor,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    call = noise_mse_backward_call(
        g_prediction, grad, prediction, weight, seed, seeds, sample_ids, step, stream, fast
    )
    run(call, grad)


def noise_mse_backward_call(
    g_prediction: Tensor,
    grad: Tensor,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> Call:
    arguments = {
        "g_prediction": g_prediction,
        "grad": grad,
        "prediction": prediction,
        "weight": weight,
        "step": int32(step),
    }
    arguments |= noise_arguments(True, seed, seeds, sample_ids, stream)
    return tiled("noise_mse_backward", prediction, arguments, fast)


def gaussian_kl(
    kl: Tensor,
    workspace: Tensor | None,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> None:
    _run_sum(gaussian_kl_call(kl, workspace, mean1, logvar1, mean2, logvar2), kl)


def gaussian_kl_call(
    kl: Tensor,
    workspace: Tensor | None,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> Call:
    views = _views(mean1=mean1, logvar1=logvar1, mean2=mean2, logvar2=logvar2)
    return _sum("gaussian_kl", mean1, workspace, {"kl": kl} | views)


def gaussian_kl_backward(
    g_mean1: Tensor | None,
    g_logvar1: Tensor | None,
    g_mean2: Tensor | None,
    g_logvar2: Tensor | None,
    grad: Tensor,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> None:
    call = gaussian_kl_backward_call(
        g_mean1, g_logvar1, g_mean2, g_logvar2, grad, mean1, logvar1, mean2, logvar2
    )
    run(call, grad)


def gaussian_kl_backward_call(
    g_mean1: Tensor | None,
    g_logvar1: Tensor | None,
    g_mean2: Tensor | None,
    g_logvar2: Tensor | None,
    grad: Tensor,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> Call:
    arguments = {
        "g_mean1": g_mean1,
        "g_logvar1": g_logvar1,
        "g_mean2": g_mean2,
        "g_logvar2": g_logvar2,
        "grad": grad,
    }
    views = _views(mean1=mean1, logvar1=logvar1, mean2=mean2, logvar2=logvar2)
    return tiled("gaussian_kl_backward", mean1, arguments | views)


def discretized_gaussian_nll(
    nll: Tensor, workspace: Tensor | None, x0: Tensor, mean: Tensor, log_scale: Tensor
) -> None:
    _run_sum(discretized_gaussian_nll_call(nll, workspace, x0, mean, log_scale), nll)


def discretized_gaussian_nll_call(
    nll: Tensor, workspace: Tensor | None, x0: Tensor, mean: Tensor, log_scale: Tensor
) -> Call:
    arguments = {"nll": nll} | _views(x0=x0, mean=mean, log_scale=log_scale)
    return _sum("discretized_gaussian_nll", x0, workspace, arguments, warps=_BIN_WARPS)


def discretized_gaussian_nll_backward(
    g_mean: Tensor | None,
    g_log_scale: Tensor | None,
    grad: Tensor,
    x0: Tensor,
    mean: Tensor,
    log_scale: Tensor,
) -> None:
    run(
        discretized_gaussian_nll_backward_call(g_mean, g_log_scale, grad, x0, mean, log_scale), grad
    )


def discretized_gaussian_nll_backward_call(
    g_mean: Tensor | None,
    g_log_scale: Tensor | None,
    grad: Tensor,
    x0: Tensor,
    mean: Tensor,
    log_scale: Tensor,
) -> Call:
    arguments = {"g_mean": g_mean, "g_log_scale": g_log_scale, "grad": grad}
    arguments |= _views(x0=x0, mean=mean, log_scale=log_scale)
    return tiled("discretized_gaussian_nll_backward", x0, arguments, warps=_BIN_WARPS)


def vlb_terms(
    terms: Tensor,
    workspace: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> None:
    _run_sum(vlb_terms_call(terms, workspace, x0, x_t, model_output, table, t), terms)


def vlb_terms_call(
    terms: Tensor,
    workspace: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> Call:
    arguments = {"terms": terms} | _vlb(x0, x_t, model_output, table, t)
    return _sum("vlb_terms", x0, workspace, arguments, warps=_BIN_WARPS)


def vlb_terms_backward(
    g_output: Tensor,
    grad: Tensor,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> None:
    run(vlb_terms_backward_call(g_output, grad, x0, x_t, model_output, table, t), grad)


def vlb_terms_backward_call(
    g_output: Tensor,
    grad: Tensor,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> Call:
    arguments = {"g_output": g_output, "grad": grad} | _vlb(x0, x_t, model_output, table, t)
    return tiled("vlb_terms_backward", x0, arguments, warps=_BIN_WARPS)


def sum_chunks_call(
    out: Tensor,
    workspace: Tensor,
    size: int,
    weight: Tensor | None = None,
    mean: bool = False,
    *,
    table: Tensor | None = None,
    row: Tensor | None = None,
    scored: bool = False,
) -> Call:
    several = -(-size // TILE) > _FLIGHT
    samples = 1 if several else _SAMPLES
    arguments = {
        "out": out,
        "workspace": workspace,
        "weight": weight,
        "table": table,
        "row": row,
        "batch": len(out),
        "size": size,
        "table_rows": 0 if table is None else len(table),
        "S": samples,
        "FLIGHT": _LONG_FLIGHT if several else _FLIGHT,
        "MEAN": mean,
        "SCORED": scored,
    }
    return Call("sum_chunks", "sums", (-(-len(out) // samples), 1, 1), arguments, options(warps=1))


def _sum(
    op: str,
    like: Tensor,
    workspace: Tensor | None,
    arguments: dict[str, Any],
    fast: bool = False,
    warps: int = WARPS,
) -> Call:
    several = extent(like)[1] > TILE
    arguments |= {"workspace": workspace if several else None}
    return tiled(op, like, arguments, fast, whole_chunks=True, warps=warps)


def _run_sum(call: Call, out: Tensor, weight: Tensor | None = None, mean: bool = False) -> None:
    run(call, out)
    if call.arguments["workspace"] is not None:
        run(
            sum_chunks_call(out, call.arguments["workspace"], call.arguments["size"], weight, mean),
            out,
        )


def _views(**views: Tensor | None) -> dict[str, Any]:
    """Returns views [B, n] with their strides; the element stride, 0 or 1, fixes a variant."""
    arguments: dict[str, Any] = {}
    for name, view in views.items():
        # an empty view has no value that a whole sample could share
        per_element = (
            view is not None and view.shape[1] != 1 and (view.stride(1) != 0 or view.shape[1] == 0)
        )
        arguments[name] = view
        arguments[f"{name}_stride"] = 0 if view is None else view.stride(0)
        arguments[f"{name.upper()}_STEP"] = int(per_element)
    return arguments


def _vlb(x0: Tensor, x_t: Tensor, model_output: Tensor, table: Tensor, t: Tensor) -> dict[str, Any]:
    return {
        "x0": x0,
        "x_t": x_t,
        "model_output": model_output,
        "table": table,
        "t": t,
        "times": len(table),
        "errors": error_word(x0.device),
        "ERROR": ERRORS["vlb_terms"],
        "WIDTH": max(1, model_output.numel() // max(1, x0.numel())),
    }
