"""Philox4x32-10 and the exact Box-Muller transform of kernels/README.md section 1, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

U32 = np.uint32
F32 = np.float32

_LOG = [
    float.fromhex(c)
    for c in (
        "0x1.555554p-2 -0x1.000226p-2 0x1.99a008p-3 -0x1.547244p-3 "
        "0x1.22da1cp-3 -0x1.0d8542p-3 0x1.055b72p-3 -0x1.38b58ap-4"
    ).split()
]
_SIN = [
    float.fromhex(c) for c in "0x1.921fb6p+1 -0x1.4abbbap+2 0x1.465ec6p+1 -0x1.2d9bb6p-1".split()
]
_COS = [
    float.fromhex(c) for c in "-0x1.3bd3ccp+2 0x1.03c1dep+2 -0x1.55c664p+0 0x1.d9f7bcp-3".split()
]


def philox4x32(counter: ArrayLike, key: ArrayLike, rounds: int = 10) -> NDArray[np.uint32]:
    """Computes the words of Philox4x32 (Salmon et al. 2011, section 4.3), uint32 [..., 4].

    counter: uint32 [..., 4]; key: uint32 [..., 2].
    """
    c = [np.asarray(counter, dtype=np.uint64)[..., i] for i in range(4)]
    k = [np.asarray(key, dtype=np.uint64)[..., i] for i in range(2)]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(rounds):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & mask, (p0 >> shift) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(np.broadcast_arrays(*c), axis=-1).astype(U32)


def _box_muller(
    a: NDArray[np.uint32], b: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    k, j = (a >> U32(8)) | U32(1), (b >> U32(8)) | U32(1)
    bits = k.astype(F32).view(U32) + U32(0x004AFB0D)
    n = ((bits >> U32(23)).astype(np.int32) - 151).astype(F32)
    d = ((bits & U32(0x007FFFFF)) + U32(0x3F3504F3)).view(F32) - F32(1)
    dd = d * d
    y = (dd * d) * _horner(_LOG, d)
    y = y + n * F32(float.fromhex("0x1.7f7d1cp-20"))
    y = y - F32(0.5) * dd
    log_u = (d + y) + n * F32(float.fromhex("0x1.62e4p-1"))
    r = np.sqrt(F32(-2) * log_u)

    v = ((j & U32(0x007FFFFF)).astype(np.int32) - 0x00400000).astype(F32) * F32(2.0**-24)
    z = v * v
    s = v * _horner(_SIN, z)
    c = _horner(_COS, z) * z + F32(1)
    t = s + s
    r = np.where((j >> U32(23)) == 1, -r, r)
    return (-r) * (t * c), r * (F32(1) - t * s)


def _horner(coefficients: list[float], x: NDArray[np.float32]) -> NDArray[np.float32]:
    p = np.full_like(x, F32(coefficients[-1]))
    for c in coefficients[-2::-1]:
        p = p * x + F32(c)
    return p


def normals(
    n: int,
    seed: ArrayLike,
    sample_ids: NDArray[np.int64],
    step: ArrayLike,
    stream: int,
    first: int = 0,
) -> NDArray[np.float32]:
    """Returns the normals of the contract for elements first … first + n - 1, float32 [B, n].

    seed and step are scalars or [B], uint64 and integers.
    """
    batch, groups = len(sample_ids), (n + 3) // 4
    seeds = np.broadcast_to(np.asarray(seed).astype(np.uint64), (batch,))
    steps = np.broadcast_to(np.asarray(step).astype(np.uint64), (batch,))
    ids = sample_ids.astype(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = np.empty((batch, groups, 4), dtype=np.uint64)
    counter[..., 0] = np.uint64(first // 4) + np.arange(groups, dtype=np.uint64)
    counter[..., 1] = steps[:, None]
    counter[..., 2] = (ids & low)[:, None]
    counter[..., 3] = ((ids >> half) | (np.uint64(stream) << np.uint64(24)))[:, None]
    key = np.stack([seeds & low, seeds >> half], axis=-1)[:, None, :]
    w = philox4x32(counter, key)
    out = np.empty((batch, groups, 4), dtype=F32)
    out[..., 0], out[..., 1] = _box_muller(w[..., 0], w[..., 1])
    out[..., 2], out[..., 3] = _box_muller(w[..., 2], w[..., 3])
    return out.reshape(batch, 4 * groups)[:, :n]


def randn(
    shape: tuple[int, ...],
    *,
    seed: ArrayLike,
    sample_ids: ArrayLike | None = None,
    step: int = 0,
    stream: int = 0,
    dtype: type = np.float32,
    offset: int = 0,
) -> NDArray:
    """Draws standard normals [B, …], a function of (seed, sample id, stream, step, element), which
    counts from `offset`.

    seed: uint64 scalar or [B]; sample_ids: int [B], default 0 … B-1; values are float32, then cast
        to dtype.
    """
    batch, n = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    ids = np.arange(batch) if sample_ids is None else np.asarray(sample_ids)
    return normals(n, seed, ids, step, stream, offset).reshape(shape).astype(dtype)
