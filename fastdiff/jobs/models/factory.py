"""A model of the user's own code, `package.module:function`: the function is called and returns
it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...sampler import Sampler, merged
from . import digest
from .conditioning import Classes, Conditioning, keywords
from .decoder import Decoder
from .model import Model, beside_a_plan

_WHERE = "fastdiff.jobs"


def from_factory(name: str, shape: Sequence[int] | None = None) -> Model:
    """The Model that the function returns, or that of a Sampler it returns.

    The current directory is searched first, as by `python -m`. The identity holds the hash of the
    file the function is written in, so that an edit is noticed.

    Raises ImportError and ValueError in one sentence where there is no such function, TypeError for
    other results.
    """
    factory = _find(name)
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"{_WHERE}: expected {name} to be a function without arguments, got one with a {error}."
        ) from None
    except ValueError:
        pass  # no signature to be had: the call will tell
    made = factory()
    if isinstance(made, Sampler):
        made = _from_sampler(made, name, shape)
    if not isinstance(made, Model):
        raise TypeError(
            f"{_WHERE}: expected {name}() to return a fastdiff.jobs.Model or a fastdiff.Sampler,"
            f" got {type(made).__name__}."
        )
    made.facts = {
        "kind": "factory",
        "name": name,
        "source_sha256": _source(factory, name),
        **made.facts,
    }
    made.__dict__.pop("identity", None)  # the function may have looked at it
    return made


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        own = module == missing or module.startswith(f"{missing}.")
        got = (
            f"none from {here}"
            if own
            else f"one that needs the module {missing!r}, which is not installed"
        )
        raise ImportError(
            f"{_WHERE}: expected a module {module!r} for the model {name}, got {got}."
        ) from None
    except Exception as error:
        raise ImportError(
            f"{_WHERE}: expected to import {module!r} for the model {name}, got"
            f" {type(error).__name__}: {error}."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ImportError(
                f"{_WHERE}: expected {part!r} in {module} for the model {name}, got no such name."
            )
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(
            f"{_WHERE}: expected {name} to be a function that returns the model, got"
            f" {type(found).__name__}."
        )
    return found


def _source(factory: Any, name: str) -> str | None:
    """Of the file that the function is written in; None where there is no such file."""
    module = sys.modules.get(
        getattr(inspect.unwrap(factory), "__module__", None) or name.partition(":")[0]
    )
    file = getattr(module, "__file__", None)
    return digest.of_file(Path(file)) if file and Path(file).is_file() else None


def _from_sampler(sampler: Sampler, name: str, shape: Sequence[int] | None) -> Model:
    """A sampler's network, schedule and settings, or its ready plan."""
    network = sampler.model
    for place in (sampler, network):
        shape = getattr(place, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError(
            f"{_WHERE}: expected one sample's shape for the Sampler of {name}, got none. Pass"
            " --shape, or return a fastdiff.jobs.Model, which holds it."
        )
    engine = sampler._engine.network
    settings: dict[str, Any] = {"guidance_scale": sampler.guidance_scale}
    settings |= {"network_dtype": engine.dtype} if engine.dtype else {}
    settings |= {"channels_last": True} if engine.channels_last else {}
    vae = getattr(sampler, "_vae", None)
    decode = None if vae is None else Decoder(vae, {"weights_sha256": digest.of_module(vae)})
    given: dict[str, Any] = {"conditions": _conditioning(network), "decode": decode}
    if sampler._settings:
        return Model(
            network,
            shape,
            schedule=sampler.schedule,
            settings=sampler._settings | settings,
            **given,
        )
    ready = sampler.plan

    def again(plan: Any = None, **others: Any) -> Sampler:
        others = merged(settings, others)
        if plan is None and (set(others) - set(beside_a_plan(others))):
            raise ValueError(
                f"{_WHERE}: expected no settings of a plan for {name}, whose Sampler has a ready"
                f" one, got {min(set(others) - set(beside_a_plan(others)))!r}."
            )
        return Sampler(network, plan=ready if plan is None else plan, **beside_a_plan(others))

    return Model(network, shape, sampler=again, **given)


def _conditioning(network: Any) -> Conditioning | None:
    """The classes of a network that says how many it has, as those of fastdiff.models do."""
    config = getattr(network, "config", None)
    count = config.get("num_classes") if isinstance(config, Mapping) else None
    taken, _ = keywords(network)
    if not count or (taken is not None and "y" not in taken):
        return None
    return Classes(count, null_label=getattr(network, "null_label", None))
