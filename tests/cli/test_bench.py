"""`fastdiff bench` with a tiny network: its output, its errors, and costs planted in it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import rows
from fastdiff import Sampler, Schedule
from fastdiff.cli import bench_diffusers, bench_measure, main
from fastdiff.cli.bench import describe
from fastdiff.cli.bench_measure import Bench
from fastdiff.jobs import Model
from fastdiff.pretrained import read_config
from fastdiff.schedule import Time

SHAPE = (3, 8, 8)
QUICK = ["--batch", "2", "--steps", "3", "--seconds", "0.02", "--device", "cpu", "--threads", "1"]


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return 0.9 * torch.tanh(x) + 0.01 * y.view(-1, 1, 1, 1)


def slow(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    time.sleep(0.02)
    return network(x, t, y)


def make(call: Callable[..., Any] = network, **settings: Any) -> Model:
    settings = {"solver": "ddim", "guidance_scale": 2.0} | settings
    return Model(
        call, SHAPE, schedule=Schedule.linear(1000), settings=settings, num_classes=3, null_label=3
    )


def as_sampler() -> Sampler:
    return Sampler(
        lambda x, t: 0.5 * x, Schedule.flow(1000), prediction_type="flow", solver="flow_euler"
    )


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    """This module's functions as factories, by the name that it has during the tests."""
    monkeypatch.setitem(sys.modules, "a_users_module", sys.modules[__name__])
    return "a_users_module:make"


def refuses(network: Any) -> Any:
    raise TypeError("fastdiff.accelerate: expected another network. Use it as it is.")


def opened(
    name: str, monkeypatch: pytest.MonkeyPatch, accelerate: Any = refuses, **settings: Any
) -> Bench:
    monkeypatch.setattr(bench_measure, "accelerate", accelerate)
    return Bench(name, batch=2, seconds=0.02, settings={"steps": 3} | settings, device="cpu")


