"""Writes docs/choosing.md and its pictures from the result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.choosing import mixture as oracle
from benchmarks.choosing.ranking import BANDS, RESOLUTION, Mixture
from benchmarks.choosing.results import RESULT, read
from benchmarks.choosing.weights import digest
from benchmarks.tables import table
from fastdiff.pretrained import read_config
from fastdiff.sampling.settings import DEFAULT_SOLVER
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.advice import ADVICE, Advice
from fastdiff.solvers.grids import SPACINGS
from fastdiff.solvers.registry import DEFAULT_SPACING

PAGE = Path(__file__).parents[2] / "docs" / "choosing.md"
FIGURES = PAGE.parent / "choosing"
LISTED = (5, 10, 20, 50)  # numbers of calls in the long tables
CASES = {
    "betas": "A network trained on betas (`Schedule.scaled_linear(1000)`)",
    "edm": "EDM's noise levels (`Schedule.karras(1000)`)",
    "flow": "A flow (`Schedule.flow(1000, shift=3.0)`)",
    "guided": "Betas with guidance (strength 4), solvers without noise",
}
COMPARED, UNGUIDED = (10, 20), ("few", "many", "noise")  # in the table of the defaults
BEHIND = 1.5  # times the best score, which no line of the advice may lie behind


def standing(mixture: Mixture, advice: Advice) -> tuple[float, int, int]:
    """Returns (score over the best's, place, number of solvers and grids) in the advice's band."""
    found = mixture.ranked(BANDS[advice.case])
    for place, each in enumerate(found, 1):
        if (each.solver, each.grid) == (advice.solver, advice.spacing):
            return each.score / found[0].score, place, len(found)
    raise ValueError(f"no score of {advice.solver} on {advice.spacing} for {advice.case}")


def number(value: float | None) -> str:
    """Returns an error as text with two digits, - where there is none."""
    return "-" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def text(content: Mapping[str, Any]) -> str:
    """Returns the page."""
    mixture, weights = Mixture(content["mixture"]), content["weights"]
    parts = [
        "# Which solver should I take?",
        _answer(mixture, weights),
        "## How it was measured",
        _method(mixture, weights),
        "## The shipped weights",
        *_weights(weights),
        "## The exact network",
        *_exact(mixture),
        "## The defaults",
        _defaults(mixture, weights),
        "## Every solver",
        "The lowest error of each solver with so many network calls, and the grid that has it. A"
        " dash: no run with that number of calls, or it diverges. `lcm` and `tcd` are for networks"
        " distilled for them, which this one is not.",
    ]
    for case, title in CASES.items():
        parts += [f"### {title}", _every(mixture, case)]
    return "\n\n".join(parts) + "\n"


def _answer(mixture: Mixture, weights: Mapping[str, Any]) -> str:
    body = []
    own, strong = _scales(weights)
    for advice in ADVICE:
        scale = strong if advice.case == "guidance" else own
        distance = _distances(weights, scale)
        n = 20 if advice.case == "many" else 10
        found, default = (
            distance.get((*each, n))
            for each in ((advice.solver, advice.spacing), (DEFAULT_SOLVER, DEFAULT_SPACING))
        )
        shown = "-" if found is None else f"{found:.1f}, {default:.1f} with {n} calls"
        factor, place, of = standing(mixture, advice)
        best = mixture.ranked(BANDS[advice.case])[0]
        behind = (
            "the best" if place == 1 else f"{factor:.2f} × the best, {best.solver} on {best.grid}"
        )
        body.append(
            [
                advice.when,
                f"{advice.calls[0]} to {advice.calls[1]}",
                f"`{advice.solver}`",
                f"`{advice.spacing}`",
                f"{behind} (place {place} of {of})",
                shown,
            ]
        )
    head = ["for", "network calls", "`solver`", "`timestep_spacing`", "error of the exact network"]
    head.append("Fréchet distance, and that of the default")
    return (
        "Count network calls and not steps: a step of `heun` makes two, and `fastdiff solvers`"
        " lists how many each solver makes.\n\n"
        + table(head, body)
        + "\n\n`fastdiff solvers` prints this advice too. The error is compared with all solvers on"
        " all grids (with those with noise, for the third line). The default is that of `Sampler`,"
        f" `{DEFAULT_SOLVER}` on `{DEFAULT_SPACING}`.\n\n{_limits(mixture)}"
    )


def _limits(mixture: Mixture) -> str:
    """Returns where the advice ends."""
    guided = [
        f"`{solver}` {number(mixture.error('guided', solver, ADVICE[0].spacing, 5))}"
        for solver in ("ddim", "dpm++2m", "unipc", "ipndm")
    ]
    late = [number(mixture.error("edm", "ipndm", grid, 50)) for grid in ("ays_sdxl", "kl_optimal")]
    return (
        "- `ays_sdxl` begins at the noise level σ/α = 14.6 on every schedule, where Stable"
        " Diffusion's betas end. A network that was trained to begin at pure noise (zero terminal"
        " SNR) sets the mean of a sample above that level: take `trailing` there. For the same"
        " reason the error stops falling at some number of calls on schedules with more noise: on"
        f" EDM's levels `ipndm` has {late[0]} with 50 calls, and {late[1]} on `kl_optimal`.\n"
        "- Strong guidance makes high orders unstable where the calls are very few. With 5 calls"
        f" and strength 4 the errors on `{ADVICE[0].spacing}` are: {', '.join(guided)}.\n"
        "- A distilled network needs the solver that it was distilled for (`lcm`, `tcd`)."
    )


def _method(mixture: Mixture, weights: Mapping[str, Any]) -> str:
    modes = " + ".join(
        f"{w:g} N({m:g}, {s:g}²)"
        for w, m, s in zip(oracle.WEIGHTS, oracle.MEANS, oracle.STDS, strict=True)
    )
    counts = sorted({cell["samples"] for cell in weights["cells"]})
    of_data = weights["real"][str(counts[-1])]
    exact = (
        f"**The exact network.** The data are independent draws of {modes}, of which the optimal"
        f" network has a formula. Every solver ({len(mixture.solvers)}) runs on every grid"
        f" ({len(mixture.grids)}) with {min(mixture.calls)} to {max(mixture.calls)} network calls,"
        " on three schedules. The error is the 1-Wasserstein distance between the samples and the"
        " data, over the data's standard deviation: 0.01 means that a quantile is a hundredth of a"
        " deviation away, on average. Solvers without noise start from the quantiles of the normal"
        " distribution and have no sampling error; those with noise draw"
        f" {oracle.NOISY:,} samples, and as many draws of the data are {mixture.floor:.4f} away. In"
        f" comparisons an error below {RESOLUTION} counts as {RESOLUTION}: on betas a perfect"
        " solver has about that, because its start N(0, 1) is not quite the law of x_T."
    )
    shipped = (
        "**The shipped weights.** The class-conditional U-Net of Fashion-MNIST (digest"
        f" `{weights['sha256'][:12]}`) with x0 clipped to [-1, 1] and guidance"
        f" {_scales(weights)[0]:g} at every noise level:"
        f" {_counts(counts)} samples of each solver, with the same noise and classes."
        f" {_since(weights)}The"
        " classifier of `benchmarks/quality.py` judges them. The *Fréchet distance* of its features"
        " to those of the 60,000 training images is in units of the 10,000 test images' distance"
        f" ({of_data['frechet']:g} for {counts[-1]:,} test images: few samples are farther away, so"
        " compare within this page only). The *agreement* is the share of samples with the"
        f" requested class ({of_data['agreement']:.3f} for the test images), and the *diversity*"
        " the mean distance of two samples of a class over that of two test images."
        f" {_repeated(weights['repeated'])}"
    )
    commands = (
        "The numbers are in"
        " [benchmarks/results/choosing.json](../benchmarks/results/choosing.json). `make report`"
        " makes this page from them, and these commands measure them again:\n\n```\n"
        "python -m benchmarks.choosing mixture\n"
        f"python -m benchmarks.choosing weights --cache DIR --samples {counts[-1]}\n```"
    )
    return "\n\n".join([exact, shipped, commands])


def _since(weights: Mapping[str, Any]) -> str:
    """Returns a sentence if other weights were measured than those of today."""
    if weights["sha256"] == digest():
        return ""
    return "Other weights are shipped since; these comparisons were not repeated with them. "


def _repeated(pairs: Mapping[str, Sequence[float]]) -> str:
    """Returns how far other noise and classes move the distances."""
    moved = ", ".join(f"`{s}` {first:.1f} and {second:.1f}" for s, (first, second) in pairs.items())
    most = max(abs(first / second - 1) for first, second in pairs.values())
    return (
        f"Two draws of them with 10 calls, each with its own noise, gave {moved}: they differ by up"
        f" to {100 * most:.0f} %."
    )


def _counts(counts: Sequence[int]) -> str:
    return " or ".join(f"{n:,}" for n in counts)


def _distances(weights: Mapping[str, Any], guidance: float) -> dict[tuple[str, str, int], float]:
    """Returns the Fréchet distances by solver, grid and calls."""
    cells = [c for c in weights["cells"] if c["guidance"] == guidance]
    return {(c["solver"], c["grid"], c["calls"]): c["frechet"] for c in cells}


def _scales(weights: Mapping[str, Any]) -> list[float]:
    return sorted({cell["guidance"] for cell in weights["cells"]})


def _weights(weights: Mapping[str, Any]) -> list[str]:
    cells = weights["cells"]
    scales = _scales(weights)
    parts = [
        "![Fréchet distance and diversity against network calls, on two grids]"
        "(choosing/weights.png)",
        "`heun` is not drawn, because it is far off: on the cosine schedule of this model, which"
        " begins at a noise level σ/α in the thousands, the mean slope of its first step says"
        " nothing about the data.",
        f"Guidance {scales[0]:g}, the grid `{DEFAULT_SPACING}`; Fréchet distance, and in brackets"
        " the agreement with the class and the diversity:",
        _cells([c for c in cells if (c["grid"], c["guidance"]) == (DEFAULT_SPACING, scales[0])]),
    ]
    for scale in scales[1:]:
        parts += [
            f"Guidance {scale:g}, the grid `{DEFAULT_SPACING}`:",
            _cells([c for c in cells if (c["grid"], c["guidance"]) == (DEFAULT_SPACING, scale)]),
        ]
    compared = dict.fromkeys(c["solver"] for c in cells if c["grid"] != DEFAULT_SPACING)
    others = [c for c in cells if c["solver"] in compared and c["guidance"] == scales[0]]
    if compared:
        calls = {c["calls"] for c in others if c["grid"] != DEFAULT_SPACING}
        parts += [
            f"Grids, guidance {scales[0]:g}:",
            _cells([c for c in others if c["calls"] in calls], by_grid=True),
        ]
    return [
        *parts,
        "The same noise and classes, solver by solver. Solvers without noise go to the same samples"
        " as the number of calls grows, if their grids begin at the same noise:",
        "![Samples of four solvers with 5, 10 and 20 network calls](choosing/samples.png)",
    ]


def _cells(cells: Sequence[Mapping[str, Any]], by_grid: bool = False) -> str:
    """Returns a table with a line for each solver (and grid) and a column for each count of calls,
    the lowest distance of a column in bold.
    """
    calls = sorted({c["calls"] for c in cells})
    least = {n: min(c["frechet"] for c in cells if c["calls"] == n) for n in calls}
    lines: dict[tuple[str, str], dict[int, str]] = {}
    order, grids = list(SOLVERS), list(SPACINGS)
    for cell in sorted(cells, key=lambda c: (order.index(c["solver"]), grids.index(c["grid"]))):
        shown = f"{cell['frechet']:.1f}"
        if cell["frechet"] == least[cell["calls"]]:
            shown = f"**{shown}**"
        shown += f" ({cell['agreement']:.3f}, {cell['diversity']:.2f})"
        name = (f"`{cell['solver']}`", f"`{cell['grid']}`" if by_grid else "")
        lines.setdefault(name, {})[cell["calls"]] = shown
    body = [[*name, *(line.get(n, "-") for n in calls)] for name, line in lines.items()]
    return table(["solver", "grid", *(f"{n} calls" for n in calls)], body)


def _exact(mixture: Mixture) -> list[str]:
    from benchmarks.choosing.plots import HEATED

    return [
        "![Error against network calls for seven solvers on three schedules](choosing/curves.png)",
        "Each solver is on the grid that is best for it with so many calls. The grid matters as"
        f" much as the solver. Below are the errors of `{HEATED}` on every grid; colours compare"
        " the grids of a column, and the best are bold. `karras` and `exponential` are undefined"
        " for a flow, which ends in pure noise (a dash).",
        f"![Errors of {HEATED} on every grid, on three schedules](choosing/grids.png)",
        "The best solvers and grids of each line of the advice, by the geometric mean of their"
        " errors over its schedules and numbers of calls:",
        _best(mixture),
    ]


def _best(mixture: Mixture, count: int = 5) -> str:
    body = []
    for advice in ADVICE:
        band = BANDS[advice.case]
        seen: dict[str, str] = {}
        for each in mixture.ranked(band):  # a solver once, on its best grid
            seen.setdefault(each.solver, f"{each.solver} on {each.grid} {number(each.score)}")
        where = f"{', '.join(band.cases)}; {', '.join(map(str, band.calls))} calls"
        body.append([advice.when, where, "; ".join(list(seen.values())[:count])])
    return table(["for", "measured on", "the best five solvers"], body)


def _defaults(mixture: Mixture, weights: Mapping[str, Any]) -> str:
    """Compares what is taken where no solver is named with the advice."""
    shipped = read_config("fashion-mnist")["sampler"]["solver"]
    lines = {
        "`Sampler`": (DEFAULT_SOLVER, DEFAULT_SPACING),
        "`fastdiff sample`": (shipped, DEFAULT_SPACING),
    }
    for pair in dict.fromkeys((a.solver, a.spacing) for a in ADVICE if a.case in UNGUIDED):
        whens = [a.when for a in ADVICE if (a.solver, a.spacing) == pair and a.case in UNGUIDED]
        lines[f"advice: {', '.join(whens)}"] = pair
    distance = _distances(weights, _scales(weights)[0])
    body = []
    for name, (solver, grid) in lines.items():
        line = [name, f"`{solver}`, `{grid}`"]
        for n in COMPARED:
            errors = [mixture.error(case, solver, grid, n) for case in ("betas", "edm", "flow")]
            line.append(", ".join(number(v) for v in errors))
            found = distance.get((solver, grid, n))
            line.append("-" if found is None else f"{found:.1f}")
        body.append(line)
    head = ["default or advice", "solver, grid"]
    head += [f"{n} calls: {what}" for n in COMPARED for what in ("error", "Fréchet")]
    behind = []
    for n in COMPARED:
        least, solver, grid = min((v, *key[:2]) for key, v in distance.items() if key[2] == n)
        factors = [distance[s, DEFAULT_SPACING, n] / least for s in (DEFAULT_SOLVER, shipped)]
        behind.append(
            f"With {n} calls their Fréchet distances are {factors[0]:.2f} and {factors[1]:.2f}"
            f" times the lowest, that of `{solver}` on `{grid}`."
        )
    return (
        f"Where nothing is said, `Sampler` takes `{DEFAULT_SOLVER}` on `{DEFAULT_SPACING}` with"
        " 25 steps, and `fastdiff sample` the model's own settings: for the shipped one"
        f" `{shipped}` on `{DEFAULT_SPACING}`. {' '.join(behind)} They stay, for three"
        " reasons. Their last step ends in the prediction of x0, so samples stay within clip_range,"
        " which those of `ipndm` leave: its last step goes along a combination of earlier slopes. A"
        f" run that names no solver should draw the same samples again. And `{DEFAULT_SPACING}`"
        " begins where the network's training begins, on every schedule. Name the solver and the"
        " grid where a run is new, and clamp the samples where their range matters. The"
        " errors are on betas, on EDM's levels and on the flow.\n\n" + table(head, body)
    )


def _every(mixture: Mixture, case: str) -> str:
    body = []
    for solver in mixture.solvers:
        found = [mixture.best_grid(case, solver, n) for n in LISTED]
        if any(found):
            body.append(
                [
                    f"`{solver}`",
                    *("-" if best is None else f"{number(best[0])} {best[1]}" for best in found),
                ]
            )
    return table(["solver", *(f"{n} calls" for n in LISTED)], body)


def write(path: Path = RESULT, page: Path = PAGE) -> list[Path]:
    """Writes the page and the pictures that are drawn from numbers; returns the files."""
    from benchmarks.choosing import plots  # imports matplotlib

    content = read(path)
    mixture, cells = Mixture(content["mixture"]), content["weights"]["cells"]
    figures = page.parent / FIGURES.name
    drawn = {
        "curves": plots.curves(mixture),
        "grids": plots.grids(mixture),
        "weights": plots.weights(cells, _scales(content["weights"])[0]),
    }
    for name, picture in drawn.items():
        plots.save(picture, figures / f"{name}.png")
    page.write_text(text(content), encoding="utf-8")
    return [page, *(figures / f"{name}.png" for name in drawn)]
