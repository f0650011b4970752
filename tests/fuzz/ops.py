"""Fuzzes the ten ops: every operand, dtype, layout, result buffer and gradient, right and wrong.

A case draws the arguments of one op. The backends cpu and torch execute the same call. They must
give the same result or both refuse it in a sentence. Parts of the cases are also compared with the
NumPy oracle, with a call without `out`, and with the call for one sample alone.

What counts as the same, by op (kernels/README.md):

- one pass over the elements (randn, q_sample, reverse_step, q_posterior, reparameterize,
  group_norm_silu): the same bits, in the compute type float32 and its 16-bit results. In float64,
  exp and log are the platform's in some backends: a few roundings of the largest value. So is the
  factor of rescaled guidance, a quotient of sums of each backend's own order.
- sums over a sample: the tolerances SUM and VLB_SUM of tests/tolerances.py.
- mode `fast`: FAST_NOISE times the noise's coefficient.

Results of numbers that are not ordinary (NaN, infinities, 1e30, tampered tables) have the same bits
too where bits are promised, and are not compared where a tolerance would need a bound.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from campaign import Campaign, Report, described, is_sentence, kind_of
from op_arguments import BUILDERS, Call
from tensors import Guarded, Watch, has_memory
from tolerances import FAST_NOISE, GROUP_NORM, ROUNDING, SUM, VLB_SUM
from torch import Tensor

from fastdiff import ops, reference

BACKENDS = ("cpu", "torch")
EXACT = {"randn", "q_sample", "reverse_step", "q_posterior", "reparameterize", "group_norm_silu"}
# In float64 against another exp: relative to the largest value of the result.
EXP64 = 8 * ROUNDING["float64"]


@dataclass
class Outcome:
    """What a call did: its results by name, or its error."""

    results: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    error: Exception | None = None


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [v for v in values if isinstance(v, Tensor) and has_memory(v)]


def named(result: Any) -> dict[str, Tensor]:
    """Returns the tensors of an op's result by name."""
    values = result if isinstance(result, tuple) else (result,)
    return {f"result {i}" if i else "result": v for i, v in enumerate(values)}


def execute(call: Call, backend: str, report: Report, *, watched: bool) -> Outcome:
    """Makes a call on a backend, with its gradients where it asks for some.

    Reports raw errors, changed inputs, and bytes written next to a buffer.
    """
    arguments, outs = call.arguments, call.buffers
    written = [v for name in call.outs for v in _tensors(arguments.get(name))]
    watch = Watch(call.inputs(), written) if watched else None
    outcome = Outcome()
    try:
        if call.inference:
            with torch.inference_mode():
                result = getattr(ops, call.op)(**arguments, backend=backend)
        else:
            result = getattr(ops, call.op)(**arguments, backend=backend)
        outcome.results = named(result) | outs
        if call.gradients and not call.inference:
            outcome.gradients = differentiated(call, outcome.results)
    except Exception as error:
        outcome.error = error
        if not is_sentence(error):
            report.finding(f"{call.op} on {backend} raised {described(error)}")
    if watch is not None and watch.changed():
        report.finding(f"{call.op} on {backend} changed an input")
    if call.guard.broken():
        report.finding(f"{call.op} on {backend} wrote next to its result")
    report.count("op calls")
    if outcome.error is None:
        report.count("op calls that gave a result")
    elif is_sentence(outcome.error):
        report.count(f"refused: {kind_of(str(outcome.error))}")
    return outcome


