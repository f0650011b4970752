"""The result file of both measurements, benchmarks/results/choosing.json.

    {"mixture": {"floor": …, "calls": […], "rows": [{"case", "solver", "grid", "errors"}]},
     "weights": {"real": {samples: numbers}, "cells": [{"solver", "grid", "calls", …}]}}

`errors` has one number for each of `calls`. The mixture's part is replaced when it is measured
again; the weights' cells are replaced one by one, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "results" / "choosing.json"
Content = dict[str, Any]


def read(path: Path = RESULT) -> Content:
    """Returns what was measured, {} if nothing was."""
    if not path.exists():
        return {}
    content: Content = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(content: Content, path: Path = RESULT) -> None:
    """Writes a row or a cell in a line; an interrupted write leaves the old file."""
    parts = []
    for name in sorted(content):
        part = content[name]
        fields = [
            f"  {json.dumps(key)}: "
            + (_lines(value) if key in ("rows", "cells") else json.dumps(value))
            for key, value in part.items()
        ]
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n }")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    fresh.replace(path)


def _lines(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
