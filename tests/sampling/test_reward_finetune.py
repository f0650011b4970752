"""`examples/reward_finetune.py`: the ratio is 1 at first, and the reward rises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reward_finetune.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reward_finetune", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reward_finetune"] = module
    spec.loader.exec_module(module)
    return module


def test_the_first_ratio_is_exactly_one_and_the_reward_rises(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller run: three steps, two groups of eight, five updates towards dark pictures."""
    for name, value in {"CLASSES": 2, "GROUP": 8, "STEPS": 3, "CALL": 16, "RATE": 3e-4}.items():
        monkeypatch.setattr(example, name, value)

    def dark(x: Tensor) -> Tensor:
        return -example.brightness(x)

    log, tuned = example.finetune(dark, 5)
    assert all(update.ratio == 0.0 for update in log)
    assert log[0].divergence == 0.0 < log[-1].divergence
    shipped = example.Sampler.from_pretrained("fashion-mnist")

    def reward(model: torch.nn.Module) -> float:
        x = example.policy(model, shipped).sample(
            (32, 1, 28, 28), seed=99, cond={"y": torch.arange(32) % 10}
        )
        return float(dark(x).mean())

    assert reward(tuned) > reward(shipped.model) + 0.005


def test_rewards_and_advantages(example: ModuleType) -> None:
    white, black = torch.ones(1, 1, 28, 28), -torch.ones(1, 1, 28, 28)
    assert float(example.brightness(white)) == 1.0 and float(example.brightness(black)) == 0.0
    noise = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(example.compact(noise)) < float(example.compact(white)) - 0.5
    n = example.CLASSES * example.GROUP
    advantage = example.advantages(torch.arange(float(n))).view(-1, example.GROUP)
    torch.testing.assert_close(advantage.mean(1), torch.zeros(len(advantage)), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantage, advantage[:1].expand_as(advantage))
