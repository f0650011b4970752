"""Tables whose header breaks a rule are refused by every backend on the CPU and by `Plan`."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.solvers import Plan
from fastdiff.table import COLUMNS, INDEX, OPERANDS, RULES

# other columns of the same row, where a rule needs them
WITH = {
    "clip_bound": {"clip_mode": 1},
    "clip_ratio": {"clip_mode": 2},
    "guidance_bound": {"guidance_kind": 2},
}
WRONG = [
    ("network", 2.0),
    ("next", 7.0), ("next", -1.0), ("next", 0.5),
    ("clip_mode", 3.0), ("clip_mode", 0.5),
    ("clip_bound", -1.0),
    ("clip_ratio", 0.0), ("clip_ratio", 2.0), ("clip_ratio", -1e18),
    ("noise_index", -1.0), ("noise_index", 2.0**32), ("noise_index", 1.5),
    ("noise_mode", 5.0),
    ("out_uncond", 2.0),
    ("guidance_kind", 6.0), ("guidance_kind", 0.5), ("guidance_kind", -1.0),
    ("guidance_bound", -1.0),
    ("guidance_momentum", 0.5), ("guidance_momentum", -0.5),
]  # fmt: skip


def table(name: str, value: float, *, reads_x0: bool) -> np.ndarray:
    """Two rows; the first breaks the rule of the column."""
    result = np.zeros((2, len(COLUMNS)))
    result[:, INDEX["next"]] = 1
    result[0, INDEX["x.x"]] = result[0, INDEX["x0_x"]] = 1
    result[0, INDEX["x.x0"]] = reads_x0
    for other, number in WITH.get(name, {}).items():
        result[0, INDEX[other]] = number
    result[0, INDEX[name]] = value
    return result


def test_every_rule_is_broken_once() -> None:
    assert {name for name, _ in WRONG} == {rule[0] for rule in RULES}


@pytest.mark.cpu_only
@pytest.mark.parametrize("reads_x0", [True, False])
@pytest.mark.parametrize("name, value", [*WRONG, *((rule[0], float("nan")) for rule in RULES)])
def test_a_broken_rule_is_named(name: str, value: float, reads_x0: bool) -> None:
    """Also where the row does not read what the column is about: its prepass would run."""
    wrong = table(name, value, reads_x0=reads_x0)
    x, out, row = torch.randn(2, 4), torch.randn(2, 8), torch.tensor([1, 0])
    for backend in ("cpu", "torch"):
        with pytest.raises(ValueError, match=f"expected {name} .* in row 0 of the table, got"):
            ops.reverse_step(x, out, torch.tensor(wrong), row, seed=1, backend=backend)
    sentence = "expected finite" if np.isnan(value) else f"expected {name} .* in row 0, got"
    with pytest.raises(ValueError, match=rf"^fastdiff\.Plan: {sentence} .*\.$"):
        Plan(wrong)


def test_the_rules_are_those_of_the_c_library() -> None:
    """The words of csrc/cpu/checks.cpp, in the same order."""
    from pathlib import Path

    source = (Path(__file__).parents[2] / "csrc/cpu/checks.cpp").read_text()
    found = re.findall(r'return broken\("(\w+)", "([^"]+)"', source)
    assert found == [(name, words) for name, words, *_ in RULES]


@pytest.mark.cpu_only
def test_slot_4_is_the_differences_alone() -> None:
    """Rows that leave their difference there write nothing else into it."""
    for kind in (4.0, 5.0):
        for operand in OPERANDS:
            wrong = table("guidance_kind", kind, reads_x0=True)
            Plan(wrong.copy())
            wrong[0, INDEX[f"s4.{operand}"]] = 0.5
            x, out, row = torch.randn(2, 4), torch.randn(2, 8), torch.tensor([1, 0])
            for backend in ("cpu", "torch"):
                with pytest.raises(ValueError, match="of slot 4.* in row 0 of the table, got"):
                    ops.reverse_step(
                        x, out, torch.tensor(wrong), row, seed=1, used=-1, backend=backend
                    )
            with pytest.raises(ValueError, match=r"^fastdiff\.Plan: .* slot 4.* in row 0, got"):
                Plan(wrong)
