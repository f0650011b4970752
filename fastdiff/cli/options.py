"""NAME=VALUE on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def parse(texts: Iterable[str], flag: str = "--option") -> dict[str, Any]:
    """eta=0.5 as a name and what its value means: JSON where it is that, a list where commas divide
    it, else a word.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"expected {flag} NAME=VALUE, got {text!r}.")
        name = name.replace("-", "_")
        if name in found:
            raise ValueError(f"expected {flag} {name} once, got it twice.")
        found[name] = value_of(value)
    return found


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.lower() in ("true", "false", "none"):
            return {"true": True, "false": False, "none": None}[text.lower()]
        return [value_of(part) for part in text.split(",")] if "," in text else text
