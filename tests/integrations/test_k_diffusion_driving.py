"""k-diffusion's functions and fastdiff's, called in every way that hosts call them.

A way is a function of a `Side`: one module's sampler with a network, a start and noise that are the
same on both sides. Both must give the same values, shapes and dtypes, or raise; fastdiff's errors
are sentences of its own. `DEVIATIONS` lists where they differ on purpose, each with the reason.

This file is over 400 lines because the ways are many and short, and share one `Side`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peer import Noise, load
from torch import Tensor

import fastdiff
from fastdiff.integrations import k_diffusion as ours

theirs = load()
pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = (2, 3, 4, 4)
SIGMAS = torch.tensor([20.0, 8.0, 3.0, 1.1, 0.3, 0.0])
# Float32 loops of five long steps, relative to the largest value; see K_DIFFUSION in tolerances.py.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# dpm_fast's peer keeps its numbers in float32; in dpm_adaptive every sample has steps of its own,
# while the peer's batch has those of one norm
COARSE = {"dpm_fast": 1e-6, "dpm_adaptive": 2e-2}
ROWS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {},
    "dpm_2": {},
    "lms": {},
    "dpmpp_2m": {},
    "euler_ancestral": {},
    "dpm_2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "dpm_fast": {},
    "dpm_adaptive": {"rtol": 0.5},
}


def network(x: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
    """Not linear in x, and of sigma."""
    s = sigma.view(-1, *(1,) * (x.ndim - 1))
    return torch.tanh(0.7 * x / (1 + s) + 0.1 + shift) + 0.2 * torch.log1p(s)


class Side:
    """One module's sampler.

    Attributes:
        mine: whether it is fastdiff's.
        seen: what the sampler returned, and what else a way showed.
        tolerance: the least one of a comparison.
    """

    def __init__(self, name: str, mine: bool):
        self.name, self.mine, self.seen = name, mine, []  # type: ignore[var-annotated]
        self.tolerance = COARSE.get(name, 0.0)
        self.sampler = getattr(ours if mine else theirs, f"sample_{name}")
        self.noisy = "noise_sampler" in inspect.signature(self.sampler).parameters

    def start(self, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
        return (fastdiff.randn(shape, seed=1) * 20.0).to(dtype)

    def run(
        self,
        x: Tensor | None = None,
        sigmas: Tensor = SIGMAS,
        model: Callable[..., Any] = network,
        **options: Any,
    ) -> Tensor:
        """Calls the sampler, with the tests' noise where it takes any, and shows the result."""
        x = self.start() if x is None else x
        options = {"disable": True, **ROWS[self.name], **options}
        if self.noisy and "noise_sampler" not in options:
            options["noise_sampler"] = Noise(x)
        grid: tuple[Any, ...] = (sigmas,)
        if self.name.startswith(("dpm_fast", "dpm_adaptive")):
            low, high = float(sigmas[-2]), float(sigmas[0])
            grid = (low, high, 7) if self.name == "dpm_fast" else (low, high)
        result = self.sampler(model, x, *grid, **options)
        self.seen.append(result.detach().clone())
        return result


Way = Callable[[Side], None]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


@way
def plainly(s: Side) -> None:
    s.run()


@way
def in_float64(s: Side) -> None:
    s.run(s.start(torch.float64), SIGMAS.double())


@way
def in_float64_with_sigmas_in_float32(s: Side) -> None:
    s.tolerance = max(s.tolerance, 1e-6)  # the peer's coefficients are float32
    s.run(s.start(torch.float64))


@way
def with_sigmas_in_float64(s: Side) -> None:
    s.run(sigmas=SIGMAS.double())


@way
def in_float16(s: Side) -> None:
    s.run(s.start(torch.float16), SIGMAS.half())


@way
def in_bfloat16(s: Side) -> None:
    s.run(s.start(torch.bfloat16), SIGMAS.bfloat16())


@way
def with_sigmas_that_are_not_contiguous(s: Side) -> None:
    s.run(sigmas=torch.stack([SIGMAS, SIGMAS], dim=1)[:, 0])


@way
def with_sigmas_that_require_gradients(s: Side) -> None:
    s.run(sigmas=SIGMAS.clone().requires_grad_())


@way
def with_a_last_sigma_above_zero(s: Side) -> None:
    s.run(sigmas=SIGMAS[:-1])


@way
def with_one_step(s: Side) -> None:
    s.run(sigmas=SIGMAS[:2])


@way
def with_equal_sigmas(s: Side) -> None:
    s.run(sigmas=torch.tensor([20.0, 8.0, 8.0, 1.1, 0.0]))


@way
def with_sigmas_that_rise(s: Side) -> None:
    s.run(s.start() / 20, sigmas=SIGMAS[:-1].flip(0))


