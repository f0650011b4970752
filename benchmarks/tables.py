"""Writes a machine's rows as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import (
    KINDS,
    WHERE,
    Result,
    Row,
    best,
    case,
    figure,
    lost,
    ratios,
    seconds,
    size,
    threads,
)

# written once above a table if all its rows agree
SHARED = ("device", "backend", "threads", "cache", "per")
PICTURES = {
    "overview": "The rows nearest to losing",
    "roofline": "Achieved rates under their ceilings",
    "growth": "How time and memory grow",
}
READING = (
    "Times are medians; in brackets the 20th and 80th percentile. A ratio is the peer's time over"
    " fastdiff's, pair by pair of interleaved measurements: above 1 fastdiff is faster; the fastest"
    " peer is in bold. GB/s are the fewest bytes that the work must move, divided by the time;"
    " `% of copy` compares them with a plain copy in the same run (above 100: in cache)."
    " `% of issue` is how near a noise kernel is to the rate at which its instructions can be"
    " issued. A row whose result was wrong has no time: the run fails there."
)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, without the columns that are empty in every row."""
    shown = [i for i in range(len(head)) if any(line[i] for line in body)]
    lines = [
        [head[i] for i in shown],
        ["---"] * len(shown),
        *([line[i].replace("|", "\\|") for i in shown] for line in body),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between(content: str, begin: str, end: str, text: str, path: Path) -> str:
    """Returns the content of the file `path` with the text between its two marks.

    Raises ValueError unless the marks are there, once each and in order.
    """
    if [content.count(begin), content.count(end)] != [1, 1] or (
        content.index(begin) > content.index(end)
    ):
        raise ValueError(
            f"{WHERE}: expected {begin} and then {end}, once each, in {path}, got other marks."
            " Restore them."
        )
    return (
        content[: content.index(begin) + len(begin)] + f"\n{text}\n" + content[content.index(end) :]
    )


def page(result: Result, pictures: Mapping[str, str]) -> str:
    """Returns the whole page. pictures: {kind of figure: file name}, see benchmarks.plots."""
    parts = [
        f"# Performance: {result.name}",
        machine(result),
        READING,
        "## Where we lose",
        losses(result),
    ]
    for name, title in PICTURES.items():
        if name in pictures:
            parts.append(f"![{title}]({pictures[name]})")
    if result.predictions:
        parts += ["## Predicted and measured", predicted(result.predictions)]
    kinds = [*KINDS, *sorted({r["kind"] for r in result.rows} - KINDS.keys())]
    for kind in kinds:
        rows = [r for r in result.rows if r["kind"] == kind]
        if not rows:
            continue
        parts.append(f"## {KINDS.get(kind, kind.capitalize())}")
        if f"ratios-{kind}" in pictures:
            parts.append(f"![ratios: {kind}]({pictures[f'ratios-{kind}']})")
        parts += growth(rows) if kind == "growth" else [group(rows)]
    if found := compiled(result.rows):
        parts += ["## Compile times, in no time above", found]
    return "\n\n".join(filter(None, parts)) + "\n"


def machine(result: Result) -> str:
    """Returns a sentence with the machine, versions and missing peers."""
    about = result.about.get("fastdiff", {})
    facts = []
    cpu, gpu = about.get("cpu") or {}, about.get("gpu") or {}
    brand = cpu.get("name") or (result.about.get("cpu") or {}).get("brand_raw")
    if gpu:
        facts.append(str(gpu.get("name", gpu)))
    if brand:
        facts.append(
            " ".join(
                filter(None, [str(brand), str(cpu.get("level") or cpu.get("capability") or "")])
            )
        )
    if about.get("copy_GB_per_s"):
        facts.append(f"copy {figure(about['copy_GB_per_s'])} GB/s read and written")
    versions = about.get("versions") or {}
    facts += [f"{name} {v}" for name, v in versions.items() if v]
    if about.get("tier"):
        facts.append(f"tier {about['tier']}")
    if about.get("commit"):
        facts.append(f"commit {str(about['commit'])[:12]}")
    text = "; ".join(facts) + "." if facts else ""
    missing = about.get("missing") or []
    names = (
        [m if isinstance(m, str) else ": ".join(map(str, m)) for m in missing]
        if isinstance(missing, list)
        else [f"{name} ({why})" for name, why in missing.items()]
    )
    return f"{text} Not there to compare with: {', '.join(names)}." if names else text


def group(rows: Sequence[Row]) -> str:
    """Returns one table, below a sentence with what all its rows share."""
    shared, varying = common(rows)
    timed = any(row.get("host_us") is not None for row in rows)  # the host, on a GPU
    head = [
        "",
        "case",
        "time",
        "times faster than",
        "GB/s",
        "TFLOP/s",
        "% of copy",
        "% of issue",
        *(["host"] if timed else []),
        "extra memory",
        "checked",
    ]
    body = []
    for row in rows:
        low, middle, high = map(seconds, row["us"])
        issue = (row.get("instructions") or {}).get("percent")
        body.append(
            [
                row["what"],
                case(row, also=varying),
                f"{middle} [{low}, {high}]",
                against(row),
                figure(row.get("GB_per_s")),
                figure(row.get("TFLOP_per_s")),
                percent(row.get("percent_of_copy")),
                percent(issue),
                *([_host(row)] if timed else []),
                size(row.get("extra_bytes")),
                row.get("checked") or "",
            ]
        )
    return "\n\n".join(filter(None, [shared, table(head, body)]))


def _host(row: Row) -> str:
    return "-" if row.get("host_us") is None else seconds(row["host_us"][1])


def common(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Returns (a sentence with what is the same in all rows, the fields that differ)."""
    words, varying = [], []
    for name in SHARED:
        values = {row.get(name) for row in rows}
        if len(values) > 1:
            varying.append(name)
        elif (value := values.pop()) is not None:
            text = {
                "threads": threads(value),
                "cache": f"{value} cache",
                "per": f"times per {value}",
                "backend": f"backend {value}",
            }
            words.append(text.get(name, str(value)))
    text = ", ".join(dict.fromkeys(words))
    return f"{text[0].upper()}{text[1:]}." if text else "", varying


def against(row: Row) -> str:
    """Returns the ratio to each peer, the fastest first and in bold; then the missing peers."""
    fastest, shown = best(row), []
    for r in ratios(row):
        mode = row["peers"][r.peer].get("mode")
        text = f"{r.peer} ({mode}) {r}" if mode else f"{r.peer} {r}"
        shown.append(f"**{text}**" if r == fastest else text)
    shown += [f"{name}: {p['missing']}" for name, p in row["peers"].items() if "missing" in p]
    return "<br>".join(shown)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def losses(result: Result) -> str:
    """Returns the list of rows in which the fastest peer is faster."""
    rows, compared = lost(result.rows), sum(best(row) is not None for row in result.rows)
    if not rows:
        return f"In none of {compared} rows with a peer." if compared else "No peer ran."
    return f"In {len(rows)} of {compared} rows with a peer:\n\n" + "\n".join(loss_lines(rows))


def loss_lines(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        r = best(row)
        assert r is not None
        also = [name for name in ("cache", "backend", "threads") if row.get(name) is not None]
        mode = row["peers"][r.peer].get("mode")
        peer = f"{r.peer} ({mode})" if mode else r.peer
        lines.append(f"- {row['what']}, {case(row, also=also)}: {r} times as fast as {peer}")
    return lines


def compiled(rows: Sequence[Row]) -> str:
    """Returns the table of compile times, empty if nothing was compiled."""
    body = []
    for row in rows:
        arms = {"fastdiff": row, **row["peers"]}
        for name, arm in arms.items():
            if arm.get("compile_s") is not None:
                mode = str(arm.get("mode") or "")
                body.append([row["what"], case(row), name, mode, f"{figure(arm['compile_s'])} s"])
    return table(["", "case", "arm", "mode", "compile time"], body) if body else ""


def growth(rows: Sequence[Row]) -> list[str]:
    """Returns the table of exponents of time and memory; the figure shows the points."""
    body = []
    for row in rows:
        g = row.get("growth") or {}
        x = g.get("x") or [None, None]
        powers = [power(g, "exponent", "error"), power(g, "bytes_exponent", "bytes_error")]
        body.append(
            [
                row["what"],
                case(row),
                f"{g.get('over', '')}, {x[0]} … {x[-1]}",
                *powers,
                against(row),
            ]
        )
    return [
        table(["", "case", "over", "time grows as", "memory grows as", "times faster than"], body)
    ]


def power(g: Mapping[str, Any], name: str, error: str) -> str:
    """Returns x^e with its standard error; name, error: the entries of `growth` that hold them.

    An error of 0 is left out, because a line always fits two points.
    """
    if g.get(name) is None:
        return ""
    found = g.get(error)
    return f"{g.get('over', 'x')}^{g[name]:.2f}" + (f" ± {found:.2f}" if found else "")


def predicted(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of predictions with their measurements and verdicts."""
    names = ["kernel", "what", "predicted", "measured", "verdict"]
    return table(names, [[str(p.get(name) or "") for name in names] for p in predictions])
