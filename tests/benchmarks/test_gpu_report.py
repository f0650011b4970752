"""`make gpu-report` without a GPU: pieces save their rows, continue, and are compared with the
predictions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from benchmarks.gpu import ceilings, checkpointed_rows, common, kernels, predictions
from benchmarks.rows import load

ROOT = Path(__file__).resolve().parents[2]
CPU = common.Target("cpu")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, str(ROOT / "scripts" / "gpu_report.py"), *arguments]
    return subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE)


def row(
    what: str,
    us: float = 10.0,
    *,
    peers: dict[str, float] | None = None,
    device: str = "NVIDIA H200",
    **more: Any,
) -> Any:
    faster = {
        name: {"us": [1, 1, 1], "faster": {"median": r, "p20": r, "p80": r}}
        for name, r in (peers or {}).items()
    }
    kind, backend = more.pop("kind", "step"), more.pop("backend", "triton")
    return {
        "schema": 1,
        "kind": kind,
        "what": what,
        "case": more.pop("case", {}),
        "device": device,
        "us": [us] * 3,
        "backend": backend,
        "peers": faster,
        "GB_per_s": more.pop("rate", None),
        "per": "call",
    }


def test_a_dry_run_keeps_its_rows_and_repeats_none(tmp_path: Path) -> None:
    done = command("--device", "cpu", "--piece", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr + done.stdout
    found = load(tmp_path / "ceilings.json").rows
    assert {r["what"] for r in found} == {
        "copy",
        "fill",
        "gemm fp32",
        "gemm tf32",
        "gemm bf16",
        "torch.randn",
    }
    sizes = sorted(
        r["case"]["shape"][0]
        for r in found
        if r["what"] == "torch.randn" and r["case"]["dtype"] == "float32"
    )
    assert len(sizes) == 3 and all(r["us"][0] > 0 for r in found)
    assert all(r["TFLOP_per_s"] > 0 for r in found if r["what"].startswith("gemm"))
    assert "0 of 0 measured" in done.stdout, "tiny tensors on a CPU judge no prediction"
    assert load(tmp_path).predictions, "the report reads them from the folder"
    before = (tmp_path / "ceilings.json").read_bytes()
    again = command("--device", "cpu", "--piece", "1", "--out", str(tmp_path))
    assert again.returncode == 0 and "finished before" in again.stdout
    assert (tmp_path / "ceilings.json").read_bytes() == before


def test_the_kernels_of_the_predictions_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every predicted kernel has a row of its name, mode and dtype that agrees with NumPy."""
    pytest.importorskip("diffusers")
    assert not predictions.check([])[0]["verdict"]
    names = {
        title: make for title, make in kernels.rows(CPU, torch.float32) if title.endswith("large")
    }
    assert len(names) == 12
    found = []
    with torch.no_grad():
        for title in (
            "step ddim exact",
            "step ddpm fast",
            "step unipc exact",
            "randn fast",
            "step ddim guided exact",
        ):
            found.append(names[f"{title} cpu large"]())
    lines = predictions.check(found + [ceilings.copy(CPU, 1)])
    measured = {
        line["kernel"] for line in lines if line["what"] == "% of copy" and line["measured"] != "-"
    }
    assert measured == {
        f"{k}, float32"
        for k in (
            "DDIM step",
            "DDPM step, fast",
            "UniPC-2 step",
            "normal fill, fast",
            "guidance + step, writes next input",
        )
    }
    assert (
        found[0]["bytes_floor"] == 12 * found[0]["elements"]
        and found[4]["bytes_floor"] == 20 * found[4]["elements"]
    )


def test_a_wrong_kernel_is_a_failed_row_without_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = kernels.ops.reverse_step
    monkeypatch.setattr(
        kernels.ops, "reverse_step", lambda x, *a, **k: real(x, *a, **k).mul_(1.0001)
    )
    wanted = [
        (title, make)
        for title, make in kernels.rows(CPU, torch.float32)
        if title.startswith("step dd")
    ][:3]
    keeping = checkpointed_rows.Checkpoint(tmp_path / "piece.json", "kernels", {})
    with torch.no_grad():
        assert checkpointed_rows.measure_rows(iter(wanted), keeping, 60)
    content = json.loads((tmp_path / "piece.json").read_text())
    assert content["benchmarks"] == [] and list(content["failed"]) == [title for title, _ in wanted]
    assert "expected NumPy's bits" in content["failed"]["step ddim exact cpu real"]
    assert "expected within" in content["failed"]["step ddpm fast cpu real"]


def test_a_piece_stops_in_time_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        checkpointed_rows.time, "monotonic", lambda: 10.0 * len(made)
    )  # a row takes 10 s

    def rows(names: str) -> common.Rows:
        for name in names:
            yield name, lambda name=name: (made.append(name), row(name))[1]

    first = checkpointed_rows.Checkpoint(tmp_path / "piece.json", "p", {})
    assert (
        not checkpointed_rows.measure_rows(rows("abcd"), first, 15)
        and made == ["a", "b"]
        and not first.finished
    )
    second = checkpointed_rows.Checkpoint(tmp_path / "piece.json", "p", {})
    assert list(second.rows) == ["a", "b"]
    assert checkpointed_rows.measure_rows(rows("abcd"), second, 60) and made == ["a", "b", "c", "d"]
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken() -> common.Rows:
        yield "x", lambda: (_ for _ in ()).throw(lost)
        yield "y", lambda: made.append("y")  # type: ignore[func-returns-value]

    third = checkpointed_rows.Checkpoint(tmp_path / "other.json", "p", {})
    assert not checkpointed_rows.measure_rows(broken(), third, 60) and "y" not in made, (
        "a lost device needs a new process"
    )
    assert "illegal" in third.failed["x"]


