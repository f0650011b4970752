"""docs/choosing.md: made from what was measured, by a script that still measures it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.choosing import mixture, page, plots, ranking, results, weights
from benchmarks.choosing.__main__ import main
from fastdiff.data import DataSet, load_fashion_mnist
from fastdiff.metrics.extractors import fashion_network
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.advice import ADVICE
from fastdiff.solvers.grids import SPACINGS

CONTENT = results.read()
MEASURED = ranking.Mixture(CONTENT["mixture"])


def test_the_page_is_made_from_the_result_file() -> None:
    """`make report` writes it; every picture that it shows is there and small."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.text(CONTENT)
    shown = [part.split(")")[0] for part in text.split("](choosing/")[1:]]
    assert sorted(shown) == sorted(p.name for p in page.FIGURES.iterdir())
    for name in shown:
        assert (page.FIGURES / name).stat().st_size < 60_000
        with Image.open(page.FIGURES / name) as picture:
            assert picture.mode == "P" and 700 < picture.width < 900


@pytest.mark.parametrize("advice", ADVICE, ids=lambda a: a.case)
def test_the_advice_is_near_the_best(advice) -> None:
    assert advice.solver in SOLVERS and advice.spacing in SPACINGS
    band = ranking.BANDS[advice.case]
    assert advice.calls[0] <= min(band.calls) and max(band.calls) <= advice.calls[1]
    factor, place, of = page.standing(MEASURED, advice)
    assert 1 <= factor <= page.BEHIND and 1 <= place <= of and of > 100


def test_the_advice_is_better_than_the_default_with_the_shipped_weights() -> None:
    """The Fréchet distance, wherever both were measured with the same guidance and calls."""
    compared = []
    for advice in ADVICE:
        scale = weights.STRONG if advice.case == "guidance" else weights.OWN
        distance = page._distances(CONTENT["weights"], scale)
        for n in range(advice.calls[0], advice.calls[1] + 1):
            found = distance.get((advice.solver, advice.spacing, n))
            default = distance.get((page.DEFAULT_SOLVER, page.DEFAULT_SPACING, n))
            if found is not None and default is not None:
                assert found < default, (advice, n)
                compared.append(advice.case)
    assert set(compared) == {"few", "many", "noise", "guidance"}  # the weights are of no flow


def test_every_solver_and_grid_was_measured() -> None:
    """A new solver or grid makes the file incomplete."""
    for case, settings in mixture.CASES.items():
        known = {
            s
            for s in MEASURED.solvers
            if any(MEASURED.best_grid(case, s, n) for n in MEASURED.calls)
        }
        assert known == set(mixture.solvers_of(settings)), case
    assert set(MEASURED.grids) == set(mixture.GRIDS)


def test_scores() -> None:
    """The geometric mean over schedules and calls, from RESOLUTION on; a missing error is none."""
    rows = [
        {"case": "a", "solver": "ddim", "grid": "beta", "errors": [0.08, 0.001]},
        {"case": "a", "solver": "ddpm", "grid": "beta", "errors": [0.01, 0.02]},
        {"case": "a", "solver": "heun", "grid": "beta", "errors": [0.01, None]},
    ]
    few = ranking.Mixture({"floor": 0.0, "calls": [4, 8], "rows": rows})
    band = ranking.Band(("a",), (4, 8))
    assert few.ranked(band) == [
        (pytest.approx(math.sqrt(0.01 * 0.02)), "ddpm", "beta"),
        (pytest.approx(math.sqrt(0.08 * ranking.RESOLUTION)), "ddim", "beta"),
    ]
    assert [r.solver for r in few.ranked(band._replace(stochastic=True))] == ["ddpm"]
    assert few.best_grid("a", "heun", 8) is None and few.best_grid("a", "heun", 4) == (0.01, "beta")


