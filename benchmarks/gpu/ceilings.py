"""What the machine can do: bytes by a copy and a fill, operations by a matrix product, normals by
torch.randn.

A copy counts bytes read and written. Matrices hold random numbers: zeros run faster than data does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.common import Place, Row, Rows, alone, within

LIMITS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}


def rows(place: Place) -> Rows:
    for megabytes in place.size((64, 1024, 4096), (1, 2)):
        yield f"copy {megabytes}", lambda m=megabytes: copy(place, m)
        yield f"fill {megabytes}", lambda m=megabytes: fill(place, m)
    for kind in LIMITS:
        yield f"gemm {kind}", lambda k=kind: gemm(place, k)
    for dtype in (torch.float32, torch.bfloat16):
        for count in place.size((3072, 786_432, 50_331_648), (3072, 4096, 8192)):
            yield f"randn {dtype} {count}", lambda d=dtype, n=count: normals(place, d, n)


def copy(place: Place, megabytes: int) -> Row:
    source = torch.randn(megabytes * 2**18, device=place.device)
    target = torch.full_like(source, torch.nan)
    target.copy_(source)
    if not torch.equal(source, target):
        raise AssertionError("copy: expected equal bytes")
    return alone(
        place,
        lambda: target.copy_(source),
        kind="ceiling",
        what="copy",
        case={"MiB": megabytes},
        checked="equal",
        nbytes=2 * 4 * source.numel(),
    )


def fill(place: Place, megabytes: int) -> Row:
    target = torch.randn(megabytes * 2**18, device=place.device)
    target.fill_(1.0)
    if not (target == 1.0).all():
        raise AssertionError("fill: expected ones")
    return alone(
        place,
        lambda: target.fill_(1.0),
        kind="ceiling",
        what="fill",
        case={"MiB": megabytes},
        checked="equal",
        nbytes=4 * target.numel(),
    )


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """torch's switch for float32 products in TF32; the device keeps its settings."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def gemm(place: Place, kind: str) -> Row:
    n = place.size(8192, 128)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=place.device).to(dtype) for _ in range(2))
    out = torch.full((n, n), torch.nan, device=place.device, dtype=dtype)
    with tf32(kind == "tf32"):
        torch.mm(a, b, out=out)
        checked = within(out[:8], a[:8].double() @ b.double(), LIMITS[kind], f"gemm {kind}")
        return alone(
            place,
            lambda: torch.mm(a, b, out=out),
            kind="ceiling",
            what=f"gemm {kind}",
            case={"n": n},
            checked=checked,
            flops=2.0 * n**3,
        )


def normals(place: Place, dtype: torch.dtype, count: int) -> Row:
    out = torch.empty(count, device=place.device, dtype=dtype)
    sample = out.normal_().double()
    error = 6.0 / count**0.5
    if abs(float(sample.mean())) > error or abs(float(sample.var()) - 1) > 2 * error:
        raise AssertionError(
            f"torch.randn: expected mean 0 and variance 1, got {sample.mean():.3g},"
            f" {sample.var():.3g}"
        )
    return alone(
        place,
        lambda: out.normal_(),
        kind="ceiling",
        what="torch.randn",
        case={"dtype": str(dtype).removeprefix("torch."), "shape": [count]},
        checked="mean and variance",
        nbytes=count * out.element_size(),
        elements=count,
    )
