"""The drop-ins' formulas: loops of 1 to 1,000 steps against diffusers 0.42.1, all in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import CLASSES, Case, both, lift, set_timesteps
from loops import IDS, RUNS, check_loop, counts, plain
from tolerances import DROP_IN_FLOAT64

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case, kind", RUNS, ids=IDS)
def test_formulas_in_float64(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full loops of the peer lifted to float64: what remains is the formula."""
    lift(monkeypatch, case.name)
    theirs, ours = both(case, kind)
    checked = []
    for steps in counts(case):
        set_timesteps(case, theirs, steps)
        set_timesteps(case, ours, steps)
        torch.testing.assert_close(
            ours.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9, equal_nan=True
        )
        checked.append(check_loop(case, kind, theirs, ours, torch.float64, DROP_IN_FLOAT64))
    assert any(checked)


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if not name.startswith("LMS")]
)  # the peer's takes ten seconds
def test_a_thousand_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = plain(name)
    lift(monkeypatch, name)
    theirs, ours = both(case, case.kinds[0])
    for scheduler in (theirs, ours):
        set_timesteps(case, scheduler, 1000)
    check_loop(case, case.kinds[0], theirs, ours, torch.float64, DROP_IN_FLOAT64)