def test_the_suites_rows_are_kept_one_by_one(tmp_path: Path) -> None:
    """In pytest: a row, a failure without a time, a skip; the time is over after the first row."""
    (tmp_path / "test_mine.py").write_text(
        "import pytest, time\n"
        "def test_a(benchmark):\n"
        "    benchmark.pedantic(lambda: time.sleep(0.05), rounds=1)\n"
        "    benchmark.extra_info.update(schema=1)\n"
        "def test_b(benchmark): assert 1 == 2\n"
        "def test_c(benchmark): pytest.skip('no such thing here')\n"
    )
    (tmp_path / "go.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "from benchmarks.gpu.checkpointed_rows import Checkpoint, run_suite\n"
        f"checkpoint = Checkpoint(Path({str(tmp_path / 'piece.json')!r}), 'mine', {{}})\n"
        f"tests = [{str(tmp_path / 'test_mine.py')!r}, '-c', '/dev/null']\n"
        "print(run_suite(tests, checkpoint, float(sys.argv[1])))\n"
    )

    def go(within: str) -> tuple[str, Any]:
        run = [sys.executable, str(tmp_path / "go.py"), within]
        done = subprocess.run(
            run,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT}/kernels"},
        )
        return done.stdout.splitlines()[-1], json.loads((tmp_path / "piece.json").read_text())

    said, content = go("0.01")
    assert said == "False" and [b["name"].split("::")[1] for b in content["benchmarks"]] == [
        "test_a"
    ]
    assert not content["failed"]
    said, content = go("60")
    assert said == "True" and len(content["benchmarks"]) == 1, "the first row is not repeated"
    assert [(n.split("::")[1], r) for n, r in content["failed"].items()] == [
        ("test_b", "AssertionError: assert 1 == 2")
    ]
    assert "no such thing here" in next(iter(content["skipped"].values()))


def test_predictions_next_to_measurements() -> None:
    """DDIM, float32: 94 % of copy, 5 times diffusers, 1.0 times torch.compile; within 3 %."""
    copy = row("copy", kind="ceiling", rate=4300.0)
    case = {"dtype": "float32", "size": "large"}

    def judged(rate: float, **peers: float) -> list[tuple[str, str]]:
        slow = row("step ddim", 20.0, case=case, rate=rate / 2, backend="cuda")
        ours = row(
            "step ddim",
            case=case,
            rate=rate,
            peers={k.replace("_", "."): v for k, v in peers.items()},
        )
        return [
            (x["measured"], x["verdict"])
            for x in predictions.check([copy, slow, ours])
            if x["kernel"] == "DDIM step, float32"
        ]

    assert judged(0.92 * 4300, diffusers=4.9, torch_compile=1.2) == [
        ("92 (triton)", ""),
        ("4.9 (triton)", ""),
        ("1.2 (triton)", ""),
    ]
    assert judged(0.90 * 4300, diffusers=4.8, torch_compile=0.96) == [
        ("90 (triton)", "missed"),
        ("4.8 (triton)", "missed"),
        ("0.96 (triton)", "missed"),
    ]
    assert judged(0.95 * 4300) == [("95 (triton)", ""), ("-", ""), ("-", "")]
    rows = [
        row("graph step ddim", 4.2),
        row("loop ddim", peers={"diffusers": 49.0}),
        row("step ddpm, a seed per sample", kind="seeds", peers={"fastdiff, one seed": 0.979}),
    ]
    lines = {(x["kernel"][:4], x["what"]): x for x in predictions.check(rows)}
    assert lines["DDIM", "µs"] | {"kernel": ""} == {
        "kernel": "",
        "what": "µs",
        "predicted": "≤ 4",
        "measured": "4.2 (triton)",
        "verdict": "missed",
    }
    assert (
        lines["DDIM", "times diffusers, wall"]["verdict"] == ""
        and lines["a se", "of one seed's speed"]["verdict"] == "missed"
    )
    assert predictions.check([row("graph step ddim", 99.0, device="cpu")])[-8]["kernel"]
    assert all(
        x["verdict"] != "missed"
        for x in predictions.check([row("graph step ddim", 99.0, device="cpu")])
    )


def test_peers_come_out_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_report

    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(ValueError, match="expected wheels in"):
        gpu_report.environment(wheels)
    with zipfile.ZipFile(wheels / "peer-1.0-py3-none-any.whl", "w") as file:
        file.writestr("peer/__init__.py", "SPEED = 3\n")
    env = gpu_report.environment(wheels)
    printed = subprocess.run(
        [sys.executable, "-c", "import peer; print(peer.SPEED)"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert printed.stdout == "3\n", printed.stderr


def test_the_row_that_a_run_died_in_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_report

    keeping = checkpointed_rows.Checkpoint(tmp_path / "piece.json", "p", {})
    keeping.row("a", row("a"))
    keeping.begin("b")  # and the process is killed
    gpu_report.blame(tmp_path / "piece.json", "killed: not done in time")
    after = checkpointed_rows.Checkpoint(tmp_path / "piece.json", "p", {})
    assert after.failed == {"b": "killed: not done in time"} and "a" in after.rows and "b" in after
