"""Members of schedulers: those that diffusers' pipelines touch, and the class of a drop-in."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import CLASSES, both, set_timesteps
from loops import plain

import fastdiff
from fastdiff.integrations.diffusers import members

PIPELINES = Path(inspect.getfile(diffusers)).parent
TOUCHED = {
    str(path.relative_to(PIPELINES)): members.touched(path.read_text())
    for folder in ("pipelines", "modular_pipelines", "loaders", "guiders", "hooks")
    for path in sorted((PIPELINES / folder).rglob("*.py"))
}
NAMES = set().union(*TOUCHED.values())

# What a drop-in may have where diffusers' class has not, because a pipeline that asks for it by
# hasattr gets the same numbers: an order of 1, a scale_model_input that is the identity, a flow's
# add_noise that is scale_noise, counters that no step needs
MORE = {
    "_step_index",
    "add_noise",
    "get_velocity",
    "init_noise_sigma",
    "num_inference_steps",
    "order",
    "scale_model_input",
    "set_begin_index",
    "step_index",
}


def _ready(name: str) -> tuple[Any, Any]:
    case = plain(name)
    pair = both(case, case.kinds[0])
    for scheduler in pair:
        set_timesteps(case, scheduler, next(n for n in case.steps if n >= 8))
    return pair


def test_the_parser_sees_members_of_every_form() -> None:
    source = """
def run(self, pipe):
    scheduler = self.scheduler if self.many else None
    own = self.scheduler
    own.assigned = 1
    pipe.scheduler.read
    self.low_res_scheduler.called(scheduler.argument)
    if hasattr(self.scheduler, "asked") and getattr(own, "got", None):
        self.scheduler.config.get("not_a_member")
        self.unet.other
"""
    assert members.touched(source) == {
        "argument",
        "asked",
        "assigned",
        "called",
        "config",
        "got",
        "read",
    }
    assert {"_get_variance", "_get_conditioning_c_in", "last_sample", "sigmas", "step"} <= NAMES
    assert len(TOUCHED) > 300


@pytest.mark.parametrize("after", [False, True], ids=["made", "set"])
@pytest.mark.parametrize("name", CLASSES)
def test_drop_ins_have_the_members_that_pipelines_touch(name: str, after: bool) -> None:
    """In every pipeline's file of the installed diffusers, whatever its version."""
    case = plain(name)
    theirs, ours = _ready(name) if after else both(case, case.kinds[0])
    lacking = {n for n in NAMES if hasattr(theirs, n) and not hasattr(ours, n)}
    if lacking:
        files = {n: [f for f, touched in TOUCHED.items() if n in touched] for n in lacking}
        pytest.fail(f"{name} lacks {files}")
    more = {n for n in NAMES if hasattr(ours, n) and not hasattr(theirs, n)}
    assert more <= MORE, more
    for attribute in sorted(NAMES):
        wanted = getattr(theirs, attribute, None)
        if isinstance(wanted, (bool, int, float, str)) or wanted is None:
            # PNDM's timesteps and LTX's levels before set_timesteps
            unset = attribute in ("timesteps", "sigmas") and wanted is None
            if hasattr(theirs, attribute) and not attribute.startswith("__") and not unset:
                assert getattr(ours, attribute) == wanted, attribute
        elif isinstance(wanted, torch.Tensor):
            got = getattr(ours, attribute)
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", CLASSES)
def test_every_attribute_can_be_read_and_assigned_as_in_diffusers(name: str) -> None:
    theirs, ours = _ready(name)
    names = {n for n in vars(theirs) if n != "_internal_dict"} | {
        n for n in dir(type(theirs)) if not n.startswith("__") and n != "_abc_impl"
    }
    lacking = sorted(n for n in names if hasattr(theirs, n) and not hasattr(ours, n))
    # PNDM's own store of `timesteps`, FlowMatchLCM's of the first size, KDPM2's of a table
    assert set(lacking) <= {"_timesteps", "_init_size", "log_sigmas"}, lacking
    for attribute in vars(theirs):
        if attribute not in ("_internal_dict", *lacking):
            setattr(ours, attribute, getattr(ours, attribute))


