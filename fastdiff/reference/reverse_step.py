"""One row of a plan: an interpreter of the table's columns that shares no code with the solvers.

It is written from kernels/README.md section 4 alone. The samples are processed one by one in a
Python loop, which shows what a row per sample means.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .elementary import exp
from .randn import normals

OPERANDS = ("x", "x0", "out", "s1", "s2", "s3", "s4", "z")
COLUMNS = (
    "network t input_scale guidance_weight guidance_rescale out_grad x0_x x0_out clip_mode"
    " clip_bound clip_ratio noise_index noise_mode logvar_lo logvar_hi next"
).split() + [f"{to}.{of}" for to in ("x", "s1", "s2", "s3", "s4") for of in OPERANDS]
COLUMNS += ["out_uncond", "guidance_kind", "guidance_parallel", "guidance_x", "guidance_bound"]
COLUMNS += ["guidance_momentum"]


class Step(NamedTuple):
    """The results of a row: x_s [B, …]; slots [S, B, …] or None; x0 [B, …] after the clip;
    network_input [B or 2B, …]; row [B]; time [B or 2B], column t of the next row."""

    x_s: NDArray
    slots: NDArray | None
    x0: NDArray
    network_input: NDArray
    row: NDArray[np.int64]
    time: NDArray[np.float64]

    @property
    def timestep(self) -> NDArray[np.int64]:
        """Returns the time rounded to a whole timestep, half to even; 0 for NaN."""
        return np.where(np.isnan(self.time), 0.0, np.rint(self.time)).astype(np.int64)


def reverse_step(
    x_t: NDArray,
    model_output: NDArray | None,
    table: NDArray[np.float64],
    row: ArrayLike,
    *,
    slots: NDArray | None = None,
    noise: NDArray | None = None,
    seed: Any = None,
    sample_ids: ArrayLike | None = None,
    guidance: ArrayLike | None = None,
    gradient: NDArray | None = None,
    stream: int = 1,
) -> Step:
    """Executes row[b] of table [R, 62] for every sample b; see kernels/README.md section 4."""
    compute = np.float64 if x_t.dtype == np.float64 else np.float32
    batch = x_t.shape[0]
    rows = np.broadcast_to(np.asarray(row), (batch,))
    ids = np.arange(batch) if sample_ids is None else np.asarray(sample_ids)
    gammas = None if guidance is None else np.broadcast_to(np.asarray(guidance, compute), (batch,))
    x_s = np.empty_like(x_t)
    x0_all = np.empty(x_t.shape, compute)
    scaled = np.empty(x_t.shape, compute)
    new_slots = None if slots is None else slots.copy()
    next_row, time = np.empty(batch, np.int64), np.empty(batch)
    for b in range(batch):
        r = dict(zip(COLUMNS, table[rows[b]], strict=True))
        c = {name: compute(value) for name, value in r.items()}
        read: dict[str, NDArray] = {"x": x_t[b].astype(compute)}
        for i in range(0 if slots is None else len(slots)):
            read[f"s{i + 1}"] = slots[i, b].astype(compute)  # type: ignore[index]
        half = kept = None
        if model_output is not None:
            out, half = _split(model_output[b].astype(compute), x_t[b].shape)
            if gammas is not None:
                uncond, _ = _split(model_output[batch + b].astype(compute), x_t[b].shape)
                w = c["guidance_weight"]
                g = gammas[b] if w == 1 else compute(1) + w * (gammas[b] - compute(1))
                cond = out
                if r["guidance_kind"] != 0 and g != 1:
                    if r["guidance_kind"] >= 4:
                        kept = _difference(cond, uncond, c["guidance_momentum"], read)
                    uncond = _reference(r, cond, uncond, read, g)
                out = out if g == 1 else uncond if g == 0 else uncond + g * (out - uncond)
                if r["guidance_rescale"] != 0 and g != 1:
                    out = _rescale(cond, out, r["guidance_rescale"]) * out
            if r["out_grad"] != 0:
                assert gradient is not None
                out = out + c["out_grad"] * gradient[b].astype(compute)
            read["out"] = out
        x0 = _combine({"x": c["x0_x"], "out": c["x0_out"]}, read, x_t[b].shape, compute)
        if r["clip_mode"] == 1:
            x0 = np.where(x0 > c["clip_bound"], c["clip_bound"], x0)
            x0 = np.where(x0 < -c["clip_bound"], -c["clip_bound"], x0)
        if r["clip_mode"] == 2 and x0.size:
            s = _threshold(x0, r["clip_ratio"], c["clip_bound"])
            x0 = np.where(x0 > s, s, x0)
            x0 = np.where(x0 < -s, -s, x0) / s
        read["x0"] = x0_all[b] = x0
        if r["out_uncond"] == 1 and gammas is not None and model_output is not None and g != 1:
            read["out"] = uncond
        if any(r[f"{to}.z"] != 0 for to in ("x", "s1", "s2", "s3", "s4")):
            if noise is not None:
                z = noise[b].astype(compute)
            else:
                s = np.broadcast_to(np.asarray(seed).astype(np.uint64), (batch,))[b]
                z = normals(x_t[b].size, s, ids[b : b + 1], int(r["noise_index"]), stream)[0]
                z = z.reshape(x_t[b].shape).astype(compute)
            if r["noise_mode"] == 1:
                assert half is not None
                lo, hi = c["logvar_lo"], c["logvar_hi"]
                logvar = lo + (hi - lo) * ((half + compute(1)) * compute(0.5))
                z = z * exp(compute(0.5) * logvar)
            read["z"] = z
        x_next = _combine(_coefficients(c, "x"), read, x_t[b].shape, compute)
        for i in range(0 if slots is None else len(slots)):
            coefficients = _coefficients(c, f"s{i + 1}")
            if any(v != 0 for v in coefficients.values()):
                new_slots[i, b] = _combine(coefficients, read, x_t[b].shape, compute)  # type: ignore[index]
            elif i == 3 and kept is not None:
                new_slots[i, b] = kept  # type: ignore[index]
        next_row[b] = int(r["next"])
        time[b] = table[next_row[b], COLUMNS.index("t")]
        x_s[b] = x_next.astype(x_t.dtype)
        scaled[b] = compute(table[next_row[b], COLUMNS.index("input_scale")]) * x_next
    network_input = scaled if gammas is None else np.concatenate([scaled, scaled])
    times = time if gammas is None else np.concatenate([time, time])
    return Step(x_s, new_slots, x0_all, network_input, next_row, times)


def _coefficients(c: dict[str, Any], to: str) -> dict[str, Any]:
    return {operand: c[f"{to}.{operand}"] for operand in OPERANDS}


def _combine(
    coefficients: dict[str, Any], read: dict[str, NDArray], shape: tuple[int, ...], compute: Any
) -> NDArray:
    total = np.zeros(shape, compute)
    for operand, c in coefficients.items():
        if c != 0:
            total = total + c * read[operand]
    return total


def _split(out: NDArray, shape: tuple[int, ...]) -> tuple[NDArray, NDArray | None]:
    """Splits a model output with twice the channels into (prediction, variance half)."""
    if out.shape == shape:
        return out, None
    half = out.shape[0] // 2
    return out[:half], out[half:]


def _difference(cond: Any, uncond: Any, momentum: Any, read: dict[str, NDArray]) -> Any:
    """Returns c - u and, with momentum, that multiple of the difference in slot 4."""
    return cond - uncond + momentum * read["s4"] if momentum != 0 else cond - uncond


def _reference(
    r: dict[str, Any], cond: NDArray, uncond: NDArray, read: dict[str, NDArray], g: Any
) -> NDArray:
    """Returns what a kind of guidance takes as the unconditional output.

    Its numbers for the sample are float64, cast to the compute type: s (Fan et al. 2025), and those
    of D = k (v - (1 - eta) q p) (Sadat et al. 2024), from which u' is c - D, or what makes
    u' + g (c - u') equal u + g D.
    """
    kind, compute = int(r["guidance_kind"]), cond.dtype.type
    wide = {"c": cond.astype(np.float64), "u": uncond.astype(np.float64)}
    c, u = wide["c"], wide["u"]
    if kind == 1:
        terms = {"u": (c * u).sum() / ((u * u).sum() + 1e-8)}
    else:
        momentum, rho = r["guidance_momentum"], r["guidance_x"]
        v = _difference(c, u, momentum, {n: a.astype(np.float64) for n, a in read.items()})
        p = c + rho * read["x"].astype(np.float64) if rho != 0 else c
        length, bound, square = np.sqrt((v * v).sum()), r["guidance_bound"], (p * p).sum()
        k = bound / length if bound > 0 and length > bound else 1.0
        off = 1.0 - r["guidance_parallel"]
        e = k * off * (v * p).sum() / square if off != 0 and square != 0 else 0.0
        of_d = {"c": k - e, "u": -k, "m": k * momentum, "x": -e * rho}
        if kind in (2, 4):
            terms = {name: (name == "c") - value for name, value in of_d.items()}
        else:
            strength = float(g)
            rest = {"c": -strength, "u": 1.0}
            terms = {
                name: (rest.get(name, 0.0) + strength * value) / (1.0 - strength)
                for name, value in of_d.items()
            }
    operands = {"c": cond, "u": uncond, "m": read.get("s4"), "x": read["x"]}
    total = np.zeros_like(cond)
    for name, operand in operands.items():
        factor = compute(terms.get(name, 0.0))
        if factor != 0:
            total = total + factor * operand
    return total


def _rescale(cond: NDArray, guided: NDArray, phi: float) -> Any:
    """Returns phi std(cond)/std(guided) + 1 - phi in float64, cast to the compute type.

    (Lin et al. 2024, eq. 15 and 16.)
    """
    spread = [
        np.sqrt(v.astype(np.float64).var(ddof=1)) if v.size > 1 else np.nan for v in (cond, guided)
    ]
    with np.errstate(all="ignore"):
        return cond.dtype.type(phi * (np.float64(spread[0]) / spread[1]) + (1 - phi))


def _threshold(x0: NDArray, ratio: float, bound: Any) -> Any:
    """Returns the ratio-quantile of |x0|, interpolated and clamped to [1, bound].

    (Saharia et al. 2022, section 2.3.)
    """
    ordered = np.sort(np.abs(x0), axis=None)  # NaN sorts to the end
    position = ratio * (ordered.size - 1)
    below = int(position)
    low, high = ordered[below], ordered[min(below + 1, ordered.size - 1)]
    with np.errstate(invalid="ignore"):  # between two infinities
        s = low + x0.dtype.type(position - below) * (high - low)
    s = bound if s > bound else s
    return x0.dtype.type(1) if s < 1 else s
