"""Elementary functions as the kernels compute them (kernels/README.md section 1.1).

float64 uses torch's functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXP_HIGH, _LOW = float.fromhex("0x1.617d78p+6"), float.fromhex("-0x1.5d589ep+6")
_E = [
    float.fromhex(h)
    for h in "0x1.0p-1 0x1.55549p-3 0x1.55545ep-5 0x1.123b46p-7 0x1.6db414p-10".split()
]
_MILLS = {
    torch.float32: (
        3.0,
        1.25,
        (
            "0x1.7261bep+0 -0x1.628358p-3 -0x1.079782p-3 0x1.5d1e96p-3 -0x1.336a9cp-4"
            " 0x1.e0cfb6p-10 0x1.47a39p-7 -0x1.f02c52p-11 -0x1.a0bc5cp-10 0x1.743e3ap-14"
            " 0x1.abb1e6p-13"
        ),
    ),
    torch.float64: (
        4.0,
        0.75,
        (
            "0x1.e4aa012912ddep-1 -0x1.2781b2400ff5fp-2 0x1.ab0eaedcc9331p-4 0x1.21676855029b8p-7"
            " -0x1.516c590cb6dabp-5 0x1.d144a67134be9p-6 -0x1.29bd13850eaa6p-7"
            " -0x1.1e9125529eb9bp-13 0x1.37b638fc4e051p-10 -0x1.b02b929be4895p-13"
            " -0x1.34b8064a4d0b7p-13 0x1.6783b91f1b6f5p-15 0x1.808bc86681798p-16"
            " -0x1.d4e3dcd3b691cp-18 -0x1.2dc178fd9686ep-18 0x1.eb5bf293ed918p-21"
            " 0x1.06583411e019bp-20 -0x1.fdfa3dfca28a8p-25 -0x1.b17bb92240d37p-23"
            " -0x1.46f1f2568d1a1p-27 0x1.1b9364d0746d2p-25 0x1.448415700db85p-29"
            " -0x1.a02be90178f07p-29"
        ),
    ),
}


def horner(coefficients: list[float], x: Tensor) -> Tensor:
    p = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        p = p * x + c
    return p


def _exponent(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (k, r, q): x = k ln 2 + r and q = e^r - 1 - r."""
    x = torch.where(x > EXP_HIGH, EXP_HIGH, x)
    x = torch.where(x < _LOW, _LOW, x)
    k = (x * float.fromhex("0x1.715476p+0") + 12582912.0) - 12582912.0
    r = (x - k * float.fromhex("0x1.62e4p-1")) - k * float.fromhex("0x1.7f7d1cp-20")
    return k, r, (r * r) * horner(_E, r)


def exp(x: Tensor) -> Tensor:
    """Returns e^x; in float32 by the polynomial, infinite above 88.37 and zero below -87.33."""
    if x.dtype == torch.float64:
        return torch.exp(x)
    k, r, q = _exponent(x)
    y = 1.0 + (r + q)
    y = (y.view(torch.int32) + (k.to(torch.int32) << 23)).view(torch.float32)
    y = torch.where(x > EXP_HIGH, math.inf, torch.where(x < _LOW, 0.0, y))
    return torch.where(x.isnan(), x, y)


def exp_minus_1_minus(x: Tensor) -> Tensor:
    """Returns e^x - 1 - x without cancellation near 0."""
    if x.dtype == torch.float64:
        series = (x * x) * horner([1 / math.factorial(n) for n in range(2, 15)], x)
        return torch.where(x.abs() < 0.25, series, torch.expm1(x) - x)
    k, _, q = _exponent(x)
    return torch.where(k == 0, q, (exp(x) - 1.0) - x)


def mills(t: Tensor) -> Tensor:
    """Returns Q(t)/phi(t) for t >= 0: the normal's upper tail over its density."""
    center, slope, hexadecimal = _MILLS[t.dtype]
    s = torch.where(t > 1e30, 1.0, (t - center) / (t + center))
    return horner([float.fromhex(h) for h in hexadecimal.split()], s) / (1.0 + slope * t)
