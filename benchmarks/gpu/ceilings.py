"""The ceilings of the machine: bandwidth of copy and fill, matrix products, and torch.randn.

A copy counts the bytes read and written. Matrices hold random numbers, because products of zeros
run faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.common import Row, Rows, Target, alone, within

LIMITS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}


def rows(target: Target) -> Rows:
    for megabytes in target.size((64, 1024, 4096), (1, 2)):
        yield f"copy {megabytes}", lambda m=megabytes: copy(target, m)
        yield f"fill {megabytes}", lambda m=megabytes: fill(target, m)
    for kind in LIMITS:
        yield f"gemm {kind}", lambda k=kind: gemm(target, k)
    for dtype in (torch.float32, torch.bfloat16):
        for count in target.size((3072, 786_432, 50_331_648), (3072, 4096, 8192)):
            yield f"randn {dtype} {count}", lambda d=dtype, n=count: normals(target, d, n)


def copy(target: Target, megabytes: int) -> Row:
    source = torch.randn(megabytes * 2**18, device=target.device)
    out = torch.full_like(source, torch.nan)
    out.copy_(source)
    if not torch.equal(source, out):
        raise AssertionError("copy: expected equal bytes")
    return alone(
        target,
        lambda: out.copy_(source),
        kind="ceiling",
        what="copy",
        case={"MiB": megabytes},
        checked="equal",
        nbytes=2 * 4 * source.numel(),
    )


def fill(target: Target, megabytes: int) -> Row:
    out = torch.randn(megabytes * 2**18, device=target.device)
    out.fill_(1.0)
    if not (out == 1.0).all():
        raise AssertionError("fill: expected ones")
    return alone(
        target,
        lambda: out.fill_(1.0),
        kind="ceiling",
        what="fill",
        case={"MiB": megabytes},
        checked="equal",
        nbytes=4 * out.numel(),
    )


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Sets torch's switch for float32 products in TF32 within the block."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def gemm(target: Target, kind: str) -> Row:
    n = target.size(8192, 128)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=target.device).to(dtype) for _ in range(2))
    out = torch.full((n, n), torch.nan, device=target.device, dtype=dtype)
    with tf32(kind == "tf32"):
        torch.mm(a, b, out=out)
        checked = within(out[:8], a[:8].double() @ b.double(), LIMITS[kind], f"gemm {kind}")
        return alone(
            target,
            lambda: torch.mm(a, b, out=out),
            kind="ceiling",
            what=f"gemm {kind}",
            case={"n": n},
            checked=checked,
            flops=2.0 * n**3,
        )


def normals(target: Target, dtype: torch.dtype, count: int) -> Row:
    out = torch.empty(count, device=target.device, dtype=dtype)
    sample = out.normal_().double()
    error = 6.0 / count**0.5
    if abs(float(sample.mean())) > error or abs(float(sample.var()) - 1) > 2 * error:
        raise AssertionError(
            f"torch.randn: expected mean 0 and variance 1, got {sample.mean():.3g},"
            f" {sample.var():.3g}"
        )
    return alone(
        target,
        lambda: out.normal_(),
        kind="ceiling",
        what="torch.randn",
        case={"dtype": str(dtype).removeprefix("torch."), "shape": [count]},
        checked="mean and variance",
        nbytes=count * out.element_size(),
        elements=count,
    )
