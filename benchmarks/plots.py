"""The figures of a machine's rows: rates under their ceilings, bars of ratios, growth curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend first)
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from benchmarks.rows import Result, Row, best, case, figure, ratios  # noqa: E402

WIDTH, DPI = 8.4, 100  # inches, dots per inch: the width of a README
FEWEST, MOST = 4, 32  # bars of a figure
FASTER, SLOWER, GREY = "#1f77b4", "#d9541e", "#777777"
MARKS = "osD^vP*Xhp<>"


def draw(result: Result, out: Path) -> dict[str, str]:
    """Draws the figures that the rows allow; returns {kind of figure: file name}."""
    drawn = {}
    for name, picture in {"roofline": roofline(result.rows), "growth": growth(result.rows)}.items():
        if picture is not None:
            drawn[name] = picture
    compared = [row for row in result.rows if best(row) is not None]
    if compared:
        drawn["overview"] = bars(compared, "all kinds")
    for kind in dict.fromkeys(row["kind"] for row in compared):
        rows = [row for row in compared if row["kind"] == kind]
        if FEWEST <= len(rows) < len(compared):  # fewer are easy to read in the table
            drawn[f"ratios-{kind}"] = bars(rows, kind)
    names = {}
    for name, picture in drawn.items():
        names[name] = f"{result.name}-{name}.png"
        picture.savefig(out / names[name], dpi=DPI, metadata={"Software": None})
        plt.close(picture)
    return names


def roofline(rows: Sequence[Row]) -> Any:
    """Draws elements per second over the bytes that each must move, under the copy's bandwidth and
    the ceilings of noise kernels.
    """
    points: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["kind"] not in ("op", "step") or not all(
            row.get(k) for k in ("elements", "bytes_floor", "copy_GB_per_s")
        ):
            continue
        name = (
            row["what"],
            row["case"].get("dtype"),
            row.get("cache"),
            row.get("threads"),
            row.get("backend"),
            row["case"].get("mode"),
        )
        if name not in points or row["elements"] > points[name]["elements"]:
            points[name] = row  # the largest shape of each
    if not points:
        return None
    picture, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    copy = sorted(row["copy_GB_per_s"] for row in points.values())[len(points) // 2]
    widths = [row["bytes_floor"] / row["elements"] for row in points.values()]
    ends = [min(widths) / 1.5, max(widths) * 1.5]
    axes.plot(
        ends,
        [copy / b for b in ends],
        color="black",
        lw=1,
        label=f"copy, {figure(copy)} GB/s\n(median of the rows')",
    )
    named = dict.fromkeys(name[0] for name, row in points.items() if row["kind"] != "step")
    colours = {what: f"C{i % 10}" for i, what in enumerate(named)}
    marks = {what: MARKS[i % len(MARKS)] for i, what in enumerate(named)}
    # the steps of many solvers look alike and have one entry in the legend
    steps = [name[0] for name, row in points.items() if row["kind"] == "step"]
    colours |= dict.fromkeys(steps, GREY)
    marks |= dict.fromkeys(steps, ".")
    at_width: dict[float, list[str]] = {}
    for (what, _, cache, *_), row in points.items():
        width = row["bytes_floor"] / row["elements"]
        same = at_width.setdefault(width, [])  # ops of one width are drawn next to each other
        if what not in same:
            same.append(what)
        i = same.index(what)
        x = width * 1.035 ** ((i + 1) // 2 * (1 if i % 2 else -1))
        y = row["elements"] / row["us"][1] / 1e3
        full = cache != "cold"
        axes.plot(
            x, y, marks[what], color=colours[what], mfc=colours[what] if full else "white", ms=6
        )
        ceiling = (row.get("instructions") or {}).get("ceiling_Melem_per_s")
        if ceiling:
            axes.plot([x, x], [y, ceiling / 1e3], color=colours[what], lw=0.6, alpha=0.6)
            axes.plot(x, ceiling / 1e3, "_", color=colours[what], ms=11, mew=2)
    for what in named:
        axes.plot([], [], marks[what], color=colours[what], ms=6, label=what)
    if steps:
        axes.plot([], [], ".", color=GREY, ms=6, label="steps of the solvers")
    if any((row.get("instructions") or {}).get("ceiling_Melem_per_s") for row in points.values()):
        axes.plot([], [], "_", color=GREY, ms=11, mew=2, label="what instructions allow")
    if len({name[2] for name in points}) > 1:
        axes.plot([], [], "o", color=GREY, mfc="white", ms=6, label="hollow: cold cache")
    axes.set(xscale="log", yscale="log", xlabel="bytes an element must move", ylabel="Gelements/s")
    axes.set_title("Ops and steps at their largest shape", fontsize=11)
    plainly(axes.xaxis)
    plainly(axes.yaxis)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def bars(rows: Sequence[Row], title: str) -> Any:
    """Draws a bar for each row: the ratio to the fastest peer; the ratios to others are dots."""
    ordered = sorted(rows, key=lambda row: best(row).median)  # type: ignore[union-attr]
    shown, cut = ordered[:MOST], len(ordered) > MOST
    also = [
        name for name in ("cache", "backend", "threads") if len({row.get(name) for row in rows}) > 1
    ]
    picture, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.27 * len(shown)), layout="constrained")
    peers = list(dict.fromkeys(r.peer for row in rows for r in ratios(row)))
    marks = {peer: MARKS[i % len(MARKS)] for i, peer in enumerate(peers)}
    for y, row in enumerate(shown):
        first = best(row)
        assert first is not None
        others = [r for r in ratios(row) if r != first]
        axes.barh(
            y,
            first.median - 1,
            left=1,
            height=0.62,
            color=FASTER if first.median >= 1 else SLOWER,
            alpha=0.75,
        )
        error = [[max(0.0, first.median - first.p20)], [max(0.0, first.p80 - first.median)]]
        axes.errorbar(
            first.median,
            y,
            xerr=error,
            fmt=marks[first.peer],
            color="black",
            ms=4,
            lw=1.1,
            capsize=2.5,
        )
        for other in others:
            axes.plot(other.median, y, marks[other.peer], color=GREY, ms=4, alpha=0.8)
    for peer in peers:
        axes.plot([], [], marks[peer], color="black", ms=4, label=peer)
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    low = min(r.p20 for row in shown for r in ratios(row))
    high = max(r.p80 for row in shown for r in ratios(row))
    axes.set_xlim(min(0.8, low / 1.15), max(1.25, high * 1.15))
    plainly(axes.xaxis)
    axes.set_yticks(range(len(shown)), [label(row, also) for row in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(
        "times faster than the fastest peer (bar), the others (grey); whiskers: 20th to 80th"
        " percentile",
        fontsize=8,
    )
    axes.set_title(
        f"{title}: the {MOST} lowest of {len(ordered)} rows" if cut else title, fontsize=11
    )
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return picture


def growth(rows: Sequence[Row]) -> Any:
    """Draws time and, where rows have it, memory over batch, steps or workers, with the power that
    is fitted to the last decade.
    """
    every = [row for row in rows if row.get("growth") and len(row["growth"].get("x", ())) > 1]
    longest = {row["what"]: row for row in sorted(every, key=lambda row: len(row["growth"]["x"]))}
    found = [row for row in every if longest[row["what"]] is row]
    overs = list(dict.fromkeys(row["growth"]["over"] for row in found))
    if not overs:
        return None
    lines = [("us", "exponent", "ms", 1e3)]
    if any(row["growth"].get("bytes") for row in found):
        lines.append(("bytes", "bytes_exponent", "MiB", 2**20))
    picture, grid = plt.subplots(
        len(lines),
        len(overs),
        figsize=(WIDTH, 3.1 * len(lines)),
        layout="constrained",
        squeeze=False,
    )
    for column, over in enumerate(overs):
        for line, (values, power, unit, scale) in enumerate(lines):
            axes = grid[line][column]
            for row in (r for r in found if r["growth"]["over"] == over):
                g = row["growth"]
                pairs = [
                    (x, v / scale)
                    for x, v in zip(g["x"], g.get(values) or [], strict=False)
                    if v and v > 0
                ]
                if not pairs:
                    continue
                x, y = zip(*pairs, strict=True)
                drawn = axes.plot(x, y, "o", ms=4)[0]
                name = row["what"]
                if g.get(power) is not None:
                    last = [(u, v) for u, v in pairs if 10 * u >= x[-1]]
                    middle = [sum(map(math.log, v)) / len(v) for v in zip(*last, strict=True)]
                    fitted = [
                        math.exp(middle[1] + g[power] * (math.log(u) - middle[0])) for u, _ in last
                    ]
                    axes.plot([u for u, _ in last], fitted, color=drawn.get_color(), lw=1)
                    name += f": {over}$^{{{g[power]:.2f}}}$"
                drawn.set_label(name)
            axes.set(xscale="log", yscale="log", xlabel=over, ylabel=unit)
            low, high = axes.get_ylim()
            if high < 1.5 * low:
                axes.set_ylim(low / 2, high * 2)
            plainly(axes.xaxis)
            plainly(axes.yaxis)
            axes.grid(which="major", alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7, frameon=False)
            else:
                axes.set_visible(False)
    return picture


def label(row: Row, also: Sequence[str]) -> str:
    text = f"{row['what']}, {case(row, also=also)}".rstrip(", ")
    return text if len(text) <= 64 else text[:63] + "…"


def plainly(axis: Any) -> None:
    """Labels an axis with numbers instead of powers of ten: 0.8, 1, 1.2; 1, 2, 5; or 1, 10, 100, by
    its range.
    """
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    subs = (
        (1.0, 1.2, 1.5, 2, 3, 4, 6, 8)
        if decades < 0.7
        else (1.0, 2, 5)
        if decades < 2.2
        else (1.0,)
    )
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
