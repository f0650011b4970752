"""What a type checker sees of the package is what runs, and the pages' Python blocks pass it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import operator
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from imports import ROOT

import fastdiff
from fastdiff.sampling.settings import (
    PlanSettings,
    SamplerSettings,
    SolverOptions,
    plan_settings,
)
from fastdiff.solvers import SOLVERS, make_plan

# the packages whose names load on first use
LAZY = [
    "fastdiff",
    "fastdiff.integrations",
    "fastdiff.jobs",
    "fastdiff.pretrained",
    "fastdiff.theory",
    "fastdiff.theory.systems",
    "fastdiff.theory.variational",
]
CONFIG = """
[mypy]
python_version = 3.11
# as for an installed package: errors are shown for the user's files only
follow_imports = silent
ignore_missing_imports = true
check_untyped_defs = true
allow_redefinition = true
# blocks use names that their page describes; Module's and Tensor's attributes are unions
disable_error_code = name-defined, union-attr, index, operator
[mypy-diffusers.*]
follow_imports = skip
"""
# A literal dict of values of several types is dict[str, object]: its values can't be checked.
UNPACKED = '"**dict['


def declared(package: str) -> dict[str, Any]:
    """Returns the objects that a package's TYPE_CHECKING branch imports, by name."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    found: dict[str, Any] = {}
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            continue
        for line in node.body:
            assert isinstance(line, ast.ImportFrom) and line.level == 1
            source = importlib.import_module(f"{package}.{line.module or ''}".rstrip("."))
            for alias in line.names:
                if alias.name == "*":
                    found |= {name: getattr(source, name) for name in source.__all__}
                elif line.module is None:
                    found[alias.name] = importlib.import_module(f"{package}.{alias.name}")
                else:
                    found[alias.name] = getattr(source, alias.name)
    return found


@pytest.mark.parametrize("package", LAZY)
def test_checkers_see_the_names_that_load(package: str) -> None:
    module, seen = importlib.import_module(package), declared(package)
    tables = ("_WHERE", "_MODULES", "_DIFFUSERS", "_BESIDES")
    assert seen.keys() == {name for table in tables for name in getattr(module, table, ())}
    for name, value in seen.items():
        assert getattr(module, name) is value, name
    assert set(getattr(module, "__all__", ())) <= {*seen, *vars(module)}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_every_lazy_package_is_listed() -> None:
    found = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "fastdiff").rglob("__init__.py")
        if "__getattr__" in path.read_text(encoding="utf-8")
    ]
    assert sorted(found) == LAZY


