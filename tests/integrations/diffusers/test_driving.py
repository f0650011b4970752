"""Every drop-in and its peer, used in every way that users have, give the same."""

from __future__ import annotations

import driving
import pytest
from deviations import PAIRS
from driving import ROWS, WAYS, Deviates, Row

from fastdiff.integrations.diffusers.base import DROP_INS

pytestmark = pytest.mark.filterwarnings("ignore")


def _case(way: str, row: Row) -> object:
    reason = PAIRS.get((way, row.id))
    marks = [pytest.mark.xfail(reason=reason, strict=True, raises=Deviates)] if reason else []
    return pytest.param(way, row, id=f"{way}-{row.id}", marks=marks)


@pytest.mark.parametrize(
    ("way", "row"),
    [_case(way, row) for way in WAYS for row in ROWS if driving.applies(way, row)],
)
def test_a_drop_in_used_like_its_peer_gives_the_same(way: str, row: Row) -> None:
    """Also the same dtypes and draws; and where the peer raises, the drop-in does."""
    differs = driving.difference(WAYS[way], row)
    if differs is not None:
        raise Deviates(f"{row.id}, {way.replace('_', ' ')}: the drop-in {differs}")


def test_every_drop_in_has_a_row() -> None:
    assert {row.case.name for row in ROWS} == set(DROP_INS)
    assert len({row.id for row in ROWS}) == len(ROWS)
