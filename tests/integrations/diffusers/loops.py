"""Loops of a case on both sides, and the tolerances of their comparison."""

from __future__ import annotations

from typing import Any

import torch
from cases import CASES, Case, arguments, finite, network, start

RUNS = [(case, kind) for case in CASES for kind in case.kinds]
IDS = [f"{case.id}-{kind}" for case, kind in RUNS]


def plain(name: str) -> Case:
    """The class's first case."""
    return next(case for case in CASES if case.name == name)


def counts(case: Case) -> tuple[int, ...]:
    """The numbers of steps that a case runs.

    A class's first case runs all of them, its variants all except for the long run.
    """
    return (
        case.steps
        if case is plain(case.name)
        else tuple(n for n in case.steps if n <= 10) or case.steps
    )


def scaled(scheduler: Any, x: torch.Tensor, t: Any) -> torch.Tensor:
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def loop(
    case: Case, kind: str, scheduler: Any, x: torch.Tensor, generator: torch.Generator
) -> list[Any]:
    """The states of a pipeline's loop, the first included."""
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
        torch.testing.assert_close(
            torch.as_tensor(ours.sigmas), torch.as_tensor(theirs.sigmas), **exactly
        )
    if hasattr(theirs, "init_noise_sigma"):
        assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma)


def amplified(theirs: Any, index: int | None = None) -> float:
    """The factor by which the second stage of a second-order step amplifies roundings.

    The stage divides by its small level what it then multiplies by the step. Without an index it is
    the largest factor of the grid.
    """
    if (
        hasattr(theirs, "prk_timesteps") and index is not None
    ):  # PNDM's transfer raises x as the signal grows
        ratio, table = (
            theirs.config.num_train_timesteps // theirs.num_inference_steps,
            theirs.alphas_cumprod,
        )
        t = int(theirs.timesteps[index])
        return float(table[max(t - ratio, 0)] / table[min(t + ratio, len(table) - 1)]) ** 0.5
    if hasattr(theirs, "lambda_t"):
        return integrator_amplified(theirs, index)
    if getattr(theirs, "order", 1) == 1:
        return 1.0
    sigmas = theirs.sigmas.double()[:-1]
    ratios = (sigmas[:-1] / sigmas[1:]).tolist()
    return (
        max([1.0, *ratios])
        if index is None
        else max(1.0, ratios[index - 1])
        if 0 < index <= len(ratios)
        else 1.0
    )


def integrates_eps(theirs: Any) -> bool:
    algorithms = ("dpmsolver", "sde-dpmsolver", "deis", "noise_prediction")
    return theirs.config.get("algorithm_type") in algorithms or not theirs.config.get(
        "predict_x0", True
    )


def integrator_amplified(theirs: Any, index: int | None) -> float:
    """The factor by which steps multiply x, and with it roundings.

    It is alpha_s/alpha_t for steps of eps (from the start of a group of three), and sigma_s/sigma_t
    for steps towards noise; the terms in the network's outputs cancel nearly all of it.
    """
    rho = theirs.sigmas.double()
    inward, c = bool(rho[0] < rho[1]), theirs.config
    if not (inward or integrates_eps(theirs)):
        return 1.0
    alpha = 1.0 - rho if c.use_flow_sigmas else 1.0 / (1.0 + rho**2).sqrt()
    size = alpha * rho if inward else alpha
    ratios = [
        4.0 * float(size[i + 1] / size[max(i - 2, 0) if not inward else i])
        for i in range(len(theirs.timesteps))
    ]
    whole = 4.0 * float(size[-1] / size[0])
    return max(1.0, whole if index is None else ratios[index])


def check_loop(
    case: Case, kind: str, theirs: Any, ours: Any, dtype: torch.dtype, tolerance: float
) -> bool:
    """Whether the peer was finite; then the loops agree."""
    first = start(theirs, dtype)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected = loop(case, kind, theirs, first, draws[0])
    if not finite(*expected):
        return False
    got = loop(case, kind, ours, first, draws[1])
    assert torch.equal(draws[0].get_state(), draws[1].get_state()), (
        "as many draws, also those that add nothing"
    )
    # the peer's x + (x - x0)/sigma·(sigma_s - sigma) cancels over a long step, which leaves
    # roundings of its largest state
    rounding = 2.0**-22 if dtype == torch.float32 else 2.0**-51
    largest = max(float(x.abs().max()) for x in expected)
    allowed = tolerance * max(
        float(expected[-1].abs().max()), 1.0
    ) + rounding * largest * amplified(theirs)
    assert float((got[-1] - expected[-1]).abs().max()) <= allowed
    return True
