"""Batch jobs: a dataset as a function of its run spec, made by any number of workers that may die
at any time.

job = fastdiff.jobs.Job.plan("fashion-mnist", ids=(0, 99_999), seed=0, steps=25)
report = fastdiff.jobs.run(job, "out/shoes")         # again, anywhere: fastdiff.jobs.run("out/shoes")
for unit in fastdiff.jobs.finished("out/shoes"):      # the same, with every unit as it lands on disk
    unit.ids, unit.array, unit.record["labels"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Block": "formats",
    "Check": "verify",
    "Classes": "models",
    "FORMATS": "formats",
    "Failure": "job",
    "Finished": "writer",
    "Folder": "folder",
    "Info": "info",
    "Job": "job",
    "Model": "models",
    "Report": "runner",
    "RunSpec": "spec",
    "SpecMismatch": "spec",
    "Units": "units",
    "finished": "runner",
    "open_model": "models",
    "run": "runner",
}
__all__ = [
    "Block",
    "Check",
    "Classes",
    "FORMATS",
    "Failure",
    "Finished",
    "Folder",
    "Info",
    "Job",
    "Model",
    "Report",
    "RunSpec",
    "SpecMismatch",
    "Units",
    "finished",
    "open_model",
    "run",
]

if TYPE_CHECKING:
    from .folder import Folder
    from .formats import FORMATS, Block
    from .info import Info
    from .job import Failure, Job
    from .models import Classes, Model, open_model
    from .runner import Report, finished, run
    from .spec import RunSpec, SpecMismatch
    from .units import Units
    from .verify import Check
    from .writer import Finished


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastdiff.jobs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value