def test_modules_load_without_an_import_statement() -> None:
    code = (
        "import sys, fastdiff; assert 'fastdiff.jobs' not in sys.modules;"
        " print(fastdiff.jobs.run.__name__, fastdiff.solvers.make_plan.__name__,"
        " fastdiff.integrations.networks.__name__, fastdiff.theory.score.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = "run make_plan fastdiff.integrations.networks fastdiff.theory.score"
    assert done.stdout.strip() == loaded


def test_types_of_options_are_those_of_the_formulas() -> None:
    """An option of several solvers has the union of their types; eta may also be None."""
    types: dict[str, Any] = {}
    for solver in SOLVERS.values():
        hints = get_type_hints(inspect.unwrap(solver.formula))
        for name in solver.options:
            types[name] = operator.or_(types.get(name, hints[name]), hints[name])
    types["eta"] |= None
    written = get_type_hints(SolverOptions)
    assert written.keys() == types.keys()
    assert {name for name in types if written[name] != types[name]} == set()


def test_types_of_settings_are_those_of_plans_and_samplers() -> None:
    options = get_type_hints(SolverOptions).keys()
    settings = get_type_hints(PlanSettings)
    parameters = get_type_hints(make_plan)
    for name in ("schedule", "times", "options", "return"):
        del parameters[name]
    assert {k: v for k, v in settings.items() if k not in options} == parameters
    with_defaults = inspect.signature(plan_settings).parameters
    kept = {name for name, p in with_defaults.items() if p.kind is p.KEYWORD_ONLY}
    # the grid of sigmas has no default; eta's depends on the solver
    assert kept == (parameters.keys() - {"sigmas"}) | {"eta"}
    explicit = get_type_hints(fastdiff.Sampler.__init__)
    for name in ("model", "schedule", "settings", "return"):
        explicit.pop(name, None)
    everything = get_type_hints(SamplerSettings)
    assert everything.keys() == settings.keys() | explicit.keys()
    assert {name for name in explicit if everything[name] != explicit[name]} <= {"guide"}
    assert inspect.signature(fastdiff.Sampler).parameters["settings"].kind.name == "VAR_KEYWORD"


def blocks(page: Path) -> str:
    """Returns the page's Python blocks at their lines of the page; other lines are empty."""
    lines, indent = [], -1
    for line in page.read_text(encoding="utf-8").splitlines():
        if indent < 0 and line.strip() == "```python":
            indent = len(line) - len(line.lstrip())
            lines.append("")
        elif indent >= 0 and line.strip() == "```":
            indent = -1
            lines.append("")
        else:
            lines.append(line[indent:] if indent >= 0 else "")
    return "\n".join(lines) + "\n"


# each line is one error of this code, or has no error
RIGHT_AND_WRONG = """
import fastdiff
import torch

net, schedule = torch.nn.Identity(), fastdiff.Schedule.linear(1000)
x, t = torch.randn(2, 3), torch.tensor([1, 2])
fastdiff.q_sample(x, t, torch.ones(10), torch.ones(10), seed=0).sum()
fastdiff.noise_mse(x, seed=0).sum()
fastdiff.accelerate(net).weight
fastdiff.randn((2, 3), sed=0)  # call-arg
fastdiff.nonsense  # attr-defined
fastdiff.jobs.nonsense  # attr-defined
fastdiff.jobs.run("out").seconds_of_nothing  # attr-defined
fastdiff.solvers.make_plan(schedule, solver="ddim", steps=3).hash.upper()
fastdiff.solvers.make_plans  # attr-defined
fastdiff.integrations.networks.from_diffusers(net)
fastdiff.theory.score.langevin
fastdiff.Sampler(net, schedule, solver="ddim", steps=3, eta=0.5, s_churn=1.0)
fastdiff.Sampler(net, schedule, stepz=3)  # call-arg
fastdiff.Sampler(net, schedule, steps="3")  # arg-type
fastdiff.Sampler(net, schedule, sovler="ddim")  # call-arg
fastdiff.Sampler(net, schedule).sample((2, 3), sede=0)  # call-arg
fastdiff.Sampler.from_pretrained("folder", steps=3, network_batch=4).sample((2, 3)).mean()
fastdiff.Sampler.from_pretrained("folder", stepz=3)  # call-arg
fastdiff.DDIMScheduler(num_train_timesteps=10).set_timesteps(5)
fastdiff.DDIMScheduler(num_train_timestep=10)  # call-arg
fastdiff.DDIMScheduler.from_config({}).set_timesteps(5)
fastdiff.swap(net).forward
fastdiff.from_scheduler()  # call-arg
fastdiff.swap()  # call-arg
with fastdiff.use("torch"): pass
fastdiff.use("torch", 3)  # call-arg
"""


def _mypy(folder: Path) -> dict[tuple[str, int], list[str]]:
    """Returns mypy's errors in the files of a folder, by file and line."""
    (folder / "mypy.ini").write_text(CONFIG, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary"),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "users"), "."),
        ],
        cwd=folder,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
    found: dict[tuple[str, int], list[str]] = {}
    for file, line, error in re.findall(r"^(\S+):(\d+): error: (.*)$", done.stdout, flags=re.M):
        found.setdefault((file, int(line)), []).append(error)
    return found


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[str]]:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    folder = tmp_path_factory.mktemp("users")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = blocks(page)
        if text.strip():
            name = "_".join(page.relative_to(ROOT).with_suffix("").parts).replace("-", "_")
            (folder / f"page_{name}.py").write_text(text, encoding="utf-8")
    (folder / "right_and_wrong.py").write_text(RIGHT_AND_WRONG, encoding="utf-8")
    return _mypy(folder)


def test_blocks_of_pages_pass_a_type_checker(errors: dict[tuple[str, int], list[str]]) -> None:
    assert len(blocks(ROOT / "README.md").strip()) > 100
    wrong = [
        f"{file}:{line}: {error}"
        for (file, line), found in errors.items()
        for error in found
        if file.startswith("page_") and UNPACKED not in error
    ]
    assert wrong == []


def test_misspelt_names_and_settings_fail(errors: dict[tuple[str, int], list[str]]) -> None:
    got = {line: found for (file, line), found in errors.items() if file == "right_and_wrong.py"}
    for number, text in enumerate(RIGHT_AND_WRONG.splitlines(), 1):
        code = text.partition("  # ")[2]
        found = got.pop(number, [])
        assert len(found) == bool(code), (text, found)
        if code:
            assert found[0].endswith(f"[{code}]"), (text, found)
    assert got == {}
