"""Result files as pages: rows with known tables, lists and verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import report, rows, tables, test_growth

MARKS = f"# fastdiff\n{report.BEGIN}\nold\n{report.END}\nrest\n"


def ratio(median: float, low: float = 0.9, high: float = 1.1) -> dict[str, float]:
    return {"median": median, "p20": median * low, "p80": median * high}


def row(what: str = "randn", kind: str = "op", us: float = 100.0, **more: Any) -> dict[str, Any]:
    """A row of schema 1 whose fastest peer is what `peers` says."""
    peers = more.pop("peers", {"torch eager": ratio(2.5)})
    case = {"dtype": "float32", "shape": [256, 3, 32, 32], "batch": 256} | more.pop("case", {})
    return {
        "schema": 1,
        "kind": kind,
        "what": what,
        "case": case,
        "device": "cpu",
        "backend": "cpu",
        "threads": 1,
        "cache": "warm",
        "per": "call",
        "us": [0.9 * us, us, 1.1 * us],
        "elements": 786432,
        "bytes_floor": 3145728,
        "GB_per_s": 31.46,
        "copy_GB_per_s": 16.0,
        "percent_of_copy": 196.6,
        "instructions": None,
        "peers": {
            name: p if "missing" in p else {"us": [us] * 3, "faster": p}
            for name, p in peers.items()
        },
        "compile_s": None,
        "extra_bytes": 2**20,
        "checked": "bits equal to NumPy",
    } | more


def file(path: Path, found: list[dict[str, Any]], **about: Any) -> Path:
    benchmarks = [{"name": f"test_{i}", "extra_info": r} for i, r in enumerate(found)]
    path.write_text(json.dumps({"machine_info": about, "benchmarks": benchmarks}), encoding="utf-8")
    return path


ABOUT = {
    "fastdiff": {
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
        "missing": ["k-diffusion (not installed)"],
        "cpu": {"name": "AMD Zen 3", "level": "avx2"},
        "gpu": None,
        "copy_GB_per_s": 16.02,
        "tier": "quick",
    }
}
SIZES = [1, 10, 100, 200, 500, 1000]
TIMES = [10.0, 100.0, 1000.0, 2080.0, 4850.0, 10100.0]
GROWTH = test_growth.growth("batch", SIZES, TIMES, [2**10 * v for v in SIZES])
ROWS = [
    row(instructions={"per_element": 33.0, "ceiling_Melem_per_s": 9000.0, "percent": 87.4}),
    row(cache="cold", us=300.0),
    row(
        "reverse_step ddim",
        "step",
        1234.0,
        peers={
            "diffusers": ratio(4.0),
            "torch.compile": ratio(0.83),
            "fastdiff, no graph": ratio(0.5),
        },
    ),
    row(
        "reverse_step ddpm",
        "step",
        peers={"diffusers": {"missing": "not installed"}},
        compile_s=7.5,
    ),
    row(
        "unet-cifar",
        "network",
        2.5e6,
        case={"shape": [8, 3, 32, 32], "batch": 8, "steps": 3},
        per="sample-step",
        peers={"torch.compile": ratio(1.0), "diffusers": ratio(1.5)},
        elements=None,
        bytes_floor=None,
        GB_per_s=None,
        percent_of_copy=None,
    ),
    row("q_sample", peers={"torch.compile": ratio(0.5)}),
    row("loop", "growth", case={"solver": "ddim"}, growth=GROWTH),
]
ROWS += [row("noise_mse", peers={"torch eager": ratio(3.0)})]
ROWS[2]["peers"]["torch.compile"]["mode"] = "max-autotune"


def test_the_page_says_what_the_rows_hold(tmp_path: Path) -> None:
    text = tables.page(rows.load(file(tmp_path / "machine.json", ROWS, **ABOUT)), {})
    assert text.startswith(
        "# Performance: machine\n\nAMD Zen 3 avx2; copy 16.0 GB/s read and written; torch 2.13.0;"
    )
    assert "Not there to compare with: k-diffusion (not installed)." in text
    step = "| reverse_step ddim | float32 256×3×32×32 | 1.23 ms [1.11 ms, 1.36 ms] | "
    step += (
        "fastdiff, no graph 0.50 [0.45, 0.55]<br>**torch.compile (max-autotune) 0.83 [0.75,"
        " 0.91]**<br>"
    )
    assert (
        f"{step}diffusers 4.00 [3.60, 4.40] | 31.5 | 197 | 1.00 MiB | bits equal to NumPy |" in text
    )
    assert "diffusers: not installed" in text
    # what all rows of a table share is written above it, what differs in each line
    assert "Cpu, backend cpu, 1 thread, warm cache, times per sample-step." in text
    assert "| randn | float32 256×3×32×32, cold | 300 µs" in text
    assert "| unet-cifar | float32 8×3×32×32, 3 steps | 2.50 s [2.25 s, 2.75 s] |" in text
    assert "| % of issue |" in text and "| 87 |" in text
    assert (
        "| loop | float32 256×3×32×32, solver ddim | batch, 1 … 1000 | batch^0.99 ± 0.02 |"
        " batch^1.00 |" in text
    )
    assert (
        text.index("## Networks")
        < text.index("## Solver steps")
        < text.index("## Fused ops")
        < text.index("## Growth")
    )
    assert (
        "| reverse_step ddpm | float32 256×3×32×32 | fastdiff | 7.50 s |"
        in text.split("## Compile times")[1]
    )


def test_lost_rows_are_all_listed_the_worst_first(tmp_path: Path) -> None:
    result = rows.load(file(tmp_path / "machine.json", ROWS))
    assert [r["what"] for r in rows.lost(result.rows)] == [
        "q_sample",
        "reverse_step ddim",
    ], "1.0 is not slower, and no graph is no peer"
    lines = tables.losses(result).splitlines()
    assert lines[0] == "In 2 of 7 rows with a peer:"
    assert lines[2].startswith(
        "- q_sample, float32 256×3×32×32, warm, cpu, 1 thread: 0.50 [0.45, 0.55] times as fast as"
        " torch.compile"
    )
    assert (
        tables.losses(rows.load(file(tmp_path / "b.json", [ROWS[0]])))
        == "In none of 1 rows with a peer."
    )


def test_pages_pictures_index_and_the_readmes_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "performance"
    readme.write_text(MARKS, encoding="utf-8")
    pieces = tmp_path / "gpu"
    pieces.mkdir()
    predictions = [
        {
            "kernel": "DDIM",
            "what": "% of copy",
            "predicted": "94",
            "measured": "81",
            "verdict": "missed",
        }
    ]
    file(pieces / "01-a.json", ROWS[:1])
    file(pieces / "02-b.json", ROWS[5:6])
    content = json.loads((pieces / "01-a.json").read_text())
    (pieces / "01-a.json").write_text(json.dumps(content | {"predictions": predictions}))
    first = file(tmp_path / "cpu.json", ROWS, **ABOUT)
    command = [str(first), str(pieces), "--out", str(out), "--readme", str(readme)]
    assert report.main(command) == 0
    index = (out / "README.md").read_text()
    assert (
        "| [cpu](cpu.md) | 8 | 7 | 5 | AMD Zen 3 avx2;" in index
        and "| [gpu](gpu.md) | 2 | 2 | 1 |" in index
    )
    page = (out / "gpu.md").read_text()
    assert "| DDIM | % of copy | 94 | 81 | missed |" in page, (
        "a folder is one machine, its files together"
    )
    shown = {
        line.split("](")[1].rstrip(")")
        for line in (out / "cpu.md").read_text().splitlines()
        if line.startswith("![")
    }
    assert shown == {
        f"cpu-{name}.png" for name in ("overview", "roofline", "growth", "ratios-op")
    }, "too few for others"
    for name in shown:
        with Image.open(out / name) as picture:
            assert 700 < picture.width < 1000 and picture.height > 150
            assert len(set(picture.convert("L").tobytes())) > 10, "not a blank"
        assert (out / name).stat().st_size < 150_000
    text = readme.read_text()
    listed = text.split(report.BEGIN)[1].split(report.END)[0]
    assert (
        "old" not in text
        and listed.startswith("\ncpu: in 2 of 7 rows")
        and "gpu: in 1 of 2 rows" in listed
    )
    assert text.startswith("# fastdiff\n") and text.endswith("\nrest\n")
    assert report.main(command) == 0 and readme.read_text() == text, "again: the same"


def test_two_runs_agree_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratio 2.5 [2.25, 2.75] widened by 15 %: [1.9125, 3.1625]."""
    first = file(
        tmp_path / "a.json",
        [row(), row("q_sample"), row("kl", peers={"numpy": {"missing": "not asked for"}})],
    )

    def second(*medians: float, kl: bool = True) -> int:
        found = [
            row(w, peers={"torch eager": ratio(m)})
            for w, m in zip(("randn", "q_sample"), medians, strict=False)
        ]
        other = file(tmp_path / "b.json", found + ([row("kl", peers={})] if kl else []))
        return report.main(["--compare", str(first), str(other)])

    assert second(1.92, 3.16) == 0
    assert "2 of 2 ratios lie within [p20, p80] of a, widened by 15 %" in capsys.readouterr().out
    assert second(1.91, 2.5) == 1
    shown = capsys.readouterr().out
    assert (
        "op randn (float32 256×3×32×32, warm), torch eager: 2.50 [2.25, 2.75] then 1.91\n1 of 2"
        in shown
    )
    assert second(2.5, 3.17) == 1 and "op q_sample" in capsys.readouterr().out
    assert second(2.5) == 1 and "then missing" in capsys.readouterr().out
    assert second(2.5, 2.5, kl=False) == 1, "a row without peers can be missing too"
    assert report.main(["--compare", str(first), str(first)]) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON in FILE, got something else or half of it."),
        ("[1]", "expected a list `benchmarks` in FILE, got none."),
        (
            '{"benchmarks": [{"extra_info": {"elements": 3}}]}',
            "expected rows of schema 1 under benchmarks[*].extra_info",
        ),
        (
            '{"benchmarks": [{"extra_info": {"schema": 9}}]}',
            "expected rows of schema 1 in FILE, got 9 in a row.",
        ),
        (
            '{"benchmarks": [{"extra_info": {"schema": 1, "kind": "op"}}]}',
            "in every row of FILE, got no what in a row.",
        ),
        (
            json.dumps({"benchmarks": [{"extra_info": row() | {"us": 3}}]}),
            "expected us as [p20, p50, p80] in FILE, got 3",
        ),
        (
            json.dumps({"benchmarks": [{"extra_info": row() | {"peers": {"x": {}}}}]}),
            "`faster` or `missing` of every peer",
        ),
        (None, "expected a result file, got FILE: No such file"),
    ],
)
def test_bad_files_get_a_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.strip()
    assert (
        sentence.replace("FILE", str(path)) in printed
        and printed.startswith("benchmarks.report: ")
        and "\n" not in printed
    )
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_the_marks_or_names_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = file(tmp_path / "a.json", ROWS[:1]), tmp_path / "out"
    (tmp_path / "R.md").write_text("no marks")
    assert report.main([str(first), "--out", str(out), "--readme", str(tmp_path / "R.md")]) == 2
    assert "where-we-lose:begin" in capsys.readouterr().err
    assert report.main([str(first), str(first), "--out", str(out)]) == 2 and not out.exists()
    assert "different names" in capsys.readouterr().err


def test_records_of_other_kinds_are_skipped_and_broken_files_are_not(tmp_path: Path) -> None:
    for name, text in (
        ("quality.json", '{"agreement": 1}'),
        ("old.json", '{"benchmarks": [{"extra_info": {"elements": 3}}]}'),
    ):
        (tmp_path / name).write_text(text)
    assert report.everything(tmp_path) == []
    assert "No result of the suite" in report.losses([])
    new = file(tmp_path / "new.json", ROWS[:1])
    assert report.everything(tmp_path) == [new]
    (tmp_path / "half.json").write_text('{"benchmarks": [')
    with pytest.raises(ValueError, match="expected JSON in"):
        report.everything(tmp_path)
