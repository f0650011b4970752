"""Loads the teacher of a system in training: the diffusion model that `--option teacher` names."""

from __future__ import annotations

from typing import Any


def teach(system: Any, device: str) -> None:
    """Gives a system the network of its `teacher`, a model folder or a shipped name.

    Raises FileNotFoundError or ValueError for a folder without a diffusion model that fits.
    """
    from ..pretrained import load

    network, schedule, settings = load(system.teacher)
    network = network.to(device).eval().requires_grad_(False)
    system.teach(network, schedule, settings.get("prediction_type", "epsilon"))
