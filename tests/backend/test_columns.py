"""The columns of a plan's table and of the table of `vlb_terms` are the same in every layer.

`fastdiff.table` is the one list in Python. The kernels, the C headers, the oracle and
kernels/README.md can't import it; here their numbers are read and compared with it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastdiff_kernels.launch import common as launch_common
from fastdiff_kernels.launch import step as launch_step

from fastdiff import ops, reference, table
from fastdiff.backend import abi
from fastdiff.ops import step

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "fastdiff_kernels"
STEP_KERNELS = ("combine", "reverse_step", "reverse_step_prepass")
ALIASES = {"time": "t", "clip": "clip_bound", "lo": "logvar_lo", "hi": "logvar_hi"}


def constants(kernel: str) -> dict[str, int]:
    """Returns the compile-time constants that a kernel's file defines, by name."""
    found: dict[str, Any] = {}
    for node in ast.parse((KERNELS / f"{kernel}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and "tl.constexpr(" in ast.unparse(node):
            fake = {"tl": SimpleNamespace(constexpr=lambda value: value)}
            exec(ast.unparse(node), fake, found)
    return {name: value for name, value in found.items() if isinstance(value, int)}


def enums(header: str) -> dict[str, list[str]]:
    """Returns the named enums of a header of csrc/include/fastdiff."""
    text = (ROOT / "csrc" / "include" / "fastdiff" / header).read_text(encoding="utf-8")
    found = re.findall(r"enum (\w+) \{([^}]*)\}", text)
    return {name: re.findall(r"\w+", members) for name, members in found}


def test_the_table_is_consistent() -> None:
    """62 columns: the header, a coefficient for every pair of output and operand, further ones."""
    coefficients = len(table.OUTPUTS) * len(table.OPERANDS)
    assert len(table.COLUMNS) == len(table.HEADER) + coefficients + len(table.FURTHER) == 62
    assert len(table.COLUMNS) < 64, "masks of columns are int64 arguments of ops"
    assert list(table.VERSIONS.items())[-1] == (table.SCHEMA_VERSION, len(table.COLUMNS))
    assert table.OUTPUTS == ("x", *(f"s{i + 1}" for i in range(table.SLOTS)))
    assert [table.INDEX[name] for name in table.COLUMNS] == list(range(62))


def test_the_masks_of_the_slots() -> None:
    """Which columns need more slots: those that read or write one of the others."""
    for count, mask in enumerate(step._BEYOND):
        beyond = {f"s{i + 1}" for i in range(count, table.SLOTS)}
        names = {name for name in table.COLUMNS if beyond & set(name.split("."))}
        names |= {"guidance_momentum"} if "s4" in beyond else set()
        assert mask == table.columns(*names), count


def test_the_oracle() -> None:
    assert tuple(reference.COLUMNS) == table.COLUMNS
    assert tuple(reference.VLB_COLUMNS) == table.VLB_COLUMNS


def test_the_c_headers() -> None:
    schema, formulas = enums("schema.h"), enums("formulas.h")
    names = [ALIASES.get(name.lower(), name.lower()) for name in schema["Column"]]
    assert names == [*table.HEADER, "first_coefficient"]
    assert [name.lower() for name in schema["Operand"]] == [*table.OPERANDS, "operands"]
    further = [name for name in schema["FurtherColumn"] if name.lower() in table.FURTHER]
    assert [name.lower() for name in further] == [*table.FURTHER]
    kinds = {name: i for i, name in enumerate(schema["GuidanceKind"])}
    assert kinds == {
        "LINEAR": table.LINEAR,
        "ZERO_STAR": table.ZERO_STAR,
        "PROJECTED": table.PROJECTED,
        "PROJECTED_FROM_UNCOND": table.PROJECTED_FROM_UNCOND,
        "KEEPING": min(table.KEEPING),
    }
    names = [name.lower().removeprefix("vlb_") for name in formulas["VlbColumn"]]
    assert [ALIASES.get(name, name) for name in names] == [*table.VLB_COLUMNS, "columns"]
    text = (ROOT / "csrc" / "include" / "fastdiff" / "schema.h").read_text(encoding="utf-8")
    assert f"schema version {table.SCHEMA_VERSION}" in text
    assert f"constexpr int SLOTS = {table.SLOTS};" in text


def test_the_schema_that_the_libraries_report() -> None:
    """`fd_schema` in the C++ and the CUDA library; Python refuses a library with another one."""
    for path in ("cpu/api.cpp", "cuda/api.cu"):
        text = (ROOT / "csrc" / path).read_text(encoding="utf-8")
        start = text.index("fd_schema(void) {")
        body = text[start : text.index("}", start)]
        returned = re.sub(r'FD_OUTPUT\("\w+"\)', "", body[body.index("return") :])
        header = "".join(re.findall(r'"([^"]*)"', returned))
        assert header.split(",") == [*table.HEADER, *table.FURTHER], path
        assert re.findall(r'FD_OUTPUT\("(\w+)"\)', body) == list(table.OUTPUTS), path
        operands = re.search(r"FD_OUTPUT\(o\)(.*)", body)
        assert operands and re.findall(r"\.(\w+)", operands[1]) == list(table.OPERANDS), path


@pytest.mark.parametrize("kernel", STEP_KERNELS)
def test_the_triton_kernels_of_a_row(kernel: str) -> None:
    """A constant with the name of a column or an operand has its number."""
    numbers = constants(kernel)
    assert numbers
    sizes = {
        "COLUMNS": len(table.COLUMNS),
        "FIRST": len(table.HEADER),
        "OPERANDS": len(table.OPERANDS),
    }
    for name, number in numbers.items():
        column = name.lower()
        if name in sizes:
            assert number == sizes[name], name
        elif column in table.OPERANDS:
            assert table.OPERANDS[number] == column, name
        elif column in table.INDEX:
            assert number == table.INDEX[column], name
        else:
            assert "COLUMN" not in name, name


def test_the_masks_of_the_triton_kernels() -> None:
    """`operand_used` and `output_used` compute with the first coefficient and eight operands."""
    text = (KERNELS / "combine.py").read_text(encoding="utf-8")
    first, operands, outputs = len(table.HEADER), len(table.OPERANDS), len(table.OUTPUTS)
    assert f"mask >> {first} + {operands} * output + operand & 1" in text
    assert f"for output in range({outputs})" in text
    assert f"mask >> {first} + {operands} * output & {2**operands - 1} != 0" in text


def test_the_triton_launcher() -> None:
    """The bit masks by which the launcher decides what a table needs."""
    of_kinds = ("GUIDANCE_KIND", "GUIDANCE_X", "GUIDANCE_MOMENTUM")
    for name in ("OUT_GRAD", "X0_X", "X0_OUT", "CLIP_MODE", "NOISE_MODE", "OUT_UNCOND", *of_kinds):
        assert getattr(launch_step, name) == table.columns(name.lower()), name
    for number, operand in enumerate(table.OPERANDS):
        assert launch_step._reads(number) == table.READS[operand], operand
    assert launch_step.HEADER == table.columns(*table.HEADER)


def test_the_triton_kernel_of_the_bound() -> None:
    numbers = constants("vlb_terms")
    assert numbers.pop("COLUMNS") == len(table.VLB_COLUMNS)
    assert {name.lower(): number for name, number in numbers.items()} == {
        name: number for number, name in enumerate(table.VLB_COLUMNS)
    }


def test_the_page_of_formulas() -> None:
    text = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, flags=re.M)
    assert [(int(number), name) for number, name in rows] == [
        *enumerate(table.HEADER),
        *((table.INDEX[name], name) for name in table.FURTHER),
    ]
    assert f"schema version {table.SCHEMA_VERSION}" in text
    first = len(table.HEADER)
    names = " ".join(f"x.{operand}" for operand in table.OPERANDS)
    assert f"| {first}–{first + len(table.OPERANDS) - 1} | `{names}` |" in text


def test_the_numbers_of_the_ops() -> None:
    """The C enum, the error codes of the Triton launcher, and the list in abi.py."""
    text = (ROOT / "csrc" / "include" / "fastdiff" / "ops.h").read_text(encoding="utf-8")
    members = re.search(r"enum \{\s*(FD_RANDN[^}]*)\}", text)
    assert members
    names = [name.lower().removeprefix("fd_") for name in re.findall(r"\w+", members[1])]
    assert names == [*abi.COUNTED, "ops"]
    assert set(abi.PASSES) < set(abi.COUNTED)
    assert set(launch_common.ERRORS) < set(table.OPS)


def test_the_list_of_ops_is_that_of_the_public_functions() -> None:
    assert set(ops.__all__) == set(table.OPS)


def test_the_memory_of_a_long_samples_parts() -> None:
    """The op allocates by these numbers, and the launchers divide the memory by theirs."""
    assert step.HEAD_ROWS == launch_step.HEAD_ROWS
    numbers = {
        "PART_WORDS": step.PART_WORDS,
        "SAMPLE_WORDS": step.SAMPLE_WORDS,
        "MOST_PARTS": step.MOST_PARTS,
    }
    assert numbers == {
        "PART_WORDS": launch_step.PART_WORDS,
        "SAMPLE_WORDS": launch_step.SAMPLE_WORDS,
        "MOST_PARTS": launch_step._MOST_PARTS,
    }
    header = (ROOT / "csrc" / "include" / "fastdiff" / "ops.h").read_text(encoding="utf-8")
    assert numbers == {
        name: int(value)
        for name, value in re.findall(r"FD_(PART_WORDS|SAMPLE_WORDS|MOST_PARTS) = (\d+)", header)
    }
