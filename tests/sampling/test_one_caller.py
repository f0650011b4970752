"""Only `fastdiff.sampling.network` calls a user's network and unpacks its output: a rule that many
modules follow separately is one that some module breaks. The tests read the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdiff

PACKAGE = Path(fastdiff.__file__).parent
CALLER = "sampling/network.py"
FILES = sorted(
    str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "lib" not in path.parts
)
NAMES = {"model", "network", "net", "unet", "denoiser", "transformer"}

OTHERS = {
    "cli/bench_measure.py": {"forward": "passes on the loop's calls and times them"},
    "integrations/k_diffusion/dpm.py": {"denoise": "a Denoiser", "sample_dpm_adaptive": "the same"},
    "integrations/k_diffusion/loop.py": {"predict": "a Denoiser", "run_recipe": "the same"},
    "integrations/networks.py": {"forward": "an adapter, which is a network itself"},
    "models/image_unet.py": {"forward": "a network's own part"},
    "theory/score/model.py": {"forward": "a model, which is a network itself"},
    "theory/systems/classifier.py": {
        "logits": "gives logits, which are no prediction",
        "_wanted": "a teacher from a model folder",
    },
    "theory/systems/denoiser.py": {
        "_squared_error": "training; prediction_of of the caller reads the output"
    },
    "theory/variational/vdm.py": {"predict": "a model, which is a network itself"},
}
"""Calls of a name in NAMES that call no user's network, by file and function, and why."""


def _named(value: ast.expr) -> str:
    """The last name of `model`, `self.model` or `self._model`, without its underscore."""
    if isinstance(value, ast.Attribute):
        return value.attr.removeprefix("_")
    return value.id.removeprefix("_") if isinstance(value, ast.Name) else ""


def unpacking(tree: ast.AST) -> Iterator[int]:
    """Lines that take `.sample` of something that may be a tensor."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
            and len(node.args) == 3
            and isinstance(node.args[1], ast.Constant)
            and node.args[1].value == "sample"
        ):
            yield node.lineno


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(function, line) of calls of a network, by one of its usual names and with an input and a
    time.
    """
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        name = getattr(function, "name", "lambda")
        body = function.body if isinstance(function.body, list) else [function.body]
        for node in (n for part in body for n in ast.walk(part)):
            if isinstance(node, ast.Call) and _named(node.func) in NAMES:
                starred = any(isinstance(a, ast.Starred) for a in node.args)
                if starred or len(node.args) + len(node.keywords) >= 2:
                    yield name, node.lineno


@pytest.mark.parametrize("file", FILES)
def test_no_other_module_unpacks_an_output(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    assert file == CALLER or not list(unpacking(tree))


@pytest.mark.parametrize("file", FILES)
def test_no_other_module_calls_a_users_network(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    known = OTHERS.get(file, {})
    found = list(calls(tree))
    others = [f"{name}, line {line}" for name, line in found if name not in known]
    assert file == CALLER or not others, f"{file} calls a network in {'; '.join(others)}"
    assert known.keys() <= {name for name, _ in found}, f"{file}: OTHERS names calls that are gone"


def test_the_list_names_files() -> None:
    assert OTHERS.keys() <= set(FILES) and CALLER in FILES


@pytest.mark.parametrize(
    "text",
    [
        "def f(x, t): return model(x, t)",
        "def f(self, x, t): return self._network(x, t=t, y=1)",
        "def f(self, x, *rest): return self.network(*rest)",
        "f = lambda x, t: net(x, t)[0]",
    ],
)
def test_calls_are_found(text: str) -> None:
    assert list(calls(ast.parse(text)))


def test_unpacking_is_found() -> None:
    assert list(unpacking(ast.parse("out = getattr(out, 'sample', out)")))
