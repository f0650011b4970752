"""`randn` against the oracle, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.cases import SHAPES

import fastdiff
from fastdiff import reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stream", range(6))
def test_bits(shape: tuple[int, ...], stream: int, backend: str) -> None:
    got = fastdiff.randn(shape, seed=2**64 - 3, step=2**32 - 2, stream=stream)
    expected = reference.randn(shape, seed=2**64 - 3, step=2**32 - 2, stream=stream)
    assert np.array_equal(got.numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.cpu_only
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**56 - 1), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(1, 40),
)
def test_any_counter(seed: int, ids: list[int], step: int, stream: int, n: int) -> None:
    expected = reference.randn((len(ids), n), seed=seed, sample_ids=ids, step=step, stream=stream)
    for name in ("torch", "cpu"):
        if fastdiff.backends()[name].available:
            got = fastdiff.randn(
                (len(ids), n),
                seed=seed,
                sample_ids=torch.tensor(ids),
                step=step,
                stream=stream,
                backend=name,
            )
            assert np.array_equal(got.numpy().view(np.uint32), expected.view(np.uint32))


def test_seeds_per_sample(backend: str) -> None:
    seeds = [0, 2**63, 2**64 - 1]
    as_int64 = torch.tensor([s - 2**64 if s >= 2**63 else s for s in seeds])
    got = fastdiff.randn((3, 10), seed=as_int64)
    for b, seed in enumerate(seeds):
        assert torch.equal(
            got[b], fastdiff.randn((1, 10), seed=seed, sample_ids=torch.tensor([b]))[0]
        )
    assert torch.equal(
        fastdiff.randn((3, 10), seed=as_int64[1]), fastdiff.randn((3, 10), seed=2**63)
    ), "a scalar tensor is one seed for all"


def test_out_is_filled_and_nothing_else(backend: str) -> None:
    memory = torch.full((3, 12), torch.nan)
    out = memory[1:2]
    assert fastdiff.randn((1, 12), seed=1, out=out) is out
    assert torch.equal(out, fastdiff.randn((1, 12), seed=1))
    assert bool(torch.isnan(memory[[0, 2]]).all())


def test_a_million_short_samples(backend: str) -> None:
    z = fastdiff.randn((1_000_000, 2), seed=9)
    for i in (0, 1, 499_999, 999_999):
        assert np.array_equal(z[i].numpy(), reference.randn((1, 2), seed=9, sample_ids=[i])[0])
