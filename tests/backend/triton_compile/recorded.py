"""Recorded launches and their variants (tests/variants.py). Started by
tests/backend/test_triton.py.
"""

from __future__ import annotations

import json
import os

import pytest
import triton
import triton.language as tl
import variants
from cases import HOPPER, VARIANTS


@pytest.mark.parametrize("name", ["DDPM", "guided, rescaled, dynamic threshold", "gaussian_kl"])
def test_a_record_keeps_the_variant(name: str) -> None:
    call = VARIANTS[name][0]()
    kernel = call.kernel()
    record = variants.recorded(kernel.fn, (), call.arguments | call.options)
    again = variants.variant_of(json.loads(json.dumps(record)), HOPPER)
    assert again.key == variants.variant(kernel, call.arguments, call.options, HOPPER).key


def test_numbers_are_reduced_to_what_decides_the_variant() -> None:
    reduced = [variants.reduced(n, False) for n in (1, 5, -5, 48, 2**31, 2**31 + 1, -(2**40))]
    assert reduced == [1, 17, 17, 16, 2**32 + 16, 2**32 + 17, 2**32 + 16]
    assert variants.reduced(5, True) == 5


@triton.jit
def breaks_at_one(out, n, many):
    tl.store(out, n.to(tl.int64) + many)


@triton.jit(do_not_specialize=["n"])
def compiles(out, n, many):
    tl.store(out, n.to(tl.int64) + many)


def launch(kernel: str, n: int, many: int = 17) -> variants.Launch:
    options = {"num_warps": 1, "enable_fp_fusion": False}
    arguments = {"out": ["int64", True], "n": n, "many": many}
    return {"kernel": f"{__name__}.{kernel}", "arguments": arguments, "options": options}


def test_a_variant_that_does_not_compile_is_found() -> None:
    tasks = [launch("breaks_at_one", 17), launch("breaks_at_one", 1), launch("compiles", 1)]
    results = dict(variants.compile_all([(task, HOPPER) for task in tasks], 2))
    assert [bool(results[i].error) for i in range(3)] == [False, True, False]
    assert "'int' object has no attribute 'to'" in results[1].error
    assert results[0].registers > 0


def test_a_compiler_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(one: variants.Launch, _: object) -> variants.Result:
        if one["arguments"]["n"] == 1:
            os._exit(7)
        return variants.Result("", 1, 0, 0.0)

    monkeypatch.setattr(variants, "compiled_result", work)
    tasks = [launch("compiles", n) for n in (17, 1, 16, 17)]
    results = dict(variants.compile_all([(task, HOPPER) for task in tasks], 1))
    assert [results[i].error for i in range(4)] == ["", "the compiler died with 7", "", ""]


def test_the_sample_has_every_argument_that_became_one() -> None:
    launches = [
        launch("compiles", 17),
        launch("compiles", 1),
        launch("breaks_at_one", 17),
        launch("breaks_at_one", 1),
        launch("breaks_at_one", 17, many=1),
        launch("breaks_at_one", 1, many=1),
    ]
    chosen = variants.with_every_one(launches, HOPPER)
    # the kernel `compiles` has no variant for 1
    assert sorted(map(launches.index, chosen)) == [0, 2, 5]
