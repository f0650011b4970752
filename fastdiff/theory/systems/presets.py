"""Builds systems of the registry for a data set, in sizes that train in minutes on two CPU cores.

Images get convolutional networks, points of the plane perceptrons; 8-bit levels get their
discretised likelihood, other data densities. Options override the defaults; `network` chooses
another network (`fastdiff.theory.systems.networks`).
"""

from __future__ import annotations

import math
from typing import Any

from ...models import LEVELS, MLP
from ...prediction import normalize
from ...schedule import FORMULAS, Schedule
from ..registry import find
from ..score.model import network_for
from . import networks
from .denoiser import LEARNED, Denoiser

# options of systems with a network and a schedule, in addition to their constructors' arguments
SCHEDULED = {"schedule": "cosine", "timesteps": 1000}
# of densities of points, which are near curves
SHARP = {"likelihood": "gaussian", "initial_std": 0.15, "min_log_std": -3.0}
# sines and cosines of wave lengths 4, 2 and 1; without them a network learns a ring instead of the
# eight points of the mixture
WAVES = (-1, 0, 1)
# of a denoiser: chosen by the prediction type, see `objective_of`
AUTO = {"weighting": "auto", "precondition": "auto"}
# (weighting, precondition) by prediction type; `output` and False for the others. With these all
# types reach about one bound (docs/training/objectives.md)
OBJECTIVES = {
    "epsilon": ("simple", True),
    "flow": ("output", True),
    "score": ("simple", True),
    "x0": ("v", True),
}
# default arguments of the constructors, for images and for points
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "autoregressive": ({}, {"widths": (128, 128), "components": 10, **SHARP}),
    "classifier": ({"scaled": True}, {"scaled": True}),
    "hvae": ({}, {"latents": ((2, 1), (2, 1)), "widths": (64, 64), **SHARP}),
    "markovian": ({"latents": (64, 32), "widths": (256,), "likelihood": "discretized"}, SHARP),
    "vae": (
        {},
        {
            "latent": 2,
            "network": "mlp",
            "covariance": "isotropic",
            "objective": "importance",
            "samples": 8,
            **SHARP,
        },
    ),
    "score": ({"fourier": LEVELS}, {"fourier": WAVES}),
    "superres": (AUTO, AUTO),
    "unet": (AUTO, {"waves": WAVES, **AUTO}),
    "vdm": ({}, {"likelihood": "gaussian", "fourier": WAVES}),
}
# systems with networks whose options that are not the system's own go to the network
_WITH_NETWORK = {"classifier", "score", "superres", "unet"}
# parts of a VAE that the user's code may make
_PARTS = ("encoder", "decoder")


def make(name: str, data: Any, **options: Any) -> Any:
    """Returns a new system of the registry for a data set of fastdiff.data.

    The initial weights are drawn from torch's global generator.

    Raises ValueError for an unknown name or option, with the known ones, and for data that the
    system can't model.
    """
    network = options.pop("network", None) if name in networks.DEFAULTS else None
    chosen = networks.choose(name, data, network) if name in networks.DEFAULTS else None
    arguments, kind = _arguments(name, data, network, chosen, options), find(name)
    if chosen is None or name not in _WITH_NETWORK:
        return kind(**{"shape": data.shape, **_parts(name, data, network, chosen, arguments)})
    own = {k: arguments.pop(k) for k in _own(name, data)}
    own |= objective_of(own) if "precondition" in own else {}
    if name == "classifier" and not data.classes:
        raise ValueError(
            "fastdiff.theory.systems: expected data with classes for a classifier, got"
            f" {data.name}."
        )
    classes = len(data.classes)
    if name == "score":
        if network is None:
            made: Any = network_for(
                data.shape, fourier=own["fourier"], classes=classes, **arguments
            )
        else:
            inputs = 1 + 2 * len(own["fourier"])
            made = networks.build(
                chosen, data, arguments, num_classes=classes, inputs=inputs, time_scale=1000.0
            )
        return kind(made, likelihood=_likelihood(data), **own)
    schedule = _schedule(own.pop("schedule"), own.pop("timesteps"))
    learned = own.get("loss") == "hybrid" or own.get("variance") in LEARNED
    made = networks.build(
        chosen,
        data,
        arguments,
        num_classes=classes,
        logits=name == "classifier",
        time_scale=1000.0 if schedule.continuous else 1.0,
        learned=learned,
    )
    if name == "classifier":
        return kind(made, schedule, **own)
    return kind(
        made,
        schedule,
        **own,
        clip_range=1.0 if data.levels else None,
        likelihood=_likelihood(data),
    )


