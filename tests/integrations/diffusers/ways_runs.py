"""Ways to run: grids, timesteps, begin indices, and copies in the middle of a run."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from driving import Drive, has, plain, way

# -- loops


@way()
def plain_loop(d: Drive) -> None:
    d.loop(d.begin())


@way()
def two_loops_of_one_object(d: Drive) -> None:
    d.loop(d.begin())
    d.loop(d.begin())


@way(plain)
def set_timesteps_twice(d: Drive) -> None:
    d.begin(7)
    d.loop(d.begin())


@way()
def set_timesteps_in_a_run(d: Drive) -> None:
    x = d.loop(d.begin()[:2])
    d.loop(d.begin(6), x)


@way(plain)
def two_objects_by_turns(d: Drive) -> None:
    other = d.new()
    first, second = d.begin(), d.begin(6, other)
    x = y = d.start()
    for t, u in zip(first, second, strict=False):
        x, y = d.step(x, t), d.step(y, u, other)


@way()
def a_second_run_without_set_timesteps(d: Drive) -> None:
    timesteps = d.begin()
    d.loop(timesteps)
    d.loop(timesteps)


@way()
def a_step_after_the_end(d: Drive) -> None:
    timesteps = d.begin()
    d.step(d.loop(timesteps), timesteps[-1])


@way(plain)
def a_step_before_set_timesteps(d: Drive) -> None:
    d.step(d.start(), torch.tensor(500))


@way(plain)
def the_whole_training_grid(d: Drive) -> None:
    timesteps = d.begin(40)
    d.loop(timesteps[:3])
    d.show(len(timesteps))


# -- timesteps


@way()
def timesteps_assigned(d: Drive) -> None:
    timesteps = d.begin()
    d.scheduler.timesteps = timesteps.clone()
    d.loop(d.scheduler.timesteps)


@way()
def timesteps_assigned_without_the_first(d: Drive) -> None:
    timesteps = d.begin()
    d.scheduler.timesteps = timesteps[1:]
    d.loop(d.scheduler.timesteps)


@way()
def timesteps_assigned_in_reverse(d: Drive) -> None:
    timesteps = d.begin()
    d.scheduler.timesteps = timesteps.flip(0)
    d.loop(d.scheduler.timesteps)


@way()
def timesteps_cloned(d: Drive) -> None:
    d.loop([t.clone() for t in d.begin()])


@way()
def timesteps_as_integers(d: Drive) -> None:
    d.loop([int(t) for t in d.begin()])


@way()
def timesteps_as_floats(d: Drive) -> None:
    d.loop([float(t) for t in d.begin()])


@way(plain)
def timesteps_of_one_element(d: Drive) -> None:
    d.loop([t[None].clone() for t in d.begin()])


@way(plain)
def timesteps_as_numpy(d: Drive) -> None:
    d.loop([t.numpy()[()] for t in d.begin()])


@way()
def timesteps_in_reverse(d: Drive) -> None:
    d.loop(list(d.begin().clone())[::-1])


@way()
def every_second_timestep(d: Drive) -> None:
    d.loop(d.begin(8)[::2])


@way()
def a_skipped_step(d: Drive) -> None:
    timesteps = d.begin(6)
    d.loop([*timesteps[:2], *timesteps[3:]])


@way()
def a_repeated_step(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    d.step(x, timesteps[2])
    d.step(x, timesteps[2])


@way()
def a_run_from_the_fourth_timestep(d: Drive) -> None:
    d.loop(d.begin(8)[4:])


@way()
def a_run_from_a_copy_of_the_fourth_timestep(d: Drive) -> None:
    d.loop(d.begin(8)[4:].clone())


@way(has("set_begin_index"))
def a_run_from_a_begin_index(d: Drive) -> None:
    timesteps = d.begin(8)
    d.scheduler.set_begin_index(4)
    d.show(d.scheduler.begin_index)
    d.loop(timesteps[4:])
    d.show(d.scheduler.begin_index, d.scheduler.step_index)


@way(has("set_begin_index"))
def an_odd_begin_index(d: Drive) -> None:
    timesteps = d.begin(8)
    d.scheduler.set_begin_index(3)
    d.loop(timesteps[3:])


@way(has("set_begin_index"))
def a_begin_index_for_a_foreign_timestep(d: Drive) -> None:
    timesteps = d.begin(8)
    d.scheduler.set_begin_index(2)
    d.step(d.start(), timesteps[4])


@way(has("index_for_timestep"))
def indices_of_timesteps(d: Drive) -> None:
    for t in d.begin():
        d.show(int(d.scheduler.index_for_timestep(t)))


@way(has("index_for_timestep"))
def the_index_of_an_unknown_timestep(d: Drive) -> None:
    d.begin()
    d.show(d.scheduler.index_for_timestep(torch.tensor(123.25)))


@way(plain)
def a_step_at_an_unknown_timestep(d: Drive) -> None:
    d.begin()
    t = torch.tensor(123.25 if d.scheduler.timesteps.is_floating_point() else 123)
    d.take(d.start(), t, d.start())


@way(has("step_index"))
def counters(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    for t in timesteps:
        d.show(d.scheduler.step_index)
        x = d.step(x, t)
    d.show(d.scheduler.step_index)


# -- copies


def _halfway(d: Drive, copied: Callable[[Any], Any]) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    other = copied(d.scheduler)
    d.loop(other.timesteps[2:], x, other)


@way()
def a_pickle_in_a_run(d: Drive) -> None:
    _halfway(d, lambda s: pickle.loads(pickle.dumps(s)))


@way()
def a_deep_copy_in_a_run(d: Drive) -> None:
    _halfway(d, copy.deepcopy)


@way()
def a_shallow_copy_in_a_run(d: Drive) -> None:
    _halfway(d, copy.copy)


@way(plain)
def a_deep_copy_leaves_the_first_alone(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    other = copy.deepcopy(d.scheduler)
    d.loop(other.timesteps[2:], x, other)
    d.loop(timesteps[2:], x)


@way(plain)
def another_object_from_the_configuration(d: Drive) -> None:
    d.loop(d.begin()[:2])
    other = type(d.scheduler).from_config(d.scheduler.config)
    d.loop(d.begin(scheduler=other), scheduler=other)


@way(lambda row: plain(row) and "tau_func" not in row.case.config)
def a_saved_and_loaded_configuration(d: Drive) -> None:
    with tempfile.TemporaryDirectory() as folder:
        d.scheduler.save_pretrained(folder)
        other = type(d.scheduler).from_pretrained(folder)
    d.loop(d.begin(scheduler=other), scheduler=other)
