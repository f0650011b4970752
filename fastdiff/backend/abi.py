"""Packs tensors into the structs of the C ABI (csrc/include/fastdiff/ops.h).

There is one function per op, which both libraries share. All arguments of an op are 64-bit fields
of one struct, which is passed by pointer. Every struct begins with the batch, the elements of a
sample and `Launch`: the CPU's level and threads, and CUDA's stream and error word. The file is
longer than others because it holds one such function for each op and each backward pass.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from ..table import OPS

ABI_VERSION = 7
COUNTED = (
    "randn",
    "q_sample",
    "reverse_step",
    "reverse_step_guidance",
    "reverse_step_rescale",
    "reverse_step_threshold",
    "q_posterior",
    "reparameterize",
    "noise_mse",
    "gaussian_kl",
    "discretized_gaussian_nll",
    "vlb_terms",
    "sum_chunks",
    "group_norm_silu",
    "group_norm_moments",
    "group_norm_statistics",
    "step_log_prob",
)
"""What a library counts launches of, in the order of the C enum."""
PASSES = tuple(name for name in COUNTED if name not in OPS)
"""Kernels that are part of an op: prepasses, and the second pass of a sum."""

Launch = tuple[int, int, int, int]  # level, threads, stream, errors

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}
_HEAD, _DRAW, _ARRAY, _VIEW, _MAP = "qqqqQQ", "QQQQQ", "Qq", "Qqqq", "Qqqqq"
_RANDN = Struct(f"={_HEAD}{_DRAW}{_ARRAY}")
_Q_SAMPLE = Struct(f"={_HEAD}{_DRAW}{_ARRAY * 2}QQQq{_ARRAY}")
_REVERSE_STEP = Struct(
    f"={_HEAD}{_DRAW}q{_ARRAY * 3}qQqQQqQq{_ARRAY}Q{_ARRAY * 3}qQ{_ARRAY}qQQQQqQQ"
)
_FLAG = Struct("=q")
_Q_POSTERIOR = Struct(f"={_HEAD}{_ARRAY * 2}QQq{_ARRAY}QQ")
_REPARAMETERIZE = Struct(f"={_HEAD}{_DRAW}{_ARRAY * 6}")
_NOISE_MSE = Struct(f"={_HEAD}{_DRAW}{_ARRAY}QQQQ{_ARRAY}")
_GAUSSIAN_KL = Struct(f"={_HEAD}q{_VIEW * 4}QQQ{_ARRAY * 4}")
_NLL = Struct(f"={_HEAD}q{_VIEW * 3}QQQ{_ARRAY * 2}")
_VLB_TERMS = Struct(f"={_HEAD}{_ARRAY * 3}qQqQQQQ{_ARRAY}")
_GROUP_NORM_SILU = Struct(f"={_HEAD}qq{_MAP * 2}{_ARRAY * 2}{_VIEW * 3}dqQQ")


def device_of(arguments: Sequence[Any]) -> torch.device:
    """Returns the device of a launcher's arguments: of the first tensor, also inside a tuple."""
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, tuple):
            return device_of(value)
    raise TypeError(
        "fastdiff.backend: expected a tensor among the arguments of a launch, got none."
    )


def _size(tensor: Tensor) -> tuple[int, int]:
    """Returns the batch and the number of elements in a sample."""
    batch = tensor.size(0)
    return batch, tensor.numel() // batch if batch else 0


