"""Rollouts on the ranks of torchrun: by ids, so the result has the bits of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE

SCRIPT = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_rollout import sampler

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model = sampler("flow_sde", network_batch=4)
ids = torch.arange(rank, 16, world)
r = model.rollout((len(ids), 3, 4, 4), seed=2, sample_ids=ids, start_ids=ids // 4)
score = r.score(micro_batch=3)
score.mean().backward()
for p in model.model.parameters():
    dist.all_reduce(p.grad)
mine = {{name: getattr(r, name) for name in ("ids", "samples", "states", "log_prob")}}
mine["score"] = score.detach()
parts = [None] * world
dist.all_gather_object(parts, mine)
if rank == 0:
    grad = [p.grad / world for p in model.model.parameters()]
    torch.save((parts, grad), {result!r})
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2])
def test_any_number_of_ranks_gives_the_rollout_of_one_process(tmp_path: Path, world: int) -> None:
    from test_rollout import sampler

    script, result = tmp_path / "ranks.py", tmp_path / "parts.pt"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), result=str(result)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(world), str(script)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts, grad = torch.load(result)
    model = sampler("flow_sde", network_batch=4)
    ids = torch.arange(16)
    whole = model.rollout((16, 3, 4, 4), seed=2, sample_ids=ids, start_ids=ids // 4)
    assert sorted(torch.cat([p["ids"] for p in parts]).tolist()) == list(range(16))
    for part in parts:
        at = part["ids"]
        for name in ("samples", "states", "log_prob"):
            along = 0 if name == "samples" else 1
            want = getattr(whole, name).index_select(along, at)
            torch.testing.assert_close(part[name], want, rtol=0, atol=0)
        torch.testing.assert_close(part["score"], part["log_prob"], rtol=0, atol=0)
    if world == 2:  # equal shares: the mean over ranks is that over samples
        whole.score().mean().backward()
        for a, p in zip(grad, model.model.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-6)
