"""Drop-ins against unmodified diffusers 0.42.1: grids, each step from the peer's state, loops."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, Case, arguments, both, finite, network, set_timesteps, start
from loops import IDS, RUNS, amplified, check_loop, counts, integrates_eps, plain, same_grid, scaled
from tolerances import DROP_IN_LOOP, DROP_IN_STEP, DROP_IN_STEP_CANCELLED

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]


@pytest.mark.parametrize("case, kind", RUNS, ids=IDS)
def test_steps_and_loops_as_they_are(case: Case, kind: str) -> None:
    """Untouched: the same grid to the bit, every step from the peer's own state, and the loop."""
    theirs, ours = both(case, kind)
    same_grid(theirs, ours)
    limit = DROP_IN_STEP[case.exact]
    if hasattr(theirs, "lambda_t") and (case.high or integrates_eps(theirs)):
        limit = DROP_IN_STEP_CANCELLED
    for steps in sorted({*counts(case)} & {*case.narrow}) or counts(case):
        set_timesteps(case, theirs, steps)
        set_timesteps(case, ours, steps)
        same_grid(theirs, ours)
        x = start(theirs, torch.float32)
        draws = [torch.Generator().manual_seed(5) for _ in range(2)]
        for i, (t, u) in enumerate(zip(theirs.timesteps, ours.timesteps, strict=True)):
            given = scaled(theirs, x, t)
            torch.testing.assert_close(
                scaled(ours, x, u), given, rtol=1e-6, atol=1e-6, equal_nan=True
            )
            out = network(given, kind, case.learned)
            expected = theirs.step(out, t, x, **arguments(case, draws[0]), return_dict=False)
            if not finite(expected[0]):
                break
            got = ours.step(out, u, x, **arguments(case, draws[1]), return_dict=False)
            assert len(got) == len(expected)
            size = max(float(x.abs().max()), float(expected[0].abs().max()))
            if hasattr(theirs, "prk_timesteps"):
                size = max(
                    size, float(start(theirs, torch.float32).abs().max())
                )  # its second step starts there too
            allowed = max(limit, 2.0**-22 * amplified(theirs, i)) * size
            assert float((got[0] - expected[0]).abs().max()) <= allowed, (steps, i)
            if len(got) > 1:
                if not t.is_floating_point() and case.exact:
                    size /= max(
                        float(theirs.alphas_cumprod[int(t)]) ** 0.5, 1e-3
                    )  # (x - sigma eps)/alpha, unclipped
                size = max(size, float(expected[1].abs().max()))
                assert float((got[1] - expected[1]).abs().max()) <= limit * size, (steps, i, "x0")
            x = expected[0]
        if finite(x):
            set_timesteps(case, theirs, steps)
            set_timesteps(case, ours, steps)
            check_loop(
                case,
                kind,
                theirs,
                ours,
                torch.float32,
                DROP_IN_LOOP["high" if case.high else "low"],
            )


@pytest.mark.parametrize("name", CLASSES)
def test_a_thousand_steps(name: str) -> None:
    case = plain(name)
    theirs, ours = both(case, case.kinds[0])
    for scheduler in (theirs, ours):
        set_timesteps(case, scheduler, 1000)
    check_loop(case, case.kinds[0], theirs, ours, torch.float32, DROP_IN_LOOP["high"])
