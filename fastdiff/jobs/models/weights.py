"""Finds the files of a diffusers folder that hold the weights that diffusers loads from it."""

from __future__ import annotations

import re
from pathlib import Path

from ...pretrained.files import PICKLES

# name[.variant][-00001-of-00002].safetensors
_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
)


def weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Returns the safetensors files that diffusers reads from a component's folder.

    Those of the variant where it has them, else those without one. Raises ValueError for a folder
    that has only pickled weights, and for one without weights.
    """
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(match["variant"], []).append(path)
    chosen = found.get(variant) or found.get(None)
    if chosen:
        return chosen
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"fastdiff.jobs: expected safetensors in {folder}, got the pickle {pickles[0]}, which"
            " can run code when read. Convert it to safetensors."
        )
    others = f", got only the variants {sorted(v for v in found if v)}" if found else ", got none"
    raise ValueError(
        f"fastdiff.jobs: expected weights (such as model.safetensors) in {folder}{others}."
    )


def variant_of(folder: Path) -> str | None:
    """Returns the only variant of a component's folder: `fp16` where it has no other weights.

    None where it has weights without a variant, or several variants.
    """
    names = [
        match["variant"]
        for path in folder.glob("*.safetensors")
        if (match := _NAME.fullmatch(path.name))
    ]
    return names[0] if names and None not in names and len(set(names)) == 1 else None
