"""Draws the arguments of each op: all operands, right ones mostly, and one wrong one at times.

This file is over 400 lines because each of the eleven ops has a builder, and they share the draws
of seeds, ids, buffers and wrong values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensors import (
    FLOATS,
    LAYOUTS,
    SAME_NUMBERS,
    Guarded,
    count,
    draw_dtype,
    draw_shape,
    laid_out,
    made_wild,
    normals,
)
from torch import Tensor

from fastdiff import Schedule
from fastdiff.ops.step import workspace_rows
from fastdiff.solvers import make_plan
from fastdiff.table import COLUMNS, INDEX, SLOTS
from fastdiff.theory.likelihood import vlb_table

I64 = torch.int64


@dataclass
class Call:
    """A call of an op, and what may be compared with it.

    Attributes:
        dtype: of the state, which decides the compute type.
        outs: the arguments that are results. buffers: those of them that are tensors, by name.
        rows: the arguments that have an entry per sample: "first" or "second" dimension, or
            "halves" for two entries, b and B + b.
        ordinary: whether all numbers are of usual size, so that results are finite.
        loose: whether the op's bits may differ between backends.
        scale: the largest coefficient of noise, for tolerances.
        wrong: what was made wrong on purpose; must_refuse: what no backend may take.
        inplace: whether a result is in an input's memory.
    """

    op: str
    guard: Guarded
    dtype: torch.dtype = torch.float32
    batch: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    outs: tuple[str, ...] = ()
    buffers: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    gradients: list[str] = field(default_factory=list)
    ordinary: bool = True
    loose: bool = False
    fast: bool = False
    inference: bool = False
    inplace: bool = False
    scale: float = 1.0
    wrong: str = ""
    must_refuse: str = ""

    def inputs(self) -> Iterator[Any]:
        """Yields the values of the arguments that are no results."""
        return (v for k, v in self.arguments.items() if k not in self.outs)

    def without_outs(self) -> dict[str, Any]:
        """Returns the arguments of a call that makes its own results."""
        found = {k: v for k, v in self.arguments.items() if k not in self.outs}
        return found | ({"dtype": self.dtype} if self.op == "randn" else {})

    def alone(self, b: int) -> dict[str, Any]:
        """Returns the arguments of the call for sample b alone."""
        found = self.without_outs()
        for name, kind in self.rows.items():
            value = found.get(name)
            if isinstance(value, Tensor) and value.ndim:
                if kind == "halves":
                    found[name] = torch.cat([value[b : b + 1], value[self.batch + b :][:1]])
                else:
                    found[name] = value.narrow(int(kind == "second"), b, 1)
        if "shape" in found:
            found["shape"] = (1, *found["shape"][1:])
        if "seed" in found and found.get("sample_ids") is None:
            found["sample_ids"] = torch.tensor([b])
        return found

    def described(self) -> str:
        """Returns the call in words."""

        def words(value: Any) -> str:
            if isinstance(value, Tensor) and not value.is_nested:
                kind = str(value.dtype).removeprefix("torch.")
                grad = " grad" * value.requires_grad
                return (
                    f"{kind} {list(value.shape)} strides {list(value.stride())}{grad}"
                    if (value.layout is torch.strided)
                    else f"{kind} {value.layout}"
                )
            return repr(value)[:80]

        lines = [f"{k} = {words(v)}" for k, v in self.arguments.items()]
        flags = [
            k for k in ("ordinary", "loose", "fast", "inference", "inplace") if getattr(self, k)
        ]
        lines += [f"gradients of {self.gradients}", f"wrong: {self.wrong or 'nothing'}", *flags]
        return f"{self.op}:\n  " + "\n  ".join(lines)


class Draw:
    """Draws of one call: how often tensors are odd in layout and wild in value is drawn first."""

    def __init__(self, op: str, r: random.Random, guard: Guarded):
        self.r, self.call = r, Call(op, guard)
        self.call.dtype = draw_dtype(r)
        self.odd = 0.4 if r.random() < 0.5 else 0.0
        self.wild = 0.4 if r.random() < 0.08 else 0.0
        self.mixed = r.random() < 0.3

    def chance(self, p: float) -> bool:
        return self.r.random() < p

    def other(self) -> torch.dtype:
        """Returns the dtype of an operand that may have another one than the state."""
        return self.r.choice(FLOATS) if self.mixed else self.call.dtype

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        scale: float = 1.0,
        rows: str | None = "first",
        own: bool = False,
    ) -> Tensor:
        """Draws a floating operand, adds it to the arguments and returns it.

        own: whether its dtype is the state's, else it may be another one.
        """
        kind = dtype or (self.call.dtype if own else self.other())
        value = normals(self.r, shape, kind, scale)
        if self.chance(self.wild):
            value = made_wild(self.r, value)
            self.call.ordinary = False
        value = self.layout(value)
        self.call.arguments[name] = value
        if rows is not None:
            self.call.rows[name] = rows
        return value

    def layout(self, value: Tensor, *, numbers: bool = True) -> Tensor:
        """Returns the tensor in other memory, at times; numbers: whether it may repeat some."""
        if not self.chance(self.odd):
            return value
        return laid_out(self.r, value, self.r.choice(LAYOUTS if numbers else SAME_NUMBERS))

    def integers(self, name: str, low: int, high: int, beyond: float = 0.02) -> None:
        """Draws an int64 operand [B] in [low, high), at times with an entry outside."""
        values = [self.r.randrange(low, high) for _ in range(self.call.batch)]
        if values and self.chance(beyond):
            values[self.r.randrange(len(values))] = self.r.choice((-1, high, 2**62, -(2**63)))
            self.call.wrong = f"{name} outside"
        self.call.arguments[name] = self.layout(torch.tensor(values, dtype=I64), numbers=False)
        self.call.rows[name] = "first"

    def noise(self, *, step: bool = True, optional: bool = False, drawn: bool = True) -> None:
        """Draws seed, sample ids, step, stream and mode of an op that draws noise.

        drawn: whether the op surely draws some, so that wrong ids must be refused.
        """
        r, a = self.r, self.call.arguments
        big = (0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, r.getrandbits(64))
        kind = r.random()
        if optional and kind < 0.1:
            a["seed"] = None
        elif kind < 0.55:
            a["seed"] = r.choice(big)
        elif kind < 0.62:
            a["seed"] = r.choice((np.int64(5), np.uint64(2**63), True, np.int32(0)))
        elif kind < 0.8:
            a["seed"] = torch.tensor(r.choice((0, -1, 2**63 - 1, -(2**63))), dtype=I64)
        elif kind < 0.97:
            seeds = [r.getrandbits(64) - 2**63 for _ in range(self.call.batch)]
            a["seed"] = self.layout(torch.tensor(seeds, dtype=I64))
            self.call.rows["seed"] = "first"
        else:
            a["seed"] = r.choice((-1, 2**64, 10**30, 0.5, "3", torch.tensor(0.0)))
            self.call.wrong = f"seed {a['seed']}"
        if self.chance(0.6):
            ids = [
                r.choice((0, 2**56 - 1, r.getrandbits(56), r.randrange(100)))
                for _ in range(self.call.batch)
            ]
            if ids and self.chance(0.04):
                ids[r.randrange(len(ids))] = r.choice((2**56, -1, 2**63 - 1, -(2**63)))
                self.call.must_refuse = "sample_ids outside [0, 2**56)" * drawn
                self.call.ordinary = False
            a["sample_ids"] = self.layout(torch.tensor(ids, dtype=I64), numbers=False)
            self.call.rows["sample_ids"] = "first"
        if step and self.chance(0.4):
            a["step"] = r.choice((0, 1, 999, 2**32 - 1, np.int64(7), 2**32, -1))
            self.call.wrong = self.call.wrong or "step" * (not 0 <= a["step"] < 2**32)
        if self.chance(0.4):
            a["stream"] = r.choice((0, 1, 2, 5, 254, 255, 256, -1))
            self.call.wrong = self.call.wrong or "stream" * (not 0 <= a["stream"] < 256)
        if self.chance(0.15):
            a["mode"] = "fast"
            self.call.fast = True

    def out(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Adds a guarded buffer for a result."""
        buffer = self.call.guard(shape, dtype)
        self.call.arguments[name] = self.call.buffers[name] = buffer
        self.call.outs = (*self.call.outs, name)
        return buffer

    def out_like(self, state: str) -> None:
        """Adds `out` for a result like the state, at times the state itself or a wrong one."""
        if not self.chance(0.35):
            return
        value = self.call.arguments[state]
        kind = self.r.random()
        if kind < 0.2 and value.is_contiguous() and not value.is_neg():
            self.call.arguments["out"] = self.call.buffers["out"] = value
            self.call.outs, self.call.inplace = (*self.call.outs, "out"), True
        elif kind < 0.27 and value.is_contiguous() and value.shape[0] > 1 and value.numel():
            # begins in the state's memory, one sample later
            wide = torch.cat([value, value[:1]])
            self.call.arguments[state] = wide[:-1]
            self.call.arguments["out"] = self.call.buffers["out"] = wide[1:]
            self.call.outs, self.call.wrong = (*self.call.outs, "out"), "overlapping out"
        elif kind < 0.34:
            self.wrong_out(value.shape, value.dtype)
        else:
            self.out("out", value.shape, value.dtype)

    def wrong_out(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        r, shape = self.r, list(shape)
        kind = r.choice(("shape", "dtype", "strides", "one", "grad", "list", "longer"))
        if kind == "shape":
            shape[r.randrange(len(shape))] += 1
        if kind == "longer":
            shape = [*shape, 1]
        other = r.choice((torch.float64, torch.int64, torch.float16)) if kind == "dtype" else dtype
        out: Any = self.out("out", shape, other)
        if kind == "strides":
            out = laid_out(r, out, r.choice(("permuted", "strided", "negative", "expanded")))
        if kind == "one" and out.numel():
            out = out.view(-1)[:1].expand(out.numel()).view(out.shape)
        if kind == "grad" and out.is_floating_point():
            out = out.clone().requires_grad_()
        if kind == "list":
            out = [1.0, 2.0]
            del self.call.buffers["out"]
        self.call.arguments["out"] = out
        if isinstance(out, Tensor):
            self.call.buffers["out"] = out
        self.call.wrong = f"out: {kind}"

    def out_of_sum(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Adds `out` [B] and `workspace` of a sum over samples."""
        if not self.chance(0.3):
            return
        if self.chance(0.15):
            return self.wrong_out(shape[:1], dtype)
        self.out("out", shape[:1], dtype)
        chunks = -(-count(shape[1:]) // 1024)
        if chunks > 1 or self.chance(0.2):
            self.out("workspace", (shape[0] * chunks + self.r.choice((0, 0, 5)),), dtype)
            del self.call.buffers["workspace"]

    def finish(self, wants: Sequence[str] = ()) -> Call:
        """Draws gradients, inference mode and a wrong operand, and returns the call."""
        r, call = self.r, self.call
        if not call.outs and self.chance(0.18):
            for name in wants:
                value = call.arguments.get(name)
                if isinstance(value, Tensor) and value.is_floating_point() and self.chance(0.7):
                    call.arguments[name] = value.detach().requires_grad_()
                    call.gradients.append(name)
        elif self.chance(0.03):
            call.inference = True
        if self.chance(0.07):
            name = r.choice([k for k in call.arguments])
            kind = r.choice(list(REPLACED))
            try:
                call.arguments[name] = REPLACED[kind](call.arguments[name])
            except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
                return call  # there is no such value
            call.buffers.pop(name, None)
            call.wrong = f"{name}: {kind}"
            call.gradients, call.must_refuse = [], ""
        if call.wrong:
            call.must_refuse = ""
        return call


REPLACED: dict[str, Callable[[Any], Any]] = {
    "None": lambda v: None,
    "an array": lambda v: np.asarray(v),
    "a list": lambda v: np.asarray(v).tolist(),
    "a scalar": lambda v: torch.tensor(0.5),
    "a number": lambda v: 3,
    "a text": lambda v: "text",
    "NaN": lambda v: float("nan"),
    "integers": lambda v: torch.as_tensor(v).int(),
    "bools": lambda v: torch.as_tensor(v).bool(),
    "complex numbers": lambda v: torch.as_tensor(v).to(torch.complex64).conj(),
    "float64": lambda v: v.double(),
    "8 bits": lambda v: v.to(torch.float8_e4m3fn),
    "half the batch": lambda v: torch.as_tensor(v)[:1],
    "nothing": lambda v: torch.as_tensor(v)[:0],
    "one more dimension": lambda v: v[..., None],
    "one less dimension": lambda v: v.flatten(),
    "a sparse tensor": lambda v: torch.as_tensor(v).to_sparse(),
    "a nested tensor": lambda v: torch.nested.nested_tensor([v, v]),
    "on meta": lambda v: v.to("meta"),
    "quantized": lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8),
}


# ---- the ops


def randn(r: random.Random, guard: Guarded) -> Call:
    d = Draw("randn", r, guard)
    shape = draw_shape(r)
    d.call.batch = shape[0]
    d.call.arguments["shape"] = r.choice((shape, list(shape), torch.Size(shape)))
    d.noise(drawn=count(shape) > 0)
    if d.chance(0.3):
        if d.chance(0.15):
            d.wrong_out(shape, d.call.dtype)
        else:
            d.out("out", shape, d.call.dtype)
    elif d.call.dtype != torch.float32 or d.chance(0.5):
        d.call.arguments["dtype"] = d.call.dtype
    return d.finish()


SCHEDULE = Schedule.linear(1000)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
CUMULATIVE = torch.tensor(SCHEDULE.alphas_cumprod)


def q_sample(r: random.Random, guard: Guarded) -> Call:
    d = Draw("q_sample", r, guard)
    shape = draw_shape(r)
    d.call.batch = shape[0]
    d.tensor("x0", shape, own=True)
    a = d.call.arguments
    if d.chance(0.7):
        size = r.choice((1000, 1000, 1, 7))
        d.integers("t", 0, size)
        a["alpha"], a["sigma"] = ALPHA[:size], SIGMA[:size]
    else:
        a["t"] = None
        for name in ("alpha", "sigma"):
            level = normals(r, shape[:1], torch.float64, 1.0).sigmoid()
            a[name], d.call.rows[name] = d.layout(level), "first"
    if d.chance(0.3):
        d.tensor("noise", shape)
    if "noise" not in a or d.chance(0.3):
        d.noise(drawn="noise" not in a and count(shape) > 0)
    d.out_like("x0")
    return d.finish(("x0", "alpha", "sigma", "noise"))


def q_posterior(r: random.Random, guard: Guarded) -> Call:
    d = Draw("q_posterior", r, guard)
    shape = draw_shape(r)
    d.call.batch = shape[0]
    d.tensor("x0", shape, own=True)
    d.tensor("x_t", shape)
    size = r.choice((1000, 1000, 1, 2, 7))
    d.integers("t", 0, size)
    d.call.arguments["alphas_cumprod"] = CUMULATIVE[:size]
    if d.chance(0.3):
        compute = torch.float64 if d.call.dtype == torch.float64 else torch.float32
        kinds = [(shape, d.call.dtype), (shape[:1], compute), (shape[:1], compute)]
        if d.chance(0.15):
            at = r.randrange(3)
            kinds[at] = ((*kinds[at][0], 1), torch.float16)
            d.call.wrong = "out"
        out = tuple(guard(*kind) for kind in kinds)
        d.call.arguments["out"], d.call.outs = out, ("out",)
    return d.finish(("x0", "x_t"))


def broadcastable(d: Draw, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape with some sizes 1, or without its first dimensions."""
    sizes = [1 if d.chance(0.25) else n for n in shape]
    return tuple(sizes[d.r.randrange(len(sizes)) :] if d.chance(0.1) else sizes)


def of_broadcasting(d: Draw, scales: dict[str, float], always: str | None = None) -> None:
    """Draws operands that broadcast to one shape, with `out` and `workspace`."""
    shape = draw_shape(d.r)
    for name, scale in scales.items():
        own = name == always or not d.chance(0.4)
        size = shape if own else broadcastable(d, shape)
        rows = "first" if len(size) == len(shape) and size[0] == shape[0] else None
        value = d.tensor(name, size or (1,), scale=scale, rows=rows)
        if name == "x0":
            value.clamp_(-1.2, 1.2) if value.is_contiguous() and not value.is_neg() else None
    values = [d.call.arguments[name] for name in scales]
    whole = torch.broadcast_shapes(*(v.shape for v in values))
    d.call.batch = whole[0]
    if any(v.ndim < len(whole) and v.ndim for v in values):
        d.call.batch = 1  # an operand without a batch serves all samples: not cut
    wide = any(v.dtype == torch.float64 for v in values)
    d.call.dtype = torch.float64 if wide else torch.float32
    d.out_of_sum(whole, d.call.dtype)


def gaussian_kl(r: random.Random, guard: Guarded) -> Call:
    d = Draw("gaussian_kl", r, guard)
    scales = {"mean1": 1.0, "logvar1": 1.5}
    if d.chance(0.6):
        scales |= {"mean2": 1.0, "logvar2": 1.5}
    of_broadcasting(d, scales)
    return d.finish(tuple(scales))


def discretized_gaussian_nll(r: random.Random, guard: Guarded) -> Call:
    d = Draw("discretized_gaussian_nll", r, guard)
    of_broadcasting(d, {"x0": 0.6, "mean": 0.6, "log_scale": r.choice((0.5, 1.2))}, always="x0")
    return d.finish(("mean", "log_scale"))


def reparameterize(r: random.Random, guard: Guarded) -> Call:
    d = Draw("reparameterize", r, guard)
    shape = draw_shape(r)
    d.call.batch = shape[0]
    d.tensor("mean", shape, own=True)
    size = shape if d.chance(0.6) else broadcastable(d, shape)
    rows = "first" if len(size) == len(shape) and size[0] == shape[0] else None
    logvar = d.tensor("logvar", size, scale=1.5, rows=rows)
    if logvar.numel() and d.call.ordinary:
        d.call.scale = float(logvar.double().max().div(2).exp())
    d.noise(drawn=count(shape) > 0)
    d.out_like("mean")
    return d.finish(("mean", "logvar"))


def noise_mse(r: random.Random, guard: Guarded) -> Call:
    d = Draw("noise_mse", r, guard)
    shape = draw_shape(r)
    d.call.batch = shape[0]
    d.tensor("prediction", shape, own=True)
    if d.chance(0.4):
        d.tensor("weight", shape[:1])
        if d.chance(0.9):
            d.call.arguments["weight"] = d.call.arguments["weight"].abs()
    d.noise(drawn=count(shape) > 0)
    compute = torch.float64 if d.call.dtype == torch.float64 else torch.float32
    d.out_of_sum(shape, compute)
    return d.finish(("prediction",))


BOUNDS = [
    torch.tensor(vlb_table(SCHEDULE, **kind))  # type: ignore[arg-type]
    for kind in (
        {},
        {"variance": "learned_range", "clip_range": 1.0},
        {"prediction_type": "v", "variance": "fixed_large"},
        {"variance": "learned", "prediction_type": "x0"},
    )
]


def vlb_terms(r: random.Random, guard: Guarded) -> Call:
    d = Draw("vlb_terms", r, guard)
    shape = draw_shape(r, least=2)
    d.call.batch = shape[0]
    d.tensor("x0", shape, own=True, scale=0.4)
    d.tensor("x_t", shape)
    which = r.randrange(len(BOUNDS))
    twice = which in (1, 3) and d.chance(0.9)
    d.tensor("model_output", (shape[0], 2 * shape[1], *shape[2:]) if twice else shape, scale=0.5)
    d.call.arguments["table"] = tampered(d, BOUNDS[which], 0.06)
    d.integers("t", 0, 1000)
    compute = torch.float64 if d.call.dtype == torch.float64 else torch.float32
    d.out_of_sum(shape, compute)
    return d.finish(("model_output",))


def group_norm_silu(r: random.Random, guard: Guarded) -> Call:
    d = Draw("group_norm_silu", r, guard)
    shape = list(draw_shape(r, least=2))
    groups = r.choice((1, 2, 2, 4))
    shape[1] = groups * r.choice((1, 2, 3)) if shape[1] else 0
    d.call.batch, channels = shape[0], shape[1]
    batch = d.call.batch
    x = d.tensor("x", shape, own=True)
    if x.ndim == 4 and d.chance(0.4):
        d.call.arguments["x"] = x.contiguous(memory_format=torch.channels_last)
    d.call.arguments["groups"] = groups
    for name in ("weight", "bias"):
        if d.chance(0.5):
            d.tensor(name, (channels,), rows=None)
    for name in ("scale", "shift", "add"):
        if d.chance(0.4):
            d.tensor(name, (batch, channels))
    if d.chance(0.4):
        d.call.arguments["eps"] = r.choice((1e-5, 1e-3, 1e-12, 0.0, -1.0, float("nan")))
    if d.chance(0.3):
        d.call.arguments["silu"] = r.choice((True, False))
    x = d.call.arguments["x"]
    # of equal or few numbers a group's deviation is nearly 0, and the quotient by it is rounding
    members = x.numel() // max(batch * groups, 1)
    if d.call.arguments.get("eps", 1.0) < 1e-3 or 0 in x.stride() or members < 4:
        d.call.ordinary = False
    if d.chance(0.3):
        if x.is_contiguous() and not x.is_neg():
            d.out_like("x")
        elif d.chance(0.5):
            out = torch.empty_like(x, memory_format=torch.preserve_format)
            d.call.arguments["out"] = d.call.buffers["out"] = out
            d.call.outs = ("out",)
        else:
            d.out("out", shape, d.call.dtype)
    return d.finish(("x", "weight", "bias", "scale", "shift", "add"))


# ---- rows of plans

_FLOW = Schedule.flow(1000)
_ZERO_STAR = {"guidance_type": "cfg_zero_star", "zero_init_steps": 2, "guidance_rescale": 0.5}
PLANS = [
    make_plan(schedule, steps=steps, **options)  # type: ignore[arg-type]
    for schedule, steps, options in (
        (SCHEDULE, 6, {"solver": "ddpm"}),
        (SCHEDULE, 6, {"solver": "ddpm", "variance_type": "learned_range"}),
        (SCHEDULE, 5, {"solver": "ddim", "eta": 1.0, "clip_range": 1.0}),
        (SCHEDULE, 5, {"solver": "ddim", "prediction_type": "v", "guidance_rescale": 0.7}),
        (SCHEDULE, 5, {"solver": "dpm++2m", "dynamic_threshold": 0.9, "clip_range": 2.0}),
        (SCHEDULE, 6, {"solver": "dpm++3m"}),
        (SCHEDULE, 6, {"solver": "unipc", "order": 3}),
        (SCHEDULE, 6, {"solver": "sa"}),
        (SCHEDULE, 4, {"solver": "heun"}),
        (SCHEDULE, 6, {"solver": "pndm", "runge_kutta": True}),
        (SCHEDULE, 4, {"solver": "edm", "prediction_type": "x0"}),
        (SCHEDULE, 4, {"solver": "lcm", "guidance_interval": (0.3, 5.0)}),
        (SCHEDULE, 4, {"solver": "euler_ancestral", "guidance_type": "cfg++"}),
        (SCHEDULE, 5, {"solver": "ddpm", "guidance_type": "apg", "apg_norm": 1.5, "apg_eta": 0.2}),
        (SCHEDULE, 5, {"solver": "dpm++2m", "guidance_type": "apg", "apg_momentum": -0.5}),
        (_FLOW, 5, {"solver": "flow_euler", "prediction_type": "flow", **_ZERO_STAR}),
        (_FLOW, 5, {"solver": "flow_euler", "prediction_type": "flow"}),
        (_FLOW, 5, {"solver": "dpm++2m_sde", "prediction_type": "flow", "clip_range": 1.0}),
    )
]
TABLES = [torch.tensor(plan.table) for plan in PLANS]
NOISY = [i for i, plan in enumerate(PLANS) if plan.table[:, INDEX["x.z"]].any()]
ENTRIES = (0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 4294967295.0, 4294967296.0, -1e18, 1e18, 1e30, 1e300,
           float("nan"), float("inf"), -float("inf"), 1e-300, 7.0)  # fmt: skip


def tampered(d: Draw, table: Tensor, chance: float) -> Tensor:
    """Returns the table, at times with other entries."""
    if d.chance(chance):
        table = table.clone()
        for _ in range(d.r.choice((1, 1, 2, 5, 20))):
            row, column = d.r.randrange(table.shape[0]), d.r.randrange(table.shape[1])
            table[row, column] = d.r.choice(ENTRIES)
        d.call.ordinary = False
    return d.layout(table, numbers=False)


def reverse_step(r: random.Random, guard: Guarded) -> Call:
    d = Draw("reverse_step", r, guard)
    shape = draw_shape(r)
    call, a = d.call, d.call.arguments
    call.batch = shape[0]
    which = r.randrange(len(PLANS))
    table, plan = TABLES[which], PLANS[which]
    d.tensor("x_t", shape, own=True)
    guided = d.chance(0.35)
    learned = len(shape) > 1 and d.chance(0.9 if plan.table[:, INDEX["noise_mode"]].any() else 0.05)
    inner = (2 * shape[1], *shape[2:]) if learned else shape[1:]
    a["model_output"] = None
    if d.chance(0.97):
        size = ((1 + guided) * shape[0], *inner)
        d.tensor("model_output", size, rows="halves" if guided else "first")
    if guided:
        strength = [r.choice((0.0, 1.0, 7.5, -2.0, r.gauss(2, 1))) for _ in range(shape[0])]
        a["guidance"] = d.layout(torch.tensor(strength, dtype=r.choice(FLOATS)))
        call.rows["guidance"] = "first"
    if d.chance(0.1):
        table = table.clone()
        table[:-1, INDEX["out_grad"]] = -0.3
        d.tensor("gradient", shape)
    elif d.chance(0.05):
        d.tensor("gradient", shape)
    a["table"] = tampered(d, table, 0.12)
    d.integers("row", 0, len(table))
    compute = torch.float64 if call.dtype == torch.float64 else torch.float32
    slots = min(SLOTS, plan.slots + r.choice((0, 0, 0, 1))) if d.chance(0.97) else r.randint(0, 4)
    if slots:
        d.tensor("slots", (slots, *shape), dtype=compute, rows="second")
    if d.chance(0.2):
        d.tensor("noise", shape)
        d.noise(step=False, optional=True, drawn=False) if d.chance(0.5) else None
    else:
        d.noise(step=False, optional=True, drawn=False)
    summed = plan.table[:, [INDEX["guidance_rescale"], INDEX["guidance_kind"]]]
    rescaled = bool(guided and summed.any())
    call.loose |= rescaled
    call.scale = 4.0
    if rescaled and (count(shape[1:]) < 4 or 0 in a["x_t"].stride() or d.odd):
        call.ordinary = False
    if d.chance(0.2):
        a["used"] = r.choice((plan.used, -1, None))
        if a["used"] == plan.used and (call.ordinary is False or "gradient" in a):
            a["used"] = None  # not the mask of this table
    d.out_like("x_t")
    if "out" in a and not call.wrong:
        step_outputs(d, shape, slots, guided, compute)
    return d.finish(("x_t", "model_output", "slots", "noise", "guidance", "gradient", "table"))


def step_log_prob(r: random.Random, guard: Guarded) -> Call:
    d = Draw("step_log_prob", r, guard)
    shape = draw_shape(r)
    call, a = d.call, d.call.arguments
    call.batch = shape[0]
    which = r.choice(NOISY)
    table, plan = TABLES[which], PLANS[which]
    d.tensor("x_t", shape, own=True)
    guided = d.chance(0.35)
    learned = len(shape) > 1 and d.chance(0.9 if plan.table[:, INDEX["noise_mode"]].any() else 0.05)
    inner = (2 * shape[1], *shape[2:]) if learned else shape[1:]
    size = ((1 + guided) * shape[0], *inner)
    a["model_output"] = None
    if d.chance(0.97):
        d.tensor("model_output", size, rows="halves" if guided else "first")
    d.tensor("x_s", shape)
    if guided:
        strength = [r.choice((0.0, 1.0, 7.5, -2.0, r.gauss(2, 1))) for _ in range(shape[0])]
        a["guidance"] = d.layout(torch.tensor(strength, dtype=r.choice(FLOATS)))
        call.rows["guidance"] = "first"
    a["table"] = tampered(d, table, 0.12)
    # mostly rows with noise; the others are refused
    noisy = (table[:, INDEX["x.z"]] != 0).nonzero().flatten().tolist()
    d.integers("row", noisy[0], noisy[-1] + 1) if d.chance(0.9) else d.integers(
        "row", 0, len(table)
    )
    compute = torch.float64 if call.dtype == torch.float64 else torch.float32
    if plan.slots and d.chance(0.97):
        d.tensor("slots", (plan.slots, *shape), dtype=compute, rows="second")
    # the distance of x_s to the mean counts in units of the row's deviation
    call.ordinary = False
    if d.chance(0.3):
        a["reduce"] = r.choice(("sum", "mean"))
    if d.chance(0.3):
        d.out("out", (shape[0],), compute)
        if "out" in a and not call.wrong and d.chance(0.5):
            rows = workspace_rows(count(shape[1:]), compute, log_prob=True)
            d.out("workspace", (rows, shape[0]), compute)
            del call.buffers["workspace"]
    return d.finish(("x_t", "model_output", "x_s", "slots", "guidance"))


def step_outputs(
    d: Draw, shape: tuple[int, ...], slots: int, guided: bool, compute: torch.dtype
) -> None:
    """Adds the other results of a step, next to `out`."""
    r, batch = d.r, shape[0]
    if slots:
        given = d.call.arguments["slots"]
        if d.chance(0.4) and given.is_contiguous() and not given.is_neg():
            d.call.arguments["slots_out"] = d.call.buffers["slots_out"] = given
            d.call.outs, d.call.inplace = (*d.call.outs, "slots_out"), True
        else:
            d.out("slots_out", (slots, *shape), compute)
    if d.chance(0.4):
        d.out("x0_out", shape, r.choice(FLOATS))
    twice = 2 if guided and d.chance(0.8) else 1
    if d.chance(0.4):
        d.out("input_out", (twice * batch, *shape[1:]), r.choice(FLOATS))
    if d.chance(0.4):
        d.out("row_out", (batch,), I64)
    if d.chance(0.4):
        d.out("time_out", (twice * batch,), r.choice((I64, torch.float32)))
    scored = d.chance(0.3)
    if scored:
        d.out("log_prob_out", (batch,), compute)
    if d.chance(0.3):
        rows = workspace_rows(count(shape[1:]), compute, log_prob=scored)
        d.out("workspace", (rows, batch), compute)
        del d.call.buffers["workspace"]


BUILDERS: dict[str, Callable[[random.Random, Guarded], Call]] = {
    f.__name__: f
    for f in (
        randn,
        q_sample,
        q_posterior,
        reverse_step,
        step_log_prob,
        gaussian_kl,
        discretized_gaussian_nll,
        reparameterize,
        noise_mse,
        vlb_terms,
        group_norm_silu,
    )
}
assert len(COLUMNS) == TABLES[0].shape[1]
