"""A network of the user's in every system: its conditions, what stands for none, and its folder.

This file is over 400 lines because every system has a network of its own kind here.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import Sampler, Schedule, Trainer, rng
from fastdiff.data import load_fashion_mnist
from fastdiff.models import DiT, UNet, describe, from_factory, made_by
from fastdiff.pretrained import load, load_system, save_system
from fastdiff.theory.score.model import ScoreModel
from fastdiff.theory.systems import Denoiser, NoisyClassifier, SuperResolution, make
from fastdiff.theory.variational import VAE, VDM
from fastdiff.training import CHECKPOINT, Settings

DATA = load_fashion_mnist()
IDS = torch.tensor([4, 4711, 2**40])
COUNTER: dict[str, Any] = {"seed": 4, "sample_ids": IDS, "step": 5}
CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Takes labels and texts, and says what stands for none of them."""

    def __init__(self, channels=1, width=4, texts=6):
        super().__init__()
        self.null_label = 10
        self.null_cond = nn.ParameterDict({"text": nn.Parameter(torch.randn(texts))})
        self.inner = nn.Conv2d(channels, width, 3, padding=1)
        self.label, self.text = nn.Embedding(11, width), nn.Linear(texts, width)
        self.outer = nn.Conv2d(width, 1, 1)
        self.calls = []

    def forward(self, x, t, y=None, text=None, image=None):
        self.calls.append({"y": y, "text": text, "image": image})
        h = self.inner(x) + t.float()[:, None, None, None] / 1000
        for part, value in ((self.label, y), (self.text, text)):
            h = h if value is None else h + part(value)[:, :, None, None]
        return self.outer(h)


class Plain(nn.Module):
    """Takes (x, t) only."""

    def __init__(self, channels=1, num_classes=0):
        super().__init__()
        self.inner, self.logits = nn.Conv2d(channels, 1, 1), num_classes

    def forward(self, x, t):
        h = self.inner(x) * (1 + t.float()[:, None, None, None] / 1000)
        return h.flatten(1)[:, : self.logits] if self.logits else h


class Labelled(Plain):
    """Takes labels and does not say which one means no class."""

    def forward(self, x, t, y):
        return super().forward(x, t) + y[:, None, None, None]


class Twice(nn.Module):
    def __init__(self, out_channels):
        super().__init__()
        self.inner = nn.Conv2d(1, out_channels, 1)

    def forward(self, x, t):
        return self.inner(x)


