"""k-diffusion's samplers over full loops against k-diffusion 0.1.1.post1.

They are compared in float64 and unmodified. Both sides get the same noise: by noise_sampler where a
sampler takes one, and for churn by a `torch` whose randn_like returns fastdiff's draw of the row.
The network uses x and sigma.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peer import SHAPE, Noise, close, load, network
from tolerances import K_DIFFUSION

import fastdiff
from fastdiff.integrations import k_diffusion as ours

theirs = load()

CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
STEPS = (1, 2, 3, 10, 50)
CASES = [
    ("euler", {}),
    ("heun", {}),
    ("dpm_2", {}),
    ("euler", CHURN),
    ("heun", CHURN),
    ("dpm_2", CHURN),
    ("heun", {"s_churn": 200.0}),
    ("lms", {}),
    ("lms", {"order": 1}),
    ("lms", {"order": 3}),
    ("dpmpp_2m", {}),
    ("euler_ancestral", {}),
    ("euler_ancestral", {"eta": 0.4, "s_noise": 0.9}),
    ("euler_ancestral", {"eta": 0.0}),
    ("dpm_2_ancestral", {}),
    ("dpm_2_ancestral", {"eta": 0.4, "s_noise": 0.9}),
    ("dpm_2_ancestral", {"eta": 5.0}),
    ("dpmpp_2s_ancestral", {}),
    ("dpmpp_2s_ancestral", {"eta": 0.4, "s_noise": 0.9}),
    ("dpmpp_2s_ancestral", {"eta": 5.0}),
    ("dpmpp_sde", {}),
    ("dpmpp_sde", {"eta": 0.4, "s_noise": 0.9, "r": 0.3}),
    ("dpmpp_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"solver_type": "heun"}),
    ("dpmpp_2m_sde", {"eta": 0.4, "s_noise": 0.9}),
    ("dpmpp_2m_sde", {"eta": 0.0}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_3m_sde", {"eta": 0.4, "s_noise": 0.9}),
    ("dpmpp_3m_sde", {"eta": 0.0}),
]
IDS = [f"{name}{options or ''}" for name, options in CASES]


class Churned:
    """k-diffusion's `torch`, with a randn_like that returns fastdiff's draw of a step's churn."""

    def __init__(self, seed: int, rows: Iterator[int]):
        self.seed, self.rows = seed, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        return fastdiff.randn(
            tuple(x.shape), seed=self.seed, step=next(self.rows), stream=1, dtype=x.dtype
        )


def grid(steps: int, clean: bool, dtype: torch.dtype) -> torch.Tensor:
    sigmas = (
        ours.get_sigmas_karras(steps, 0.1, 20.0)
        if clean
        else ours.get_sigmas_karras(steps + 1, 0.1, 20.0)[:-1]
    )
    return sigmas.to(dtype)


def churn_rows(
    sigmas: torch.Tensor, calls: int, s_churn: float, s_tmin: float = 0.0, s_tmax: float = 1e9
) -> Iterator[int]:
    """For each step the row that draws its churn.

    It is the last row of the step before; step 0 has an additional row for it.
    """
    row, first = 0, s_tmin <= float(sigmas[0]) <= s_tmax and s_churn > 0
    yield 0
    row += first
    for following in sigmas[1:-1]:
        row += calls if following > 0 else 1
        yield row - 1


def both(
    name: str,
    options: dict[str, Any],
    sigmas: torch.Tensor,
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor, list[Noise]]:
    mine, peers = getattr(ours, f"sample_{name}"), getattr(theirs, f"sample_{name}")
    arguments: list[dict[str, Any]] = [
        {**options, "disable": True, "extra_args": {"shift": 0.3}} for _ in range(2)
    ]
    noises = [Noise(x), Noise(x)]
    if "noise_sampler" in inspect.signature(mine).parameters:
        for given, noise in zip(arguments, noises, strict=True):
            given["noise_sampler"] = noise
    elif options.get("s_churn"):
        torch.manual_seed(11)
        seed = int(torch.randint(2**63 - 1, ()))
        rows = churn_rows(
            sigmas,
            1 if name == "euler" else 2,
            **{k: v for k, v in options.items() if k != "s_noise"},
        )
        monkeypatch.setattr(theirs, "torch", Churned(seed, rows))
        torch.manual_seed(11)
    for given in arguments:
        given |= more
    before = x.clone()
    got = mine(network, x, sigmas, **arguments[0])
    assert torch.equal(x, before), "the caller's x is not changed"
    return got, peers(network, x, sigmas, **arguments[1]), noises


