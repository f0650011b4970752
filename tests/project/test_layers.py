"""The shape of the code: imports point one way, every op exists in every layer, importing is
light.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.ops import __all__ as OPS

ROOT = Path(__file__).resolve().parents[2]

# package or module of fastdiff -> what of fastdiff it may import (DESIGN section 2); "kernels" is
# fastdiff_kernels
LEAVES = {"contract", "schedule", "prediction", "rng", "table"}
ENGINE = LEAVES | {"eager", "native", "backend", "ops"}
SAMPLING = ENGINE | {"solvers", "guidance", "images", "cpu"}
MODELS = {"models", "checkpoint", "pretrained", "data"}
ALLOWED: dict[str, set[str]] = {
    "reference": set(),
    "schedule": set(),
    "prediction": set(),
    "contract": set(),
    "rng": set(),
    "table": set(),
    "cpu": set(),
    "timing": set(),
    "images": set(),
    "models": set(),
    "checkpoint": set(),
    "data": {"rng"},
    "registry": set(),
    "abi": set(),
    "native": {"table", "abi"},
    "eager": {"rng", "table"},
    "cuda": {"native", "abi"},
    "backend": {"native", "cuda", "eager", "kernels"},
    "ops": LEAVES | {"eager", "backend"},
    "acceleration": ENGINE | {"models"},
    "solvers": LEAVES,
    "guidance": LEAVES | {"ops", "solvers"},
    "loop": SAMPLING,
    "likelihood": SAMPLING | {"sampler", "adaptive", "score"},
    "score": SAMPLING | {"sampler", "adaptive", "models", "registry"},
    "adaptive": SAMPLING,
    "information": ENGINE,
    "variational": SAMPLING | {"information", "likelihood", "models", "registry"},
    "pretrained": LEAVES | {"models", "checkpoint", "registry"},
    "sampler": SAMPLING | {"loop", "pretrained"},
    "integrations": SAMPLING | {"sampler", "adaptive"},
    "systems": ENGINE | {"models", "likelihood", "registry", "score"},
    "training": MODELS | {"registry"},
    "evaluation": ENGINE | {"likelihood", "score"},
    "jobs": SAMPLING | {"sampler", "checkpoint", "pretrained", "integrations", "__init__"},
    "cli": (
        SAMPLING
        | MODELS
        | {
            "sampler",
            "training",
            "registry",
            "systems",
            "evaluation",
            "likelihood",
            "jobs",
            "cli",
            "timing",
            "__init__",
        }
    ),
    "__main__": {"cli"},
    "__init__": {
        "acceleration",
        "loop",
        "integrations",
        "backend",
        "ops",
        "sampler",
        "schedule",
        "solvers",
        "training",
        "images",
    },
}


def _unit(path: Path) -> str:
    return path.relative_to(ROOT / "fastdiff").parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Names of fastdiff units (or "kernels") that a file imports, at any depth of its code."""
    package = ("fastdiff", *path.relative_to(ROOT / "fastdiff").parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastdiff_kernels":
                found.add("kernels")
            if parts[0] == "fastdiff":
                unit = parts[1] if len(parts) > 1 else "__init__"
                exists = (ROOT / "fastdiff" / unit).is_dir() or (
                    ROOT / "fastdiff" / f"{unit}.py"
                ).exists()
                found.add(unit if exists else "__init__")
    return found


SOURCES = sorted((ROOT / "fastdiff").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    unit = _unit(path)
    assert unit in ALLOWED, f"{unit} has no place in the layers: give it one here and in the design"
    wrong = _imports(path) - ALLOWED[unit] - {unit}
    assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_the_arrows_are_seen() -> None:
    """The parser finds relative, absolute and nested imports; otherwise the test above could not
    fail.
    """
    assert {"eager", "backend"} <= _imports(ROOT / "fastdiff" / "ops" / "reverse_step.py")
    assert "pretrained" in _imports(ROOT / "fastdiff" / "sampler.py"), (
        "imports inside functions count"
    )
    used = {unit: set() for unit in ALLOWED}  # type: dict[str, set[str]]
    for path in SOURCES:
        used[_unit(path)] |= _imports(path)
    assert used["cli"] >= {"sampler", "pretrained"}


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
    """Beyond torch under 0.3 s of the processor, best of five; no thread, no GPU, no Triton, no
    native library.
    """
    code = (
        "import torch, time, numpy; t = time.process_time(); import fastdiff; fastdiff.Sampler; "
        "print(time.process_time() - t)"
    )
    assert min(float(_python(code)) for _ in range(5)) < 0.3
    loaded = _python(
        "import sys, threading, fastdiff; print(threading.active_count(), [m for m in ('torch',"
        " 'triton', 'fastdiff.backend.library') if m in sys.modules])"
    )
    assert loaded == "1 []"
