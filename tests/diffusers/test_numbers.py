"""Drop-ins against diffusers 0.42.1: tables and loops lifted to float64, and single steps and loops as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case, arguments, both, finite, lift, network, set_timesteps, start
from tolerances import DROP_IN_FLOAT64, DROP_IN_LOOP, DROP_IN_STEP, DROP_IN_STEP_CANCELLED

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]
RUNS = [(case, kind) for case in CASES for kind in case.kinds]
IDS = [f"{case.id}-{kind}" for case, kind in RUNS]


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def scaled(scheduler: Any, x: torch.Tensor, t: Any) -> torch.Tensor:
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def loop(case: Case, kind: str, scheduler: Any, x: torch.Tensor) -> list[Any]:
    """The states of a pipeline's loop, the first included."""
    generator = torch.Generator().manual_seed(5)
    states = [x]
    for t in scheduler.timesteps:
        out = network(scaled(scheduler, x, t), kind, case.learned)
        x = scheduler.step(out, t, x, **arguments(case, generator), return_dict=False)[0]
        states.append(x)
    return states


def same_grid(theirs: Any, ours: Any) -> None:
    if theirs.timesteps is None:
        return  # PNDM before set_timesteps
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    exactly = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, **exactly)
    if hasattr(theirs, "sigmas"):
        torch.testing.assert_close(torch.as_tensor(ours.sigmas), torch.as_tensor(theirs.sigmas), **exactly)
    if hasattr(theirs, "init_noise_sigma"):
        assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma)


def amplified(theirs: Any, index: int | None = None) -> float:
    """By how much the second stage of a second-order step raises roundings: it divides by its small level what it then
    multiplies by the step. Without an index the largest of the grid."""
    if hasattr(theirs, "prk_timesteps") and index is not None:  # PNDM's transfer raises x as the signal grows
        ratio, table = theirs.config.num_train_timesteps // theirs.num_inference_steps, theirs.alphas_cumprod
        t = int(theirs.timesteps[index])
        return float(table[max(t - ratio, 0)] / table[min(t + ratio, len(table) - 1)]) ** 0.5
    if hasattr(theirs, "lambda_t"):
        return integrator_amplified(theirs, index)
    if getattr(theirs, "order", 1) == 1:
        return 1.0
    sigmas = theirs.sigmas.double()[:-1]
    ratios = (sigmas[:-1] / sigmas[1:]).tolist()
    return max([1.0, *ratios]) if index is None else max(1.0, ratios[index - 1]) if 0 < index <= len(ratios) else 1.0


def integrates_eps(theirs: Any) -> bool:
    algorithms = ("dpmsolver", "sde-dpmsolver", "deis", "noise_prediction")
    return theirs.config.get("algorithm_type") in algorithms or not theirs.config.get("predict_x0", True)


def integrator_amplified(theirs: Any, index: int | None) -> float:
    """By how much steps of eps multiply x (alpha_s/alpha_t, from the start of a group of three), or steps towards noise
    (sigma_s/sigma_t); the terms in the network's outputs take nearly all of it away again."""
    rho = theirs.sigmas.double()
    inward, c = bool(rho[0] < rho[1]), theirs.config
    if not (inward or integrates_eps(theirs)):
        return 1.0
    alpha = 1.0 - rho if c.use_flow_sigmas else 1.0 / (1.0 + rho**2).sqrt()
    size = alpha * rho if inward else alpha
    ratios = [4.0 * float(size[i + 1] / size[max(i - 2, 0) if not inward else i]) for i in range(len(theirs.timesteps))]
    whole = 4.0 * float(size[-1] / size[0]) if inward else max(ratios)
    return max(1.0, whole if index is None else ratios[index])


