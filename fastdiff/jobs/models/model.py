"""A model as batch jobs use it: a network, its samplers, its conditions and its identity.

A latent-variable model has no sampler: its system draws n samples itself, as a pure function of the
seed and the sample ids, in one call (`draw`).

Two kinds of samplers are made of a model. The first has a solver and computes the plan, once, for
the run's spec. The samplers of the workers are given that plan and compute none, because NumPy's
float64 functions differ between processors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ...sampler import Sampler, merged
from ...sampling.takes import null_label as default_null
from ...schedule import Schedule
from ...whole import whole
from . import digest
from .conditioning import Arguments, Classes, Conditioning, Custom, Halves

# the settings of a Sampler that are not part of its plan
EXECUTION_SETTINGS = (
    "guidance_scale",
    "network_batch",
    "on_oom",
    "graph",
    "compile",
    "network_dtype",
    "channels_last",
)
Samplers = Callable[..., Sampler]


class Model:
    """A model to make datasets with.

    Args:
        network: any callable (x, t, **cond); see `Sampler`.
        shape: of one sample's state, such as (3, 32, 32).
        schedule: the noise schedule that the network was trained with.
        settings: default arguments of `Sampler`, such as prediction_type, solver and
            guidance_scale; the settings of a run override them.
        classes: names of the classes.
        num_classes: number of the classes, where they have no names.
        null_label: label for "no class"; by default the network's attribute of this name.
        argument: the network's argument for the classes.
        conditions: instead of classes, a function of B entries (texts or JSON values) -> (cond,
            uncond), the two arguments of `Sampler.sample`.
        decode: latents [B, …] -> pictures [B, C, H, W] in [-1, 1].
        facts: JSON-safe, what else the samples depend on; part of `identity`.
        sampler: instead of schedule and settings, a function (plan=None, **settings) -> Sampler.
        draw: instead of schedule, settings and sampler, for models that are drawn without steps, a
            function (n, *, seed, sample_ids, **settings) -> samples [n, *shape], each of which
            depends on the seed and its id only. There are no conditions.

    Without classes and conditions, an entry is an object of the network's own keyword arguments,
    and is required only if the network has required ones.

    Attributes:
        sampler: sampler(**settings) computes a plan for a spec, sampler(plan=plan, **settings) uses
            that of a spec.
        draw: as passed; None for a model with samplers.
        conditioning: parses the entries and makes the network's arguments.
        identity: JSON-safe; equal on every worker of a run.
        latents: whether the samples are an autoencoder's latents, which only a decoder turns into
            pictures. True for pipelines with a VAE.

    Raises:
        TypeError, ValueError: for other arguments.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        shape: Sequence[int],
        *,
        schedule: Schedule | None = None,
        settings: Mapping[str, Any] | None = None,
        classes: Sequence[str] = (),
        num_classes: int | None = None,
        null_label: int | None = None,
        argument: str = "y",
        conditions: Callable[[list[Any]], Halves] | Conditioning | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
        sampler: Samplers | None = None,
        draw: Callable[..., Tensor] | None = None,
    ):
        where = "fastdiff.jobs.Model"
        if draw is not None:
            given = {
                "schedule": schedule,
                "settings": settings or None,
                "classes": classes or None,
                "num_classes": num_classes,
                "conditions": conditions,
                "sampler": sampler,
            }
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{where}: expected draw or {name}, got both.")
            conditions = Arguments(lambda x, t: x)  # which takes none
            sampler = self._no_sampler
        if draw is None and not callable(network):
            raise TypeError(
                f"{where}: expected a callable model(x, t, **cond), got {type(network).__name__}."
            )
        if sampler is None and not isinstance(schedule, Schedule):
            raise TypeError(
                f"{where}: expected a fastdiff.Schedule, got {type(schedule).__name__}."
            )
        if decode is not None and not callable(decode):
            raise TypeError(
                f"{where}: expected decode as a function of latents, got {type(decode).__name__}."
            )
        self.network, self.shape = network, sizes(shape)
        self.schedule, self.settings = schedule, dict(settings or {})
        self.decode, self.latents = decode, False
        self.sampler: Samplers = sampler or self._sampler
        self.draw = draw
        self.facts = dict(facts or {})
        count = len(classes) if num_classes is None else num_classes
        if conditions is not None and count:
            raise ValueError(f"{where}: expected classes or conditions, got both.")
        if isinstance(conditions, Conditioning):
            self.conditioning = conditions
        elif conditions is not None:
            self.conditioning = Custom(conditions)
        elif count:
            null = default_null(network) if null_label is None else null_label
            self.conditioning = Classes(count, classes, null_label=null, argument=argument)
        else:
            self.conditioning = Arguments(network)
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)

    @property
    def draw_settings(self) -> list[str]:
        """Names of the settings of `draw`."""
        known = [] if self.draw is None else list(inspect.signature(self.draw).parameters)
        return [name for name in known if name not in ("n", "seed", "sample_ids")]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, () without classes."""
        return self.conditioning.names

    @property
    def default_entries(self) -> list[Any] | None:
        """Entries that the ids cycle through by default; None where the user must name them."""
        return self.conditioning.default_entries

    def conditions(self, entries: Sequence[Any]) -> Halves:
        """Returns (cond, uncond) of `Sampler.sample` for B parsed entries."""
        return self.conditioning.conditions(entries)

    def labels(self, entries: Sequence[Any]) -> list[int] | None:
        """Returns the class of each entry, None where entries are no classes."""
        return self.conditioning.labels(entries)

    def check(self, sampler: Sampler, entries: Sequence[Any]) -> None:
        """Raises ValueError for guidance without an unconditional half of the network call, and for
        a sampler with a guide.
        """
        refuse_guide(sampler, repr(self))
        scale = sampler.guidance_scale
        guided = any(gamma != 1 for gamma in scale) if isinstance(scale, Sequence) else scale != 1
        if guided and self.conditions(entries)[1] is None:
            raise ValueError(
                f"fastdiff.jobs: expected guidance_scale 1 for {self!r}, which has no call without"
                f" conditions, got {scale}. Pass a null_label, or conditions that return uncond."
            )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything of the model that samples depend on: weights, shape, conditions, decoder, …"""
        facts = {"kind": "object", **self.facts}
        if "weights_sha256" not in facts:
            facts["weights_sha256"] = digest.of_module(self.network)
        if self.decode is None:
            decode = None
        else:
            decode = getattr(self.decode, "identity", None) or {
                "weights_sha256": digest.of_module(self.decode)
            }
        return {
            **facts,
            "shape": list(self.shape),
            "takes": dict(self.conditioning.identity),
            "decode": decode,
        }

    def _no_sampler(self, plan: Any = None, **settings: Any) -> Sampler:
        raise ValueError(
            f"fastdiff.jobs: expected a model that is drawn by a sampler, got {self!r}, which draws"
            " its samples itself."
        )

    def _sampler(self, plan: Any = None, **settings: Any) -> Sampler:
        settings = merged(self.settings, settings)
        if plan is None:
            return Sampler(self.network, self.schedule, **settings)
        return Sampler(self.network, self.schedule, plan=plan, **execution_settings(settings))

    def __repr__(self) -> str:
        return (
            f"Model({type(self.network).__name__}, {list(self.shape)},"
            f" {self.facts.get('kind', 'object')})"
        )


def execution_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that are not part of a plan."""
    return {name: value for name, value in settings.items() if name in EXECUTION_SETTINGS}


def sizes(shape: Any) -> tuple[int, ...]:
    """Returns the shape of a sample as a tuple. Raises ValueError for anything but sizes >= 1."""
    found = [whole(s) for s in shape] if isinstance(shape, Sequence) else []
    integers = [s for s in found if s is not None]
    if not integers or len(integers) < len(found) or min(integers) < 1:
        raise ValueError(
            f"fastdiff.jobs.Model: expected one sample's shape, sizes >= 1, got {shape!r}."
        )
    return tuple(integers)


def refuse_guide(sampler: Sampler, name: str) -> None:
    """Raises ValueError for a sampler with a guide: a run spec records one network's weights."""
    if sampler.guide is not None:
        raise ValueError(
            f"fastdiff.jobs: expected one network in the sampler of {name}, got a guide too. Run"
            " jobs without guide=, or put both networks into one module."
        )
