"""Training of systems: the trainer, its settings and its folder."""

from .folder import CHECKPOINT, LOSSES, is_run
from .settings import Entry, Settings
from .trainer import Trainer

__all__ = ["CHECKPOINT", "LOSSES", "Entry", "Settings", "Trainer", "is_run"]