def check_loop(case: Case, kind: str, theirs: Any, ours: Any, dtype: torch.dtype, tolerance: float) -> bool:
    """Whether the peer was finite; then the loops agree."""
    first = start(theirs, dtype)
    expected = loop(case, kind, theirs, first)
    if not finite(*expected):
        return False
    got = loop(case, kind, ours, first)
    # the peer's x + (x - x0)/sigma·(sigma_s - sigma) cancels over a long step, which leaves roundings of its largest state
    rounding = 2.0**-22 if dtype == torch.float32 else 2.0**-51
    largest = max(float(x.abs().max()) for x in expected)
    allowed = tolerance * max(float(expected[-1].abs().max()), 1.0) + rounding * largest * amplified(theirs)
    assert float((got[-1] - expected[-1]).abs().max()) <= allowed
    return True


@pytest.mark.parametrize("case, kind", RUNS, ids=IDS)
def test_formulas_in_float64(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full loops of the peer lifted to float64: what remains is the formula."""
    lift(monkeypatch, case.name)
    theirs, ours = both(case, kind)
    checked = []
    for steps in case.steps:
        set_timesteps(case, theirs, steps)
        set_timesteps(case, ours, steps)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9, equal_nan=True)
        checked.append(check_loop(case, kind, theirs, ours, torch.float64, DROP_IN_FLOAT64))
    assert any(checked)


@pytest.mark.parametrize("case, kind", RUNS, ids=IDS)
def test_steps_and_loops_as_they_are(case: Case, kind: str) -> None:
    """Untouched: the same grid to the bit, every step from the peer's own state, and the loop."""
    theirs, ours = both(case, kind)
    same_grid(theirs, ours)
    limit = DROP_IN_STEP[case.exact]
    if hasattr(theirs, "lambda_t") and (case.high or integrates_eps(theirs)):
        limit = DROP_IN_STEP_CANCELLED
    for steps in sorted({*case.steps} & {*case.narrow}) or case.steps:
        set_timesteps(case, theirs, steps)
        set_timesteps(case, ours, steps)
        same_grid(theirs, ours)
        x = start(theirs, torch.float32)
        draws = [torch.Generator().manual_seed(5) for _ in range(2)]
        for i, (t, u) in enumerate(zip(theirs.timesteps, ours.timesteps, strict=True)):
            given = scaled(theirs, x, t)
            torch.testing.assert_close(scaled(ours, x, u), given, rtol=1e-6, atol=1e-6, equal_nan=True)
            out = network(given, kind, case.learned)
            expected = theirs.step(out, t, x, **arguments(case, draws[0]), return_dict=False)
            if not finite(expected[0]):
                break
            got = ours.step(out, u, x, **arguments(case, draws[1]), return_dict=False)
            assert len(got) == len(expected)
            size = max(float(x.abs().max()), float(expected[0].abs().max()))
            if hasattr(theirs, "prk_timesteps"):
                size = start(theirs, torch.float32).abs().max().item()  # its second step starts where the first did
            allowed = max(limit, 2.0**-22 * amplified(theirs, i)) * size
            assert float((got[0] - expected[0]).abs().max()) <= allowed, (steps, i)
            if len(got) > 1:
                if not t.is_floating_point() and case.exact:
                    size /= max(
                        float(theirs.alphas_cumprod[int(t)]) ** 0.5, 1e-3
                    )  # of (x - sigma eps)/alpha, unclipped
                size = max(size, float(expected[1].abs().max()))
                assert float((got[1] - expected[1]).abs().max()) <= limit * size, (steps, i, "x0")
            x = expected[0]
        if finite(x):
            set_timesteps(case, theirs, steps)
            set_timesteps(case, ours, steps)
            check_loop(case, kind, theirs, ours, torch.float32, DROP_IN_LOOP["high" if case.high else "low"])


def plain(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_a_thousand_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = plain(name)
    kind = case.kinds[0]
    theirs, ours = both(case, kind)
    for scheduler in (theirs, ours):
        set_timesteps(case, scheduler, 1000)
    check_loop(case, kind, theirs, ours, torch.float32, DROP_IN_LOOP["high"])
    lift(monkeypatch, name)
    theirs, ours = both(case, kind)
    for scheduler in (theirs, ours):
        set_timesteps(case, scheduler, 1000)
    check_loop(case, kind, theirs, ours, torch.float64, DROP_IN_FLOAT64)
