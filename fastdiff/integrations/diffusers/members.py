"""Members of diffusers' schedulers beyond the pipelines' common ones, and what pipelines touch.

Some pipelines and much user code reach into a scheduler: they call `_get_variance` or
`convert_model_output`, or ask for the class by isinstance. A drop-in has these members as follows:

- A function that the drop-in's class does not define is diffusers' own function of the class with
  the same name. It runs on the drop-in, that is, with the drop-in's tables, counters and
  configuration (`borrowed`).
- A value that diffusers copies from the configuration is read from there.
- What diffusers remembers between steps a drop-in keeps in the slots of its plan; the module
  `history` shows it.
- `isinstance` with diffusers' class of the same name is true (`twin`).

`touched` reads which members a pipeline's source touches, and `missing` compares them with a
drop-in.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

_CONFIGURED = frozenset(
    {
        "disable_corrector",
        "noise_sampler_seed",
        "predict_x0",
        "solver_p",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    }
)
_SHARED = (SchedulerMixin, ConfigMixin, object)


@functools.cache
def original(name: str) -> Any:
    """diffusers' class of a name; None where it has none or an optional package is missing."""
    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, SchedulerMixin) else None


def peer(cls: type, names: Any) -> Any:
    """diffusers' class of a drop-in class or of a subclass of one."""
    return next((original(c.__name__) for c in cls.__mro__ if c.__name__ in names), None)


def borrowed(scheduler: Any, cls: Any, name: str) -> Any:
    """The member that a drop-in takes from diffusers' class.

    Raises AttributeError where diffusers' class has none of its own.
    """
    if name in _CONFIGURED and name in scheduler.config:
        return scheduler.config[name]
    if name == "one":
        return torch.tensor(1.0)
    for base in cls.__mro__ if cls is not None else ():
        if base not in _SHARED and name in base.__dict__:
            return base.__dict__[name].__get__(scheduler, type(scheduler))
    raise AttributeError(name)


@functools.lru_cache(maxsize=1024)  # of the user's classes
def twin(cls: type, theirs: Any) -> Any:
    """A subclass of a drop-in class and of diffusers' class; calling it makes a drop-in.

    An object whose `__class__` it is counts as an instance of both.
    """

    def make(_: type, *arguments: Any, **keywords: Any) -> Any:
        return cls(*arguments, **keywords)

    made: type = type("Twin", (cls, theirs), {"__new__": make})
    made.__name__, made.__qualname__, made.__module__ = cls.__name__, cls.__name__, cls.__module__
    return made


def bare(cls: type) -> Any:
    """A new object of a class, whose state pickle sets."""
    new: Any = cls.__new__
    return new(cls)


# -- pipelines


def touched(source: str) -> set[str]:
    """The members of schedulers that a source reads, writes, or asks for by hasattr or getattr.

    A scheduler is any name or attribute with "scheduler" in it, and what is assigned from one.
    """
    tree = ast.parse(source)
    aliases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_scheduler(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return set(_members(tree, aliases))


def _members(tree: ast.AST, aliases: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_scheduler(node.value, aliases):
            yield node.attr
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("hasattr", "getattr", "setattr")
            and len(node.args) > 1
            and _is_scheduler(node.args[0], aliases)
            and isinstance(node.args[1], ast.Constant)
        ):
            yield str(node.args[1].value)


def _is_scheduler(node: ast.AST, aliases: set[str]) -> bool:
    """Whether an expression is a scheduler by its name."""
    if isinstance(node, ast.Attribute):
        name = node.attr
    elif isinstance(node, ast.Name):
        name = node.id
    else:
        return False
    return name in aliases or ("scheduler" in name and name == name.lower())


def missing(pipeline: Any, drop_in: Any, theirs: Any) -> list[str]:
    """The members that a pipeline's module touches, that `theirs` has, and that a drop-in lacks."""
    names: set[str] = set()
    for cls in type(pipeline).__mro__:
        module = sys.modules.get(cls.__module__)
        if module is None or cls.__module__ in (
            "builtins",
            diffusers.DiffusionPipeline.__module__,
        ):
            continue
        try:
            names |= touched(inspect.getsource(module))
        except (OSError, TypeError, SyntaxError):
            continue  # a pipeline without a source
    return sorted(name for name in names if hasattr(theirs, name) and not hasattr(drop_in, name))
