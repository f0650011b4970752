"""`fastdiff export` in all formats: other readers see the samples, and memory does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dataset_maker import block, classes, commit, dataset, kinds_of, samples
from export_readers import READERS, SUFFIX, edm_dataset, read, tree

from fastdiff.cli import main
from fastdiff.cli.exit_status import FAILED, UNSOUND, USAGE
from fastdiff.jobs.export import export
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.records import record_name
from fastdiff.jobs.samples import DatasetError

PAIRS = [
    (source, target, kind)
    for kind in ("grey", "rgb", "latents")
    for source in FORMATS
    for target in FORMATS
    if kind in kinds_of(source) and kind in kinds_of(target)
]


def test_every_format_has_a_reader() -> None:
    """A reader that is not fastdiff's is the oracle of the tests below."""
    assert READERS.keys() == FORMATS.keys(), "add the format's reader to export_readers.py"


@pytest.mark.parametrize("source, target, kind", PAIRS)
def test_every_format_becomes_every_other(
    source: str, target: str, kind: str, tmp_path: Path
) -> None:
    """Units of 8 over the ids 5 … 30: the first and the last are partial."""
    out = tmp_path / "out" / SUFFIX[target]
    assert export(dataset(tmp_path / "run", kind, format=source), target, out) == 26
    got, labels, _ = read(target, out)
    assert (
        np.array_equal(got, samples(kind, range(5, 31)))
        and got.dtype == samples(kind, range(1)).dtype
    )
    assert labels == (classes(range(5, 31)) if FORMATS[target].export_labels else None)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [SUFFIX[target]]


@pytest.mark.parametrize("target", FORMATS)
def test_without_classes(target: str, tmp_path: Path) -> None:
    kind = kinds_of(target)[0]
    run = dataset(tmp_path / "run", kind, labelled=False)
    export(run, target, tmp_path / SUFFIX[target])
    got, labels, _ = read(target, tmp_path / SUFFIX[target])
    assert labels is None and np.array_equal(got, samples(kind, range(5, 31)))
    if target == "webdataset":
        with tarfile.open(tmp_path / "set" / "000000.tar") as tar:
            assert tar.getnames()[:2] == ["000000000005.png", "000000000005.json"]


@pytest.mark.parametrize("first, last", [(5, 30), (7, 7), (8, 15), (15, 16), (5, 9), (29, 30)])
@pytest.mark.parametrize("target", FORMATS)
def test_a_range_of_ids(first: int, last: int, target: str, tmp_path: Path) -> None:
    out, kind, ids = tmp_path / SUFFIX[target], kinds_of(target)[0], range(first, last + 1)
    assert export(dataset(tmp_path / "run", kind), target, out, ids=(first, last)) == len(ids)
    got, labels, _ = read(target, out)
    assert np.array_equal(got, samples(kind, ids))
    assert labels == (classes(ids) if FORMATS[target].export_labels else None)


@pytest.mark.parametrize("target", FORMATS)
def test_an_unfinished_dataset_is_exported_with_its_ids(target: str, tmp_path: Path) -> None:
    """With gaps, an export says which samples it holds, or the format refuses."""
    out, kind = tmp_path / SUFFIX[target], kinds_of(target)[0]
    run = dataset(tmp_path / "run", kind)
    for unit in (0, 2):
        (run / record_name(unit)).unlink()
    if not FORMATS[target].export_ids:
        with pytest.raises(ValueError, match=f"expected all ids for the format {target}, which"):
            export(run, target, out, partial=True)
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
        return
    ids = [*range(8, 16), *range(24, 31)]
    assert export(run, target, out, partial=True) == len(ids)
    found = read(target, out)
    assert found.ids == ids
    assert np.array_equal(found.samples, samples(kind, range(31))[ids])
    expected = [(3 * i + 1) % 10 for i in ids]
    assert found.labels == (expected if FORMATS[target].export_labels else None)


def test_exports_are_reproducible(tmp_path: Path) -> None:
    """Another process, hash seed, locale and umask write the same bytes."""
    runs = {
        "rgb": dataset(tmp_path / "rgb", "rgb"),
        "latents": dataset(tmp_path / "latents", "latents"),
    }
    cases = [(kind, f) for kind in runs for f in FORMATS if kind in kinds_of(f)]
    code = (
        "import os, sys; os.umask(0o077); from fastdiff.jobs.export import export; "
        "[export(*sys.argv[i:i + 3]) for i in range(1, len(sys.argv), 3)]"
    )
    arguments = []
    for kind, f in cases:
        export(runs[kind], f, tmp_path / "a" / f"{kind}-{f}")
        arguments += [str(runs[kind]), f, str(tmp_path / "b" / f"{kind}-{f}")]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "LC_ALL": "C",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(list((tmp_path / "a").iterdir())) == len(cases)


