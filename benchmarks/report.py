"""Writes result files as pages with tables and figures, or compares two runs.

    python -m benchmarks.report RESULT.json [OTHER.json …] [--out docs/performance]
    python -m benchmarks.report --compare A.json B.json

A result is a file that `pytest benchmarks --benchmark-only --benchmark-json FILE` wrote, or a
folder of such files of one machine, as `make gpu-report` writes. Without names, all results in
benchmarks/results are taken. Each becomes a page in --out, with an index in its README.md. The list
"where we lose" is made from the rows; it is also written to README.md, between two marks. Without
names and with the default --out, docs/choosing.md is made too, from the file of
`python -m benchmarks.choosing`, and the README's section about the shipped weights, from that of
`python -m benchmarks.quality`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import compare, tables
from benchmarks.rows import WHERE, NoRows, Result, best, case, load, lost

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "performance"
BEGIN, END = "<!-- where-we-lose:begin -->", "<!-- where-we-lose:end -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pages, or compares two runs.

    Returns the exit status: 1 if two runs disagree, 2 if a file can't be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULT",
        help="a JSON file, or a folder of one machine's files",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="where to write (docs/performance)"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="file with the list to rewrite (README.md, with the default --out)",
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs on one machine"
    )
    args = parser.parse_args(argv)
    try:
        if args.compare:
            return print_comparison(load(args.compare[0]), load(args.compare[1]))
        readme = args.readme or (ROOT / "README.md" if args.out.resolve() == OUT else None)
        for path in write([load(p) for p in args.results or everything()], args.out, readme):
            print(path)
        if not args.results and args.out.resolve() == OUT:
            from benchmarks import shipped
            from benchmarks.choosing import page

            for path in [*page.write(), *shipped.write()]:
                print(path)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def everything(folder: Path = ROOT / "benchmarks" / "results") -> list[Path]:
    """Returns the files and folders of benchmarks/results that hold rows, not records of other
    kinds.
    """
    found = []
    for path in sorted(folder.iterdir()):
        try:
            load(path)
        except NoRows:
            continue
        found.append(path)
    return found


def write(results: Sequence[Result], out: Path, readme: Path | None = None) -> list[Path]:
    """Writes a page with figures for each result, the index, and the readme's list.

    Returns the written files. Raises ValueError for two results of one name, and for a readme
    without the two marks.
    """
    from benchmarks import plots  # imports matplotlib, which a comparison does not need

    names = [r.name for r in results]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{WHERE}: expected results of different names, got {', '.join(names)}. A page is named"
            " by its file."
        )
    text = None
    if readme is not None:
        content = readme.read_text(encoding="utf-8")
        text = tables.between(content, BEGIN, END, losses(results), readme)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for result in results:
        pictures = plots.draw(result, out)
        page = out / f"{result.name}.md"
        page.write_text(tables.page(result, pictures), encoding="utf-8")
        written += [page, *(out / name for name in pictures.values())]
    index = out / "README.md"
    index.write_text(summary(results), encoding="utf-8")
    written.append(index)
    if readme is not None and text is not None:
        readme.write_text(text, encoding="utf-8")
        written.append(readme)
    return written


def summary(results: Sequence[Result]) -> str:
    """Returns the index: a line for each machine, and where fastdiff loses on any."""
    body = []
    for result in results:
        compared = [r for row in result.rows if (r := best(row)) is not None]
        counts = [len(result.rows), len(compared), sum(r.median >= 1 for r in compared)]
        body.append(
            [f"[{result.name}]({result.name}.md)", *map(str, counts), tables.machine(result)]
        )
    head = ["page", "rows", "with a peer", "not slower than the fastest", "machine"]
    commands = (
        "```\npytest benchmarks --benchmark-only --benchmark-json benchmarks/results/NAME.json    #"
        " --quick, --full\npython -m benchmarks.report                                # these"
        " pages, from the files there\npython -m benchmarks.report --compare A.json B.json        #"
        " do two runs agree?\n```"
    )
    about = "Measured by fastdiff's benchmark suite; pages and pictures are made from its files:"
    machines = [tables.table(head, body)] if body else []
    return (
        "\n\n".join(
            ["# Performance", about, commands, *machines, "## Where we lose", losses(results)]
        )
        + "\n"
    )


def losses(results: Sequence[Result]) -> str:
    """Returns the list of rows in which a peer is faster, machine by machine."""
    if not results:
        return (
            "No result of the suite is in benchmarks/results yet; `make report` writes this list"
            " from what is there."
        )
    parts = [f"{r.name}: {tables.losses(r)[0].lower()}{tables.losses(r)[1:]}" for r in results]
    return "\n\n".join(parts)


def print_comparison(first: Result, second: Result) -> int:
    """Prints the ratios that do not repeat; returns 0 if all do."""
    verdicts, more = compare.compare(first, second)
    outside = [v for v in verdicts if not v.within]
    for verdict in outside:
        print(verdict)
    for row in more:
        print(f"only in {second.name}: {row['kind']} {row['what']} ({case(row)})")
    print(
        f"{len(verdicts) - len(outside)} of {len(verdicts)} ratios lie within [p20, p80] of"
        f" {first.name}, widened by {100 * compare.WIDER:.0f} %; lost rows: {len(lost(first.rows))}"
        f" then {len(lost(second.rows))}"
    )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
