"""The files for a public host agree with the tree: workflows run its targets, and versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from imports import ROOT
from trees import files

import fastdiff

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed here")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M))
MAKE = re.compile(r"make(?: [A-Z]\w*=\S+)* ([a-z-]+)")


def load(path: Any) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Any) -> Iterator[str]:
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


@pytest.mark.parametrize(
    "path",
    [p for p in files() if p.suffix in (".yml", ".yaml", ".cff")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_yaml_is_read(path: Any) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_run_make_targets(path: Any) -> None:
    run = list(commands(load(path)))
    assert run
    for line in run:
        found = MAKE.fullmatch(line)
        assert found and found[1] in TARGETS, line


def test_the_tests_of_the_host_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    run = list(commands(load(ROOT / ".github" / "workflows" / "tests.yml")))
    assert run == [line for line in ci if line.startswith("make ")]


def test_there_is_a_wheel_for_each_platform() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "wheels.yml")["jobs"]
    made = {
        row["platform"]: row["libraries"] for row in jobs["wheel"]["strategy"]["matrix"]["include"]
    }
    assert made == {"linux-x86_64": "1", "linux-aarch64": "1", "pure": "0"}
    assert set(jobs["publish"]["needs"]) == {"wheel", "sdist"}


def test_the_citation_is_of_this_version() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == fastdiff.__version__
    assert {"title", "authors", "message", "cff-version"} <= set(citation)
    minor = fastdiff.__version__.rpartition(".")[0]
    assert f"| {minor} | yes |" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_pre_commit_checks_what_lint_checks() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    used = {hook["entry"].removeprefix("sh scripts/run -m ") for hook in repository["hooks"]}
    lint = re.findall(r"\$\(call check,(\w+),([a-z]*)", MAKEFILE)
    assert used == {f"{tool} {what}".strip() for tool, what in lint}


def test_help_lists_every_target() -> None:
    listed = set(re.findall(r"^([a-z-]+):.*## \w", MAKEFILE, flags=re.M))
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.M)
    assert listed == TARGETS == set(phony.split())
    assert re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M)[0] == "help", "make alone lists them"


def test_pages_name_targets_that_exist() -> None:
    for page in (p for p in files() if p.suffix == ".md" and p.name != "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        blocks = "".join(re.findall(r"^```.*?^```", text, flags=re.S | re.M))
        named = [
            *re.findall(r"^make .*", blocks, flags=re.M),
            *re.findall(r"`(make [^`\n]+)`", text),
        ]
        for command in named:
            found = MAKE.match(command)
            assert found is None or found[1] in TARGETS, f"{page.relative_to(ROOT)}: {command}"
