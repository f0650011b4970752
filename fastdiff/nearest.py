"""Suggests a known name for an unknown one, as the last sentence of an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

ENOUGH = 0.6  # of difflib's similarity in [0, 1]


def nearest(name: object, known: Iterable[str], instead: Mapping[str, str] | None = None) -> str:
    """Returns a sentence with a space before it; "" if no known name is like it, or it is known.

    Args:
        name: the unknown one.
        known: names that exist; of equally near ones the first is suggested.
        instead: whole sentences for some unknown names.
    """
    known = list(known)
    if not isinstance(name, str) or name in known:
        return ""
    if instead and name in instead:
        return f" {instead[name]}"

    def like(each: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), each.lower()).ratio()

    best = max(known, key=like, default="")  # the first of several
    return f" Did you mean {best!r}?" if best and like(best) >= ENOUGH else ""