def _arguments(
    name: str,
    data: Any,
    network: Any,
    chosen: networks.Choice | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Returns the defaults with the options in their place; options of the network are among them.

    Raises ValueError for options that are unknown, and for required ones that are missing.
    """
    known = options_of(name, data, network)
    open_ended = chosen is not None and networks.options(chosen)[1]
    for option in options:
        if option not in known and not open_ended:
            listed = ", ".join(f"{k}={v}" for k, v in known.items())
            raise ValueError(
                f"fastdiff.theory.systems: expected an option of {name} ({listed}), got {option!r}."
            )
    arguments = known | options
    if chosen is not None:
        arguments.pop("network", None)
    missing = [k for k, v in arguments.items() if v == networks.REQUIRED]
    if missing:
        raise ValueError(
            f"fastdiff.theory.systems: expected the option {missing[0]!r} of {network}, got none."
        )
    return arguments


def objective_of(options: dict[str, Any]) -> dict[str, Any]:
    """Returns weighting and precondition of a denoiser's options, `auto` by its prediction type."""
    kind = normalize(options["prediction_type"])
    chosen = dict(zip(AUTO, OBJECTIVES.get(kind, ("output", False)), strict=True))
    return {k: v if options[k] == "auto" else options[k] for k, v in chosen.items()}


def options_of(name: str, data: Any, network: Any = None) -> dict[str, Any]:
    """Returns the options of a system with their defaults for this data set.

    network: the option of that name, by which the options of the network follow; a user's function
        is imported. A value "(required)" is that of an option without a default.
    """
    if name not in networks.DEFAULTS:
        return networks.keywords(find(name)) | _defaults(name, data)
    chosen = networks.choose(name, data, network)
    inner, _ = networks.options(chosen)
    if name == "vdm":
        own = networks.keywords(find(name))
        if network is None:
            return own | _defaults(name, data)
        own.pop("widths")
        return inner | own | _defaults(name, data, chosen) | {"network": network}
    return {"network": network} | _own(name, data) | inner | _defaults(name, data, chosen)


def _defaults(name: str, data: Any, chosen: networks.Choice | None = None) -> dict[str, Any]:
    """Returns the default options of a system that follow from the kind of data."""
    found = dict(DEFAULTS.get(name, ({}, {}))[networks.is_points(data)])
    if data.levels is None and not networks.is_points(data):  # latents, for instance
        own = name not in _WITH_NETWORK and "likelihood" in networks.keywords(find(name))
        found |= {"likelihood": "gaussian"} if own else {}
        found |= {"fourier": ()} if "fourier" in found else {}
    if chosen is not None and chosen.make is not MLP:
        found.pop("waves", None)
    if chosen is not None and chosen.name is not None and "fourier" in found:
        found["fourier"] = ()  # a network of the user's gets x_t alone, unless it is asked for
    return found


def _parts(
    name: str, data: Any, network: Any, chosen: networks.Choice | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Returns a constructor's arguments, with the networks that options name built."""
    if name == "vdm" and network is not None and chosen is not None:
        system = networks.keywords(find(name)).keys() - {"widths"}
        own = {k: v for k, v in arguments.items() if k in system}
        rest = {k: v for k, v in arguments.items() if k not in system}
        fourier = own.get("fourier")
        if fourier is None:
            discretized = own["likelihood"] == "discretized" and chosen.name is None
            own["fourier"] = fourier = LEVELS if discretized else ()
        made = networks.build(chosen, data, rest, num_classes=0, inputs=1 + 2 * len(fourier))
        return own | {"network": made}
    parts = {k: arguments[k] for k in _PARTS if isinstance(arguments.get(k), str)}
    if not parts:
        return arguments
    facts = {"shape": list(data.shape), "latent": arguments["latent"]}
    per_element = 2 if arguments["covariance"] == "diagonal" else 1
    outputs = {"encoder": 2 * arguments["latent"], "decoder": per_element * math.prod(data.shape)}
    return arguments | {
        k: networks.part(v, **facts, outputs=outputs[k], per_element=per_element)
        for k, v in parts.items()
    }


def _own(name: str, data: Any) -> dict[str, Any]:
    """Returns the options of a system that are not its network's."""
    kinds = (find(name), Denoiser) if name == "superres" else (find(name),)
    own = {k: v for kind in kinds for k, v in networks.keywords(kind).items() if k != "likelihood"}
    if networks.is_points(data) and "label_dropout" in own:
        own["label_dropout"] = 0.5  # pictures and densities of points are drawn without labels
    return own if name == "score" else own | SCHEDULED


def _likelihood(data: Any) -> str:
    return "gaussian" if data.levels is None else "discretized"


def _schedule(name: str, timesteps: int) -> Schedule:
    if name not in FORMULAS:
        raise ValueError(
            f"fastdiff.theory.systems: expected schedule in {list(FORMULAS)}, got {name!r}."
        )
    return getattr(Schedule, name)(timesteps)