class Encoder(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.inner = nn.Linear(shape[0] * shape[1] * shape[2], outputs)

    def forward(self, x):
        return self.inner(x.flatten(1))


class Decoder(nn.Module):
    def __init__(self, latent, outputs):
        super().__init__()
        self.inner = nn.Linear(latent, outputs)

    def forward(self, z):
        return self.inner(z)


def number():
    return 3
'''
NAME = "network_of_a_user"


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The user's module, on the path of the test."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    torch.manual_seed(0)
    yield __import__(NAME)
    sys.modules.pop(NAME, None)


SYSTEMS: dict[str, Any] = {
    "denoiser": lambda net, **o: Denoiser(net, Schedule.cosine(50), **o),
    "score": lambda net, **o: ScoreModel(net, **o),
    "superres": lambda net, **o: SuperResolution(net, Schedule.cosine(50), **o),
    "vdm": lambda net, **o: VDM((1, 28, 28), net, **o),
}


def batch() -> tuple[Tensor, dict[str, Tensor]]:
    x0, labels = DATA.batch(torch.arange(3))
    return x0, {"y": labels, "text": torch.randn(3, 6)}


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_conditions_reach_the_network_and_are_dropped_together(name: str, code: Any) -> None:
    """The decision is word 1 of stream 4; what is dropped becomes what the network says."""
    net = code.Net()
    system = SYSTEMS[name](net, label_dropout=0.5)
    x0, condition = batch()
    dropped = rng.uniform(**COUNTER, word=1) < 0.5
    assert dropped.any() and not dropped.all()
    loss = system.loss(x0, condition, **COUNTER)
    (got,) = net.calls
    assert torch.equal(got["y"], torch.where(dropped, 10, condition["y"]))
    null = net.null_cond["text"].detach()
    assert torch.equal(got["text"], torch.where(dropped[:, None], null, condition["text"]))
    assert (got["image"] is not None) == (name == "superres"), "never dropped"
    loss.sum().backward()
    assert net.null_cond["text"].grad.abs().sum() > 0, "what stands for none is learned"
    assert loss.shape == (3,) and torch.isfinite(loss).all()


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_labels_alone_and_no_conditions(name: str, code: Any) -> None:
    net = code.Net()
    system = SYSTEMS[name](net, label_dropout=0.0)
    x0, condition = batch()
    system.loss(x0, condition["y"], **COUNTER)
    assert torch.equal(net.calls[-1]["y"], condition["y"]) and net.calls[-1]["text"] is None
    terms = system.bound(x0, seed=0, sample_ids=IDS, times=1)
    assert net.calls[-1]["y"].tolist() == [10] * 3, "none is the null, not nothing"
    assert torch.equal(net.calls[-1]["text"], net.null_cond["text"].expand(3, 6))
    assert all(v.shape == (3,) for v in terms.values())
    given = system.bound(x0, condition, seed=0, sample_ids=IDS, times=1)
    assert torch.equal(net.calls[-1]["text"], condition["text"])
    assert not torch.equal(sum(given.values()), sum(terms.values()))


@pytest.mark.parametrize("name", ["denoiser", "score", "vdm"])
def test_a_network_without_labels_gets_none(name: str, code: Any) -> None:
    """Its signature says that it is unconditional: the labels of the data stay away."""
    system = SYSTEMS[name](code.Plain())
    x0, condition = batch()
    labelled = system.loss(x0, condition["y"], **COUNTER)
    assert torch.equal(labelled, system.loss(x0, torch.zeros_like(condition["y"]), **COUNTER))
    with pytest.raises(ValueError, match=r"among the network's arguments \[\], got 'text'"):
        system.loss(x0, {"text": condition["text"]}, **COUNTER)


@pytest.mark.parametrize("name", ["denoiser", "score", "vdm"])
def test_labels_without_a_null_are_never_dropped(name: str, code: Any) -> None:
    with pytest.raises(ValueError, match="expected null_label of Labelled.*label_dropout=0"):
        SYSTEMS[name](code.Labelled())
    system = SYSTEMS[name](code.Labelled(), label_dropout=0.0)
    x0, condition = batch()
    assert torch.isfinite(system.loss(x0, condition["y"], **COUNTER)).all()
    with pytest.raises(ValueError, match=r"expected null_cond\['y'\].*without conditions"):
        system.bound(x0, seed=0, sample_ids=IDS, times=1)


def test_whole_numbers_without_a_null_are_refused_and_numbers_become_zero(code: Any) -> None:
    net = code.Net()
    net.null_cond = None
    system = SYSTEMS["denoiser"](net, label_dropout=0.5)
    x0, condition = batch()
    system.loss(x0, condition, **COUNTER)
    dropped = rng.uniform(**COUNTER, word=1) < 0.5
    assert (net.calls[-1]["text"].abs().sum(1) == 0).tolist() == dropped.tolist()
    with pytest.raises(ValueError, match=r"expected null_cond\['text'\].*got none"):
        system.loss(x0, {"text": torch.ones(3, 6, dtype=torch.int64)}, **COUNTER)
    del net.null_cond
    net.null_cond = {"text": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"of one sample's condition, \[6\], got \[5\]"):
        system.loss(x0, condition, **COUNTER)


def test_the_shipped_networks_keep_their_labels() -> None:
    """fastdiff's own: null_label = num_classes; with 0 classes the labels stay away."""
    small: dict[str, Any] = {"widths": [8], "emb": 16}
    x0, condition = batch()
    for net in (UNet(**small, num_classes=0), DiT(channels=1, size=28, depth=1, num_classes=0)):
        system = Denoiser(net, Schedule.cosine(50))
        assert torch.isfinite(system.loss(x0, condition["y"], **COUNTER)).all()
    system = Denoiser(UNet(**small), Schedule.cosine(50))
    assert system.condition(x0, None) == {} and system.condition(x0, condition["y"]).keys() == {"y"}


def made(name: str, code: Any) -> Any:
    """A system of the user's code, of the registry, with a description."""
    if name == "classifier":
        net = from_factory(f"{NAME}:Plain", num_classes=10)
        return NoisyClassifier(net, Schedule.cosine(50))
    if name == "vae":
        parts = {
            "encoder": from_factory(f"{NAME}:Encoder", shape=[1, 28, 28], outputs=6),
            "decoder": made_by(code.Decoder(3, 2 * 784), f"{NAME}:Decoder", latent=3, outputs=1568),
        }
        return VAE((1, 28, 28), 3, **parts)
    return SYSTEMS[name](from_factory(f"{NAME}:Net", width=3), label_dropout=0.25)


@pytest.mark.parametrize("name", [*sorted(SYSTEMS), "classifier", "vae"])
def test_a_folder_names_the_code_and_runs_it_on_trust(name: str, code: Any, tmp_path: Path) -> None:
    system, out = made(name, code), tmp_path / "model"
    save_system(out, system)
    origin = str(tmp_path / "code" / f"{NAME}.py")
    sys.modules.pop(NAME)
    for opened in (load_system, load):
        with pytest.raises(ValueError, match="expected trust in the code") as error:
            opened(out)
        assert origin in str(error.value) and "--trust" in str(error.value)
    assert NAME not in sys.modules, "nothing was imported"
    again = load_system(out, trust=True)
    x0, labels = DATA.batch(torch.arange(3))
    with torch.no_grad():
        losses = [s.loss(x0, labels, **COUNTER) for s in (system.eval(), again)]
    assert torch.equal(*losses) and again.config == system.config
    save_system(tmp_path / "copy", again)
    assert (tmp_path / "copy" / "config.json").read_bytes() == (out / "config.json").read_bytes()


def test_a_sampler_keeps_the_factory(code: Any, tmp_path: Path) -> None:
    net = from_factory(f"{NAME}:Net")
    sampler = Sampler(net, Schedule.cosine(50), steps=2, prediction_type="v")
    sampler.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="expected trust"):
        Sampler.from_pretrained(tmp_path / "model")
    again = Sampler.from_pretrained(tmp_path / "model", trust=True)
    assert torch.equal(again.sample((2, 1, 28, 28), seed=0), sampler.sample((2, 1, 28, 28), seed=0))


def test_a_network_that_nothing_describes_trains_and_leaves_a_checkpoint(
    code: Any, tmp_path: Path
) -> None:
    settings = Settings(steps=2, batch_size=4, lr=1e-3)
    trainer = Trainer(Denoiser(code.Net(), Schedule.cosine(50)), DATA, settings)
    with pytest.warns(UserWarning, match="can describe, got Net, so .* holds the checkpoint"):
        trainer.run(tmp_path / "run", progress=False)
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(TypeError, match="or one with a factory to save, got Net"):
        save_system(tmp_path / "run", trainer.ema)
    made_by(trainer.ema.network, f"{NAME}:Net")  # told later
    save_system(tmp_path / "run", trainer.ema)
    assert isinstance(load_system(tmp_path / "run", trust=True), Denoiser)


def test_a_described_network_is_exported_without_a_word(code: Any, tmp_path: Path) -> None:
    system = Denoiser(from_factory(f"{NAME}:Net"), Schedule.cosine(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(system, DATA, Settings(steps=1, batch_size=4)).run(tmp_path, progress=False)
    assert describe(load_system(tmp_path, trust=True).network)["factory"] == f"{NAME}:Net"


class Captions:
    """Pictures with a vector for each, as a data set gives other conditions than labels."""

    examples, shape, levels, classes, name = 40, (1, 28, 28), 256, (), "captions"

    def batch(self, index: Tensor, **_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return DATA.batch(index)[0], {"text": (index[:, None] % 7).float().expand(-1, 6)}


def test_captions_train_and_draw(code: Any, tmp_path: Path) -> None:
    """From a data set with texts to samples that follow them, through the model folder."""
    system = Denoiser(from_factory(f"{NAME}:Net"), Schedule.cosine(50), label_dropout=0.5)
    settings = Settings(steps=3, batch_size=8, lr=0.1)
    Trainer(system, Captions(), settings).run(tmp_path, progress=False)  # type: ignore[arg-type]
    texts = {c["text"].shape for c in system.network.calls}
    assert texts == {(8, 6)} and not any(c["y"] is not None for c in system.network.calls)
    sampler = Sampler.from_pretrained(tmp_path, trust=True, steps=2)
    given = {"cond": {"text": torch.ones(2, 6)}, "seed": 0}
    a = sampler.sample((2, 1, 28, 28), **given)
    b = sampler.sample((2, 1, 28, 28), cond={"text": -torch.ones(2, 6)}, seed=0)
    assert a.shape == (2, 1, 28, 28) and not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: from_factory("Net"), ValueError, "package.module:function, got 'Net'"),
        (lambda: from_factory("absent_code:Net"), ImportError, "a module 'absent_code'"),
        (lambda: from_factory(f"{NAME}:Absent"), ImportError, "no such name"),
        (lambda: from_factory(f"{NAME}:number"), TypeError, "torch.nn.Module, got int"),
        (
            lambda: from_factory(f"{NAME}:Net", depth=3),
            TypeError,
            r"to take the arguments \['depth",
        ),
        (lambda: made_by(nn.Linear(1, 1), "Net"), ValueError, "expected a factory as"),
        (lambda: made_by(nn.Linear(1, 1), "a:b", x=object()), ValueError, "that JSON can hold"),
        (lambda: made_by(3, "a:b"), TypeError, "expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: Denoiser(print, Schedule.cosine(5)), TypeError, "as a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: make("unet", DATA, network="dit-s/3"), ValueError, "expected a network in"),
        (lambda: make("unet", DATA, network="mlp"), ValueError, "expected a network for images"),
        (
            lambda: make("unet", DATA, network=f"{NAME}:Net", depth=1),
            ValueError,
            "an option of unet",
        ),
        (
            lambda: make("vae", DATA, encoder="conv"),
            ValueError,
            "package.module:function, got 'conv'",
        ),
        (lambda: make("classifier", DATA, network="dit"), ValueError, "factory of a network"),
    ],
)
def test_what_is_no_network_is_named(call: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as error:
        call()
    assert str(error.value).startswith("fastdiff.") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "network",
    [
        {"network": "dit", "patch": 7, "hidden": 16, "depth": 1, "heads": 2},
        {"network": "attention-unet", "widths": [8, 8], "attention": [14]},
        {"network": "unet", "widths": [8], "emb": 16},
        {"network": f"{NAME}:Twice"},
    ],
    ids=lambda v: v["network"],
)
def test_a_learned_variance_doubles_the_output(network: dict[str, Any]) -> None:
    system = make("unet", DATA, loss="hybrid", **network)
    x0, labels = DATA.batch(torch.arange(3))
    cond = system.condition(x0, labels)
    assert system.network(x0, torch.tensor([1, 2, 3]), **cond).shape == (3, 2, 28, 28)
    assert torch.isfinite(system.loss(x0, labels, **COUNTER)).all()
    bound = system.bound(x0, labels, seed=0, sample_ids=IDS, times=2)
    assert torch.isfinite(sum(bound.values())).all()


def test_outputs_of_another_shape_are_named(code: Any) -> None:
    """Broadcasting would make a loss of them."""
    x0, labels = DATA.batch(torch.arange(3))
    for network in (code.Twice(2), code.Twice(3)):
        with pytest.raises(ValueError, match=r"expected .* shape \[3, 1, 28, 28\]"):
            Denoiser(network, Schedule.cosine(50)).loss(x0, labels, **COUNTER)
    with pytest.raises(ValueError, match="expected learn_sigma with the loss hybrid"):
        make("unet", DATA, network="dit", patch=7, learn_sigma=True)


class Latents:
    """Images of no levels, as latents are."""

    examples, shape, levels, classes, name = 40, (4, 8, 8), None, ("a", "b"), "latents"


@pytest.mark.parametrize(
    "name", ["unet", "score", "vdm", "vae", "hvae", "markovian", "autoregressive"]
)
def test_systems_of_latents(name: str) -> None:
    """They are images, but no 8-bit ones: a density, and no features of levels."""
    one = {"widths": [8]}
    sizes = {"vae": {}, "hvae": {"latents": [[2, 2]], **one}, "markovian": one}
    small = (sizes | {"autoregressive": one}).get(name, {"widths": [8, 16]})
    system = make(name, Latents(), **small)
    x0, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 1])
    assert torch.isfinite(system.loss(x0, y, **COUNTER)).all()
    config = json.dumps(system.config)
    assert '"discretized"' not in config and getattr(system, "clip_range", None) is None
    assert not getattr(system, "fourier", ())


@pytest.mark.parametrize("name", ["unet", "score", "vdm", "superres"])
@pytest.mark.parametrize(
    "options",
    [
        {"network": "dit", "patch": 7, "hidden": 16, "depth": 1, "heads": 2},
        {"network": "attention-unet", "widths": [8, 8], "attention": [14]},
    ],
    ids=["dit", "attention-unet"],
)
def test_named_networks_in_the_systems(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    system = make(name, DATA, **options)
    x0, labels = DATA.batch(torch.arange(3))
    system.loss(x0, labels, **COUNTER).sum().backward()
    save_system(tmp_path, system)
    again = load_system(tmp_path)
    assert again.config == system.config
    with torch.no_grad():
        assert torch.equal(
            again.loss(x0, labels, **COUNTER), system.eval().loss(x0, labels, **COUNTER)
        )
