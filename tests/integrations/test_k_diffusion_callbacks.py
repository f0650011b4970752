"""What callbacks write into x and denoised counts as it does in k-diffusion 0.1.1.post1, and what
would change the state's shape is refused.

Every function runs in every dtype with callbacks that write, against the installed k_diffusion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peer import SHAPE, Doubled, Noise, load, network
from tolerances import K_DIFFUSION

import fastdiff
from fastdiff.integrations import k_diffusion as ours
from fastdiff.integrations.k_diffusion.formulas import FORMULAS

theirs = load()

FUNCTIONS = [name for name in ours.__all__ if name.startswith("sample_")]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "sample_lms": [{}, {"order": 2}],
    "sample_dpm_adaptive": [
        {"rtol": 0.01, "atol": 0.001},
        # the first tries are rejected: the state is still the caller's tensor
        {"rtol": 1e-3, "atol": 1e-4, "h_init": 4.0},
        {"order": 2, "eta": 0.6},
    ],
    "sample_dpm_fast": [{}, {"eta": 0.6}],
    "sample_dpmpp_2m_sde": [{}, {"solver_type": "heun"}],
    "sample_dpm_2_ancestral": [{}, {"eta": 5.0}],  # a step to clean data each
}
CASES = [(name, o) for name in FUNCTIONS for o in OPTIONS.get(name, [{}])]
# numbers of bfloat16, so that every dtype has the same
LEVELS = ours.get_sigmas_karras(6, 0.1, 20.0).to(torch.bfloat16)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def _clamp_and_mask(d: dict[str, Any]) -> None:
    """What animation hosts do: limit x and put a known part back."""
    d["x"].clamp_(-6.0, 6.0)
    d["x"][..., :2] = 0.25


def _scale_denoised(d: dict[str, Any]) -> None:
    d["denoised"].mul_(0.5).add_(0.3)


def _past_the_version_counter(d: dict[str, Any]) -> None:
    """A write that torch does not count."""
    d["x"].data[..., 1:3] *= 0.5


def _both(d: dict[str, Any]) -> None:
    _scale_denoised(d)
    d["x"].lerp_(d["denoised"], 0.3)


WRITES = [_clamp_and_mask, _scale_denoised, _past_the_version_counter, _both]


def run(
    module: Any,
    name: str,
    options: dict[str, Any],
    x: torch.Tensor,
    callback: Callable[[dict[str, Any]], None],
    model: Callable[..., torch.Tensor] = network,
) -> torch.Tensor:
    function = getattr(module, name)
    given: dict[str, Any] = {**options, "disable": True, "callback": callback}
    if takes(name, "noise_sampler") and "noise_sampler" not in given:
        # one draw for all levels, which half precision rounds
        wave = Noise(x.double())(1.0, 2.0).to(x.dtype)
        given["noise_sampler"] = lambda sigma, sigma_next: wave
    if name == "sample_dpm_adaptive":
        return function(model, x, 0.1, 20.0, **given)
    if name == "sample_dpm_fast":
        return function(model, x, 0.1, 20.0, 8, **given)
    return function(model, x, LEVELS.to(x.dtype), **given)


def takes(name: str, parameter: str) -> bool:
    return parameter in inspect.signature(getattr(ours, name)).parameters


def slope_first(name: str) -> bool:
    """Whether k-diffusion does not use a denoised that its callback has written."""
    tail = name.removeprefix("sample_")
    return tail in ("dpm_fast", "dpm_adaptive") or FORMULAS[tail].slope_first


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__.strip("_"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name, options", CASES, ids=lambda v: str(v).removeprefix("sample_"))
def test_what_a_callback_writes_counts_as_in_k_diffusion(
    name: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    write: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = dtype in (torch.float16, torch.bfloat16)
    if half and name == "sample_dpm_adaptive":
        pytest.skip("a rounded error chooses other steps; the next test has this dtype")
    # k-diffusion rounds the state to half in every step, which is no oracle
    peer_dtype = torch.float64 if half else dtype
    if peer_dtype == torch.float64:
        monkeypatch.setattr(theirs, "torch", Doubled())
    shape = (1, *SHAPE[1:]) if name == "sample_dpm_adaptive" else SHAPE
    start = (fastdiff.randn(shape, seed=1, dtype=torch.float64) * 20).to(dtype)

    def written(module: Any, dtype: torch.dtype, write: Any) -> tuple[list[torch.Tensor], bool]:
        """All that callbacks saw, the result and the caller's x, and whether it was shown."""
        x, seen, own = start.to(dtype, copy=True), [], []

        def callback(d: dict[str, Any]) -> None:
            assert d["x"].dtype == d["denoised"].dtype == dtype
            if d["i"] == 0:
                own.append(d["x"].data_ptr() == x.data_ptr())
            seen.extend((d["x"].double().clone(), d["denoised"].double().clone()))
            write(d)

        out = run(module, name, options, x, callback)
        assert out.dtype == dtype
        return [*seen, out.double(), x.double()], own[0]

    mine, mine_own = written(ours, dtype, write)
    peers, peers_own = written(theirs, peer_dtype, write)
    plain, _ = written(ours, dtype, lambda d: None)
    tolerance = K_DIFFUSION[f"callbacks in {str(dtype).removeprefix('torch.')}"]
    assert mine_own == peers_own, "the first state is the caller's tensor, or not"
    assert len(mine) == len(peers)
    effect = 0.0
    for a, b, unwritten in zip(mine, peers, plain, strict=False):
        scale = b.abs().max().clamp(min=1.0)
        assert (a - b).abs().max() / scale <= tolerance
        effect = max(effect, float((unwritten - b).abs().max() / scale))
    if write is not _scale_denoised or not slope_first(name):
        assert effect > 5 * tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_left_of_a_state_that_a_callback_clears(name: str, dtype: torch.dtype) -> None:
    """After x = 0 every call sees 0: no rest of a wider state. The model returns 0, or x where the
    slope was computed before, so that the slope is 0.
    """
    seen: list[float] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(x.abs().max()))
        return x.clone() if slope_first(name) else torch.zeros_like(x)

    options: dict[str, Any] = {"eta": 0.0} if takes(name, "eta") else {}
    x = (fastdiff.randn((1, *SHAPE[1:]), seed=1, dtype=torch.float64) * 20).to(dtype)
    out = run(ours, name, options, x, lambda d: d["x"].zero_(), model)
    first = seen.index(0.0)
    # the calls of the first step, which dpm_adaptive's callback follows
    assert seen[0] > 1 and first <= 3 and len(seen) > first + 1
    assert not any(seen[first:]) and not out.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_callback_that_changes_the_shape_of_x_is_refused(name: str) -> None:
    x = fastdiff.randn((1, *SHAPE[1:]), seed=1) * 20

    def shrink(d: dict[str, Any]) -> None:
        d["x"].data = d["x"].data[..., :2]

    with pytest.raises(ValueError, match=rf"{name}: expected the callback to leave x as"):
        run(ours, name, {}, x, shrink)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 4, 4), (3, 1, 1)])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if takes(n, "noise_sampler")])
