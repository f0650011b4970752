"""The command that `fastdiff train` prints at its end runs, for every system and kind of data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.cli import main
from fastdiff.data import load
from fastdiff.pretrained import load_system, read_config, save_system
from fastdiff.theory.registry import SYSTEMS

FEW = ("--steps", "2", "--batch-size", "4", "--warmup", "1", "--threads", "1")
SMALL = ("--num", "6", "--unit", "6", "--threads", "1")
U_NET = ("--widths", "8", "--option", "emb=8")
PERCEPTRON = ("--data", "moons", "--option", "width=8", "--option", "depth=1")
POINTS = ("--data", "moons", "--widths", "8")
SHORT = ("--timesteps", "30")
# a system and a kind of data: its options
RUNS: dict[str, tuple[str, ...]] = {
    "autoregressive images": ("--widths", "8"),
    "autoregressive points": POINTS,
    "classifier images": (*U_NET, *SHORT),
    "classifier points": (*PERCEPTRON, *SHORT),
    "hvae images": ("--levels", "[[2, 7]]", "--widths", "8"),
    "hvae points": ("--data", "moons", "--levels", "[[2, 1]]", "--widths", "8"),
    "markovian images": ("--levels", "3,2", "--widths", "8"),
    "markovian points": POINTS,
    "score images": U_NET,
    "score points": PERCEPTRON,
    "superres images": (*U_NET, *SHORT),
    "unet images": (*U_NET, *SHORT),
    "unet points": (*PERCEPTRON, *SHORT),
    "vae images": ("--latent", "2"),
    "vae points": POINTS,
    "vdm images": ("--widths", "8", "--option", "fourier=[7]"),
    "vdm points": POINTS,
}


def test_every_system_is_here() -> None:
    assert {run.split()[0] for run in RUNS} == set(SYSTEMS)


def printed(said: str) -> list[str]:
    """The words of the command in what `train` said."""
    found = re.search(r"(?:sample|evaluate) it with: fastdiff (.*)", said)
    assert found, said
    return shlex.split(found[1])


@pytest.mark.parametrize("name", ["classifier", "superres", "unet"])
@pytest.mark.parametrize("split", [(), ("--test-share", "0.3")], ids=["no split", "a split"])
def test_the_printed_command_runs_on_a_folder(
    name: str, split: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the pictures were resampled and there is no test split."""
    data, out = tmp_path / "pictures", tmp_path / "run"
    for number in range(12):
        file = data / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (20 * number, 100, 50)).save(file)
    arguments = ["--data", str(data), "--size", "8", *split, *U_NET, *SHORT, *FEW]
    assert main(["train", "--model", name, "--out", str(out), *arguments]) == 0
    command = printed(capsys.readouterr().out)
    assert (command[0] == "eval") == (name == "classifier")
    more = ("--images", "2", "--times", "2", "--threads", "1") if name == "classifier" else SMALL
    assert main([*command, *more]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("run", RUNS)
def test_the_printed_command_runs(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It draws samples, whose units verify, repeat, and do not depend on the run's range of ids."""
    name, kind = run.split()
    out = tmp_path / "a run"
    assert main(["train", "--model", name, "--out", str(out), *RUNS[run], *FEW]) == 0
    command = printed(capsys.readouterr().out)
    if command[0] == "eval":
        assert name == "classifier"
        assert main([*command, "--images", "6", "--times", "2", "--threads", "1"]) == 0
        assert "accuracy" in capsys.readouterr().out
        return
    assert main([*command, *SMALL]) == 0, capsys.readouterr().err
    made = Path(command[command.index("--out") + 1])
    array = np.load(made / "shards" / "00000" / "000000000.npy")
    assert array.shape == ((6, 28, 28, 1) if kind == "images" else (6, 2))
    assert array.dtype == (np.uint8 if kind == "images" else np.float32)
    assert np.isfinite(array).all() and len(np.unique(array.reshape(6, -1), axis=0)) == 6
    assert Image.open(made / "grid.png").size[0] > 0
    assert main(["verify", str(made), "--recompute", "1"]) == 0, capsys.readouterr()
    assert main([*command, *SMALL]) == 0, "the same command continues the run"
    assert main(["info", str(made)]) == 0
    own = name in ("autoregressive", "hvae", "markovian", "vae")
    assert ("the model's own `sample`" in capsys.readouterr().out) == own
    spec = json.loads((made / "spec.json").read_text())
    assert spec["plan"]["info"].get("drawer") == ("sample" if own else None)
    # a part of the ids, in another folder, has the same samples
    part = [*command[: command.index("--out")], "--out", str(tmp_path / "part")]
    assert main([*part, "--ids", "4-5", "--unit", "6", "--threads", "1"]) == 0
    again = np.load(tmp_path / "part" / "shards" / "00000" / "000000000.npy")
    if name == "superres":  # ids 4 and 5 get the first images of another list
        assert again.shape == (2, 28, 28, 1)
    else:
        assert np.array_equal(again, array[4:])


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "run"
    assert main(["train", "--model", "vae", "--out", str(out), *POINTS, *FEW]) == 0
    return out


def test_a_system_s_samples_are_those_of_python(vae: Path, tmp_path: Path) -> None:
    """Ids 7 … 12 of a dataset are `system.sample` of these ids; --option mean=true draws means."""
    system = load_system(vae)
    for mean in (False, True):
        made = tmp_path / f"{mean}"
        options = ["--option", "mean=true"] if mean else []
        assert (
            main(
                ["sample", "--model", str(vae), "--out", str(made), "--seed", "3", *options]
                + ["--ids", "6-11", "--unit", "6", "--threads", "1"]
            )
            == 0
        )
        array = np.load(made / "shards" / "00000" / "000000001.npy")
        ids = torch.arange(6, 12)
        expected = system.sample(6, seed=3, sample_ids=ids, mean=mean)  # type: ignore[operator]
        np.testing.assert_array_equal(array, expected.numpy())


@pytest.mark.parametrize(
    "flags, got",
    [
        (["--solver", "ddim"], "solver"),
        (["--steps", "5"], "steps"),
        (["--guidance", "2"], "guidance_scale"),
        (["--save", "trajectory"], "save"),
        (["--network-batch", "3"], "network_batch"),
        (["--dtype", "bf16"], "dtype"),
        (["--option", "flow=1"], "flow"),
    ],
)
def test_settings_of_a_sampler_are_refused(
    flags: list[str], got: str, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["sample", "--model", str(vae), "--out", str(tmp_path / "x"), *flags])
    assert status == 2 and not (tmp_path / "x").exists()
    assert f"which draws its samples itself and takes only mean, got {got}." in (
        capsys.readouterr().err
    )


def test_a_classifier_has_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, run = tmp_path / "run", RUNS["classifier points"]
    assert main(["train", "--model", "classifier", "--out", str(out), *run, *FEW]) == 0
    assert main(["sample", "--model", str(out), "--out", str(tmp_path / "x")]) == 2
    assert "got the system 'classifier'. Evaluate it with `fastdiff eval" in capsys.readouterr().err


@pytest.fixture(scope="module")
def superres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("superres") / "run"
    run = RUNS["superres images"]
    assert main(["train", "--model", "superres", "--out", str(out), *run, *FEW]) == 0
    return out


def test_super_resolution_of_files(
    superres: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small files, large files and a folder of them are the same condition; it is kept with the
    dataset, whose files may then go.
    """
    data, folder = load("fashion-mnist", "test"), tmp_path / "pictures"
    system = load_system(superres)
    x0, _ = data.batch(torch.arange(3))
    small = system.reduce(x0)  # type: ignore[operator]
    folder.mkdir()
    for i in range(3):
        for prefix, x in (("large", x0), ("small", small)):
            levels = ((x[i, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
            where = folder if prefix == "large" else tmp_path
            Image.fromarray(levels).save(where / f"{prefix}{i}.png")
    files = [str(tmp_path / f"small{i}.png") for i in range(3)]
    arrays = []
    for number, images in enumerate((files, [str(folder)], ["test"])):
        made = tmp_path / f"made{number}"
        command = ["sample", "--model", str(superres), "--out", str(made), "--image", *images]
        assert main([*command, "--num", "3", "--unit", "3", "--steps", "2"]) == 0
        arrays.append(np.load(made / "shards" / "00000" / "000000000.npy"))
    assert np.array_equal(arrays[0], arrays[1]) and np.array_equal(arrays[0], arrays[2])
    first = tmp_path / "made0"
    for file in files:
        Path(file).unlink()
    record = first / "units" / "00000" / "000000000.json"
    record.unlink()
    assert main(["resume", str(first)]) == 0
    assert main(["verify", str(first), "--recompute", "1"]) == 0, capsys.readouterr()
    kept = next(first.glob("conditions-*.npy"))
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert main(["verify", str(first)]) != 0
    said = capsys.readouterr()
    assert "got another content. Restore the former file" in said.out + said.err


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "expected the small images that Model(ImageUNet, [1, 28, 28], folder) enlarges"),
        (["none.png"], "none.png, got no such file."),
        (["text.png"], "expected a picture in"),
        (["wide.png"], "expected pictures of [1, 14, 14] (channels, height, width), or of [1, 28"),
        (["empty"], "expected pictures (.png, .jpg"),
    ],
)
def test_images_that_cannot_be_used(
    images: list[str],
    message: str,
    superres: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (30, 14)).save(tmp_path / "wide.png")
    flags = ["--image", *(str(tmp_path / name) for name in images)] if images else []
    out = tmp_path / "out"
    assert main(["sample", "--model", str(superres), "--out", str(out), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("fastdiff sample: fastdiff.jobs: expected")
    assert not out.exists()


def test_images_are_of_super_resolution_only(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--model", "fashion-mnist", "--out", str(tmp_path / "x"), "--image", "a"]
    assert main(command) == 2
    assert "which is not of super-resolution, got some." in capsys.readouterr().err


def test_samples_that_are_not_finite_fail_their_unit(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, made = tmp_path / "broken", tmp_path / "made"
    system = load_system(vae)
    for parameter in system.parameters():
        parameter.data.fill_(torch.nan)
    save_system(broken, system, data=read_config(vae)["data"])
    command = ["sample", "--model", str(broken), "--out", str(made), "--num", "4", "--unit", "4"]
    assert main([*command, "--threads", "1"]) == 5
    assert "unit 0 failed: sample 0 is not finite as the model draws it" in capsys.readouterr().out
    failed = json.loads((made / "failed" / "000000000.json").read_text())
    assert (failed["sample_id"], failed["step"]) == (0, None)
