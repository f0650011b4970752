"""Training of systems: the trainer, its settings, its folder and averages of any length."""

from .averages import posthoc
from .folder import BEST, CHECKPOINT, LOSSES, is_run
from .loggers import Logger
from .settings import Entry, Settings
from .trainer import Trainer

__all__ = [
    "BEST",
    "CHECKPOINT",
    "LOSSES",
    "Entry",
    "Logger",
    "Settings",
    "Trainer",
    "is_run",
    "posthoc",
]
