"""Model folders from the Hugging Face Hub, by huggingface_hub: its cache, tokens and offline mode.

A name is a repository, `org/name`, or with a revision `org/name@v1` (a branch, a tag or a commit).
Only the two files that a model folder consists of are loaded, never code.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ..outside import shown

FILES = ("config.json", "model.safetensors")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
_WHERE = "fastdiff.pretrained"


def is_repository(name: str) -> bool:
    """Returns whether a name may be a repository and no path here: its first part is no folder."""
    return _NAME.fullmatch(name) is not None and not Path(name.split("/")[0]).exists()


@functools.cache
def fetch(name: str) -> Path:
    """Returns the folder of a repository in the hub's cache, loaded where it isn't there yet.

    A process stays with the revision that it has found first.

    Raises FileNotFoundError in one sentence, where there is no such repository, or no way to it.
    """
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{_WHERE}: expected the folder {shown(name)}, got none. For a model of that name on"
            " the Hugging Face Hub, pip install huggingface_hub."
        ) from None
    try:
        folder = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES))
        )
    except (OSError, ValueError) as error:  # what the hub's client raises is one of these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{_WHERE}: expected a folder or a repository of the Hugging Face Hub, got"
            f" {shown(name)}, which can't be loaded ({shown(reason.rstrip('.'))}). Name a folder,"
            " or load the repository once with a connection."
        ) from None
    return folder
