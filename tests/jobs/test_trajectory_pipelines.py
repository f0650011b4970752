"""Trajectories of diffusers pipelines: prompts, decoders, guidance and learned variances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fastdiff import jobs
from fastdiff.jobs.machine import repeatable
from fastdiff.jobs.verify import verify

pytest.importorskip("transformers", reason="prompts are encoded by transformers")

import pipelines as tiny  # noqa: E402

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "learned variance": (
        lambda: tiny.plain(diffusers.DDPMScheduler(variance_type="learned_range"), learned=True),
        {},
    ),
    "prompts and a decoder": (
        tiny.stable,
        {"solver": "ddim", "eta": 1.0, "guidance_scale": 5.0, "decode": "pipe"},
    ),
    "a flow": (tiny.three, {"solver": "flow_sde", "guidance_scale": 3.0}),
    "a window": (tiny.three, {"solver": "flow_sde", "sde_rows": (1, 3), "guidance_scale": 1.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_s_trajectories_are_read_and_proven(name: str, tmp_path: Path) -> None:
    make, settings = CASES[name]
    model = tiny.saved(make(), tmp_path / "model")
    lines = tmp_path / "prompts.txt"
    lines.write_text("a red shoe\nbag\na hat\n")
    job = jobs.Job.plan(
        model,
        ids=(1, 3),
        unit=2,
        steps=4,
        threads=1,
        dtype="fp32",
        save="trajectory",
        conditions=None if name == "learned variance" else lines,
        **settings,
    )
    assert jobs.run(job, tmp_path / "run").complete
    folder = jobs.Folder(tmp_path / "run")
    check = verify(folder, recompute=2, rollout=True)
    assert check.fine and not check.unproven, (check.bad, check.unproven)
    assert check.transitions == 3 * len(job.spec.save or ())
    for unit in job.spec.units.numbers:
        if name != "learned variance":
            with pytest.raises(ValueError, match="expected the job of a run whose conditions"):
                jobs.read_rollout(folder, unit)
        rollout = jobs.read_rollout(folder, unit, job=job)
        with torch.no_grad(), repeatable(1):
            score = rollout.score()
        # a row of a transformer's call may depend on its place in it, which is that of the run
        # only where the whole unit belongs to the run
        if len(rollout) == 2:
            assert torch.equal(score, rollout.log_prob)
        torch.testing.assert_close(score, rollout.log_prob)
    if name == "a window":
        assert job.spec.save == (1, 2)