CALLS: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "DDIMScheduler": [("_get_variance", (801, 601))],
    "DDPMScheduler": [("_get_variance", (875,))],
    "DDPMParallelScheduler": [("_get_variance", (499,))],
    "DDIMParallelScheduler": [("_get_variance", (801, 601))],
    "TCDScheduler": [("_get_variance", (801, 601))],
    "UnCLIPScheduler": [("_get_variance", (801, 601))],
    "EDMEulerScheduler": [("_get_conditioning_c_in", (2.5,))],
    "EDMDPMSolverMultistepScheduler": [("_get_conditioning_c_in", (2.5,))],
    "EulerDiscreteScheduler": [("_sigma_to_t", (np.array(2.5), np.log([0.5, 1.0, 3.0])))],
    "FlowMatchEulerDiscreteScheduler": [("_sigma_to_t", (0.25,))],
    "CMStochasticIterativeScheduler": [("get_scalings", (torch.tensor(2.0),))],
    "LMSDiscreteScheduler": [("get_lms_coefficient", (3, 4, 1))],
    "LCMScheduler": [("get_scalings_for_boundary_condition_discrete", (250,))],
}


@pytest.mark.parametrize("name", CALLS)
def test_borrowed_functions_compute_with_the_drop_ins_tables(name: str) -> None:
    for method, given in CALLS[name]:
        theirs, ours = _ready(name)
        numbers = []
        for scheduler in (theirs, ours):
            first = scheduler.timesteps.tolist() if method == "_get_variance" else None
            if first is not None:
                given = tuple(int(first[i + 1]) for i in range(len(given)))
            value = getattr(scheduler, method)(*given)
            parts = value if isinstance(value, tuple) else (value,)
            numbers.append([float(part) for part in parts])
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_drop_in_is_an_instance_of_both_classes(name: str) -> None:
    """Pipelines choose by isinstance; copies, pickles and saved files have fastdiff's class."""
    ours = _ready(name)[1]
    cls = getattr(fastdiff, name)
    assert isinstance(ours, getattr(diffusers, name)) and isinstance(ours, cls)
    for other in CLASSES:
        if other != name:
            expected = issubclass(getattr(diffusers, name), getattr(diffusers, other))
            assert isinstance(ours, getattr(diffusers, other)) is expected
    made = ours.__class__.from_config(ours.config)
    for again in (copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours)), made):
        assert type(again) is cls
    assert (ours.__class__.__name__, ours.__class__.__module__) == (name, "fastdiff")


class Reaching(diffusers.DDPMPipeline):  # type: ignore[misc]
    """A pipeline of a user who reaches into the scheduler."""

    def reach(self) -> Any:
        return self.scheduler.of_another_version


def test_swap_refuses_a_pipeline_whose_member_is_missing() -> None:
    class Newer(diffusers.DDPMScheduler):  # type: ignore[misc]
        of_another_version = 1

    Newer.__name__, Newer.__module__ = "DDPMScheduler", diffusers.DDPMScheduler.__module__
    pipe = Reaching(unet=None, scheduler=Newer())
    with pytest.raises(TypeError, match=r"got Reaching, which uses of_another_version of its DDPM"):
        fastdiff.swap(pipe)
    assert type(pipe.scheduler) is Newer
    plain_pipe = diffusers.DDPMPipeline(unet=None, scheduler=Newer())
    assert isinstance(fastdiff.swap(plain_pipe).scheduler, fastdiff.DDPMScheduler)


def test_a_pipeline_without_a_source_is_swapped() -> None:
    pipe = SimpleNamespace(components={"scheduler": diffusers.DDIMScheduler()}, scheduler=None)
    assert isinstance(fastdiff.swap(pipe).scheduler, fastdiff.DDIMScheduler)
