"""Configurations of drop-ins: saved, loaded, converted both ways and rewritten; public names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import CLASSES, both
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from loops import plain

import fastdiff
from fastdiff.integrations import diffusers as drop_ins

KARRAS = sorted({e.name for e in KarrasDiffusionSchedulers} & set(CLASSES))


def made(name: str) -> tuple[Any, Any]:
    """(diffusers', fastdiff's) in the class's first case."""
    return both(plain(name), plain(name).kinds[0])


@pytest.mark.parametrize("name", CLASSES)
def test_saved_loaded_and_swapped_configurations(name: str, tmp_path: Path) -> None:
    theirs, ours = made(name)
    assert isinstance(ours.config, FrozenDict) and ours.config["num_train_timesteps"] == len(ours)
    shown = {k: v for k, v in ours.config.items() if not k.startswith("_")}
    assert shown == {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == name
    again = type(ours).from_pretrained(tmp_path)
    back = type(theirs).from_pretrained(tmp_path)
    assert {k: v for k, v in again.config.items() if not k.startswith("_")} == shown
    assert {k: v for k, v in back.config.items() if not k.startswith("_")} == shown
    # values that a donor never set are the receiver's own defaults, and keys that are unknown here
    # survive
    config = {**theirs.config, "a_key_of_another_class": 3}
    there = type(ours).from_config(config)
    assert there.config["a_key_of_another_class"] == 3
    assert type(theirs).from_config(there.config).config["a_key_of_another_class"] == 3
    if "timestep_spacing" in config and "timestep_spacing" not in plain(name).config:
        assert there.config["timestep_spacing"] == type(ours)().config["timestep_spacing"]


@pytest.mark.parametrize("name", KARRAS)
def test_swapping_classes_keeps_diffusers_rules(name: str) -> None:
    donor = diffusers.DDIMScheduler(beta_start=0.0002, steps_offset=1)
    theirs = getattr(diffusers, name).from_config(donor.config)
    ours = getattr(fastdiff, name).from_config(donor.config)
    public = [k for k in theirs.config if not k.startswith("_")]
    assert {k: ours.config[k] for k in public} == {k: theirs.config[k] for k in public}
    through = getattr(fastdiff, name).from_config(
        fastdiff.DDIMScheduler.from_config(donor.config).config
    )
    assert {k: through.config[k] for k in public} == {k: theirs.config[k] for k in public}


def test_configurations_replaced_in_place_take_effect() -> None:
    """Stable Diffusion's constructors rewrite steps_offset, clip_sample and skip_prk_steps so."""
    changes = {
        "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
        "PNDMScheduler": {"skip_prk_steps": True},
    }
    for name, change in changes.items():
        pair = [getattr(module, name)() for module in (diffusers, fastdiff)]
        for scheduler in pair:
            scheduler._internal_dict = FrozenDict({**scheduler.config, **change})
            scheduler.set_timesteps(10)
        assert torch.equal(pair[0].timesteps, pair[1].timesteps)
        x = torch.linspace(-3, 3, 2 * 4 * 9).reshape(2, 4, 3, 3)
        expected, got = (s.step(0.9 * x, s.timesteps[0], x).prev_sample for s in pair)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    ours = fastdiff.DDIMScheduler()
    ours.set_timesteps(10)
    before = ours.step(-x, ours.timesteps[0], x).prev_sample
    ours._internal_dict = FrozenDict({**ours.config, "clip_sample": False})
    assert not torch.equal(before, ours.step(-x, ours.timesteps[0], x).prev_sample)


def test_every_kind_of_trained_betas_is_saved(tmp_path: Path) -> None:
    values = np.linspace(1e-4, 0.02, 50)
    for betas in (values, values.tolist(), tuple(values.tolist()), torch.tensor(values)):
        scheduler = fastdiff.DDIMScheduler(num_train_timesteps=50, trained_betas=betas)
        scheduler.save_pretrained(tmp_path)
        again = fastdiff.DDIMScheduler.from_pretrained(tmp_path)
        assert torch.equal(again.betas, scheduler.betas)
        assert torch.equal(scheduler.betas, diffusers.DDIMScheduler(trained_betas=values).betas)


def test_twins_and_what_has_none() -> None:
    for name in CLASSES:
        theirs, _ = made(name)
        drop_in = fastdiff.from_scheduler(theirs)
        assert type(drop_in) is getattr(fastdiff, name)
        assert {**drop_in.config, "_use_default_values": 0} == {
            **theirs.config,
            "_use_default_values": 0,
        }
        assert set(drop_in.config["_use_default_values"]) == set(
            theirs.config.get("_use_default_values", [])
        )
        assert fastdiff.from_scheduler(drop_in) is drop_in
    rewritten = diffusers.DDIMScheduler()
    rewritten._internal_dict = FrozenDict({**rewritten.config, "steps_offset": 1})
    assert fastdiff.from_scheduler(rewritten).config.steps_offset == 1
    with pytest.raises(TypeError, match="nearest supported one is FlowMatchEulerDiscrete"):
        fastdiff.from_scheduler(diffusers.PiflowScheduler())
    with pytest.raises(TypeError, match="tokens"):
        fastdiff.from_scheduler(diffusers.VQDiffusionScheduler(10))


def test_names_at_the_top_are_those_of_the_package() -> None:
    assert set(fastdiff._DIFFUSERS) == set(drop_ins.__all__)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_importing_fastdiff_leaves_diffusers_alone() -> None:
    assert (
        python("import sys, fastdiff; fastdiff.Sampler; print('diffusers' in sys.modules)")
        == "False"
    )
    absent = "import sys; sys.modules['diffusers'] = None; import fastdiff; fastdiff.DDIMScheduler"
    assert python(absent).startswith("ImportError: fastdiff.DDIMScheduler: expected diffusers")