def test_an_unfinished_dataset_is_exported_only_on_demand(tmp_path: Path) -> None:
    run = dataset(tmp_path / "run", "rgb")
    for unit in (0, 2):
        (run / record_name(unit)).unlink()
    with pytest.raises(DatasetError) as refused:
        export(run, "npz", tmp_path / "set.npz")
    assert (
        str(refused.value)
        == "fastdiff.jobs.export: expected all units of the ids 5-30, got none for unit 0 (ids 5-7)"
        f" and 1 more. Run `fastdiff resume {run}`, or export what is there with --partial."
    )
    ids = [*range(8, 16), *range(24, 31)]
    assert export(run, "npz", tmp_path / "set.npz", partial=True) == 15
    with np.load(tmp_path / "set.npz") as file:
        assert file["ids"].tolist() == ids and file["ids"].dtype == np.int64
        assert np.array_equal(file["arr_0"], samples("rgb", range(5, 31))[[i - 5 for i in ids]])
        assert file["arr_1"].tolist() == [(3 * i + 1) % 10 for i in ids]
    assert export(run, "png", tmp_path / "set", partial=True) == 15
    assert [int(Path(n).stem) for n in edm_dataset(tmp_path / "set")[0]] == ids
    # a complete range needs no --partial, which then changes nothing
    assert export(run, "npy", tmp_path / "a.npy", ids=(8, 15)) == 8
    assert export(run, "npy", tmp_path / "b.npy", ids=(8, 15), partial=True) == 8
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(
        ValueError, match="expected all ids for the format npy, which cannot say which are missing"
    ):
        export(run, "npy", tmp_path / "c.npy", partial=True)
    with pytest.raises(
        ValueError,
        match=r"expected all units of the ids 16-23, got none for unit 2 \(ids 16-23\)\. Run",
    ):
        export(run, "npz", tmp_path / "c.npz", ids=(16, 23), partial=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy", "run", "set", "set.npz"]


@pytest.mark.parametrize("target", FORMATS)
def test_memory_does_not_grow_with_the_dataset(target: str, tmp_path: Path) -> None:
    """Peaks of traced memory over 4 and 40 units of 192 KiB differ by 5 % at most."""
    kind, shape = ("rgb", (64, 64, 3)) if "rgb" in kinds_of(target) else ("latents", (3, 64, 16))
    small, large = (
        dataset(tmp_path / name, kind, first=0, last=units * 16 - 1, unit=16, shape=shape)
        for name, units in (("small", 4), ("large", 40))
    )
    peaks = []
    export(small, target, tmp_path / "warm")
    for run in (small, large):
        tracemalloc.start()
        export(run, target, tmp_path / f"{run.name}-out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] and peaks[1] < 40 * 192 * 1024 / 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = dataset(tmp_path / "run"), tmp_path / "set.npz"
    assert main(["export", str(run), "--format", "npz", "--out", str(out), "--ids", "6-20"]) == 0
    assert capsys.readouterr().out == f"15 samples in {out}\n"
    assert read("npz", out)[0].shape == (15, 5, 4, 1)
    assert main(["export", str(run), "--format", "npz", "--out", str(out)]) == USAGE
    assert capsys.readouterr().err.startswith(
        "fastdiff export: fastdiff.jobs.export: expected a new "
    )
    assert main(["export", str(run), "--format", "npz", "--out", str(out), "--overwrite"]) == 0
    folder = str(tmp_path / "tars")
    assert (
        main(["export", str(run), "--format", "webdataset", "--out", folder, "--per-shard", "5"])
        == 0
    )
    assert len(list((tmp_path / "tars").glob("*.tar"))) == 6
    (run / record_name(1)).unlink()
    assert main(["export", str(run), "--format", "png", "--out", str(tmp_path / "png")]) == UNSOUND
    assert f"Run `fastdiff resume {run}`" in capsys.readouterr().err
    assert (
        main(["export", str(run), "--format", "png", "--out", str(tmp_path / "png"), "--partial"])
        == 0
    )
    capsys.readouterr()
    for ids in ("20-6", "6-", "a-b", "-3-4", "6..20"):
        assert (
            main(
                [
                    "export",
                    str(run),
                    "--format",
                    "npz",
                    "--out",
                    str(tmp_path / "x"),
                    f"--ids={ids}",
                ]
            )
            == USAGE
        )
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            said == f"fastdiff export: expected --ids A-B with A <= B, both included, got {ids!r}."
        )
    for wrong in (["--format", "jpeg", "--out", "x"], ["--format", "npz"], ["--out", "x"]):
        with pytest.raises(SystemExit) as usage:
            main(["export", str(run), *wrong])
        assert usage.value.code == USAGE
    assert (
        main(["export", str(tmp_path / "none"), "--format", "npz", "--out", str(tmp_path / "x")])
        == USAGE
    )
    # a path that cannot be written is neither a usage error nor damage
    assert (
        main(["export", str(run), "--format", "npz", "--out", str(out / "below"), "--partial"])
        == FAILED
    )
    assert "fastdiff.jobs.export: expected to write" in capsys.readouterr().err


def test_progress_counts_samples(tmp_path: Path) -> None:
    counted: list[int] = []
    export(
        dataset(tmp_path / "run"), "npy", tmp_path / "set.npy", progress=counted.append, ids=(6, 20)
    )
    assert counted == [2, 8, 5]


def test_units_that_no_longer_belong_are_not_read(tmp_path: Path) -> None:
    """Records beyond the spec's ids, such as those of another run, are never read."""
    run = dataset(tmp_path / "run")
    commit(run, "npy", block("rgb", range(80, 88), unit=10))
    assert export(run, "npz", tmp_path / "set.npz") == 26
