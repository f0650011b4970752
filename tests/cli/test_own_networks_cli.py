"""`fastdiff train --network`: published networks and the user's code, to samples, on trust only."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdiff.cli import main
from fastdiff.pretrained import network_of, read_config

USAGE = 2
CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """A network with a text as its condition."""

    def __init__(self, channels, width=3, texts=5):
        super().__init__()
        self.null_cond = nn.ParameterDict({"text": nn.Parameter(torch.zeros(texts))})
        self.text, self.inner = nn.Linear(texts, width), nn.Conv2d(channels, width, 3, padding=1)
        self.outer = nn.Conv2d(width, channels, 1)

    def forward(self, x, t, text=None):
        h = self.inner(x) + t.float()[:, None, None, None] / 1000
        h = h if text is None else h + self.text(text)[:, :, None, None]
        return self.outer(h)


class Labelled(Net):
    def __init__(self, channels, num_classes):
        super().__init__(channels)
        self.null_label = num_classes
        self.label = nn.Embedding(num_classes + 1, 3)

    def forward(self, x, t, y):
        return self.outer(self.inner(x) + self.label(y)[:, :, None, None])


class Image(Net):
    def __init__(self, channels):
        super().__init__(2 * channels)
        self.outer = nn.Conv2d(3, channels, 1)

    def forward(self, x, t, *, image):
        return super().forward(torch.cat([x, image], 1), t)


class Logits(nn.Module):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.inner = nn.Conv2d(channels, num_classes, 3, stride=9)

    def forward(self, x, t):
        return self.inner(x).mean((2, 3))


class Captions(torch.utils.data.Dataset):
    """Pictures with a text each, and no labels."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        picture = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index)) * 2 - 1
        return picture, {"text": torch.full((5,), float(index % 3))}


def captions(split):
    return Captions()