def test_noise_broadcasts_as_in_k_diffusion(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "torch", Doubled())
    batch = 1 if name == "sample_dpm_adaptive" else 2
    x = fastdiff.randn((batch, *SHAPE[1:]), seed=1, dtype=torch.float64) * 20
    noise = torch.full(shape, 0.7, dtype=torch.float64)
    results = [
        run(m, name, {"noise_sampler": lambda *_: noise, "eta": 0.6}, x, lambda d: None)
        for m in (ours, theirs)
    ]
    assert (results[0] - results[1]).abs().max() <= 1e-9 * results[1].abs().max().clamp(min=1)


@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (2, 3, 4, 8), (2, 3, 4, 2), (2, 2, 3, 4, 4)])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if takes(n, "noise_sampler")])
def test_noise_that_would_change_the_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    calls: list[int] = []

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.ones(shape if len(calls) == 2 else SHAPE)

    x = fastdiff.randn(SHAPE, seed=1) * 20
    with pytest.raises(ValueError, match=rf"{name}: expected noise_sampler to return noise that"):
        run(ours, name, {"noise_sampler": noise, "eta": 0.6}, x, lambda d: None)


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 4), (4, 3, 4, 4), (2, 3, 4, 8), (2, 3, 2, 4), (1,), ()]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_output_whose_shape_changes_during_a_run_is_refused(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    calls: list[int] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.ones(shape, dtype=dtype) if len(calls) == 3 else torch.tanh(x)

    x = (fastdiff.randn(SHAPE, seed=1) * 20).to(dtype)
    with pytest.raises(ValueError, match=rf"{name}: expected a model output of shape"):
        run(ours, name, {}, x, lambda d: None, model)
