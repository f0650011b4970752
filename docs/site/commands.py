"""The command line's pages, from its parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from fastdiff.cli import parser_of

FORMATTER = argparse.HelpFormatter("fastdiff")


class Commands(SphinxDirective):
    """`.. commands::` has a section for each command, with its arguments."""

    def run(self) -> Sequence[nodes.Node]:
        lines = StringList(list(_program(parser_of())), source="the parsers of fastdiff.cli")
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(lines, 0, section, match_titles=True)
        return section.children


def _program(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields the reStructuredText of a parser and of its commands."""
    for command, sub in _commands(parser):
        title = sub.prog.removeprefix("fastdiff ")
        yield from (title, "-" * len(title), "", f".. program:: {sub.prog}", "")
        about = sub.description or command.help or ""
        yield from (_escaped(about[:1].upper() + about[1:].rstrip(".") + "."), "")
        yield from (".. code-block:: text", "", f"   {_usage(sub)}", "")
        for action in sub._actions:
            if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
                continue
            yield from _argument(action)
        yield from _program(sub)


def _usage(parser: argparse.ArgumentParser) -> str:
    """Returns the usage without the options, which are listed below it."""
    arguments = [_names(action) for action in parser._actions if not action.option_strings]
    return " ".join([parser.prog, *arguments, "[options]"])


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[argparse.Action, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for about in action._choices_actions:
                yield about, action.choices[about.dest]


def _argument(action: argparse.Action) -> Iterator[str]:
    if action.help is not argparse.SUPPRESS:
        about = FORMATTER._expand_help(action) if action.help else ""
        yield from (f".. option:: {_names(action)}", "", f"   {_escaped(about)}", "")


def _names(action: argparse.Action) -> str:
    """Returns an option as `-n N, --num N`, or the name of a positional argument."""
    if not action.option_strings:
        return FORMATTER._metavar_formatter(action, action.dest)(1)[0]
    default = FORMATTER._get_default_metavar_for_optional(action)
    value = FORMATTER._format_args(action, default)
    return ", ".join(f"{name} {value}".strip() for name in action.option_strings)


def _escaped(text: str) -> str:
    text = re.sub(r"([\\*|]|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"`([^`]+)`", r"``\1``", text)
