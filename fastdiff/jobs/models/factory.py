"""Opens a model of the user's code: `package.module:function` names a function that returns it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ...sampler import Sampler, merged
from ...sampling.takes import network_arguments
from ...user_code import import_function, never_exits, source_file
from . import digest
from .conditioning import Classes, Conditioning
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
    factory = import_function(name, _WHERE, "model")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"{_WHERE}: expected {name} to be a function without arguments, got one that needs"
            f" some ({error})."
        ) from None
    except ValueError:
        pass  # functions without a signature are called as they are
    with never_exits(f"{name}()", _WHERE):
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


def _source(factory: Any, name: str) -> str | None:
    """Returns the hash of the function's source file, None where it has none."""
    file = source_file(factory, name)
    return None if file is None else digest.of_file(file)


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
