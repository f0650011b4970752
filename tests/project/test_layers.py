"""The shape of the code: imports point one way, no two files import each other, every op exists in
every layer, importing is light.

docs/architecture.md shows the same arrows as a drawing.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from imports import KERNELS, PACKAGE, ROOT, Tree, cycles, imports_by_string

from fastdiff.ops import __all__ as OPS

TREE = Tree()

# A unit is a folder or file directly in fastdiff/, or a part of one under a longer name. Each maps
# to the other units that it may import.
LEAVES = {
    "grad_mode",
    "images",
    "lazy",
    "nearest",
    "notebook",
    "outside",
    "prediction",
    "recent",
    "rng",
    "schedule",
    "table",
    "user_code",
    "versions",
    "whole",
}
STEPS = LEAVES | {"backend", "ops"}
SAMPLING = STEPS | {"solvers", "sampling"}
ALLOWED: dict[str, set[str]] = {
    "grad_mode": set(),
    "images": set(),
    "lazy": set(),
    "nearest": set(),
    "notebook": set(),
    "outside": set(),
    "prediction": set(),
    "recent": set(),
    "rng": set(),
    "schedule": {"notebook", "whole"},
    "table": set(),
    "user_code": set(),
    "versions": set(),
    "whole": set(),
    "reference": set(),
    "models": {"user_code"},
    "data": {"outside", "rng"},
    "backend": LEAVES | {KERNELS},
    "ops": LEAVES | {"backend"},
    "acceleration": STEPS | {"models"},
    "solvers": LEAVES,
    "sampling": STEPS | {"solvers"},
    "theory": SAMPLING | {"models"},
    "integrations": SAMPLING,
    "pretrained": LEAVES | {"models", "theory"},
    "metrics": LEAVES | {"pretrained"},
    "sampler": SAMPLING | {"integrations", "pretrained"},
    "integrations.edm": SAMPLING | {"integrations", "sampler"},
    "training": LEAVES | {"acceleration", "data", "models", "pretrained", "sampler", "theory"},
    "jobs": SAMPLING | {"integrations", "pretrained", "sampler"},
}
ALLOWED["cli"] = set(ALLOWED) - {"reference"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["moved"] = {"backend", "pretrained", "sampling", "theory"}
# the package itself, which nothing imports
ALLOWED["__init__"] = set(ALLOWED) - {"cli", "reference", "__main__"}

# files that may import by string, and why; strings elsewhere cannot import
BY_STRING = {
    "fastdiff": "public names load on first use",
    "fastdiff.backend.choice": "a backend loads when it is first asked for",
    "fastdiff.cli": "a command loads when it is called",
    "fastdiff.integrations": "its modules load on first use",
    "fastdiff.jobs": "public names load on first use",
    "fastdiff.lazy": "loads the names that a package lists",
    "fastdiff.jobs.models.pipeline": "asks whether the package accelerate is installed",
    "fastdiff.moved": "old paths load the modules that moved",
    "fastdiff.pretrained": "public names load on first use",
    "fastdiff.theory": "its modules load on first use",
    "fastdiff.theory.registry": "a system loads when a file names it",
    "fastdiff.training.loggers": "asks for the library of a logger that a run wants",
    "fastdiff.theory.systems": "public names load on first use",
    "fastdiff.theory.variational": "public names load on first use",
    "fastdiff.user_code": "imports the user's module",
}


def unit(module: str) -> str:
    """Returns the unit of a module: the longest entry of ALLOWED that the module is in."""
    if module in (PACKAGE, KERNELS):
        return "__init__" if module == PACKAGE else KERNELS
    parts = module.split(".")[1:]
    for count in range(len(parts), 1, -1):
        if ".".join(parts[:count]) in ALLOWED:
            return ".".join(parts[:count])
    return parts[0]


def wrong(module: str, source: str | None = None) -> dict[str, int]:
    """Returns the imports of a module that its unit may not make, with their lines."""
    here = unit(module)
    return {
        target: line
        for target, line in TREE.imports(module, source).items()
        if unit(target) != here and unit(target) not in ALLOWED[here]
    }


def graph() -> dict[str, set[str]]:
    """Returns the imports between the files of the package.

    The lazy table of a package's `__init__` counts like any import: the `__init__` imports the
    modules in its table, so they may not import from it. A module imports what it needs from the
    file that defines it.
    """
    return {module: set(TREE.imports(module)) - {KERNELS} for module in TREE.modules}


@pytest.mark.parametrize("module", TREE.modules)
def test_arrows(module: str) -> None:
    here = unit(module)
    assert here in ALLOWED, f"{here} has no layer: add it here and to docs/architecture.md"
    found = [f"{target} (line {line})" for target, line in wrong(module).items()]
    assert not found, f"{module} may not import {', '.join(found)}"


def test_every_unit_exists() -> None:
    units = {unit(module) for module in TREE.modules}
    assert set(ALLOWED) == units
    assert {name for names in ALLOWED.values() for name in names} <= units | {KERNELS}


def test_no_files_import_each_other() -> None:
    edges, found = graph(), []
    for component in cycles(edges):
        inner = [f"{a} → {b}" for a in component for b in sorted(edges[a] & set(component))]
        found.append("\n".join(inner))
    assert not found, "these imports form cycles:\n" + "\n\n".join(found)


def test_the_arrows_form_no_cycle() -> None:
    assert cycles({name: allowed - {KERNELS} for name, allowed in ALLOWED.items()}) == []


def test_files_that_import_by_string_are_known() -> None:
    found = {
        module
        for module, path in TREE.modules.items()
        if imports_by_string(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(BY_STRING)


# A file of fastdiff.solvers may not import fastdiff.jobs; each text does so in its own way.
FORBIDDEN = {
    "absolute": "import fastdiff.jobs.units",
    "from the package": "from fastdiff import jobs",
    "of a name": "from fastdiff.jobs import verify",
    "relative": "from ..jobs import units",
    "relative to the package": "from .. import jobs",
    "in a function": "def f():\n    from ..jobs.units import Unit",
    "for types": "if TYPE_CHECKING:\n    from ..jobs.units import Unit",
    "string": "module = load('fastdiff.jobs.units')",
    "string with an attribute": "TABLE = {'unit': 'fastdiff.jobs.units:Unit'}",
    "in a default": "def f(name='fastdiff.jobs.units'): ...",
}


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_found(source: str) -> None:
    assert {unit(name) for name in wrong("fastdiff.solvers.ddim", source)} == {"jobs"}


RELATIVE = {
    "lazy table": "_WHERE = {'Plan': 'solvers.plan'}\nimport_module(f'.{_WHERE[name]}', __name__)",
    "tuple": "for name in ('rng', 'solvers.plan'): import_module(f'.{name}', __name__)",
    "dotted": "importlib.import_module('.solvers.plan', __package__)",
    "search": "importlib.util.find_spec('.solvers.plan', __package__)",
}


@pytest.mark.parametrize("source", RELATIVE.values(), ids=RELATIVE)
def test_a_relative_string_is_found(source: str) -> None:
    assert "fastdiff.solvers.plan" in TREE.imports("fastdiff", source)


def test_a_package_imported_by_its_own_name_is_found() -> None:
    source = "import_module(__package__)"
    assert set(TREE.imports("fastdiff.solvers.ddim", source)) == {"fastdiff.solvers"}


@pytest.mark.parametrize(
    "source",
    [
        '"""Docstring: see the module."""',
        "'fastdiff.jobs'",  # a statement, so a docstring
        "where = 'fastdiff.solvers.ddim'",
        "where = 'fastdiff.solvers.grid'",
        "message = 'fastdiff.jobs: expected a unit'",
        "names = ['plan', 'trace']",
        "import numpy.fastdiff",
    ],
)
def test_other_strings_are_no_imports(source: str) -> None:
    assert TREE.imports("fastdiff.solvers.ddim", source) == {}


def test_kernels_are_found() -> None:
    for source in ("import fastdiff_kernels.randn", "load('fastdiff_kernels.launch')"):
        assert set(TREE.imports("fastdiff.ops.randn", source)) == {KERNELS}


def test_a_cycle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert cycles(edges) == [["b", "c"], ["d", "e"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_kernels_and_the_oracle_stand_alone() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert (
            "fastdiff." not in path.read_text().replace("fastdiff._", "")
            or "import fastdiff" not in path.read_text()
        )
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] != "fastdiff"
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] != "fastdiff" for a in node.names)
    for path in (ROOT / "fastdiff" / "reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert "torch" not in modules
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the package `kernels`"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_in_every_layer(op: str) -> None:
    places = [
        f"fastdiff/reference/{op}.py",
        f"fastdiff/ops/{op}.py",
        f"fastdiff/backend/eager/{op}.py",
        f"kernels/fastdiff_kernels/{op}.py",
        f"csrc/cpu/{op}.cpp",
        f"csrc/cuda/{op}.cu",
        f"tests/ops/test_{op}.py",
    ]
    assert [p for p in places if not (ROOT / p).exists()] == []
    assert f"| `{op}` |" in (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    assert f"def test_{op}" in (ROOT / "benchmarks" / "test_ops.py").read_text(encoding="utf-8")


def test_the_table_schema_is_one() -> None:
    from fastdiff import reference
    from fastdiff.table import COLUMNS

    assert list(COLUMNS) == list(reference.COLUMNS)
    readme = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{c}`" in readme for c in COLUMNS if "." not in c)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_is_light() -> None:
    """Importing takes less than a third of torch's processor time on top of it, best of several.

    Beside torch and NumPy it loads fastdiff and the standard library only. It starts no thread, and
    loads no torch, no Triton and no native library until a name is used.
    """
    code = (
        "import sys, time; begin = time.process_time(); import torch, numpy;"
        " t, before = time.process_time(), set(sys.modules); import fastdiff; fastdiff.Sampler;"
        " print((time.process_time() - t) / (t - begin), *{m.partition('.')[0] for m in"
        " set(sys.modules) - before})"
    )
    for _ in range(10):  # on a busy machine more than the first few may be disturbed
        ratio, *loaded = _python(code).split()
        if float(ratio) < 1 / 3:
            break
    assert float(ratio) < 1 / 3
    own = {"fastdiff", "fastdiff_kernels", "numpy", "tqdm"}
    others = set(loaded) - sys.stdlib_module_names - own
    assert not others, "a dependency that is loaded before it is needed"
    at_once = _python(
        "import sys, threading, fastdiff; print(threading.active_count(), [m for m in ('torch',"
        " 'triton', 'fastdiff.backend.library') if m in sys.modules])"
    )
    assert at_once == "1 []"