@way
def without_steps(s: Side) -> None:
    if s.name.startswith(("dpm_fast", "dpm_adaptive")):
        return
    s.run(sigmas=SIGMAS[:1])


@way
def with_a_negative_sigma(s: Side) -> None:
    s.run(sigmas=torch.tensor([20.0, 8.0, -1.0, 0.0]))


@way
def with_a_batch_of_one(s: Side) -> None:
    s.run(s.start(shape=(1, 3, 4, 4)))


@way
def with_a_batch_of_five(s: Side) -> None:
    s.run(s.start(shape=(5, 3, 4, 4)))


@way
def with_two_dimensions(s: Side) -> None:
    s.run(s.start(shape=(4, 7)))


@way
def with_transposed_states(s: Side) -> None:
    s.run(s.start().transpose(2, 3))


@way
def with_states_in_channels_last(s: Side) -> None:
    s.run(s.start().contiguous(memory_format=torch.channels_last))


@way
def with_expanded_states(s: Side) -> None:
    s.run(s.start()[:1].expand(2, -1, -1, -1))


@way
def with_the_state_left_alone(s: Side) -> None:
    x = s.start()
    s.run(x)
    s.seen.append(x)


@way
def with_extra_arguments(s: Side) -> None:
    s.run(extra_args={"shift": 0.3})


@way
def with_an_output_in_another_dtype(s: Side) -> None:
    s.run(model=lambda x, sigma: network(x, sigma).double().float())


@way
def in_float64_with_a_network_in_float32(s: Side) -> None:
    s.tolerance = max(s.tolerance, 1e-6)
    s.run(s.start(torch.float64), SIGMAS.double(), model=lambda x, sigma: network(x, sigma).float())


@way
def with_a_callback_that_reads(s: Side) -> None:
    def callback(d: dict[str, Any]) -> None:
        s.seen.append(sorted(d))
        s.seen.extend([int(d["i"]), d["x"].clone(), d["denoised"].clone()])
        s.seen.extend([float(d["sigma"]), float(d["sigma_hat"])])

    if s.name != "dpm_adaptive":  # its callbacks tell of attempts
        s.run(callback=callback)


@way
def with_a_callback_that_keeps(s: Side) -> None:
    kept: list[Tensor] = []
    s.run(callback=lambda d: kept.append(d["denoised"]))
    s.seen += kept


@way
def with_a_callback_that_writes(s: Side) -> None:
    s.run(callback=lambda d: d["x"].mul_(0.9).clamp_(-6.0, 6.0))


@way
def with_a_callback_that_writes_into_x0(s: Side) -> None:
    s.run(callback=lambda d: d["denoised"].clamp_(-0.5, 0.5))


@way
def with_a_callback_that_raises(s: Side) -> None:
    def callback(d: dict[str, Any]) -> None:
        raise InterruptedError("fastdiff.test: expected no more, got enough.")

    s.run(callback=callback)


@way
def with_a_noise_sampler_of_zeros(s: Side) -> None:
    x = s.start()
    s.run(x, **({"noise_sampler": lambda a, b: torch.zeros_like(x)} if s.noisy else {}))


@way
def without_noise(s: Side) -> None:
    s.run(**({"eta": 0.0} if s.noisy else {}))


@way
def with_more_noise(s: Side) -> None:
    s.run(**({"eta": 0.6, "s_noise": 0.9} if s.noisy else {}))


@way
def with_default_noise_twice(s: Side) -> None:
    """By torch's global generator, so it repeats; its numbers are each module's own."""
    if s.name.startswith("dpmpp_") and "sde" in s.name and not s.mine:
        s.seen = [True]  # the peer's tree takes its seed from the same generator
        return
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(s.run(**({"noise_sampler": None} if s.noisy else {})))
    s.seen = [torch.equal(*results)]


@way
def with_churn_that_repeats(s: Side) -> None:
    if "s_churn" not in inspect.signature(s.sampler).parameters:
        return
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(s.run(s_churn=5.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003))
    s.seen = [torch.equal(*results), results[0].shape, results[0].dtype]


@way
def with_churn_out_of_reach(s: Side) -> None:
    if "s_churn" in inspect.signature(s.sampler).parameters:
        s.run(s_churn=5.0, s_tmin=1e3)


@way
def under_inference_mode(s: Side) -> None:
    with torch.inference_mode():
        s.run()


@way
def with_states_that_require_gradients(s: Side) -> None:
    s.seen.append(s.run(s.start().requires_grad_()).requires_grad)


@way
def twice_in_a_row(s: Side) -> None:
    s.run()
    s.run()


@way
def with_a_network_that_raises(s: Side) -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("fastdiff.test: expected another network, got this one.")

    s.run(model=model)


@way
def with_an_output_of_another_shape(s: Side) -> None:
    s.run(model=lambda x, sigma: network(x, sigma)[..., :3])