def linear(inputs, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


def encoder(shape, outputs):
    return linear(shape[0] * shape[1] * shape[2], outputs)


def decoder(latent, outputs):
    return linear(latent, outputs)
'''
NAME = "networks_of_a_user"
RUN = ("--steps", "3", "--batch-size", "4", "--threads", "1")
DRAW = ("--num", "2", "--unit", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the user's module; what is imported is forgotten by `forget`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{NAME}.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop(NAME, None)


def forget() -> None:
    sys.modules.pop(NAME, None)


SYSTEMS = {
    "classifier": ("--network", f"{NAME}:Logits"),
    "score": ("--network", f"{NAME}:Net", "--option", "width=2"),
    "superres": ("--network", f"{NAME}:Image"),
    "unet": ("--network", f"{NAME}:Labelled"),
    "vae": ("--option", f"encoder={NAME}:encoder", "--option", f"decoder={NAME}:decoder"),
    "vdm": ("--network", f"{NAME}:Net"),
}


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_a_network_of_the_user_s_in_every_system(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained by the command, and then the command that it prints, with and without its --trust."""
    assert main(["train", "--model", name, "--out", "run", *SYSTEMS[name], *RUN]) == 0
    said = capsys.readouterr().out
    found = re.search(r"it with: fastdiff (.+)$", said, re.M)
    assert found and "factory" in (here / "run" / "config.json").read_text()
    then = shlex.split(found[1])
    assert "--trust" in then
    then += ["--images", "2"] if then[0] == "eval" else DRAW
    then += ["--steps", "2"] if then[0] == "sample" and name != "vae" else []
    then += ["--times", "1"] if then[0] == "eval" else []
    forget()
    assert main([word for word in then if word != "--trust"]) in (1, USAGE)
    refused = capsys.readouterr().err
    assert f"would import {NAME!r} from {here / NAME}.py and run it" in refused
    assert NAME not in sys.modules and len(refused.splitlines()) == 1
    assert main(then) == 0


def test_text_to_samples(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples follow their texts and the strength of the guidance; resume and verify ask again."""
    data = ("--data", f"{NAME}:captions")
    network = ("--network", f"{NAME}:Net", "--label-dropout", "0.5")
    assert main(["train", "--out", "run", *network, *data, *RUN]) == 0
    weights = load_file("run/model.safetensors")
    assert weights["null_cond.text"].any(), "texts were dropped, and what stands for none learned"
    evaluate = ["eval", "run", *data, "--images", "2", "--times", "1", "--trust"]
    for flags in ([], ["--labels"]):
        assert main([*evaluate, *flags, "--json", f"bound{len(flags)}"]) == 0
    bounds = [json.loads(Path(f"bound{i}").read_text())["results"][0] for i in range(2)]
    assert bounds[0] != bounds[1]
    for file, values in {"some.jsonl": (1, -8), "others.jsonl": (5, 3)}.items():
        lines = [json.dumps({"text": [float(value)] * 5}) for value in values]
        Path(file).write_text("\n".join(lines) + "\n")
    command = ["sample", "--model", "run", *DRAW, "--steps", "2", "--trust", "--format", "npy"]
    drawn = {}
    for out, flags in {
        "plain": [],
        "texts": ["--conditions", "some.jsonl"],
        "guided": ["--conditions", "some.jsonl", "--guidance", "3"],
        "off": ["--conditions", "some.jsonl", "--guidance", "0"],
        "off too": ["--conditions", "others.jsonl", "--guidance", "0"],
    }.items():
        assert main([*command, "--out", out, *flags]) == 0
        spec = json.loads((here / out / "spec.json").read_text())
        assert spec["model"]["identity"]["source_sha256"].keys() == {f"{NAME}:Net"}
        drawn[out] = sorted((here / out).rglob("*.npy"))[0].read_bytes()
    assert len(set(drawn.values())) == 4 and drawn["off"] == drawn["off too"]
    forget()
    for command in (["resume", "texts"], ["verify", "texts", "--recompute", "1"]):
        assert main(command) == USAGE and NAME not in sys.modules
        assert "expected trust in the code that texts names" in capsys.readouterr().err
    assert main(["verify", "texts", "--recompute", "1", "--trust"]) == 0
    (here / f"{NAME}.py").write_text(CODE + "\nCHANGED = 1\n")
    forget()
    assert main(["resume", "texts", "--trust"]) == 3, "another source is another model"


def test_resume_runs_code_that_is_named_again_or_trusted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["train", "--out", "run", "--network", f"{NAME}:Net", *RUN]
    assert main(start) == 0
    whole = (here / "run" / "model.safetensors").read_bytes()
    (here / "run" / "model.safetensors").unlink()
    resume = ["train", "--out", "run", "--resume", "--threads", "1"]
    forget()
    assert main(resume) != 0 and NAME not in sys.modules
    assert "expected trust in the code that run names" in capsys.readouterr().err
    assert main([*resume, "--network", f"{NAME}:Logits"]) != 0, "another name is no trust"
    for trusted in (["--trust"], ["--network", f"{NAME}:Net"]):
        forget()
        assert main([*resume, *trusted]) == 0
        assert (here / "run" / "model.safetensors").read_bytes() == whole


def test_published_networks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--network", "dit-s/4", "--options"]) == 0
    assert {"hidden=384", "depth=12", "heads=6", "patch=4"} <= set(
        capsys.readouterr().out.splitlines()
    )
    small = ["patch=7", "hidden=16", "depth=1", "heads=2", "learn_sigma=false"]
    options = [word for option in small for word in ("--option", option)]
    run = ["train", "--out", "run", "--network", "dit", *options, *RUN]
    assert main(run) == 0
    assert read_config("run")["model"]["class"] == "DiT"
    assert main(["sample", "--model", "run", "--out", "out", *DRAW, "--steps", "2"]) == 0
    assert main(["train", "--out", "other", "--network", "dit-m/2", *RUN]) != 0
    assert "expected a network in" in capsys.readouterr().err
    assert torch.is_grad_enabled()


def test_training_begins_with_other_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--init: diffusers' folder, then fastdiff's; a tiny learning rate keeps the weights."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed here")
    theirs = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    theirs.save_pretrained("theirs")
    still = ["--lr", "1e-12", *RUN]
    assert main(["train", "--out", "run", "--init", "theirs", *still]) == 0
    assert main(["train", "--out", "again", "--init", "run", *still]) == 0
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 700])
    for folder in ("run", "again"):
        with torch.no_grad():
            ours = network_of(folder)(x, t)
            torch.testing.assert_close(ours, theirs(x, t).sample, rtol=1e-4, atol=1e-5)
    before = load_file("again/model.safetensors")
    assert main(["train", "--out", "again", "--resume", "--threads", "1"]) == 0
    assert all(torch.equal(v, before[k]) for k, v in load_file("again/model.safetensors").items())
    capsys.readouterr()
    for flags, sentence in {
        ("--init", "run", "--model", "vdm"): "expected the system unet",
        ("--init", "run", "--data", "moons"): "expected a network of",
        ("--init", "run", "--network", "dit"): "without --network",
        ("--init", "run", "--schedule", "flow"): "expected a network of time_scale 1000.0",
        ("--init", "nowhere"): "nowhere",
        ("--init", "run", "--widths", "8,8"): "expected no --widths",
    }.items():
        assert main(["train", "--out", "bad", *flags, *RUN]) != 0
        said = capsys.readouterr().err
        assert sentence in said and len(said.splitlines()) == 1
