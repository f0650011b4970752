"""Model folders (config.json and model.safetensors), and the models shipped with the package.

folders.py   reads and writes folders of networks and of systems
files.py     reads JSON and safetensors files and writes them atomically
diffusers_models.py, dit_checkpoints.py   networks of other programs, by a mapping (mapping.py)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

_WHERE = {
    "Drawer": "folders",
    "FORMAT_VERSION": "folders",
    "from_diffusers_model": "diffusers_models",
    "from_dit_checkpoint": "dit_checkpoints",
    "load": "folders",
    "load_drawer": "folders",
    "load_system": "folders",
    "locate": "folders",
    "network_of": "initial",
    "read_config": "folders",
    "save": "folders",
    "save_system": "folders",
    "shipped": "folders",
}

__all__ = [
    "Drawer",
    "FORMAT_VERSION",
    "from_diffusers_model",
    "from_dit_checkpoint",
    "load",
    "load_drawer",
    "load_system",
    "locate",
    "network_of",
    "read_config",
    "save",
    "save_system",
    "shipped",
]

if TYPE_CHECKING:
    from .diffusers_models import from_diffusers_model
    from .dit_checkpoints import from_dit_checkpoint
    from .folders import (
        FORMAT_VERSION,
        Drawer,
        load,
        load_drawer,
        load_system,
        locate,
        read_config,
        save,
        save_system,
        shipped,
    )
    from .initial import network_of
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, _WHERE)