_NOTHING = (0, 0)  # pointer and dtype of a tensor that is missing


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _array(tensor: Tensor | None) -> tuple[int, int]:
    """Returns pointer and dtype."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), _DTYPES[tensor.dtype])


def _view(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """Returns pointer, dtype and strides of a [B, n] view."""
    if tensor is None:
        return 0, 0, 0, 0
    return tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.stride(0), tensor.stride(1)


def randn(
    at: Launch,
    out: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    """Packs `randn`. `fast` changes nothing: exact noise is the fastest that the libraries have."""
    return _RANDN.pack(
        *_size(out), *at, seed, _pointer(seeds), _pointer(sample_ids), step, stream, *_array(out)
    )


def q_sample(
    at: Launch,
    out: Tensor,
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    return _Q_SAMPLE.pack(
        *_size(x0),
        *at,
        seed,
        _pointer(seeds),
        _pointer(sample_ids),
        step,
        stream,
        *_array(x0),
        *_array(out),
        _pointer(t),
        alpha.data_ptr(),
        sigma.data_ptr(),
        alpha.size(0),
        *_array(noise),
    )


def reverse_step(at: Launch, step: Any) -> bytes:
    """Packs `reverse_step`; `step` is a checked fastdiff.ops.step.StepArguments.

    Its mask of used columns is for backends that specialise; the libraries decode every row.
    """
    (
        x_t, model_output, table, row, slots, noise, seed, sample_ids, guidance, gradient, stream,
        _, _, out, slots_out, x0_out, input_out, row_out, time_out, log_prob_out,
        workspace,
    ) = step  # fmt: skip  # all at once: an attribute each costs a tenth of a small step
    batch, size = _size(x_t)
    seeds = None if seed is None or isinstance(seed, int) else seed
    return _REVERSE_STEP.pack(
        batch,
        size,
        *at,
        0 if seed is None or seeds is not None else seed,
        0 if seeds is None else seeds.data_ptr(),
        0 if sample_ids is None else sample_ids.data_ptr(),
        0,
        stream,
        seed is not None,
        x_t.data_ptr(),
        _DTYPES[x_t.dtype],
        out.data_ptr(),
        _DTYPES[out.dtype],
        *(_NOTHING if model_output is None else _array(model_output)),
        0 if model_output is None else _size(model_output)[1],
        table.data_ptr(),
        table.size(0),
        row.data_ptr(),
        0 if slots is None else slots.data_ptr(),
        0 if slots is None else slots.size(0),
        0 if slots_out is None else slots_out.data_ptr(),
        0 if slots_out is None else slots_out.size(0),
        *(_NOTHING if noise is None else _array(noise)),
        0 if guidance is None else guidance.data_ptr(),
        *(_NOTHING if gradient is None else _array(gradient)),
        *(_NOTHING if x0_out is None else _array(x0_out)),
        *(_NOTHING if input_out is None else _array(input_out)),
        input_out.size(0) // batch if input_out is not None and batch else 0,
        0 if row_out is None else row_out.data_ptr(),
        *(_NOTHING if time_out is None else _array(time_out)),
        time_out.size(0) // batch if time_out is not None and batch else 0,
        *_space(step, workspace, log_prob_out),
    )


def step_log_prob(at: Launch, step: Any, mean: bool) -> bytes:
    """Packs `step_log_prob`; `step` has the scored x_s in place of `out`."""
    return reverse_step(at, step) + _FLAG.pack(mean)


HEAD_ROWS = 6
"""The first rows of a workspace: rescale factors, thresholds, and four terms of guidance."""


def _space(
    step: Any, workspace: Tensor | None, log_prob_out: Tensor | None
) -> tuple[int, int, int, int, int, int, int]:
    """Returns where rescale factors, thresholds, terms of guidance, parts of samples (and their
    64-bit words), log-probabilities and their partial sums are.

    They are addresses, because a view of a tensor costs as much as a small sample.
    """
    log_prob = 0 if log_prob_out is None else log_prob_out.data_ptr()
    if workspace is None:
        return 0, 0, 0, 0, 0, log_prob, 0
    begin, row = workspace.data_ptr(), workspace.size(1) * workspace.element_size()
    sums = step.partial_rows if log_prob else 0
    rest = workspace.size(0) - HEAD_ROWS - sums
    return (
        begin if step.rescales else 0,
        begin + row if step.thresholds else 0,
        begin + 2 * row if step.changes else 0,
        begin + HEAD_ROWS * row if rest else 0,
        rest * row // 8,
        log_prob,
        begin + (HEAD_ROWS + rest) * row if sums else 0,
    )


STEP_WORDS = {
    "seed": 6,
    "sample_ids": 8,
    "x_t": 12,
    "out": 14,
    "model_output": 16,
    "table": 19,
    "row": 21,
    "slots": 22,
    "slots_out": 24,
    "noise": 26,
    "guidance": 28,
    "gradient": 29,
    "x0_out": 31,
    "input_out": 33,
    "row_out": 36,
    "time_out": 37,
    "log_prob_out": 45,
}
"""Where the packed `reverse_step` holds the pointer of an argument, counted in 64-bit words."""
_LEVEL, _THREADS, _STREAM, _ERRORS = 2, 3, 4, 5  # where every struct holds its `Launch`
_UNSIGNED = 2**64 - 1


Pack = Callable[[Launch, Sequence[Any]], bytes]


def packers(step: Any, moving: Sequence[str], both_ways: bool = False) -> list[Pack]:
    """Packs a `reverse_step` once for many launches.

    The functions returned replace the arguments called `moving` by other values. They equal the
    packed ones in shape, dtype and device. With `both_ways` a second function exchanges `row` and
    `row_out`.
    """
    template = array("Q", reverse_step((0, 0, 0, 0), step))
    values = [(i, STEP_WORDS[name], getattr(step, name)) for i, name in enumerate(moving)]
    pointers = [(i, word) for i, word, value in values if isinstance(value, Tensor)]
    numbers = [(i, word) for i, word, value in values if isinstance(value, int)]
    templates = [template]
    if both_ways:
        back = template[:]
        row, row_out = STEP_WORDS["row"], STEP_WORDS["row_out"]
        back[row], back[row_out] = back[row_out], back[row]
        templates.append(back)
    return [_packer(words, pointers, numbers) for words in templates]


def _packer(
    template: array[int], pointers: list[tuple[int, int]], numbers: list[tuple[int, int]]
) -> Pack:
    def pack(at: Launch, values: Sequence[Any]) -> bytes:
        words = template[:]
        level, words[_THREADS], words[_STREAM], words[_ERRORS] = at
        words[_LEVEL] = level & _UNSIGNED
        for i, word in pointers:
            words[word] = values[i].data_ptr()
        for i, word in numbers:
            words[word] = values[i]
        return words.tobytes()

    return pack


def q_posterior(
    at: Launch,
    mean: Tensor,
    variance: Tensor,
    log_variance: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
) -> bytes:
    return _Q_POSTERIOR.pack(
        *_size(x0),
        *at,
        *_array(x0),
        *_array(x_t),
        t.data_ptr(),
        alphas_cumprod.data_ptr(),
        alphas_cumprod.size(0),
        *_array(mean),
        variance.data_ptr(),
        log_variance.data_ptr(),
    )


def reparameterize(
    at: Launch,
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    return _REPARAMETERIZE.pack(
        *_size(z),
        *at,
        seed,
        _pointer(seeds),
        _pointer(sample_ids),
        step,
        stream,
        *_array(mean),
        *_array(logvar),
        *_array(z),
        0,
        0,
        0,
        0,
        0,
        0,
    )


def reparameterize_backward(
    at: Launch,
    g_mean: Tensor | None,
    g_logvar: Tensor | None,
    grad: Tensor,
    logvar: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    return _REPARAMETERIZE.pack(
        *_size(grad),
        *at,
        seed,
        _pointer(seeds),
        _pointer(sample_ids),
        step,
        stream,
        0,
        0,
        *_array(logvar),
        0,
        0,
        *_array(grad),
        *_array(g_mean),
        *_array(g_logvar),
    )


def noise_mse(
    at: Launch,
    loss: Tensor,
    workspace: Tensor | None,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    return _NOISE_MSE.pack(
        *_size(prediction),
        *at,
        seed,
        _pointer(seeds),
        _pointer(sample_ids),
        step,
        stream,
        *_array(prediction),
        _pointer(weight),
        loss.data_ptr(),
        _pointer(workspace),
        0,
        0,
        0,
    )


def noise_mse_backward(
    at: Launch,
    g_prediction: Tensor,
    grad: Tensor,
    prediction: Tensor,
    weight: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> bytes:
    return _NOISE_MSE.pack(
        *_size(prediction),
        *at,
        seed,
        _pointer(seeds),
        _pointer(sample_ids),
        step,
        stream,
        *_array(prediction),
        _pointer(weight),
        0,
        0,
        grad.data_ptr(),
        *_array(g_prediction),
    )


def gaussian_kl(
    at: Launch,
    kl: Tensor,
    workspace: Tensor | None,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> bytes:
    return _GAUSSIAN_KL.pack(
        *mean1.shape,
        *at,
        _DTYPES[kl.dtype],
        *_view(mean1),
        *_view(logvar1),
        *_view(mean2),
        *_view(logvar2),
        kl.data_ptr(),
        _pointer(workspace),
        0,
        *(0,) * 8,
    )


def gaussian_kl_backward(
    at: Launch,
    g_mean1: Tensor | None,
    g_logvar1: Tensor | None,
    g_mean2: Tensor | None,
    g_logvar2: Tensor | None,
    grad: Tensor,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> bytes:
    return _GAUSSIAN_KL.pack(
        *mean1.shape,
        *at,
        _DTYPES[grad.dtype],
        *_view(mean1),
        *_view(logvar1),
        *_view(mean2),
        *_view(logvar2),
        0,
        0,
        grad.data_ptr(),
        *_array(g_mean1),
        *_array(g_logvar1),
        *_array(g_mean2),
        *_array(g_logvar2),
    )


def discretized_gaussian_nll(
    at: Launch, nll: Tensor, workspace: Tensor | None, x0: Tensor, mean: Tensor, log_scale: Tensor
) -> bytes:
    return _NLL.pack(
        *x0.shape,
        *at,
        _DTYPES[nll.dtype],
        *_view(x0),
        *_view(mean),
        *_view(log_scale),
        nll.data_ptr(),
        _pointer(workspace),
        0,
        0,
        0,
        0,
        0,
    )


def discretized_gaussian_nll_backward(
    at: Launch,
    g_mean: Tensor | None,
    g_log_scale: Tensor | None,
    grad: Tensor,
    x0: Tensor,
    mean: Tensor,
    log_scale: Tensor,
) -> bytes:
    return _NLL.pack(
        *x0.shape,
        *at,
        _DTYPES[grad.dtype],
        *_view(x0),
        *_view(mean),
        *_view(log_scale),
        0,
        0,
        grad.data_ptr(),
        *_array(g_mean),
        *_array(g_log_scale),
    )


def vlb_terms(
    at: Launch,
    terms: Tensor,
    workspace: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> bytes:
    return _VLB_TERMS.pack(
        *_size(x0),
        *at,
        *_array(x0),
        *_array(x_t),
        *_array(model_output),
        _size(model_output)[1],
        table.data_ptr(),
        table.size(0),
        t.data_ptr(),
        terms.data_ptr(),
        _pointer(workspace),
        0,
        0,
        0,
    )


def vlb_terms_backward(
    at: Launch,
    g_output: Tensor,
    grad: Tensor,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> bytes:
    return _VLB_TERMS.pack(
        *_size(x0),
        *at,
        *_array(x0),
        *_array(x_t),
        *_array(model_output),
        _size(model_output)[1],
        table.data_ptr(),
        table.size(0),
        t.data_ptr(),
        0,
        0,
        grad.data_ptr(),
        *_array(g_output),
    )


def group_norm_silu(
    at: Launch,
    out: Tensor,
    workspace: Tensor | None,
    statistics: Tensor | None,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    eps: float,
    silu: bool,
) -> bytes:
    """Packs `group_norm_silu`; `out` and `x` are [B, C, n] views, `statistics` is for GPUs."""
    batch, channels, positions = x.shape
    return _GROUP_NORM_SILU.pack(
        batch,
        channels * positions,
        *at,
        channels,
        groups,
        x.data_ptr(),
        _DTYPES[x.dtype],
        *x.stride(),
        out.data_ptr(),
        _DTYPES[out.dtype],
        *out.stride(),
        *_array(weight),
        *_array(bias),
        *_view(scale),
        *_view(shift),
        *_view(add),
        eps,
        silu,
        _pointer(workspace),
        _pointer(statistics),
    )


PACKERS: dict[str, tuple[str, Callable[..., bytes]]] = {
    name: (name.removesuffix("_backward"), globals()[name])
    for op in OPS
    for name in (op, f"{op}_backward")
    if name in globals()
}
"""Launcher name: (the C function, the packer of its struct)."""
