"""The noise contract on torch: noise is a function of (seed, sample id, stream, step, element).

Philox4x32-10 (Salmon et al. 2011) turns key = seed and counter = (element // 4, step, the low 32
bits of the id, stream << 24 | the other bits of the id) into four words; Box-Muller turns two words
into two normals. In the mode `exact` every float operation is a float32 add, multiply or correctly
rounded square root in the order of kernels/README.md section 1, so these bits equal those of every
other backend. The mode `fast` uses torch's functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("exact", "fast")
(
    STREAM_INITIAL,
    STREAM_SOLVER,
    STREAM_FORWARD,
    STREAM_REPARAMETERIZE,
    STREAM_TIMES,
    STREAM_PROBES,
) = range(6)
IDS = 2**56  # sample ids are in [0, IDS): the upper 8 bits of their word hold the stream
STREAM_TREE = 6  # nodes of a Brownian path (fastdiff.sampling.adaptive)

_WORD = 0xFFFFFFFF
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_h = float.fromhex
_LN2_HI, _LN2_LO = _h("0x1.62e4p-1"), _h("0x1.7f7d1cp-20")
_LOG = tuple(
    map(
        _h,
        (
            "0x1.555554p-2 -0x1.000226p-2 0x1.99a008p-3 -0x1.547244p-3 "
            "0x1.22da1cp-3 -0x1.0d8542p-3 0x1.055b72p-3 -0x1.38b58ap-4"
        ).split(),
    )
)
_SIN = tuple(map(_h, "0x1.921fb6p+1 -0x1.4abbbap+2 0x1.465ec6p+1 -0x1.2d9bb6p-1".split()))
_COS = tuple(map(_h, "-0x1.3bd3ccp+2 0x1.03c1dep+2 -0x1.55c664p+0 0x1.d9f7bcp-3".split()))


def windowed(stream: int, offset: int) -> int:
    """Returns the stream of a window of larger samples, whose element 0 is their element `offset`,
    a multiple of 4: the stream in the lower 8 bits, and above them the first group of four.
    """
    return stream | (offset // 4) << 8


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Computes Philox4x32-10 on words in [0, 2^32), stored as int64; counters, keys broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, so both halves of the unsigned product are intact
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return c0, c1, c2, c3


def words(
    groups: Tensor,  # [G] int64, element // 4
    *,
    seed: int | Tensor,  # unsigned int, or int64 [B] in two's complement
    sample_ids: Tensor,  # [B] int64 in [0, IDS)
    step: int | Tensor,  # int, or int64 [B], in [0, 2^32)
    stream: int,  # or `windowed`
) -> tuple[Tensor, ...]:
    """Returns the four Philox words of each (sample, group): int64 tensors [B, G]."""
    if not isinstance(seed, Tensor):
        seed = torch.full((1,), signed_seed(seed), dtype=torch.int64, device=groups.device)
    if not isinstance(step, Tensor):
        step = torch.full((1,), step, dtype=torch.int64, device=groups.device)
    groups, stream = groups + (stream >> 8), stream & 0xFF  # a window's first group, see `windowed`
    seed, ids, step = seed.reshape(-1, 1), sample_ids.reshape(-1, 1), step.reshape(-1, 1)
    key = (seed & _WORD, (seed >> 32) & _WORD)
    counter = (groups.reshape(1, -1), step, ids & _WORD, (ids >> 32) | (stream << 24))
    w = philox4x32(counter, key)
    return tuple(torch.broadcast_to(v, (ids.shape[0], groups.numel())) for v in w)


def normals(
    n: int,
    *,
    seed: int | Tensor,
    sample_ids: Tensor,
    step: int | Tensor,
    stream: int,
    fast: bool = False,
) -> Tensor:
    """Returns standard normals, float32 [B, n].

    Element e of sample b is f(seed[b], id[b], stream, step[b], e).
    """
    groups = torch.arange((n + 3) // 4, device=sample_ids.device)
    w0, w1, w2, w3 = words(groups, seed=seed, sample_ids=sample_ids, step=step, stream=stream)
    pair = _pair_fast if fast else _pair_exact
    z = torch.stack((*pair(w0, w1), *pair(w2, w3)), dim=-1)
    return z.flatten(1)[:, :n].contiguous()


def _pair_exact(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    k, j = (a >> 8) | 1, (b >> 8) | 1
    bits = k.to(torch.float32).view(torch.int32) + 0x004AFB0D
    n = ((bits >> 23) - (127 + 24)).to(torch.float32)
    d = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    p = _horner(_LOG, d)
    dd = d * d
    y = (dd * d) * p
    y = y + n * _LN2_LO
    y = y - dd * 0.5
    g = (d + y) + n * _LN2_HI
    # torch's float32 sqrt may be off by one unit in the last place; float64 then float32 is
    # correctly rounded
    r = torch.sqrt((g * -2.0).to(torch.float64)).to(torch.float32)

    v = ((j & 0x007FFFFF) - 0x00400000).to(torch.float32) * 2.0**-24
    z = v * v
    s = v * _horner(_SIN, z)
    c = _horner(_COS, z) * z + 1.0
    t = s + s
    r = torch.where((j >> 23) == 1, -r, r)
    return (-r) * (t * c), r * (1.0 - t * s)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    p = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        p = p * x + c
    return p


def _pair_fast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u1 = ((a >> 8) | 1).to(torch.float32) * 2.0**-24
    angle = ((b >> 8) | 1).to(torch.float32) * (2.0**-23 * torch.pi)
    r = torch.sqrt(torch.log(u1) * -2.0)
    return r * torch.cos(angle), r * torch.sin(angle)


def randint(
    high: int,
    *,
    seed: int | Tensor,
    sample_ids: Tensor,
    step: int | Tensor = 0,
    stream: int = STREAM_TIMES,
    word: int = 0,
) -> Tensor:
    """Returns integers in [0, high), int64 [B], high <= 2^31.

    They are (word · high) >> 32 of the sample's first group.
    """
    group = torch.zeros(1, dtype=torch.int64, device=sample_ids.device)
    w = words(group, seed=seed, sample_ids=sample_ids, step=step, stream=stream)[word][:, 0]
    return (w * high) >> 32


def uniform(
    *,
    seed: int | Tensor,
    sample_ids: Tensor,
    step: int | Tensor = 0,
    stream: int = STREAM_TIMES,
    word: int = 0,
) -> Tensor:
    """Returns uniform numbers inside (0, 1), float32 [B].

    They are ((word >> 8) | 1)·2^-24 of the sample's first group.
    """
    group = torch.zeros(1, dtype=torch.int64, device=sample_ids.device)
    w = words(group, seed=seed, sample_ids=sample_ids, step=step, stream=stream)[word][:, 0]
    return ((w >> 8) | 1).to(torch.float32) * 2.0**-24


def signed_seed(seed: int) -> int:
    """Returns the int64 with the bits of an unsigned 64-bit seed."""
    return seed - 2**64 if seed >= 2**63 else seed
