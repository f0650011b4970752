"""The noise contract: published integers, golden bits, accuracy and statistics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import FAST_NOISE, NOISE_TRUTH, moments

import fastdiff
from fastdiff import reference, rng

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noise_v1.json").read_text())["cases"]

# Random123's kat_vectors for philox4x32-10: counter, key, output
PUBLISHED = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def _hex(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize("counter, key, output", PUBLISHED)
def test_philox_equals_the_published_vectors(counter: str, key: str, output: str) -> None:
    assert reference.philox4x32(_hex(counter), _hex(key)).tolist() == _hex(output)
    words = rng.philox4x32(
        tuple(torch.tensor([w]) for w in _hex(counter)),  # type: ignore[arg-type]
        tuple(torch.tensor([w]) for w in _hex(key)),  # type: ignore[arg-type]
    )
    assert [int(w) for w in words] == _hex(output)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"seed{c['seed']:x}-stream{c['stream']}")
def test_golden_bits(case: dict, backend: str) -> None:
    values = fastdiff.randn(
        (1, case["elements"]),
        seed=case["seed"],
        sample_ids=torch.tensor([case["sample_id"]]),
        step=case["step"],
        stream=case["stream"],
    )
    assert values.numpy().view(np.uint32)[0].tolist() == _hex(case["bits"])
    expected = reference.randn(
        (1, case["elements"]),
        seed=case["seed"],
        sample_ids=[case["sample_id"]],
        step=case["step"],
        stream=case["stream"],
    )
    assert expected.view(np.uint32)[0].tolist() == _hex(case["bits"])


def test_golden_file_covers_the_contract() -> None:
    assert {c["stream"] for c in GOLDEN} == set(range(6))
    assert any(c["seed"] >= 2**63 for c in GOLDEN) and any(c["sample_id"] >= 2**32 for c in GOLDEN)
    assert {c["elements"] % 4 for c in GOLDEN} == {0, 1, 2, 3}


def test_exact_normals_are_true_to_float64() -> None:
    """They equal Box-Muller of the same 24-bit uniforms in float64 to a few float32 roundings."""
    n = 200_000
    w = reference.philox4x32(
        np.stack([np.arange(n), np.zeros(n), np.zeros(n), np.zeros(n)], -1).astype(np.uint64),
        [11, 0],
    )
    u = ((w >> 8) | 1).astype(np.float64) * 2.0**-24
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    truth = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)
    got = reference.randn((1, 4 * n), seed=11)[0]
    assert np.abs(got - truth).max() < NOISE_TRUTH


def test_fast_mode_is_near_exact_mode(backend: str) -> None:
    exact = fastdiff.randn((8, 1001), seed=5)
    assert (fastdiff.randn((8, 1001), seed=5, mode="fast") - exact).abs().max() < FAST_NOISE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_the_float32_values(dtype: torch.dtype, backend: str) -> None:
    exact = fastdiff.randn((5, 33), seed=5)
    assert torch.equal(fastdiff.randn((5, 33), seed=5, dtype=dtype), exact.to(dtype))


def test_statistics_of_a_hundred_million_draws() -> None:
    """Four moments at five standard errors, and a chi-square test over 256 equal bins.

    Sums are float64.
    """
    batches, per_batch = 25, 4_000_000
    n = batches * per_batch
    edges = torch.from_numpy(stats.norm.ppf(np.arange(1, 256) / 256)).to(torch.float32)
    sums, counts = np.zeros(4), np.zeros(256)
    for b in range(batches):
        z = fastdiff.randn(
            (1000, per_batch // 1000), seed=20260, sample_ids=torch.arange(1000) + 1000 * b
        )
        wide = z.to(torch.float64).flatten()
        square = wide * wide
        sums += [
            float(wide.sum()),
            float(square.sum()),
            float((square * wide).sum()),
            float((square * square).sum()),
        ]
        counts += torch.bincount(torch.bucketize(z.flatten(), edges), minlength=256).numpy()
    m1, m2, m3, m4 = sums / n
    variance = m2 - m1**2
    skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2
    limit = moments(n)
    assert abs(m1) < limit["mean"]
    assert abs(variance - 1) < limit["variance"]
    assert abs(skewness) < limit["skewness"]
    assert abs(kurtosis - 3) < limit["kurtosis"]
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("neighbour", ["sample_ids", "step", "stream", "seed"])
def test_neighbours_are_uncorrelated(neighbour: str) -> None:
    """64 pairs of neighbouring values of each argument, 2^20 draws each."""
    n = 2**20

    def draw(k: int) -> torch.Tensor:
        arguments = {"sample_ids": 3, "step": 5, "stream": 1, "seed": 7}
        arguments[neighbour] += k
        ids = torch.tensor([arguments.pop("sample_ids")])
        return fastdiff.randn((1, n), sample_ids=ids, **arguments)[0].to(torch.float64)

    limit = moments(n)["correlation"]
    previous = draw(0)
    for k in range(1, 65):
        following = draw(k)
        assert abs(float(previous @ following)) / n < limit, f"{neighbour} {k - 1} and {k}"
        previous = following


def test_integers_and_uniforms_are_uniform() -> None:
    ids = torch.arange(200_000)
    t = rng.randint(10, seed=3, sample_ids=ids)
    assert stats.chisquare(torch.bincount(t, minlength=10).numpy()).pvalue > 1e-6
    assert (
        stats.kstest(rng.uniform(seed=3, sample_ids=ids, word=1).numpy(), "uniform").pvalue > 1e-6
    )
    assert math.isclose(float(t.double().mean()), 4.5, abs_tol=0.05)
