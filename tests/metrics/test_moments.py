"""Moments: streamed and merged they are those of the whole, and other programs read their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.metrics import Moments, load_moments, save_moments


def features(n: int, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    return x @ torch.randn(7, 7, generator=generator, dtype=torch.float64) + offset


def of(x: torch.Tensor) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("sizes", [[1] * 60, [60], [0, 7, 0, 1, 52], [59, 1]])
def test_batches_and_shards_give_the_moments_of_the_whole(sizes: list[int], offset: float) -> None:
    x = features(60, offset=offset)
    streamed, merged = Moments(7), Moments(7)
    for part in x.split(sizes):
        streamed.add(part)
        merged.merge(of(part))
    mean, covariance = x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)
    for moments in (streamed, merged):
        assert moments.n == 60
        np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-12)
        # the error of the mean, of which the covariance's is a multiple
        tolerance = 1e-12 * np.abs(covariance).max() + 1e-15 * offset * 7
        np.testing.assert_allclose(
            moments.covariance.numpy(), covariance, rtol=1e-12, atol=tolerance
        )


def test_float32_features_are_summed_in_float64() -> None:
    x = features(5000, offset=100.0).float()
    moments = Moments(7)
    for part in x.split(33):
        moments.add(part)
    np.testing.assert_allclose(
        moments.covariance.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-11
    )


def test_the_file_is_read_as_others_read_it(tmp_path: Path) -> None:
    x, path = features(50), tmp_path / "data.npz"
    save_moments(path, of(x), "fashion-mnist")
    with np.load(path) as file:  # as pytorch-fid reads it
        mu, sigma = file["mu"][:], file["sigma"][:]
    reference = dict(np.load(path))  # as EDM reads it
    for m, s in ((mu, sigma), (reference["mu"], reference["sigma"])):
        np.testing.assert_allclose(m, x.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(s, np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-12)
    again, name = load_moments(path)
    assert name == "fashion-mnist" and again.n == 50
    more, whole = features(30, seed=1), of(torch.cat([x, features(30, seed=1)]))
    again.add(more)
    torch.testing.assert_close(again.covariance, whole.covariance, rtol=1e-11, atol=1e-12)


def test_a_file_of_others_has_no_number(tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.ones(3), sigma=np.eye(3, dtype=np.float32))
    moments, name = load_moments(path)
    assert moments.n is None and name == ""
    assert torch.equal(moments.covariance, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected moments of 3 features with a number"):
        moments.merge(moments)


def test_what_is_no_sample_is_refused() -> None:
    moments = of(features(5))
    before = moments.covariance
    for bad, reason in (
        (torch.full((2, 7), torch.nan), "expected finite features"),
        (torch.full((2, 7), torch.inf), "expected finite features"),
        (torch.zeros(2, 6), r"expected features of shape \[B, 7\], got \[2, 6\]"),
        (torch.zeros(7), r"expected features of shape \[B, 7\], got \[7\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            moments.add(bad)
    assert torch.equal(moments.covariance, before) and moments.n == 5
    with pytest.raises(ValueError, match="expected at least 2 samples for a covariance, got 1"):
        _ = of(features(1)).covariance


BROKEN: dict[str, dict[str, object]] = {
    "no sigma": {"mu": np.ones(3)},
    "no mu": {"sigma": np.eye(3)},
    "other sizes": {"mu": np.ones(3), "sigma": np.eye(2)},
    "no numbers": {"mu": np.array(["a"]), "sigma": np.eye(1)},
    "not finite": {"mu": np.ones(1), "sigma": np.full((1, 1), np.nan)},
    "a bad n": {"mu": np.ones(1), "sigma": np.eye(1), "n": np.array(-4)},
    "an n of text": {"mu": np.ones(1), "sigma": np.eye(1), "n": np.array("many")},
    "objects": {"mu": np.array([None]), "sigma": np.eye(1)},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, content: dict[str, object]) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **content)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^fastdiff\.metrics: expected mu \[F\] and sigma .*\.$"):
        load_moments(path)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    with pytest.raises(FileNotFoundError, match="got none"):
        load_moments(path)
    save_moments(path, of(features(9)))
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    contents = (
        b"",
        b"text",
        whole[:100],
        whole[: len(whole) // 2],
        (tmp_path / "array.npy").read_bytes(),
    )
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected mu"):
            load_moments(path)
