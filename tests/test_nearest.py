"""A misspelt name is answered with the nearest known one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fastdiff import Sampler, Schedule
from fastdiff.cli import COMMANDS, main
from fastdiff.nearest import nearest
from fastdiff.sampling.settings import SamplerSettings, SolverOptions
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.build import OF_SAMPLER, OTHER_NAMES, make_plan
from fastdiff.solvers.grids import SPACINGS
from fastdiff.versions import __version__


def refused(**settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        Sampler(lambda x, t: x, Schedule.cosine(50), steps=5, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stepz", " Did you mean 'steps'?"),
        ("STEPS", " Did you mean 'steps'?"),
        ("entirely else", ""),
        (3, ""),
        ("device", " Move it."),
    ],
)
def test_sentences(name: object, expected: str) -> None:
    assert nearest(name, ["steps", "solver"], {"device": "Move it."}) == expected


@pytest.mark.parametrize("name", [*SOLVERS, *SPACINGS])
def test_a_letter_too_many_is_found(name: str) -> None:
    setting = {"solver" if name in SOLVERS else "timestep_spacing": name + "x"}
    assert refused(**setting).endswith(f"Did you mean {name!r}?")


def test_solvers_and_settings() -> None:
    assert refused(solver="unipcc").endswith("got 'unipcc'. Did you mean 'unipc'?")
    assert refused(solver="DPM++ 2M Karas").endswith("Did you mean 'DPM++ 2M Karras'?")
    assert refused(timestep_spacing="karas").endswith("Did you mean 'karras'?")
    assert refused(stepz=3).endswith("got 'stepz'. Did you mean 'steps'?")
    assert refused(eta=1.0).endswith("got 'eta'."), "a setting that only other solvers have"
    assert refused(guidance_scal=3.0).endswith("Did you mean 'guidance_scale'?")
    assert refused(num_inference_steps=3).endswith("got 'num_inference_steps'. Pass steps.")
    assert "Move the network" in refused(device="cpu")
    assert refused(solver="dpm++2m", eta=0.5).endswith("got 'eta'.")


def test_the_suggested_settings_exist() -> None:
    """`OF_SAMPLER` is what the sampler takes and a plan does not."""
    of_sampler = SamplerSettings.__annotations__.keys()
    of_plan = set(inspect.signature(make_plan).parameters)
    of_solvers = SolverOptions.__annotations__.keys() - {"eta"}
    assert set(OF_SAMPLER) == of_sampler - of_plan - of_solvers
    assert not set(OTHER_NAMES) & (of_sampler | of_plan)


def exits(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(["sampel"]) == 2
    assert "Did you mean 'sample'?" in capsys.readouterr().err
    assert exits(["solvers", "--jsn"]) == 2
    error = capsys.readouterr().err
    assert "unrecognized arguments: --jsn. Did you mean '--json'?" in error
    assert exits(["sample", "--sed=3", "--out", "x"]) == 2
    assert "Did you mean '--seed'?" in capsys.readouterr().err
    assert exits(["solvers", "more"]) == 2
    assert capsys.readouterr().err.endswith("unrecognized arguments: more.\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdiff {__version__}\n"
    assert exits(["help"]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in COMMANDS)
    assert exits(["help", "solvers"]) == 0
    assert "usage: fastdiff solvers" in capsys.readouterr().out
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == everything and not captured.out
