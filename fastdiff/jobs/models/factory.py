"""Opens a model of the user's code: `package.module:function` names a function that returns it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ...sampler import Sampler, merged
from . import digest
from .conditioning import Classes, Conditioning, network_arguments
from .decoder import Decoder
from .model import Model, execution_settings, refuse_guide

_WHERE = "fastdiff.jobs"


def from_factory(name: str, shape: Sequence[int] | None = None) -> Model:
    """Returns the Model that the function returns, or one made from the Sampler that it returns.

    The current directory is searched first, as with `python -m`. The identity holds the hash of the
    function's source file, so that a change of it is refused.

    Raises ImportError and ValueError in one sentence where there is no such function, TypeError for
    other results.
    """
    factory = _import_function(name)
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"{_WHERE}: expected {name} to be a function without arguments, got one that needs"
            f" some ({error})."
        ) from None
    except ValueError:
        pass  # functions without a signature are called as they are
    with never_exits(f"{name}()"):
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
    made.__dict__.pop("identity", None)  # the function may have read it, which caches it
    return made


@contextmanager
def never_exits(what: str) -> Iterator[None]:
    """Turns an exit of the user's code into RuntimeError: a command that ends with status 0 without
    having done its work would look like one that has.

    what: that runs in the block, for the message.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(
            f"{_WHERE}: expected {what} to return, got an exit with the status {error.code!r}."
        ) from error


def origin(name: str) -> str:
    """Returns the file that `from_factory` would import for a name, or words where there is none.

    Nothing is imported, not even the packages that the module is in.
    """
    module = name.partition(":")[0]
    here, found = os.getcwd(), None
    path: Sequence[str] | None = (
        sys.path if here in sys.path or "" in sys.path else [here, *sys.path]
    )
    parts = module.split(".")
    for number in range(len(parts)):
        full = ".".join(parts[: number + 1])
        if full in sys.modules and number + 1 == len(parts):
            return str(getattr(sys.modules[full], "__file__", None) or "memory")
        found = PathFinder.find_spec(full, path)
        if found is None:
            break
        path = found.submodule_search_locations
        if path is None and number + 1 < len(parts):
            return "nowhere"
    return "nowhere" if found is None else str(found.origin or f"the folder of {module}")


def _import_function(name: str) -> Any:
    """Imports the function. Raises ImportError and TypeError in one sentence."""
    module, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with never_exits(f"the import of {module}"):
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
    """Returns the hash of the function's source file, None where it has none."""
    module = sys.modules.get(
        getattr(inspect.unwrap(factory), "__module__", None) or name.partition(":")[0]
    )
    file = getattr(module, "__file__", None)
    return digest.of_file(Path(file)) if file and Path(file).is_file() else None


def _from_sampler(sampler: Sampler, name: str, shape: Sequence[int] | None) -> Model:
    """Returns a model with a sampler's network, schedule and settings, or with its ready plan."""
    refuse_guide(sampler, name)
    network = sampler.model
    for owner in (sampler, network):
        shape = getattr(owner, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError(
            f"{_WHERE}: expected one sample's shape for the Sampler of {name}, got none. Pass"
            " --shape, or return a fastdiff.jobs.Model, which holds it."
        )
    settings: dict[str, Any] = {"guidance_scale": sampler.guidance_scale}
    settings |= {name: value for name, value in sampler.network_settings.items() if value}
    decode = sampler.decoder
    if hasattr(decode, "decode"):  # an autoencoder
        decode = Decoder(decode, {"weights_sha256": digest.of_module(decode)})
    conditions = _conditioning(network)
    if sampler.settings:
        return Model(
            network,
            shape,
            schedule=sampler.schedule,
            settings=sampler.settings | settings,
            conditions=conditions,
            decode=decode,
        )
    ready = sampler.plan

    def make(plan: Any = None, **others: Any) -> Sampler:
        others = merged(settings, others)
        execution = execution_settings(others)
        if plan is None and others.keys() - execution.keys():
            raise ValueError(
                f"{_WHERE}: expected no settings of a plan for {name}, which returns a Sampler with"
                f" a ready plan, got {min(others.keys() - execution.keys())!r}."
            )
        return Sampler(network, plan=ready if plan is None else plan, **execution)

    return Model(network, shape, sampler=make, conditions=conditions, decode=decode)


def _conditioning(network: Any) -> Conditioning | None:
    """Returns the classes of a network with `config["num_classes"]`, as fastdiff.models have it."""
    config = getattr(network, "config", None)
    count = config.get("num_classes") if isinstance(config, Mapping) else None
    names, _ = network_arguments(network)
    if not count or (names is not None and "y" not in names):
        return None
    return Classes(count, null_label=getattr(network, "null_label", None))
