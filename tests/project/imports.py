"""Reads which files of the package import which, from their source and without running it.

An import is any of:

- an `import` or `from` statement at any depth: in functions, in classes, under TYPE_CHECKING;
- a string constant that names a module by its full dotted name, `"fastdiff.x.y"` or
  `"fastdiff.x.y:attribute"`;
- in a file that imports by string (IMPORTERS), a string constant that names a module relative to
  the file's package, `"x.y"` or `".x.y"`, and `__package__`, which names the package itself.

A docstring is no import. Neither is a string in which a module names itself or a package that it is
in: error messages begin with that name.

`import fastdiff.x.y` counts as an import of the file of `fastdiff.x.y` only, although Python runs
the `__init__.py` of `fastdiff` and `fastdiff.x` first.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "fastdiff"
KERNELS = "fastdiff_kernels"
# functions that take the name of a module
IMPORTERS = {
    "import_module",
    "on_first_use",
    "__import__",
    "find_spec",
    "iter_modules",
    "walk_packages",
}
_DOTTED = re.compile(r"\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")


class Tree:
    """The modules of the package in a tree, by dotted name."""

    def __init__(self, root: Path = ROOT):
        self.root = root
        self.modules: dict[str, Path] = {}
        for path in sorted((root / PACKAGE).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self._found: dict[str, dict[str, int]] = {}

    def find(self, name: str) -> str | None:
        """Returns the longest prefix of a dotted name that is a module, or None."""
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            if (prefix := ".".join(parts[:count])) in self.modules:
                return prefix
        return None

    def package_of(self, module: str) -> str:
        """Returns the name that a module's relative imports start from."""
        is_package = self.modules[module].name == "__init__.py"
        return module if is_package else module.rpartition(".")[0]

    def imports(self, module: str, source: str | None = None) -> dict[str, int]:
        """Returns the imported modules, each with its first line; Triton's kernels as KERNELS.

        source: text to read in place of the module's file.
        """
        if source is None:
            if module not in self._found:
                text = self.modules[module].read_text(encoding="utf-8")
                self._found[module] = self.imports(module, text)
            return self._found[module]
        tree = ast.parse(source)
        found: dict[str, int] = {}
        for name, line, is_string in self._names(tree, self.package_of(module)):
            if name.split(".")[0] == KERNELS:
                found.setdefault(KERNELS, line)
            target = self.find(name)
            if target is None or target == module:
                continue
            if is_string and (target == PACKAGE or f"{module}.".startswith(f"{target}.")):
                continue
            found.setdefault(target, line)
        return found

    def _names(self, tree: ast.Module, package: str) -> Iterator[tuple[str, int, bool]]:
        """Yields (dotted name, line, whether it is a string)."""
        by_string = imports_by_string(tree)
        docstrings = set(_docstrings(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno, False) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                name = ".".join([*(base if node.level else []), *filter(None, [node.module])])
                yield from ((f"{name}.{alias.name}", node.lineno, False) for alias in node.names)
            elif isinstance(node, ast.Call) and _called(node) in IMPORTERS:
                for part in node.args[:1]:
                    if isinstance(part, ast.Name) and part.id == "__package__":
                        yield package, node.lineno, False
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if id(node) in docstrings or not _DOTTED.fullmatch(text):
                    continue
                text = text.partition(":")[0]
                if text.split(".")[0] in (PACKAGE, KERNELS):
                    yield text, node.lineno, True
                elif by_string:
                    name = f"{package}.{text.removeprefix('.')}"
                    if name in self.modules:
                        yield name, node.lineno, False


def imports_by_string(tree: ast.Module) -> bool:
    """Returns whether a file calls a function that takes the name of a module."""
    return any(isinstance(n, ast.Call) and _called(n) in IMPORTERS for n in ast.walk(tree))


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _docstrings(tree: ast.Module) -> Iterator[int]:
    """Yields the identities of the constants that are statements of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the sets of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)
