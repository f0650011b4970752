"""Suggests a known name for an unknown one, as the last sentence of an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

ENOUGH = 0.6  # of difflib's similarity in [0, 1]
# what other libraries call a setting of Sampler, and what to do instead
SETTINGS = {
    "cfg_scale": "Pass guidance_scale.",
    "device": "Move the network to its device; the sampler follows it.",
    "dtype": "Pass network_dtype, or convert the network.",
    "generator": "Pass seed to sample.",
    "num_inference_steps": "Pass steps.",
    "num_steps": "Pass steps.",
    "sampler": "Pass solver.",
    "scheduler": "Pass solver and timestep_spacing.",
    "seed": "Pass seed to sample.",
    "sigma_schedule": "Pass timestep_spacing.",
}


def nearest(name: object, known: Iterable[str], instead: Mapping[str, str] | None = None) -> str:
    """Returns a sentence with a space before it, or nothing if no known name is like it.

    Args:
        name: the unknown one.
        known: names that exist; of equally near ones the first is suggested.
        instead: whole sentences for some unknown names.
    """
    if not isinstance(name, str):
        return ""
    if instead and name in instead:
        return f" {instead[name]}"

    def like(each: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), each.lower()).ratio()

    best = max(known, key=like, default="")  # the first of several
    return f" Did you mean {best!r}?" if best and like(best) >= ENOUGH else ""