def test_a_table_and_rows_that_the_report_reads(
    factory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr(
        bench_measure, "accelerate", lambda module: lambda x, t, **cond: module(x, t, **cond)
    )
    threads = torch.get_num_threads()
    assert main(["bench", "--model", factory, *QUICK, "--json", str(tmp_path / "mine.json")]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == f"{factory}, 2×3×8×8, 3 steps, guidance 2; cpu, backend cpu, 1 CPU thread"
    assert [line for line in lines if not line.startswith((" ", factory)) and ", per " in line] == [
        "network, one call, per sample-step",
        "run, ddim, per sample-step",
        "loop, the network costing nothing, per step",
    ]
    assert "(result as diffusers' (" in shown.out and "samples a second with 3 steps" in shown.out
    assert (
        "of a run is spent outside the network" in lines[-1] and "measuring whole runs" in shown.err
    )
    found = rows.load(tmp_path / "mine.json")
    assert [row["kind"] for row in found.rows] == ["network", "sampling", "loop"]
    run = found.rows[1]
    assert (
        set(run["peers"]) == {"fastdiff, network as it is", "diffusers"}
        and run["arm"] == "fastdiff"
    )
    per_sample = 3 * run["us"][1] * 1e-6  # seconds
    assert run["images_per_s"][1] == pytest.approx(1 / per_sample, rel=1e-3), (
        "2 samples of 3 steps, per sample-step"
    )
    assert 0 < run["overhead_percent"][1] < 100 and torch.get_num_threads() == threads


def test_planted_costs_show(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms in the network are 10 ms per sample-step and most of a run; 20 ms more in the
    accelerated network halve its speed.
    """
    module = factory.split(":")[0]
    monkeypatch.setattr(sys.modules[__name__], "slow_model", lambda: make(slow), raising=False)
    made = opened(
        f"{module}:slow_model",
        monkeypatch,
        lambda call: lambda x, t, **c: (time.sleep(0.02), call(x, t, **c))[1],
    )
    call, run, _ = made.rows()
    assert (
        20_000 <= call["us"][0] < 40_000 and 10_000 <= call["peers"]["as it is"]["us"][0] < 20_000
    )
    assert 0.3 < call["peers"]["as it is"]["faster"]["median"] < 0.7, (
        "and not hidden: slower than the network as it is"
    )
    assert run["overhead_percent"][0] < 40 and run["us"][0] >= 20_000
    assert 0.3 < run["peers"]["fastdiff, network as it is"]["faster"]["median"] < 0.75
    assert rows.lost([call, run]) and "0.5" in describe([call, run])


def test_a_wrong_accelerated_network_is_an_error_and_no_time(
    factory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for planted in (1.01, float("nan")):
        wrong = lambda call, planted=planted: lambda x, t, **cond: planted * call(x, t, **cond)  # noqa: E731
        monkeypatch.setattr(bench_measure, "accelerate", wrong)
        assert main(["bench", "--model", factory, *QUICK]) == 1
        shown = capsys.readouterr()
        assert (
            "expected the accelerated network within 0.001 of the plain network" in shown.err
            and not shown.out
        )


def test_what_is_missing_is_named(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons(made: Bench) -> list[Any]:
        call, run, _ = made.rows()
        return [
            row["peers"].get(p, {}).get("missing")
            for row, p in ((call, "fastdiff.accelerate"), (run, "diffusers"))
        ]

    refused, none = reasons(opened(factory, monkeypatch))
    assert "expected another network" in refused and none is None
    monkeypatch.setattr(
        sys.modules[__name__], "flowing", lambda: _shaped(as_sampler()), raising=False
    )
    unknown = reasons(opened("a_users_module:flowing", monkeypatch))[1]
    assert unknown == "no scheduler of diffusers for flow_euler"
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert reasons(opened(factory, monkeypatch))[1] == "diffusers is not installed"


def _shaped(sampler: Sampler) -> Sampler:
    sampler.shape = SHAPE  # type: ignore[attr-defined]
    return sampler


@pytest.mark.parametrize(
    "solver", sorted(set(bench_diffusers.CLASSES) - {"ddpm", "dpm++2m_sde", "euler_ancestral"})
)
def test_diffusers_runs_the_same_formula(
    solver: str, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both loops compute the same, except PNDM, which starts differently."""
    pytest.importorskip("diffusers")
    made = opened(factory, monkeypatch, solver=solver, steps=8)
    theirs, ours = made.diffusers_run(made.network), made.run_of(made.network)
    assert not isinstance(theirs, str)
    x = ours()
    difference = float((theirs() - x).abs().max() / x.abs().max())
    assert difference < (0.1 if solver == "pndm" else 2e-3), difference


@pytest.mark.parametrize("kind", ["DDIM", "learned variance", "flow"])
def test_a_pipelines_folder_is_compared_with_its_own_scheduler(kind: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tests.jobs import pipelines

    made = {
        "DDIM": lambda: pipelines.plain(diffusers.DDIMScheduler()),
        "learned variance": lambda: pipelines.plain(
            diffusers.DDPMScheduler(variance_type="learned_range"), learned=True
        ),
        "flow": pipelines.three,
    }[kind]()
    folder = pipelines.saved(made, tmp_path / "pipeline")
    lines = tmp_path / "prompts.txt"
    lines.write_text("a boot\na shirt\n")
    bench = Bench(
        folder,
        batch=2,
        seconds=0.01,
        settings={"steps": 3},
        device="cpu",
        conditions=str(lines) if kind == "flow" else None,
    )
    _, run, loop = bench.rows()
    assert "us" in run["peers"]["diffusers"] and "us" in loop["peers"]["diffusers"]
    if kind == "learned variance":
        assert bench.stochastic and run["checked"] == "finite", "runs of other noise"
    else:
        assert not bench.stochastic and run["checked"].startswith("as diffusers' (")


class OwnTime(torch.nn.Module):
    """A network that takes half the timestep as its time."""

    def network_time(self, point: Time) -> float:
        return point.t / 2

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        return network(x, t, y) * (1 + t.view(-1, 1, 1, 1) / 1000)


def test_a_network_of_its_own_time_gets_it_in_both_loops(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    own = lambda: make(OwnTime())  # noqa: E731
    monkeypatch.setattr(sys.modules[__name__], "own_time", own, raising=False)
    _, run, _ = opened("a_users_module:own_time", monkeypatch).rows()
    assert run["checked"].startswith("as diffusers' (")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--model", "nowhere"],
            (
                "expected a folder, a shipped model (fashion-mnist) or package.module:function, got"
                " 'nowhere'"
            ),
        ),
        (["--model", "a_users_module:absent"], "expected 'absent' in a_users_module"),
        (["--shape", "3x3"], "expected --shape as numbers like 3,32,32, got '3x3'."),
        (["--batch", "0"], "expected --batch > 0, got 0."),
        (["--threads", "0"], "expected --threads >= 1, got 0."),
        (["--solver", "fast"], "'fast'"),
        (["--json", "no/such/folder.json"], "expected --json FILE in an existing folder"),
        (["--conditions", "none.txt"], "none.txt"),
    ],
)
def test_wrong_arguments_get_a_sentence(
    arguments: list[str], sentence: str, factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", factory, *QUICK, *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and len(shown.err.strip().splitlines()) == 1 and not shown.out


def test_the_shipped_model_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "bench",
        "--batch",
        "1",
        "--steps",
        "1",
        "--seconds",
        "0.01",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*command, "--json", str(tmp_path / "b.json")]) == 0
    scale = read_config("fashion-mnist")["sampler"]["guidance_scale"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"fashion-mnist, 1×1×28×28, 1 steps, guidance {scale:g}; cpu")
    assert "DPMSolverMultistepScheduler has no grid ays_sdxl" in printed
    assert json.loads((tmp_path / "b.json").read_text())["machine_info"]["fastdiff"]["versions"][
        "torch"
    ]