@pytest.mark.parametrize("case", mixture.CASES)
def test_the_network_is_the_posterior_mean(case: str) -> None:
    """Compared with Bayes' formula by quadrature, at some x and at a time of each schedule."""
    settings = mixture.CASES[case]
    x0 = np.linspace(-6.0, 6.0, 400_001)
    each = [
        w / s * np.exp(-0.5 * ((x0 - m) / s) ** 2)
        for w, m, s in zip(mixture.WEIGHTS, mixture.MEANS, mixture.STDS, strict=True)
    ]

    def mean(x: float, density: np.ndarray) -> float:
        weight = density * np.exp(-0.5 * ((x - point.alpha * x0) / point.sigma) ** 2)
        return float((weight * x0).sum() / weight.sum())

    point = settings.schedule.at(0.4 if settings.schedule.continuous else 400.0)
    x = np.array([-1.5, -0.3, 0.2, 0.9])
    expected = np.array([mean(v, each[0] + each[1]) for v in x])
    if settings.guided:
        alone = np.array([mean(v, each[mixture.LABEL]) for v in x])
        expected = expected + mixture.STRENGTH * (alone - expected)
    net = mixture.Network(settings)
    t = torch.full((1,), net.network_time(point), dtype=torch.float64)
    out = net(torch.from_numpy(x)[None], t)[0].numpy()
    if settings.prediction_type == "flow":  # out = eps - x0, x = alpha x0 + sigma eps
        got = (x - point.sigma * out) / (point.alpha + point.sigma)
    else:
        got = (x - point.sigma * out) / point.alpha
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_error_is_a_distance_to_the_data() -> None:
    exact = mixture.quantiles(4096)
    assert mixture.deviation() == pytest.approx(exact.std(), rel=1e-3)
    assert mixture.error(torch.from_numpy(exact[::-1].copy()), exact) == 0.0
    moved = torch.from_numpy(exact + 0.3 * mixture.deviation())
    assert mixture.error(moved, exact) == pytest.approx(0.3)
    assert mixture.error(torch.tensor([math.nan] * 4096), exact) is None
    # draws of the data: the mean of |F_n - F| falls with the root of their number
    assert 1.5 < mixture.floor(1 << 10) / mixture.floor(1 << 13) < 5.0


@pytest.mark.parametrize(
    ("case", "solver", "grid"),
    [
        ("betas", "ddim", "trailing"),
        ("betas", "dpm++2m", "karras"),
        ("edm", "heun", "leading"),
        ("flow", "ipndm", "kl_optimal"),
        ("guided", "unipc", "exponential"),
    ],
)
def test_the_mixture_is_measured_as_the_file_says(case: str, solver: str, grid: str) -> None:
    """Errors of today's code, from its samples; a change of a solver shows."""
    (row,) = mixture.rows([case], [solver], [grid])
    expected = [MEASURED.error(case, solver, grid, n) for n in MEASURED.calls]
    found = [math.nan if v is None else v for v in row["errors"]]
    known = [math.nan if v is None else v for v in expected]
    np.testing.assert_allclose(found, known, rtol=0.02, atol=2e-5, equal_nan=True)


def test_a_solver_is_measured_anew_among_the_others(tmp_path: Path) -> None:
    """One with noise, within the error of its draws; the rows of the others stay."""
    path = tmp_path / "r.json"
    content = json.loads(json.dumps(CONTENT))
    rows = content["mixture"]["rows"]
    place = rows.index(next(r for r in rows if (r["solver"], r["grid"]) == ("er_sde", "karras")))
    expected = rows[place]["errors"][3:6]
    rows[place]["errors"] = None
    assert mixture.CALLS[3:6] == (8, 10, 15)
    results.write(content, path)
    mixture.measure(path, names=["betas"], solvers=["er_sde"], grids=["karras", "lu"])
    found = results.read(path)["mixture"]["rows"]
    np.testing.assert_allclose(found[place]["errors"][3:6], expected, atol=MEASURED.floor)
    assert found[:place] == rows[:place] and found[place + 1 :] == rows[place + 1 :]


@pytest.fixture(scope="module")
def judge() -> weights.Judge:
    """Judges by an untrained classifier, from a few images."""
    torch.manual_seed(0)
    images = load_fashion_mnist("bundled-test")
    train, test = (
        DataSet(images.images[i::2], images.labels[i::2], images.classes, images.name)
        for i in (0, 1)
    )
    return weights.Judge(fashion_network().eval(), train, test)


