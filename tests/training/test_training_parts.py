"""A step in parts, in bfloat16, with recomputed activations, by workers and by fused AdamW."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainers import CASES, Learning, denoiser, learning, trajectory
from torch import Tensor, nn

from fastdiff import Trainer
from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.theory.registry import SYSTEMS
from fastdiff.theory.systems.presets import make
from fastdiff.training import CHECKPOINT, Settings
from fastdiff.training.folder import read


def close(ours: dict[str, Any], theirs: dict[str, Any], rel: float = 1e-5) -> None:
    for key in ("losses", "norms"):
        assert ours[key] == pytest.approx(theirs[key], rel=rel), key
    # not each by itself: Adam's first steps follow the signs of gradients that round to 0
    a, b = (torch.tensor(v["weights"], dtype=torch.float64) for v in (ours, theirs))
    assert float((a - b).norm() / b.norm()) < 5e-4


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("parts", [2, 3, 10])
def test_accumulated_parts_are_the_whole_batch(name: str, parts: int) -> None:
    close(trajectory(CASES[name](accumulate=parts)), trajectory(CASES[name]()))


def test_a_run_in_parts_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"steps": 6, "accumulate": 3, "workers": 1}
    straight, first, second = (denoiser(**settings) for _ in range(3))
    straight.run(tmp_path / "a", progress=False)
    first.run(tmp_path / "b", progress=False, until=3)
    second.resume(tmp_path / "b")
    second.run(tmp_path / "b", progress=False)
    ours, theirs = (read(tmp_path / n)[0] for n in ("a", "b"))
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert (tmp_path / "a/config.json").read_bytes() == (tmp_path / "b/config.json").read_bytes()


def test_workers_and_recomputed_activations_change_no_bit() -> None:
    plain = trajectory(denoiser(steps=3))
    assert trajectory(denoiser(steps=3, workers=2)) == plain
    assert trajectory(denoiser(steps=3, checkpoint_activations=True)) == plain


def test_recomputed_activations_are_not_stored() -> None:
    """The bytes that a step saves for its backward pass fall."""

    def saved(trainer: Trainer) -> int:
        found = {}

        def keep(t: Tensor) -> Tensor:
            found[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            index = trainer.examples(0)
            x0, labels = trainer.data.batch(index)
            trainer.system.loss(x0, labels, seed=0, sample_ids=index, step=0)
        return sum(found.values())

    assert saved(denoiser(checkpoint_activations=True)) < 0.5 * saved(denoiser())


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_trains_in_bfloat16(name: str) -> None:
    images = name in ("classifier", "superres", "unet")
    data = load_fashion_mnist() if images else load_toy("moons", n=64)
    options: dict[str, Any] = {"widths": (8,), "emb": 8} if images else {"widths": (8,)}
    options = {"hvae": {"widths": (8, 8)}, "score": {"width": 8, "depth": 1}}.get(name, options)
    losses = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        system = make(name, data, **options)
        kept = system.loss
        halves = []

        def loss(*a: Any, kept: Any = kept, halves: list = halves, **k: Any) -> Tensor:
            halves.append(
                torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else 0
            )
            return kept(*a, **k)

        system.loss = loss
        trainer = Trainer(system, data, Settings(steps=3, batch_size=8, precision=precision))
        losses.append([trainer.train_step()[0] for _ in range(3)])
        assert halves == [torch.bfloat16 if precision == "bf16" else 0] * 3
        assert {p.dtype for p in trainer.parameters} <= {torch.float32, torch.float64}
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def test_fused_adamw_is_adamw() -> None:
    close(trajectory(denoiser(fused=True)), trajectory(denoiser(fused=False)), rel=1e-4)
    used = [
        g["fused"] for t in (denoiser(), denoiser(fused=False)) for g in t.optimizer.param_groups
    ]
    assert used == [True, None]


def test_a_run_from_before_there_were_these_settings_continues(tmp_path: Path) -> None:
    """Its checkpoint names none of them, and it continues with the arithmetic of its beginning."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from fastdiff.training.folder import json

    before: dict[str, Any] = {"steps": 6, "fused": False, "accelerate": False}
    straight = denoiser(**before)
    straight.run(tmp_path / "a", progress=False)
    denoiser(**before).run(tmp_path / "b", progress=False, until=3)
    tensors, _ = read(tmp_path / "b")
    with safe_open(tmp_path / "b" / CHECKPOINT, framework="pt") as file:
        texts = file.metadata()
    identity, machine = json.loads(texts["identity"]), json.loads(texts["machine"])
    old = ("steps", "batch_size", "lr", "warmup", "ema", "weight_decay", "clip_norm", "seed")
    identity["settings"] = {k: identity["settings"][k] for k in old}
    machine = {k: machine[k] for k in ("torch", "threads", "CPU capability")}
    texts |= {"identity": json.dumps(identity), "machine": json.dumps(machine)}
    save_file(tensors, tmp_path / "b" / CHECKPOINT, metadata=texts)
    again = denoiser(steps=6)
    again.resume(tmp_path / "b")
    assert again.settings.fused is False and again.settings.accelerate is False
    again.run(tmp_path / "b", progress=False)
    ours, theirs = (read(tmp_path / n)[0] for n in ("a", "b"))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_dropout_of_a_user_s_network_is_the_same_after_a_resume(tmp_path: Path) -> None:
    class Dropping(Learning):
        def loss(self, x0: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().loss(nn.functional.dropout(x0, 0.5), *args, **kwargs)

    def new() -> Trainer:
        return Trainer(Dropping(), load_toy("moons", n=40), Settings(steps=6, batch_size=4, lr=0.1))

    straight = new()
    straight.run(tmp_path / "a", progress=False)
    torch.manual_seed(77)  # another state of torch's generator
    state = torch.get_rng_state()
    new().run(tmp_path / "b", progress=False, until=2)
    assert torch.equal(torch.get_rng_state(), state), "training leaves the generator as it was"
    torch.manual_seed(78)
    again = new()
    again.resume(tmp_path / "b")
    again.run(tmp_path / "b", progress=False)
    assert torch.equal(again.system.w, straight.system.w)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_takes_the_same_steps(tmp_path: Path) -> None:
    compiled = denoiser(compile=True)
    assert compiled.system.network._compiled_call_impl is not None
    close(trajectory(compiled), trajectory(denoiser()))


class Whole(nn.Module):
    """A system whose loss knows no parts."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def loss(
        self, x0: Tensor, labels: Tensor, *, seed: int, sample_ids: Tensor, step: int
    ) -> Tensor:
        return (self.w * x0).square().sum(1)


@pytest.mark.parametrize(
    "system, changes, error, message",
    [
        (Whole, {"accumulate": 2}, TypeError, r"expected a loss with the argument part=\(start"),
        (Whole, {"checkpoint_activations": True}, ValueError, "expected a network with blocks"),
        (Whole, {"compile": True}, ValueError, "expected a system with a network for compile"),
        (Learning, {"accumulate": 5}, ValueError, "expected batch_size >= 5, the ranks times"),
        (Learning, {"accumulate": 0}, ValueError, "expected accumulate >= 1, got 0"),
        (Learning, {"precision": "half"}, ValueError, "expected precision in"),
        (Learning, {"betas": (0.9,)}, ValueError, "expected betas as two numbers"),
        (Learning, {"ema_rel": (0.5,)}, ValueError, r"expected ema_rel in \(0, 0.28\]"),
        (Learning, {"workers": -1}, ValueError, "expected workers >= 0, got -1"),
    ],
)
def test_settings_that_cannot_be(
    system: type[nn.Module], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"^fastdiff\.Trainer: {message}"):
        Trainer(system(), load_toy("moons", n=40), Settings(steps=1, batch_size=4, **changes))


def test_a_system_without_parts_trains_whole_batches() -> None:
    data = load_toy("moons", n=40)
    assert Trainer(Whole(), data, steps=1, batch_size=4).train_step()[0] > 0


def test_settings_by_keyword_are_settings() -> None:
    ours = Trainer(Learning(), load_toy("moons", n=40), steps=3, batch_size=4, betas=(0.8, 0.9))
    assert ours.settings == Settings(steps=3, batch_size=4, betas=(0.8, 0.9))
    assert ours.optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_losses_are_recorded_once_a_step_in_the_order_of_the_batch() -> None:
    whole, parts = learning(), learning(accumulate=4)
    for _ in range(3):
        whole.train_step(), parts.train_step()
        assert float(parts.system.level) == pytest.approx(float(whole.system.level), rel=1e-9)
    assert float(whole.system.level) != 1.0
