"""Batch jobs: datasets that are a function of their run spec.

Any number of workers make a dataset, and each may be killed at any time.

    job = fastdiff.jobs.Job.plan("fashion-mnist", ids=(0, 99_999), seed=0, steps=25)
    report = fastdiff.jobs.run(job, "out/shoes")     # later, to resume: jobs.run("out/shoes")
    for unit in fastdiff.jobs.finished("out/shoes"):  # resumes too, and yields each finished unit
        unit.ids, unit.array, unit.record["labels"]
    rollout = fastdiff.jobs.read_rollout("out/shoes", 3)  # of a run with save="trajectory"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

_WHERE = {
    "Block": "formats",
    "Classes": "models",
    "DatasetCheck": "verify",
    "Failure": "drawn",
    "finished": "runner",
    "FinishedUnit": "writer",
    "Folder": "folder",
    "FORMATS": "formats",
    "Info": "info",
    "Job": "job",
    "merge": "merging",
    "JobReport": "runner",
    "Model": "models",
    "open_model": "models",
    "read_rollout": "rollouts",
    "run": "runner",
    "RunSpec": "spec",
    "SpecMismatch": "spec",
    "Units": "units",
}
__all__ = [
    "Block",
    "Classes",
    "DatasetCheck",
    "Failure",
    "finished",
    "FinishedUnit",
    "Folder",
    "FORMATS",
    "Info",
    "Job",
    "JobReport",
    "merge",
    "Model",
    "open_model",
    "read_rollout",
    "run",
    "RunSpec",
    "SpecMismatch",
    "Units",
]

if TYPE_CHECKING:
    from .drawn import Failure
    from .folder import Folder
    from .formats import FORMATS, Block
    from .info import Info
    from .job import Job
    from .merging import merge
    from .models import Classes, Model, open_model
    from .rollouts import read_rollout
    from .runner import JobReport, finished, run
    from .spec import RunSpec, SpecMismatch
    from .units import Units
    from .verify import DatasetCheck
    from .writer import FinishedUnit
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, _WHERE)
