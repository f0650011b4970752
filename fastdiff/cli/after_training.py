"""What `fastdiff train` says at its end: the command that draws samples of the new model.

Every system of the registry has one that runs (tests/cli/test_after_training.py runs them all).
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from .. import data as datasets
from ..pretrained.folders import names_code
from ..user_code import is_name


def next_command(system: Any, out: str | os.PathLike[str], data: str) -> tuple[str, list[str]]:
    """Returns (what it does, the words of the command) for a model folder `out`.

    A system without samples, such as a classifier, is evaluated. Super-resolution enlarges small
    images of a named data set's test split; other data need not have one, so there it enlarges
    those that it was trained on. Where the data are code, which only a command may name, it is
    evaluated. The user has just run the code of their own network, so the command says --trust.

    Args:
        system: that was trained.
        out: its folder.
        data: the argument --data of its training.
    """
    folder = os.fspath(out)
    trust = ["--trust"] if names_code(system) else []
    named, conditional = data in datasets.NAMES, bool(getattr(system, "given", ()))
    drawn = hasattr(system, "sample") or hasattr(system, "for_sampler")
    if not drawn or (conditional and is_name(data)):
        split = [] if named else ["--split", "train"]
        code = ["--data", data] if is_name(data) else []
        return "evaluate", ["fastdiff", "eval", folder, *code, *split, *trust]
    given = ["--image", "test" if named else "train"] if conditional else []
    samples = str(Path(folder).parent / f"{Path(folder).absolute().name}-samples")
    return "sample", ["fastdiff", "sample", "--model", folder, *given, *trust, "--out", samples]


def closing(system: Any, out: str | os.PathLike[str], data: str) -> str:
    """Returns the end of the last line: `sample it with: fastdiff sample …`. See `next_command`."""
    what, words = next_command(system, out, data)
    return f"{what} it with: {shlex.join(words)}"
