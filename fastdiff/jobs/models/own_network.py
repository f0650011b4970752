"""What a model folder leaves open about a network of the user's code: its conditions and source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...pretrained.folders import factories
from ...sampling.takes import LABEL, network_arguments, null_label
from ...user_code import import_function, source_file
from . import digest
from .conditioning import Arguments, Classes, Conditioning


def own_conditions(config: Mapping[str, Any], network: Any) -> Conditioning:
    """Returns the conditions of a network that does not state its number of classes.

    They are the classes of the training data if labels are all that the network takes, and else
    entries of its own arguments, with an unconditional half if conditions were dropped in training.

    Args:
        config: of the model folder.
        network: its network.
    """
    names, _ = network_arguments(network)
    classes = config.get("data", {}).get("classes", ())
    if classes and names == {LABEL}:
        return Classes(len(classes), classes, null_label=null_label(network))
    system = config.get("system", {}).get("config", {})
    return Arguments(network, nulls=True if system.get("label_dropout") else None)


def sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"source_sha256": {factory: hash of its file}} of a trusted folder's code, or {}."""
    names = {str(description["factory"]) for description in factories(dict(config))}
    files = {
        name: source_file(import_function(name, "fastdiff.jobs", "network"), name) for name in names
    }
    hashes = {
        k: None if file is None else digest.of_file(file) for k, file in sorted(files.items())
    }
    return {"source_sha256": hashes} if hashes else {}
