"""`register_to_config` of diffusers with the type of what it decorates.

diffusers' decorator has no annotations, so a type checker would see every class whose `__init__` it
decorates as Any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from diffusers import configuration_utils

Init = TypeVar("Init", bound=Callable[..., None])


def register_to_config(init: Init) -> Init:
    """Returns an `__init__` that stores its arguments in the object's config, as diffusers'."""
    stored: Any = configuration_utils.register_to_config(init)
    return stored
