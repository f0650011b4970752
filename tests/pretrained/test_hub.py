"""Models by the name of a repository of the Hugging Face Hub, from its cache, without a connection.

The cache is laid out as huggingface_hub lays it out, and read by huggingface_hub itself, in
processes of their own: it reads its environment when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE

from fastdiff import Sampler, Schedule, pretrained
from fastdiff.models import MLP
from fastdiff.pretrained import hub

pytest.importorskip("huggingface_hub", reason="diffusers brings it")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with the repository someone/points, whose branch main and tag v1 are one commit."""
    torch.manual_seed(0)
    repository = tmp_path / "hub" / "models--someone--points"
    sampler = Sampler(MLP(width=8, depth=2, emb=8), Schedule.cosine(100), steps=5)
    sampler.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT, encoding="utf-8")
    return tmp_path / "hub"


def run(cache: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python without a connection, in an empty folder."""
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=here,
        env=environment,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    "name", ["someone/points", "someone/points@v1", f"someone/points@{COMMIT}"]
)
def test_a_repository_in_the_cache_draws_like_its_folder(
    cache: Path, tmp_path: Path, name: str
) -> None:
    folder = cache / "models--someone--points" / "snapshots" / COMMIT
    code = (
        "from fastdiff import Sampler; import torch\n"
        f"one, two = (Sampler.from_pretrained(n).sample((3, 2), seed=1)"
        f" for n in ({name!r}, {str(folder)!r}))\n"
        "assert torch.equal(one, two); print('same')"
    )
    done = run(cache, tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


@pytest.mark.parametrize("name", ["someone/nothing", "someone/points@v2"])
def test_what_can_not_be_loaded_is_one_sentence(cache: Path, tmp_path: Path, name: str) -> None:
    code = (
        "from fastdiff import Sampler\n"
        f"try: Sampler.from_pretrained({name!r})\n"
        "except FileNotFoundError as error: print(error)"
    )
    done = run(cache, tmp_path, "-c", code)
    (line,) = done.stdout.splitlines()
    assert f"expected a folder or a repository of the Hugging Face Hub, got {name}, which" in line


def test_a_job_names_the_command_that_makes_a_folder(cache: Path, tmp_path: Path) -> None:
    """A job runs on many machines, so it downloads no model."""
    command = ["-m", "fastdiff", "sample", "--model", "someone/points", "--out", "drawn"]
    done = run(cache, tmp_path, *command)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hf download someone/points --local-dir" in done.stderr
    assert not (tmp_path / "here" / "drawn").exists()


def test_only_a_sampler_asks_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line and jobs connect to nothing, so that what they read is named by a path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda name: pytest.fail(f"asked for {name}"))
    for function in (pretrained.load, pretrained.load_system, pretrained.read_config):
        with pytest.raises(FileNotFoundError):
            function("someone/points")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("org/name", True),
        ("org/name@v1.0", True),
        ("org/name@refs/pr/1", True),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("../name", False),
        ("/org/name", False),
        ("org/na me", False),
        ("org/name@", False),
        ("here/name", False),
    ],
)
def test_which_names_are_repositories(
    name: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.is_repository(name) is expected


def test_without_the_hubs_client_the_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        Sampler.from_pretrained("someone/else")
