"""Compiles the Triton kernels to machine code without a driver, as a launch would.

tests/backend/test_triton.py starts this file. The limits of registers and instructions are for
sm_90. "Instructions per element" are all instructions of the file, each counted once (the set-up
and slow paths of the square root included), divided by the elements of a tile. A warp executes
fewer, because a program computes several tiles: tests/backend/triton_compile/instructions.py.

The file is long because it has a launch and its limits for every kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import variants
from fastdiff_kernels import launch
from triton.backends.compiler import GPUTarget
from variants import dump

from fastdiff.ops.step import StepArguments, workspace_for
from fastdiff.table import COLUMNS, columns

HOPPER = GPUTarget("cuda", 90, 32)
OTHERS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 100, 32), GPUTarget("hip", "gfx942", 64)]
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
BATCH = 4


# the columns in use by a row of these solvers
DDIM = columns(
    "network",
    "t",
    "input_scale",
    "x0_x",
    "x0_out",
    "clip_mode",
    "clip_bound",
    "next",
    "x.x",
    "x.x0",
)
DDPM = DDIM | columns("noise_index", "x.z")
LEARNED = DDPM | columns("noise_mode", "logvar_lo", "logvar_hi")
DPM2M = DDIM | columns("x.s1", "s1.x0")


def tensor(
    dtype: torch.dtype = F32, batch: int = BATCH, shape: tuple[int, ...] = (3, 32, 32)
) -> torch.Tensor:
    return torch.empty((batch, *shape), dtype=dtype)


def randn(
    dtype: torch.dtype = F32,
    fast: bool = False,
    seed: int = 5,
    shape: tuple[int, ...] = (3, 32, 32),
) -> launch.Call:
    return launch.randn_call(tensor(dtype, shape=shape), seed, None, None, 0, 0, fast)


def q_sample() -> launch.Call:
    table = torch.zeros(1000, dtype=F64)
    t = torch.zeros(BATCH, dtype=torch.int64)
    return launch.q_sample_call(
        tensor(), tensor(), t, table, table, None, 5, None, None, 0, 2, False
    )


def step(
    uses: int,
    *,
    x: torch.dtype = F32,
    output: torch.dtype = F32,
    network_input: torch.dtype | None = None,
    guided: bool = False,
    slots: int = 0,
    width: int = 1,
    fast: bool = False,
    shape: tuple[int, ...] = (3, 32, 32),
) -> launch.Call:
    x_t, row, halves = tensor(x, shape=shape), torch.zeros(BATCH, dtype=torch.int64), 1 + guided
    memory = (
        tensor(F64 if x == F64 else F32, slots * BATCH, shape).view(slots, BATCH, *shape)
        if slots
        else None
    )
    guidance = torch.ones(BATCH, dtype=F64 if x == F64 else F32) if guided else None
    return launch.reverse_step_call(
        StepArguments(
            x_t,
            tensor(output, halves * BATCH, (width * shape[0], *shape[1:])),
            torch.zeros(10, len(COLUMNS), dtype=F64),
            row,
            out=x_t,
            slots=memory,
            seed=5,
            guidance=guidance,
            mode="fast" if fast else "exact",
            used=uses,
            slots_out=memory,
            input_out=None
            if network_input is None
            else tensor(network_input, halves * BATCH, shape),
            row_out=torch.zeros_like(row),
            time_out=None if network_input is None else row.repeat(halves),
        )
    )


def scored_step(
    uses: int,
    *,
    x: torch.dtype = F32,
    output: torch.dtype = F32,
    guided: bool = False,
    width: int = 1,
    sampled: bool = False,
) -> launch.Call:
    """Returns a launch of step_log_prob or, `sampled`, of a step with log_prob_out."""
    x_t, row, halves = tensor(x), torch.zeros(BATCH, dtype=torch.int64), 1 + guided
    step = StepArguments(
        x_t,
        tensor(output, halves * BATCH, (3 * width, 32, 32)),
        torch.zeros(10, len(COLUMNS), dtype=F64),
        row,
        out=tensor(x),
        seed=5 if sampled else None,
        guidance=per_sample(x) if guided else None,
        used=uses,
        log_prob_out=per_sample(x),
        workspace=workspace_for(x_t, log_prob=True),
    )
    return launch.reverse_step_call(step) if sampled else launch.step_log_prob_call(step, False)


def per_sample(dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(BATCH, dtype=F64 if dtype == F64 else F32)


def views(count: int, dtype: torch.dtype = F32) -> list[torch.Tensor]:
    return [tensor(dtype).view(BATCH, -1) for _ in range(count)]


def workspace(dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(3 * BATCH, dtype=F64 if dtype == F64 else F32)


def gaussian_kl(dtype: torch.dtype = F32, standard: bool = False) -> launch.Call:
    second = [None, None] if standard else views(2, dtype)
    return launch.gaussian_kl_call(per_sample(dtype), workspace(dtype), *views(2, dtype), *second)


def discretized_gaussian_nll(dtype: torch.dtype = F32) -> launch.Call:
    return launch.discretized_gaussian_nll_call(
        per_sample(dtype), workspace(dtype), *views(3, dtype)
    )


def vlb_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    t = torch.zeros(BATCH, dtype=torch.int64)
    return [
        tensor(dtype),
        tensor(dtype),
        tensor(dtype, shape=(6, 32, 32)),
        torch.zeros(1000, 9, dtype=F64),
        t,
    ]


def vlb_terms(dtype: torch.dtype = F32) -> launch.Call:
    return launch.vlb_terms_call(per_sample(dtype), workspace(dtype), *vlb_inputs(dtype))


def noise_mse(dtype: torch.dtype = F32) -> launch.Call:
    return launch.noise_mse_call(
        per_sample(dtype),
        workspace(dtype),
        tensor(dtype),
        per_sample(dtype),
        5,
        None,
        None,
        0,
        2,
        False,
    )


def backward(op: str, dtype: torch.dtype = F32) -> launch.Call:
    grad, noise = per_sample(dtype), (5, None, None, 0, 3, False)
    if op == "gaussian_kl":
        return launch.gaussian_kl_backward_call(*views(4, dtype), grad, *views(4, dtype))
    if op == "discretized_gaussian_nll":
        return launch.discretized_gaussian_nll_backward_call(
            *views(2, dtype), grad, *views(3, dtype)
        )
    if op == "vlb_terms":
        return launch.vlb_terms_backward_call(
            tensor(dtype, shape=(6, 32, 32)), grad, *vlb_inputs(dtype)
        )
    if op == "noise_mse":
        return launch.noise_mse_backward_call(tensor(dtype), grad, tensor(dtype), grad, *noise)
    return launch.reparameterize_backward_call(
        tensor(dtype), tensor(dtype), tensor(dtype), tensor(dtype), *noise
    )


def q_posterior(dtype: torch.dtype = F32) -> launch.Call:
    t, table = torch.zeros(BATCH, dtype=torch.int64), torch.zeros(1000, dtype=F64)
    return launch.q_posterior_call(
        tensor(dtype), per_sample(dtype), per_sample(dtype), tensor(dtype), tensor(dtype), t, table
    )


def reparameterize(dtype: torch.dtype = F32) -> launch.Call:
    return launch.reparameterize_call(
        tensor(dtype), tensor(dtype), tensor(dtype), 5, None, None, 0, 3, False
    )


def sum_chunks(chunks: int = 3) -> launch.Call:
    return launch.sum_chunks_call(per_sample(), workspace(), 1024 * chunks, per_sample(), True)


def whole_sample(
    x: torch.dtype = F32,
    shape: tuple[int, ...] = (3, 32, 32),
    width: int = 1,
    kinds: bool = False,
) -> launch.Call:
    """Returns a DDIM step with rescaled guidance and a dynamic threshold; with `kinds` of guidance
    that read and write slot 4.
    """
    row, memory = torch.zeros(BATCH, dtype=torch.int64), per_sample(x)
    state = tensor(x, shape=shape)
    slots = torch.zeros(4, *state.shape, dtype=memory.dtype) if kinds else None
    uses = columns("guidance_kind", "guidance_x", "guidance_momentum") if kinds else 0
    return launch.reverse_step_call(
        StepArguments(
            tensor(x, shape=shape),
            tensor(x, 2 * BATCH, (width * shape[0], *shape[1:])),
            torch.zeros(10, len(COLUMNS), dtype=F64),
            row,
            out=tensor(x, shape=shape),
            seed=5,
            guidance=memory,
            used=DDIM | columns("guidance_rescale", "clip_ratio") | uses,
            row_out=torch.zeros_like(row),
            workspace=workspace_for(state),
            slots=slots,
            slots_out=slots,
        )
    )


def long_sample(which: int, x: torch.dtype = F32, kinds: bool = False) -> launch.Call:
    """Returns a prepass of samples of several parts.

    0 and 1 are the factor's, from 2 on are the threshold's digits, and -1 is its last. With `kinds`
    of guidance theirs are 0 and 1, and the others follow.
    """
    shape = (3, 128, 128)
    state = tensor(x, shape=shape)
    call = whole_sample(x, shape, kinds=kinds)
    return launch.reverse_step_prepass_calls(call, workspace_for(state))[which]


def of_kinds(x: torch.dtype = F32, shape: tuple[int, ...] = (3, 32, 32)) -> launch.Call:
    """Returns the prepass of kinds of guidance."""
    return launch.reverse_step_guidance_call(whole_sample(x, shape, kinds=True))


def group_norm(
    which: str, dtype: torch.dtype = F32, last: bool = True, silu: bool = True
) -> launch.Call:
    """Returns a launch of one of the op's three kernels, with all optional inputs.

    x has 128 channels of 32 x 32 positions, channels last if `last`.
    """
    x = (
        tensor(dtype, shape=(1024, 128)).transpose(1, 2)
        if last
        else tensor(dtype, shape=(128, 1024))
    )
    compute = F64 if dtype == F64 else F32
    space, statistics = (
        torch.empty(2 * BATCH * 16 * 128, dtype=compute),
        torch.empty(2 * BATCH * 32, dtype=compute),
    )
    vector, rows = torch.empty(128), torch.empty(BATCH, 128)
    if which == "moments":
        return launch.group_norm_moments_call(space, x, rows)
    if which == "statistics":
        return launch.group_norm_statistics_call(statistics, space, x, 32, 1e-5)
    return launch.group_norm_silu_call(
        torch.empty_like(x), statistics, x, 32, vector, vector, rows, rows, rows, silu
    )


def compiled(call: launch.Call, target: GPUTarget = HOPPER) -> Any:
    """What Triton would compile for this launch."""
    return variants.compiled(
        variants.variant(call.kernel(), call.arguments, call.options, target), target
    )


def instructions(code: str) -> list[tuple[int, str, str]]:
    """The address, the operation and the operands of each instruction."""
    line = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\S+ )?([A-Z][\w.]*)([^;]*);"
    found = [(int(at, 16), name, rest) for at, name, rest in re.findall(line, code)]
    return [instruction for instruction in found if instruction[1] != "NOP"]


def executed(code: str, op: str) -> float:
    """Every instruction once; of group_norm_silu, for a tile of a program that computes eight."""
    program = instructions(code)
    if op != "group_norm_silu":
        return len(program)
    back = [
        (int(to[1], 16), at)
        for at, name, rest in program
        if name == "BRA" and (to := re.search(r"0x([0-9a-f]+)", rest)) and int(to[1], 16) < at
    ]
    loop = max(sum(first <= at <= last for at, _, _ in program) for first, last in back)
    return loop + (len(program) - loop) / 8


# name: (launch, most registers, most instructions per element)
VARIANTS = {
    "randn": (lambda: randn(), 40, 63),
    "randn, fast": (lambda: randn(fast=True), 40, 42),
    "randn, bfloat16": (lambda: randn(BF16), 40, 65),
    "q_sample": (lambda: q_sample(), 64, 74),
    "DDIM": (lambda: step(DDIM), 40, 40),
    "DDPM": (lambda: step(DDPM), 64, 100),
    "DDPM, fast": (lambda: step(DDPM, fast=True), 64, 77),
    "DDPM, bfloat16 network": (lambda: step(DDPM, output=BF16, network_input=BF16), 64, 118),
    "DDPM, all bfloat16": (lambda: step(DDPM, x=BF16, output=BF16), 64, 105),
    "DDPM, learned variance": (lambda: step(LEARNED, width=2), 64, 135),
    "DDPM, with its log-probability": (lambda: scored_step(DDPM, sampled=True), 64, 130),
    "step_log_prob": (lambda: scored_step(DDPM), 48, 70),
    "step_log_prob, guided, learned variance": (
        lambda: scored_step(LEARNED, guided=True, width=2, output=BF16),
        56,
        116,
    ),
    "2M": (lambda: step(DPM2M, slots=1), 48, 52),
    "guided, next input": (lambda: step(DDIM, guided=True, network_input=F32), 56, 62),
    "guided, next input, bfloat16 network": (
        lambda: step(DDIM, guided=True, output=BF16, network_input=BF16),
        56,
        69,
    ),
    "guided, rescaled, dynamic threshold": (lambda: whole_sample(), 56, 91),
    "guided by a kind with momentum": (lambda: whole_sample(kinds=True), 80, 133),
    "prepass: guidance": (lambda: of_kinds(), 128, 172),
    "prepass: guidance, a part": (lambda: long_sample(0, kinds=True), 128, 172),
    "prepass: rescale, of a kind": (
        lambda: launch.reverse_step_rescale_call(whole_sample(kinds=True)),
        104,
        210,
    ),
    "prepass: rescale": (lambda: launch.reverse_step_rescale_call(whole_sample()), 104, 153),
    "prepass: threshold": (lambda: launch.reverse_step_threshold_call(whole_sample()), 128, 516),
    "prepass: rescale, a part": (lambda: long_sample(0), 104, 134),
    "prepass: threshold, a part's digit": (lambda: long_sample(3), 104, 168),
    "q_posterior": (lambda: q_posterior(), 48, 81),
    "reparameterize": (lambda: reparameterize(), 48, 95),
    "noise_mse": (lambda: noise_mse(), 56, 80),
    "gaussian_kl": (lambda: gaussian_kl(), 40, 92),
    "gaussian_kl, standard normal": (lambda: gaussian_kl(standard=True), 40, 54),
    "discretized_gaussian_nll": (lambda: discretized_gaussian_nll(), 100, 470),
    "vlb_terms": (lambda: vlb_terms(), 128, 565),
    "vlb_terms, backward": (lambda: backward("vlb_terms"), 128, 585),
    "group_norm_silu": (lambda: group_norm("silu"), 72, 59),
    "group_norm_silu, bfloat16": (lambda: group_norm("silu", BF16), 80, 60),
    "group_norm_silu, channels first": (lambda: group_norm("silu", last=False), 48, 58),
    "group_norm_silu: moments": (lambda: group_norm("moments"), 96, 18),
    "group_norm_silu: moments, bfloat16": (lambda: group_norm("moments", BF16), 96, 19),
    "group_norm_silu: moments, channels first": (
        lambda: group_norm("moments", last=False),
        128,
        30,
    ),
}
# kernels that store one value per sample, chunk or channel, not one per element
WITHOUT_WIDE_STORES = (
    "noise_mse",
    "gaussian_kl",
    "discretized_gaussian_nll",
    "vlb_terms",
    "step_log_prob",
    "reverse_step_guidance",
    "reverse_step_rescale",
    "reverse_step_threshold",
    "reverse_step_threshold_count",
    "group_norm_moments",
)


@pytest.mark.parametrize("name", VARIANTS)
def test_machine_code_for_sm_90(name: str, tmp_path: Path) -> None:
    make, most_registers, most_instructions = VARIANTS[name]
    call = make()
    result = compiled(call)
    if not call.arguments["FAST"]:
        # float64's logarithm is the platform's, which fuses and starts from an approximate
        # reciprocal
        found = re.findall(
            r"\S*(?:fma\.|\.approx|\.ftz|max\.(?:NaN\.)?f|min\.(?:NaN\.)?f)\S*", result.asm["ptx"]
        )
        found = [
            instruction
            for instruction in found
            if not (call.op == "q_posterior" and instruction.endswith("f64"))
        ]
        assert not found, "exact kernels round every operation once and let NaN pass"
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(result.asm["cubin"])
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dump(cubin, "-res-usage")))
    code = dump(cubin, "-sass")
    operations = Counter(operation for _, operation, _ in instructions(code))
    threads = 32 * call.options["num_warps"]
    per_element = executed(code, call.op) / (
        call.arguments.get("S", 1) * call.arguments["E"] / threads
    )
    print(f"{name}: {usage['REG']} registers, {per_element:.1f} instructions per element")
    assert (usage["STACK"], usage["LOCAL"]) == ("0", "0")
    assert int(usage["REG"]) <= most_registers
    assert per_element <= most_instructions
    assert operations["STG.E.128"] or call.op in WITHOUT_WIDE_STORES, (
        "results are stored 16 bytes at a time"
    )
    if call.op == "group_norm_moments" and call.arguments["LAST"]:
        # a thread has one channel: the loads of a warp are side by side
        assert not any(name in operations for name in ("SHFL.BFLY", "BAR.SYNC.DEFER_BLOCKING"))
        return
    # entries of the table and other values of a sample are loaded by narrower instructions
    assert operations["LDG.E.128"] or call.op == "randn"
    assert not operations["LDG.E.U16"] and not operations["STG.E.U16"]


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: f"{target.backend}-{target.arch}")
@pytest.mark.parametrize(
    "make",
    [
        q_sample,
        lambda: step(DDPM, guided=True, output=BF16, network_input=BF16),
        lambda: step(LEARNED, x=F64, output=F64, width=2, network_input=BF16),
        whole_sample,
        lambda: whole_sample(BF16, kinds=True),
        lambda: of_kinds(BF16),
        lambda: long_sample(0, kinds=True),
        lambda: long_sample(1, kinds=True),
        lambda: launch.reverse_step_rescale_call(whole_sample(BF16)),
        lambda: launch.reverse_step_threshold_call(whole_sample()),
        *(lambda which=which: long_sample(which) for which in (0, 1, 2, -1)),
        q_posterior,
        reparameterize,
        lambda: backward("reparameterize", F64),
        noise_mse,
        sum_chunks,
        lambda: sum_chunks(48),
        lambda: scored_step(LEARNED, width=2, guided=True),
        lambda: scored_step(DDPM, x=BF16, output=BF16, sampled=True),
        gaussian_kl,
        lambda: gaussian_kl(standard=True),
        lambda: backward("gaussian_kl", BF16),
        discretized_gaussian_nll,
        vlb_terms,
        lambda: backward("vlb_terms"),
        *(lambda which=which: group_norm(which) for which in ("moments", "statistics", "silu")),
        lambda: group_norm("silu", BF16, last=False),
    ],
    ids=[
        "q_sample",
        "guided bfloat16",
        "learned float64",
        "whole sample",
        "kinds",
        "guidance",
        "guidance of a part",
        "guidance of all parts",
        "rescale",
        "threshold",
        "rescale of a part",
        "rescale of all parts",
        "threshold's digit of a part",
        "threshold of all parts",
        "q_posterior",
        "reparameterize",
        "reparameterize backward",
        "noise_mse",
        "sum_chunks",
        "sum_chunks of long samples",
        "step_log_prob",
        "step with its log-probability",
        "gaussian_kl",
        "standard normal",
        "gaussian_kl backward",
        "discretized_gaussian_nll",
        "vlb_terms",
        "vlb_terms backward",
        "group_norm moments",
        "group_norm statistics",
        "group_norm_silu",
        "group_norm_silu bfloat16",
    ],
)
def test_other_gpus_compile(make: Any, target: GPUTarget) -> None:
    binary = compiled(make(), target).asm["hsaco" if target.backend == "hip" else "cubin"]
    assert len(binary) > 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda: gaussian_kl(F64),
        lambda: discretized_gaussian_nll(F64),
        lambda: vlb_terms(F64),
        lambda: noise_mse(F64),
        lambda: scored_step(LEARNED, x=F64, output=F64, width=2),
        lambda: scored_step(LEARNED, x=F64, output=F64, width=2, sampled=True),
        lambda: q_posterior(F64),
        lambda: of_kinds(F64),
        lambda: whole_sample(F64, kinds=True),
        lambda: long_sample(0, F64, kinds=True),
        lambda: launch.reverse_step_rescale_call(whole_sample(F64)),
        lambda: launch.reverse_step_threshold_call(whole_sample(F64)),
        *(lambda which=which: long_sample(which, F64) for which in (0, 1, 2, -1)),
        *(
            lambda op=op: backward(op)
            for op in ("gaussian_kl", "discretized_gaussian_nll", "noise_mse")
        ),
        *(lambda op=op: backward(op, F64) for op in ("discretized_gaussian_nll", "vlb_terms")),
        lambda: group_norm("statistics"),
        *(
            lambda which=which: group_norm(which, F64)
            for which in ("moments", "statistics", "silu")
        ),
    ],
)
def test_float64_and_gradients_stay_in_registers(make: Any, tmp_path: Path) -> None:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled(make()).asm["cubin"])
    assert set(re.findall(r"(?:STACK|LOCAL):(\d+)", dump(cubin, "-res-usage"))) == {"0"}


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (1001,)])
def test_prepasses_of_every_size_compile(shape: tuple[int, ...]) -> None:
    for prepass in (launch.reverse_step_rescale_call, launch.reverse_step_threshold_call):
        assert "cubin" in compiled(prepass(whole_sample(shape=shape))).asm
    assert "cubin" in compiled(of_kinds(shape=shape)).asm
    assert "cubin" in compiled(whole_sample(shape=shape, kinds=True)).asm


@pytest.mark.parametrize("shape", [(1,), (2,), (1001,), (28, 28)])
def test_every_size_compiles(shape: tuple[int, ...]) -> None:
    assert (
        "cubin"
        in compiled(step(DDPM | DPM2M, slots=1, guided=True, network_input=F16, shape=shape)).asm
    )


def test_an_unknown_mask_compiles() -> None:
    assert "cubin" in compiled(step(-1, slots=4, guided=True, width=2, network_input=F16)).asm


def key(call: launch.Call) -> object:
    """What decides whether Triton compiles a launch anew."""
    return variants.variant(call.kernel(), call.arguments, call.options, HOPPER).key


PER_SAMPLE = ("t", "row", "row_out", "grad", "guidance", "rescale", "threshold", "weight")
PER_SAMPLE += ("loss", "kl", "nll", "terms", "workspace", "variance", "log_variance", "errors")
PER_SAMPLE += ("seeds", "sample_ids", "table", "alpha", "sigma", "alphas_cumprod")
PER_SAMPLE += ("partials", "counts", "found", "larger")


def moved(call: launch.Call, names: tuple[str, ...]) -> launch.Call:
    """The launch with these tensors at addresses that 16 does not divide."""
    tensors = {
        name: torch.empty(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape)
        for name, value in call.arguments.items()
        if name in names and isinstance(value, torch.Tensor)
    }
    assert tensors
    return call._replace(arguments=call.arguments | tensors)


@pytest.mark.parametrize(
    "make",
    [
        q_sample,
        lambda: step(DDPM | DPM2M, slots=1, guided=True, network_input=BF16),
        whole_sample,
        lambda: whole_sample(kinds=True),
        of_kinds,
        lambda: long_sample(0, kinds=True),
        lambda: long_sample(1, kinds=True),
        lambda: launch.reverse_step_rescale_call(whole_sample()),
        lambda: launch.reverse_step_threshold_call(whole_sample()),
        *(lambda which=which: long_sample(which) for which in (0, 1, 2, -1)),
        q_posterior,
        noise_mse,
        gaussian_kl,
        discretized_gaussian_nll,
        vlb_terms,
        sum_chunks,
        *(
            lambda op=op: backward(op)
            for op in ("gaussian_kl", "discretized_gaussian_nll", "noise_mse", "vlb_terms")
        ),
    ],
)
def test_addresses_of_values_of_a_sample_bring_no_new_variants(make: Any) -> None:
    """Such as the second row of a [2, batch] tensor at odd batch sizes."""
    call = make()
    names = ("out", *PER_SAMPLE) if call.op == "sum_chunks" else PER_SAMPLE
    assert key(moved(call, names)) == key(call)


def test_addresses_of_elements_are_part_of_a_variant() -> None:
    """Only at aligned addresses are 16 bytes loaded and stored at once."""
    assert key(moved(step(DDIM), ("x_t",))) != key(step(DDIM))


@pytest.mark.parametrize(
    "make",
    [
        lambda: step(LEARNED, width=2, guided=True),
        lambda: whole_sample(width=2, kinds=True),
        lambda: launch.reverse_step_guidance_call(whole_sample(width=2, kinds=True)),
        lambda: launch.reverse_step_rescale_call(whole_sample(width=2)),
        lambda: launch.reverse_step_threshold_call(whole_sample(width=2)),
        vlb_terms,
        lambda: backward("vlb_terms"),
    ],
)
def test_the_row_of_a_model_output_is_counted_in_64_bits(make: Any) -> None:
    """With learned variance it has twice a sample's elements, which overflow int32 from 2^30."""
    products = re.findall(r"arith\.muli %size, \S+.*: (\w+)", compiled(make()).asm["ttir"])
    assert "i32" not in products


def test_values_bring_no_new_variants() -> None:
    """Seeds, steps, batch sizes and table lengths do not cause another compilation.

    Sizes of a sample, dtypes and columns in use do.
    """
    keys = []
    for batch, seed, counter in [
        (1, 0, 0),
        (16, 1, 1),
        (7, 2**31, 2**31),
        (3, 2**64 - 1, 2**32 - 1),
    ]:
        keys.append(
            key(
                launch.randn_call(
                    tensor(batch=batch), seed, None, None, counter, counter % 6, False
                )
            )
        )
    assert keys == keys[:1] * 4
    keys = []
    for batch, seed, counter in [(1, 0, 0), (16, 1, 1), (7, 2**63, 2**31)]:
        loss, space = torch.empty(batch), torch.empty(3 * batch)
        keys.append(
            key(
                launch.noise_mse_call(
                    loss, space, tensor(batch=batch), None, seed, None, None, counter, 2, False
                )
            )
        )
    assert keys == keys[:1] * 3
    unread = columns("network", "t", "clip_bound", "noise_index", "next", "s1.x", "x.s1")
    assert key(step(DDIM)) == key(step(DDIM | unread)) != key(step(DDPM))
