"""k-diffusion's dpm_fast and dpm_adaptive, against k-diffusion 0.1.1.post1 in float64."""

from __future__ import annotations

import pytest
import torch
from peer import SHAPE, Doubled, Noise, close, load, network
from tolerances import K_DIFFUSION

import fastdiff
from fastdiff.integrations import k_diffusion as ours

theirs = load()


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 10, 50])
@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"eta": 0.4, "s_noise": 0.9}])
def test_dpm_fast(calls: int, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "torch", Doubled())
    x = fastdiff.randn(SHAPE, seed=1, dtype=torch.float64) * 20
    noise, records = Noise(x), ([], [])  # type: ignore[var-annotated]
    got, expected = (
        module.sample_dpm_fast(
            network,
            x,
            0.1,
            20.0,
            calls,
            callback=lambda d, to=record: to.append(dict(d)),
            disable=True,
            noise_sampler=noise,
            **options,
        )
        for module, record in zip((ours, theirs), records, strict=True)
    )
    close(got, expected, K_DIFFUSION["float64"])
    for a, b in zip(*records, strict=True):
        assert a.keys() == b.keys() and a["i"] == b["i"]
        for key in ("sigma", "sigma_hat", "t", "t_up", "x", "denoised"):
            close(a[key], b[key], K_DIFFUSION["float64"])


ADAPTIVE = [
    {},
    {"order": 2},
    {"rtol": 1e-3, "atol": 1e-4},
    {"order": 2, "rtol": 1e-3, "atol": 1e-4},
    {"pcoeff": 0.3, "icoeff": 0.7, "dcoeff": 0.1},
    {"h_init": 2.0},
    {"eta": 1.0},
    {"eta": 0.4, "s_noise": 0.9},
]


@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
def test_dpm_adaptive_of_one_sample(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "torch", Doubled())
    x = fastdiff.randn((1, *SHAPE[1:]), seed=1, dtype=torch.float64) * 20
    noise, records = Noise(x), ([], [])  # type: ignore[var-annotated]
    (got, info), (expected, peers_info) = (
        module.sample_dpm_adaptive(
            network,
            x,
            0.1,
            20.0,
            callback=lambda d, to=record: to.append(dict(d)),
            disable=True,
            return_info=True,
            noise_sampler=noise,
            **options,
        )
        for module, record in zip((ours, theirs), records, strict=True)
    )
    close(got, expected, K_DIFFUSION["float64"])
    assert info == peers_info
    assert len(records[0]) == info["steps"]
    for a, b in zip(*records, strict=True):
        assert a.keys() == b.keys()
        for key in ("sigma", "sigma_hat", "t", "t_up", "x", "denoised", "error", "h"):
            close(
                torch.as_tensor(a[key], dtype=torch.float64),
                torch.as_tensor(b[key], dtype=torch.float64),
                1e-9,
            )
        for key in ("i", "steps", "nfe", "n_accept", "n_reject"):
            assert a[key] == b[key]


def test_dpm_adaptive_from_data_to_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "torch", Doubled())
    x = fastdiff.randn((1, *SHAPE[1:]), seed=1, dtype=torch.float64)
    got, expected = (
        m.sample_dpm_adaptive(network, x, 20.0, 0.1, disable=True) for m in (ours, theirs)
    )
    close(got, expected, K_DIFFUSION["float64"])


def test_a_batch_never_changes_a_sample_of_dpm_adaptive() -> None:
    """Bit for bit; k-diffusion's one norm changes it, which this inputs' different scales show."""
    x = fastdiff.randn((5, 3, 4, 4), seed=3) * torch.tensor([20.0, 2.0, 50.0, 1.0, 20.0]).view(
        -1, 1, 1, 1
    )
    for options in ({}, {"eta": 1.0, "noise_sampler": Noise(x)}):
        whole, info = ours.sample_dpm_adaptive(
            network, x, 0.1, 20.0, disable=True, return_info=True, **options
        )
        assert len(set(info["n_accept"].tolist())) > 1, "samples of different needs"
        for i in range(5):
            if "eta" in options:
                wave = options["noise_sampler"]
                options = {
                    "eta": 1.0,
                    "noise_sampler": lambda a, b, w=wave, i=i: w(a, b)[i : i + 1],
                }
            alone, one = ours.sample_dpm_adaptive(
                network, x[i : i + 1], 0.1, 20.0, disable=True, return_info=True, **options
            )
            assert torch.equal(alone[0], whole[i])
            assert one["n_accept"] == info["n_accept"][i] and one["n_reject"] == info["n_reject"][i]
            if "eta" in options:
                options = {"eta": 1.0, "noise_sampler": wave}
    peers = theirs.sample_dpm_adaptive(network, x, 0.1, 20.0, disable=True)
    assert not torch.allclose(
        peers[1:2], theirs.sample_dpm_adaptive(network, x[1:2], 0.1, 20.0, disable=True), atol=1e-4
    )
