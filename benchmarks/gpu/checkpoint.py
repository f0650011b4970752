"""The file of a piece or a stage, rewritten after every row, so that a kill loses at most one row.

It has the form of pytest-benchmark's JSON. This file needs Python alone: a stage must leave its
results where torch or fastdiff can't be imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LONGEST = 300  # characters of a reason


class Checkpoint:
    """The rows that have been measured so far, and their file.

    Attributes:
        rows: by name.
        failed, skipped: reasons by the name of the row.
        now: the name of the row that is being measured; in a file that was left by a kill, of the
            row that was lost.
        finished: whether all rows have been tried.
        stage: what is known of the whole stage: its limit, how it ended, what it left out. Empty
            for a piece.
    """

    def __init__(self, file: Path, piece: str, about: dict[str, Any]):
        self.file, self.piece, self.about = file, piece, about
        self.rows: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.now: str | None = None
        self.finished = False
        self.stage: dict[str, Any] = {}
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            self.rows = {b["name"]: b["extra_info"] for b in found["benchmarks"]}
            self.failed, self.skipped, self.finished = (
                found["failed"],
                found["skipped"],
                found["finished"],
            )
            self.now, self.stage = found["now"], found.get("stage", {})
            self.about = found["machine_info"] | about

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self.failed or name in self.skipped

    def begin(self, name: str | None) -> None:
        self.now = name
        self.write()

    def row(self, name: str, row: Any) -> None:
        self.rows[name], self.now = dict(row), None
        self.write()

    def fail(self, name: str, reason: str, longest: int = LONGEST) -> None:
        self.failed[name], self.now = reason.strip()[:longest], None
        self.write()

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name], self.now = reason.strip()[:LONGEST], None
        self.write()

    def leave_out(self, what: str, reason: str) -> None:
        """Records a part of the stage that is not tried, for instance for want of a GPU."""
        self.stage.setdefault("left_out", {})[what] = reason
        self.write()

    def finish(self) -> None:
        self.finished, self.now = True, None
        self.write()

    def write(self) -> None:
        content = {
            "machine_info": self.about,
            "piece": self.piece,
            "finished": self.finished,
            "failed": self.failed,
            "skipped": self.skipped,
            "now": self.now,
        }
        if self.stage:
            content["stage"] = self.stage
        # a row a line, because a stage of a thousand tests writes the file a thousand times
        lines = [f'"{key}": {json.dumps(value)},' for key, value in content.items()]
        rows = [json.dumps({"name": name, "extra_info": row}) for name, row in self.rows.items()]
        text = "\n".join(["{", *lines, '"benchmarks": [', ",\n".join(rows), "]", "}", ""])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = self.file.with_suffix(".part")
        whole.write_text(text, encoding="utf-8")
        whole.replace(self.file)
