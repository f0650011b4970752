"""Old import paths give the modules that moved, with a warning that names the new path."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest
from imports import ROOT, Tree
from markdown import CODE, tables

from fastdiff.moved import MOVED, new_path

TREE = Tree()


def forget(old: str) -> None:
    """Undoes imports of an old path that other tests made."""
    for name in [n for n in sys.modules if n == old or n.startswith(f"{old}.")]:
        del sys.modules[name]


@pytest.mark.parametrize("old, new", MOVED.items())
def test_an_old_path_is_the_module_that_moved(old: str, new: str) -> None:
    assert new in TREE.modules and old not in TREE.modules
    forget(old)
    with pytest.warns(DeprecationWarning, match=rf"^{old}: .+ Import {new}\.$") as caught:
        module = importlib.import_module(old)
    assert caught[0].filename == importlib.__file__, "the warning points at who imports"
    assert module is importlib.import_module(new)
    assert module.__name__ == new and module.__spec__.name == new


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "inner", sorted(m for m in TREE.modules if any(m.startswith(f"{n}.") for n in MOVED.values()))
)
def test_modules_inside_are_not_loaded_twice(inner: str) -> None:
    old = next(o + inner.removeprefix(n) for o, n in MOVED.items() if inner.startswith(f"{n}."))
    assert new_path(old) == inner
    assert importlib.import_module(old) is importlib.import_module(inner)


@pytest.mark.parametrize("name", ["fastdiff", "fastdiff.scores", "fastdiff.theory.score", "score"])
def test_other_paths_are_left_alone(name: str) -> None:
    assert new_path(name) is None


def test_a_module_that_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError), pytest.warns(DeprecationWarning):
        importlib.import_module("fastdiff.score.nothing")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_pickle_loads() -> None:
    from fastdiff.theory.information import Gaussian

    text = pickle.dumps(Gaussian, protocol=0)  # names without their lengths
    old = text.replace(b"fastdiff.theory.", b"fastdiff.")
    assert old != text and pickle.loads(old) is Gaussian


def test_the_changelog_lists_the_paths() -> None:
    rows = tables((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    assert {CODE.findall(old)[0]: CODE.findall(new)[0] for old, new in rows} == MOVED


def test_statements_in_a_fresh_process() -> None:
    """`from fastdiff import score` and its like, each with the warning at the user's line."""
    code = (
        "from fastdiff import score, likelihood\n"
        "from fastdiff.variational.bounds import effective_sample_size\n"
        "import fastdiff.adaptive\n"
        "import fastdiff.theory.score\n"
        "assert score is fastdiff.theory.score is fastdiff.score\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "got its former name" in line]
    assert [line.split()[0] for line in warned] == ["<string>:1:"] * 2 + ["<string>:2:"] * 2 + [
        "<string>:3:"
    ]