@pytest.mark.parametrize("clean", [True, False], ids=["to 0", "to sigma_min"])
@pytest.mark.parametrize("name, options", CASES, ids=IDS)
def test_full_loops_in_float64(
    name: str, options: dict, clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in STEPS:
        sigmas = grid(steps, clean, torch.float64)
        x = fastdiff.randn(SHAPE, seed=steps, dtype=torch.float64) * float(sigmas[0])
        if steps == 1 and clean and name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
            # k-diffusion uses a variable that such a first step does not set (UnboundLocalError)
            got = getattr(ours, f"sample_{name}")(network, x, sigmas, disable=True)
            assert torch.equal(got, network(x, sigmas[:1]))
            continue
        got, expected, noises = both(name, options, sigmas, x, monkeypatch)
        close(got, expected, K_DIFFUSION["float64"])
        assert set(noises[0].asked) <= set(noises[1].asked), (
            "the host's sampler is asked about the same levels"
        )


@pytest.mark.parametrize("name, options", CASES, ids=IDS)
def test_full_loops_in_float32(name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (3, 10, 50):
        sigmas = grid(steps, True, torch.float32)
        x = fastdiff.randn(SHAPE, seed=steps) * float(sigmas[0])
        got, expected, _ = both(name, options, sigmas, x, monkeypatch)
        close(got, expected, K_DIFFUSION["float32"])


@pytest.mark.parametrize("clean", [True, False], ids=["to 0", "to sigma_min"])
@pytest.mark.parametrize(
    "name, options",
    [
        ("euler", {}),
        ("heun", {}),
        ("heun", CHURN),
        ("dpm_2", {}),
        ("lms", {}),
        ("dpmpp_2m", {}),
        ("dpmpp_sde", {}),
        ("dpm_2_ancestral", {}),
        ("dpmpp_2s_ancestral", {}),
        ("dpmpp_3m_sde", {}),
    ],
)
def test_callbacks_see_the_same_at_the_same_moments(
    name: str, options: dict, clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = grid(7, clean, torch.float64)
    x = fastdiff.randn(SHAPE, seed=1, dtype=torch.float64) * 20
    records: list[list[dict[str, Any]]] = [[], []]
    mine, peers = (
        lambda d: records[0].append(dict(d)),
        lambda d: records[1].append(dict(d)),
    )
    given: dict[str, Any] = dict(options)
    if options:
        torch.manual_seed(11)
        seed = int(torch.randint(2**63 - 1, ()))
        rows = churn_rows(sigmas, 2, **{k: v for k, v in options.items() if k != "s_noise"})
        monkeypatch.setattr(theirs, "torch", Churned(seed, rows))
        torch.manual_seed(11)
    elif "noise_sampler" in inspect.signature(getattr(ours, f"sample_{name}")).parameters:
        given["noise_sampler"] = Noise(x)
    getattr(ours, f"sample_{name}")(network, x, sigmas, callback=mine, disable=True, **given)
    getattr(theirs, f"sample_{name}")(network, x, sigmas, callback=peers, disable=True, **given)
    assert len(records[0]) == len(records[1]) == 7
    for a, b in zip(*records, strict=True):
        assert a.keys() == b.keys() and a["i"] == b["i"]
        for key in ("sigma", "sigma_hat", "x", "denoised"):
            assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype
            close(a[key], b[key], K_DIFFUSION["float64"])


@pytest.mark.parametrize(
    "function, options",
    [
        ("get_sigmas_karras", {}),
        ("get_sigmas_karras", {"rho": 3.0}),
        ("get_sigmas_exponential", {}),
        ("get_sigmas_polyexponential", {"rho": 2.0}),
        ("get_sigmas_vp", {}),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 30])
def test_grids(function: str, options: dict, n: int) -> None:
    levels = () if function == "get_sigmas_vp" else (0.03, 15.0)
    got, expected = (getattr(module, function)(n, *levels, **options) for module in (ours, theirs))
    assert got.dtype == torch.float32 and got.shape == (n + 1,) and got[-1] == 0
    # the peer computes in float32, with a difference e^v - 1 of small v in the last grid
    torch.testing.assert_close(
        got, expected, rtol=3e-4 if function == "get_sigmas_vp" else 5e-6, atol=1e-9
    )
    torch.set_default_dtype(torch.float64)
    try:
        got, expected = (
            getattr(module, function)(n, *levels, **options) for module in (ours, theirs)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_come_back_as_they_came(dtype: torch.dtype) -> None:
    """The state is float32 inside; the network sees, and the caller gets, its own type."""
    seen: list[torch.dtype] = []

    def half(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.extend([x.dtype, sigma.dtype])
        return network(x, sigma)

    x = (fastdiff.randn(SHAPE, seed=1) * 20).to(dtype)
    sigmas = grid(10, True, torch.float32)
    got = ours.sample_dpmpp_2m(half, x, sigmas, disable=True)
    assert got.dtype == dtype and set(seen) == {dtype}
    wide = ours.sample_dpmpp_2m(network, x.float(), sigmas, disable=True)
    assert float((got - wide).abs().max()) < 0.1


def test_default_noise_repeats_with_torchs_seed_and_deterministic_samplers_draw_nothing() -> None:
    x, sigmas = fastdiff.randn(SHAPE, seed=1) * 20, grid(6, True, torch.float32)
    for name in ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"):
        function = getattr(ours, f"sample_{name}")
        torch.manual_seed(0)
        first, second = (function(network, x, sigmas, disable=True) for _ in range(2))
        torch.manual_seed(0)
        assert torch.equal(function(network, x, sigmas, disable=True), first)
        assert not torch.equal(first, second)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ours.sample_dpmpp_2m(network, x, sigmas, disable=True)
    ours.sample_euler(network, x, sigmas, disable=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_callback_keeps_stays_and_what_it_changes_counts() -> None:
    x, sigmas = fastdiff.randn(SHAPE, seed=1) * 20, grid(6, True, torch.float32)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = ours.sample_euler(
        network, x, sigmas, disable=True, callback=lambda d: kept.append((d["x"], d["x"].clone()))
    )
    assert len(kept) == 6 and all(torch.equal(a, b) for a, b in kept)
    changed = ours.sample_euler(
        network, x, sigmas, disable=True, callback=lambda d: d["x"].mul_(0.5)
    )
    assert not torch.equal(plain, changed)


def test_plans_are_kept_and_errors_say_what_to_do() -> None:
    from fastdiff.integrations.k_diffusion.plans import recipe

    x, sigmas = fastdiff.randn(SHAPE, seed=1) * 20, grid(9, True, torch.float32)
    recipe.cache_clear()
    for _ in range(3):
        ours.sample_heun(network, x, sigmas, disable=True)
    assert recipe.cache_info().misses == 1 and recipe.cache_info().hits == 2
    assert torch.equal(ours.sample_euler(network, x, sigmas[:1], disable=True), x), "no step"
    with pytest.raises(
        ValueError, match=r"k_diffusion.sample_euler: expected sigmas \[n \+ 1\] > 0"
    ):
        ours.sample_euler(network, x, torch.tensor([1.0, 0.0, 0.5]), disable=True)
    with pytest.raises(TypeError, match="floating tensor"):
        ours.sample_euler(network, x.long(), sigmas, disable=True)
    with pytest.raises(ValueError, match="order"):
        ours.sample_lms(network, x, sigmas, disable=True, order=7)
    with pytest.raises(ValueError, match="sigma_min and sigma_max > 0"):
        ours.sample_dpm_fast(network, x, 0.0, 10.0, 9, disable=True)
    with pytest.raises(ValueError, match="at least one call"):
        ours.sample_dpm_fast(network, x, 0.1, 10.0, 0, disable=True)


def test_signatures_are_k_diffusions() -> None:
    """Names, order and defaults of all parameters."""
    for name in ours.__all__:
        if name == "BrownianTreeNoiseSampler":
            continue
        mine, peers = (
            inspect.signature(getattr(m, name)).parameters.values() for m in (ours, theirs)
        )
        assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in peers], name


def test_hosts_sigmas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "_local_scalar_dense" in str(func) or "is_nonzero" in str(func)
            return func(*args, **(kwargs or {}))

    x, sigmas = fastdiff.randn(SHAPE, seed=1) * 20, grid(20, True, torch.float32)
    for name in ("euler", "dpmpp_2m", "heun", "dpmpp_2m_sde", "euler_ancestral"):
        with Reads() as reads:
            getattr(ours, f"sample_{name}")(network, x, sigmas, disable=True)
        assert reads.count <= 1, f"{name}: the seed, and nothing of a tensor on the device"


def test_brownian_noise_sampler() -> None:
    x = torch.zeros(3, 4)
    one = ours.BrownianTreeNoiseSampler(x, 0.03, 15.0, seed=5)
    many = ours.BrownianTreeNoiseSampler(x, 0.03, 15.0, seed=[5, 6, 5])
    a, b = torch.tensor(10.0), torch.tensor(4.0)
    z = many(a, b)
    assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert torch.equal(one(a, b)[0], z[0]) and torch.equal(one(b, a), -one(a, b))
    whole = one(a, torch.tensor(1.0)) * 3.0  # sqrt of 9
    parts = one(a, b) * 6.0**0.5 + one(b, torch.tensor(1.0)) * 3.0**0.5
    torch.testing.assert_close(whole, parts, rtol=0, atol=5e-6)