def test_the_weights_are_measured_cell_by_cell(judge: weights.Judge, tmp_path: Path) -> None:
    """A second run measures nothing, and one with more samples draws only the new ones."""
    path, cache = tmp_path / "r.json", tmp_path / "cache"
    results.write({"mixture": CONTENT["mixture"]}, path)
    wanted = [weights.Cell("dpm++2m", "trailing", 2, 1.9), weights.Cell("heun", "karras", 3, 1.0)]

    def run(samples: int, minutes: float = 9.0) -> int:
        return weights.measure(
            judge, cache, samples=samples, minutes=minutes, wanted=wanted, path=path
        )

    assert run(4, minutes=-1.0) == 0
    assert run(4) == 2 and run(4) == 0
    file = cache / weights.digest()[:12] / wanted[0].file
    first = np.load(file)
    assert run(6) == 2
    longer = np.load(file)
    assert longer.shape == (6, 1, 28, 28) and (longer[:4] == first).all()
    assert (longer == weights.Drawer().draw(wanted[0], 0, 6).numpy()).all()
    content = results.read(path)
    assert content["mixture"] == CONTENT["mixture"]
    row, other = content["weights"]["cells"]
    assert row["samples"] == 6 and (row["steps"], other["steps"]) == (2, 2)
    numbers = judge.measure(torch.from_numpy(longer), torch.arange(6))
    assert (row["frechet"], row["agreement"]) == (numbers["frechet"], numbers["agreement"])
    content["weights"]["sha256"] = "of other weights"
    results.write(content, path)
    assert run(6) == 2


def test_the_judge_knows_the_data_from_noise(judge: weights.Judge) -> None:
    data = judge.of_data(200)
    noise = torch.randint(0, 256, (200, 1, 28, 28), dtype=torch.uint8)
    assert judge.measure(noise, torch.arange(200) % 10)["frechet"] > 10 * data["frechet"]
    assert 0.9 < data["diversity"] < 1.1


def test_cells_name_solvers_and_grids() -> None:
    """Each is measured once, and the file holds all those that the script measures."""
    cells = weights.cells()
    assert len(set(cells)) == len(cells) and len({c.solver for c in cells}) >= 10
    assert all(c.solver in SOLVERS and c.grid in SPACINGS for c in cells)
    rows = CONTENT["weights"]["cells"]
    assert [c for c in cells if not any(c.is_of(row) for row in rows)] == []
    for row in rows:
        calls = SOLVERS[row["solver"]].network_calls(row["steps"])
        assert 0.7 * row["calls"] <= calls <= row["calls"], row


def test_pictures_are_drawn(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    cells = CONTENT["weights"]["cells"]
    drawn = {
        "curves": plots.curves(MEASURED),
        "grids": plots.grids(MEASURED),
        "weights": plots.weights(cells, weights.OWN),
        "samples": plots.samples({(s, n): x for s in ("ddim", "heun") for n in (5, 10)}),
    }
    for name, picture in drawn.items():
        plots.save(picture, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.mode == "P" and len(set(image.tobytes())) > 10, name


def test_the_samples_of_the_picture_are_the_caches(tmp_path: Path) -> None:
    x = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    folder = tmp_path / weights.digest()[:12]
    folder.mkdir()
    for solver, grid in weights.SHOWN:
        for calls in weights.SHOWN_CALLS:
            cell = weights.Cell(solver, grid, calls, weights.OWN)
            assert cell in weights.cells()
            np.save(folder / cell.file, x.numpy())
    found = weights.shown(tmp_path)
    assert len(found) == len(weights.SHOWN) * len(weights.SHOWN_CALLS)
    for drawn in found.values():
        assert drawn[:, 0, 0, 0].tolist() == list(weights.SHOWN_IDS)
        assert drawn.shape[1:] == (1, 28, 28)


def test_the_command_wants_a_cache(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["weights"])
    assert "weights: expected --cache DIR, got none" in capsys.readouterr().err