@way
def with_a_list_of_sigmas(s: Side) -> None:
    if not s.name.startswith(("dpm_fast", "dpm_adaptive")):
        s.run(sigmas=SIGMAS.tolist())  # type: ignore[arg-type]


DEVIATIONS: list[tuple[str, str, str]] = [
    (
        "with_sigmas_in_float64",
        "euler heun dpm_2 lms euler_ancestral dpm_2_ancestral dpmpp_2s_ancestral dpmpp_sde",
        "the result has x's dtype; the peer's becomes that of sigmas",
    ),
    (
        "in_float64_with_a_network_in_float32",
        "dpmpp_2m_sde dpmpp_3m_sde",
        "the result has x's dtype; the peer's last state is the network's output",
    ),
    ("in_bfloat16", "lms", "the peer's quadrature knows no bfloat16"),
    (
        "with_equal_sigmas",
        "dpmpp_2m dpmpp_2m_sde dpmpp_3m_sde",
        "a step between equal levels changes nothing; the peer divides by its width",
    ),
    ("with_one_step", "dpm_fast", "steps without a width change nothing; the peer's are NaN"),
    ("with_equal_sigmas", "lms", "is refused; the peer interpolates between equal levels"),
    (
        "with_sigmas_that_rise",
        "euler_ancestral dpm_2_ancestral dpmpp_2s_ancestral dpmpp_sde dpmpp_2m_sde dpmpp_3m_sde",
        "steps towards noise add none of their own; the peer takes the root of a negative variance",
    ),
    (
        "with_a_negative_sigma",
        " ".join(name for name in ROWS if name not in ("dpm_fast", "dpm_adaptive")),
        "is refused",
    ),
    (
        "with_a_list_of_sigmas",
        " ".join(name for name in ROWS if name not in ("dpm_fast", "dpm_adaptive")),
        "is a grid, too",
    ),
]
"""(ways, samplers, reason) of what differs on purpose."""


def _reason(way: str, name: str) -> str | None:
    for ways, names, reason in DEVIATIONS:
        if way in ways.split() and name in names.split():
            return reason
    return None


def _run(function: Way, name: str, mine: bool) -> tuple[Side, Exception | None]:
    side = Side(name, mine)
    torch.default_generator.manual_seed(11)
    try:
        function(side)
    except Exception as error:  # compared with the peer's
        return side, error
    return side, None


def difference(function: Way, name: str) -> str | None:
    """In what both samplers differ when they are called this way; None if in nothing."""
    (peer, their_error), (mine, error) = (_run(function, name, m) for m in (False, True))
    if error is not None:
        if not re.match(r"^fastdiff\.[\w.]+: expected ", str(error)):
            return f"raised a bare {type(error).__name__}: {error}"
        return None if their_error is not None else f"raised {error}, the peer nothing"
    if their_error is not None:
        return f"raised nothing, the peer {type(their_error).__name__}: {their_error}"
    if len(peer.seen) != len(mine.seen):
        return f"gave {len(mine.seen)} values for {len(peer.seen)}"
    for i, (a, b) in enumerate(zip(peer.seen, mine.seen, strict=True)):
        if isinstance(a, float):
            a, b = torch.tensor(a), torch.tensor(b)
        if not isinstance(a, Tensor):
            if a != b:
                return f"gave {b!r} as value {i}, the peer {a!r}"
        elif a.shape != b.shape or a.dtype != b.dtype:
            return (
                f"gave {b.dtype} {list(b.shape)} as value {i}, the peer {a.dtype} {list(a.shape)}"
            )
        elif not torch.equal(a.isfinite(), b.isfinite()):
            return f"gave other infinities or NaN as value {i}"
        elif a.numel() and a.isfinite().all():
            off = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1))
            if off > max(TOLERANCE[a.dtype], mine.tolerance):
                return f"was off by {off:.1e} of the largest value in value {i}"
    return None


def _case(way: str, name: str) -> Any:
    reason = _reason(way, name)
    marks = [pytest.mark.xfail(reason=reason, strict=True, raises=Deviates)] if reason else []
    return pytest.param(way, name, id=f"{way}-{name}", marks=marks)


class Deviates(AssertionError):
    """What a way gives differs from what the peer gives."""


@pytest.mark.parametrize(("way", "name"), [_case(way, name) for way in WAYS for name in ROWS])
def test_a_sampler_called_like_its_peer_gives_the_same(way: str, name: str) -> None:
    differs = difference(WAYS[way], name)
    if differs is not None:
        raise Deviates(f"sample_{name} {way.replace('_', ' ')} {differs}")


def test_every_sampler_has_a_row() -> None:
    assert {f"sample_{name}" for name in ROWS} == {n for n in ours.__all__ if n[:6] == "sample"}