def differentiated(call: Call, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradients of a weighted sum of the results by the tensors that want one."""
    outputs = [v for v in results.values() if v.requires_grad]
    names = [n for n in call.gradients if isinstance(call.arguments[n], Tensor)]
    if not outputs or not names:
        return {}
    weights = [torch.cos(torch.arange(v.numel(), dtype=v.dtype)).view(v.shape) for v in outputs]
    found = torch.autograd.grad(
        outputs, [call.arguments[n] for n in names], weights, allow_unused=True
    )
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal; every NaN equals every other."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def apart(a: Tensor, b: Tensor, relative: float, absolute: float = 0.0) -> float:
    """Returns by how much two tensors differ, in units of the tolerance; NaN equals NaN."""
    a, b = a.detach().double(), b.detach().double()
    bad = a.isfinite() != b.isfinite()
    if bool(bad.any()):
        return float("inf")
    close = torch.where(a.isfinite(), (a - b).abs(), 0.0)
    allowed = absolute + relative * torch.where(b.isfinite(), b.abs(), 0.0)
    return float((close / allowed.clamp(min=1e-300)).max()) if a.numel() else 0.0


def largest(value: Tensor) -> float:
    """Returns the largest finite absolute value."""
    value = value.detach().double().abs()
    value = value[value.isfinite()]
    return float(value.max()) if value.numel() else 0.0


def difference(call: Call, name: str, a: Tensor, b: Tensor, *, bits: bool = True) -> str:
    """Returns how two results differ beyond what is allowed; "" where they do not.

    bits: whether an op of one pass must have the same bits.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{name} is {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    if same_bits(a, b):
        return ""
    wide = torch.float64 in (call.dtype, a.dtype)  # a wrong operand may have widened the state
    compute = "float64" if wide else "float32"
    stored = str(a.dtype).removeprefix("torch.")
    size = max(largest(a), largest(b))
    if call.op in EXACT and not call.fast and not call.loose and compute == "float32" and bits:
        return f"{name} has other bits, {shown(a, b)}"
    if not call.ordinary:
        return ""
    if call.fast and call.op in EXACT:
        off = apart(a, b, ROUNDING.get(stored, 0), 2 * FAST_NOISE * (call.scale + size))
    elif call.op in EXACT:
        rounding = (
            max(EXP64, GROUP_NORM["float64"]) if compute == "float64" else GROUP_NORM[compute]
        )
        relative = max(rounding, ROUNDING.get(stored, 0))
        off = apart(a, b, relative, rounding * (size + call.scale))
    else:
        table = VLB_SUM if call.op == "vlb_terms" else SUM
        tolerance = table[compute] + (FAST_NOISE * 4 if call.fast else 0)
        off = apart(a, b, tolerance, tolerance * (1 + size))
    return f"{name} differs by {off:.3g} of the tolerance, {shown(a, b)}" if off > 1 else ""


def shown(a: Tensor, b: Tensor) -> str:
    """Returns the first pair of elements that differ."""
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    at = int(((a != b) & ~(a.isnan() & b.isnan())).nonzero()[0])
    return f"{a[at].item()!r} and {b[at].item()!r} at {at} of {a.dtype} [{a.numel()}]"


def compare(call: Call, first: Outcome, second: Outcome, what: str, report: Report) -> None:
    """Reports how two outcomes of one call differ."""
    if call.wrong.startswith("used") and (first.error is None or second.error is None):
        return  # the mask of another table: C++ reads the rows, and torch refuses the mask
    if (first.error is None) != (second.error is None):
        one = [str(o.error)[:160] if o.error else "a result" for o in (first, second)]
        report.finding(f"{call.op}: {what}: {one[0]} and {one[1]}")
        return
    if first.error is not None:
        # where several things are wrong, another one may come first
        report.count("refused by both in other words", int(str(first.error) != str(second.error)))
        return
    if any(v.is_meta for v in first.results.values()):
        return
    for name, value in first.results.items():
        if text := difference(call, name, value, second.results[name]):
            report.finding(f"{call.op}: {what}: {text}")
    for name in first.gradients.keys() | second.gradients.keys():
        a, b = (o.gradients.get(name) for o in (first, second))
        if a is None or b is None:
            report.finding(f"{call.op}: {what}: only one has a gradient to {name}")
        elif text := gradient_difference(call, a, b):
            report.finding(f"{call.op}: {what}: the gradient to {name} {text}")


# Gradients of the backends against each other, relative to 1 + the largest: those of 16 bits are
# rounded when they are stored, and sums of them (to a table, to a broadcast operand) have each
# backend's order. Those of narrow bins lose digits in float64 (tests/tolerances.py:
# CUDA_BIN_GRADIENTS).
GRADIENTS = {"float32": 4e-5, "float64": 1e-9, "float16": 4e-3, "bfloat16": 3e-2}


def gradient_difference(call: Call, a: Tensor, b: Tensor) -> str:
    """Returns how two gradients differ beyond the tolerance; "" where they do not."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"is {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    if not call.ordinary or same_bits(a, b):
        return ""
    kinds = {
        str(v.dtype).removeprefix("torch.")
        for v in (a, *call.inputs())
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    compute = "float64" if call.dtype == torch.float64 else "float32"
    tolerance = max(
        GRADIENTS[k]
        for k in {compute, str(a.dtype).removeprefix("torch.")} | (kinds & {"float16", "bfloat16"})
    ) + (8 * FAST_NOISE * call.scale if call.fast else 0.0)
    off = apart(a, b, 0.0, tolerance * (1 + max(largest(a), largest(b))))
    return f"differs by {off:.3g} of the tolerance, {shown(a, b)}" if off > 1 else ""


def unfinite(call: Call, outcome: Outcome, report: Report) -> None:
    """Reports results and gradients that are not finite though all inputs are ordinary."""
    if not call.ordinary:
        return
    for name, value in (
        outcome.results | {f"d {n}": g for n, g in outcome.gradients.items()}
    ).items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            report.finding(f"{call.op}: {name} is not finite for ordinary inputs")


def one_sample(call: Call, full: Outcome, report: Report, r: random.Random, backend: str) -> None:
    """Compares sample b of a result with the result of sample b alone: the same bits."""
    batch = call.batch
    if batch < 2:
        return
    b = r.randrange(batch)
    alone = call.alone(b)
    outcome = Outcome()
    try:
        outcome.results = named(getattr(ops, call.op)(**alone, backend=backend))
    except Exception as error:
        report.finding(f"{call.op} on {backend} refuses sample {b} alone: {described(error)}")
        return
    report.count("op calls")
    report.count("op calls that gave a result")
    report.count("compared with a sample alone")
    for name, value in outcome.results.items():
        if name not in full.results:
            continue  # slots, which the call wrote into buffers or nowhere
        whole = full.results[name]
        dim = (
            1 if whole.ndim > value.ndim or (call.op == "reverse_step" and name != "result") else 0
        )
        if not same_bits(whole.narrow(dim, b, 1), value):
            text = shown(whole.narrow(dim, b, 1), value)
            report.finding(f"{call.op} on {backend}: sample {b} of {batch} alone differs: {text}")


def without_out(call: Call, full: Outcome, report: Report, backend: str) -> None:
    """Compares the results in the caller's buffers with those of a call that makes its own."""
    again = call.without_outs()
    try:
        results = named(getattr(ops, call.op)(**again, backend=backend))
    except Exception as error:
        report.finding(f"{call.op} on {backend} refuses the call without out: {described(error)}")
        return
    report.count("op calls")
    report.count("op calls that gave a result")
    for name, value in results.items():
        if name == "result" and not same_bits(full.results[name], value):
            text = shown(full.results[name], value)
            report.finding(f"{call.op} on {backend}: without out the result differs: {text}")


def numpy_of(value: Any) -> Any:
    """Returns NumPy's form of an argument; bfloat16 and float16 as float32, which holds them."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().resolve_neg()
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    return value.contiguous().numpy()


def oracle(call: Call, got: Outcome, report: Report) -> None:
    """Compares a result with the oracle's."""
    arguments = {
        k: numpy_of(v)
        for k, v in call.arguments.items()
        if k not in call.outs and k not in ("mode", "used", "workspace", "device", "backend")
    }
    seed = arguments.get("seed")
    if seed is not None:
        arguments["seed"] = (
            np.asarray(seed).astype(np.int64).astype(np.uint64)
            if isinstance(seed, np.ndarray)
            else np.uint64(int(seed))
        )
    if call.op == "reverse_step":
        if arguments.get("model_output") is None:
            return
        if arguments.get("guidance") is not None:
            arguments["guidance"] = arguments["guidance"].astype(np.float64)
    if call.op == "randn":
        arguments.pop("dtype", None)
        arguments["dtype"] = np.float64 if call.dtype == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        expected = getattr(reference, call.op)(**arguments)
    report.count("compared with the oracle")
    if call.op == "reverse_step":
        pairs = {"result": expected.x_s}
        if expected.slots is not None and "out" not in call.outs:
            pairs["result 1"] = expected.slots
    else:
        pairs = (
            dict(zip(got.results, expected, strict=False))
            if isinstance(expected, tuple)
            else {"result": expected}
        )
    for name, value in pairs.items():
        mine = got.results[name].detach()
        theirs = torch.from_numpy(np.array(value)).to(mine.dtype)
        # the oracle's statistics are sums in another order
        bits = call.op != "group_norm_silu"
        if text := difference(call, name, mine, theirs, bits=bits):
            report.finding(f"{call.op}: against the oracle: {text}")


def run(r: random.Random, report: Report) -> None:
    """Executes one case: a call on both backends, and the comparisons that it draws."""
    state = r.getstate()
    name = r.choices(list(BUILDERS), _WEIGHTS)[0]
    outcomes, calls = [], []
    checks = None
    for backend in BACKENDS:
        r.setstate(state)
        r.choices(list(BUILDERS), _WEIGHTS)
        call = BUILDERS[name](r, Guarded())
        checks = [r.random() for _ in range(4)]
        calls.append(call)
        if os.environ.get("FUZZ_SHOW") and backend == BACKENDS[0]:
            print(call.described())
        outcomes.append(execute(call, backend, report, watched=checks[0] < 0.3))
    assert checks is not None
    call, (first, second) = calls[0], outcomes
    compare(call, first, second, "cpu and torch", report)
    if first.error is not None or second.error is not None:
        return
    if any(v.is_meta for v in first.results.values()):
        return
    if call.must_refuse:
        report.finding(f"{name} takes {call.must_refuse}")
    unfinite(call, first, report)
    backend = r.randrange(2)
    if call.wrong or call.inplace:
        return
    if checks[1] < 0.2:
        one_sample(calls[backend], outcomes[backend], report, r, BACKENDS[backend])
    if checks[2] < 0.3 and call.outs:
        without_out(calls[backend], outcomes[backend], report, BACKENDS[backend])
    if any(v.numel() == 0 for v in first.results.values()):
        return
    if checks[3] < (0.05 if name == "reverse_step" else 0.15) and not call.fast:
        oracle(call, first, report)


_WEIGHTS = [4 if name == "reverse_step" else 1 for name in BUILDERS]
_: Callable[..., Any] = run
CAMPAIGN = Campaign(run, cases=500_000, short=1_000, batch=2_500, seconds=60.0)
