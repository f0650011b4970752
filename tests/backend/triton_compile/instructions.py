"""What a warp issues for an element, kernel by kernel, compared with the table that the predictions
of `make gpu-report` use. Started by tests/backend/test_triton.py.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import instructions
from benchmarks.gpu import count_instructions, issue_limits


@pytest.mark.parametrize("dtype", issue_limits.DTYPES)
@pytest.mark.parametrize("name", count_instructions.CASES)
def test_the_table_of_instructions(name: str, dtype: str) -> None:
    """Within 5 %, in both directions: a faster kernel changes its predictions too."""
    entry = count_instructions.entry_of(name, dtype)
    print(f"{name}, {dtype}: {entry['instructions']}, {entry['ceiling']:.0f} % of a copy")
    assert (said := count_instructions.difference(name, dtype, entry)) is None, said


def test_several_chunks_share_their_set_up() -> None:
    """A program that computes one chunk issues at least a seventh more for an element."""
    for name in ("DDIM step", "DDPM step, exact", "DDPM step, fast"):
        call, _ = count_instructions.CASES[name](torch.float32)
        chunks = call.grid[1] * call.arguments["each"]
        alone = call._replace(grid=(call.grid[0], chunks, 1))
        one, several = instructions.per_element(alone)[-1], instructions.per_element(call)[-1]
        assert call.arguments["each"] == 8 and one > 1.14 * several


def test_open_bins_do_without_the_wide_branch() -> None:
    """Narrow, open and closed wide bins: a tile with open ends costs less than with wide bins."""
    narrow, open_ends, wide = count_instructions.entry_of("discretised NLL", "float32")[
        "instructions"
    ]
    assert narrow < open_ends < 0.75 * wide
