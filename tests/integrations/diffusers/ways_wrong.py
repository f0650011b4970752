"""Wrong values: where diffusers raises, the drop-in raises one sentence of its own."""

from __future__ import annotations

import torch
from driving import Drive, has, plain, takes, way

# -- wrong values


@way(plain)
def no_steps(d: Drive) -> None:
    d.loop(d.begin(0))


@way(plain)
def a_negative_number_of_steps(d: Drive) -> None:
    d.loop(d.begin(-3))


@way(plain)
def a_fraction_of_steps(d: Drive) -> None:
    d.loop(d.begin(4.5))  # type: ignore[arg-type]


_LONG = ("DDIM", "EulerDiscrete", "PNDM", "LMSDiscrete", "DPMSolverMultistep", "UnCLIP")


@way(lambda row: row.id in _LONG)  # such grids take a while
def more_steps_than_were_trained(d: Drive) -> None:
    d.loop(d.begin(1200)[:2])


@way(plain)
def an_output_of_another_batch(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(torch.cat([d.output(x, timesteps[0])] * 2), timesteps[0], x)


@way(plain)
def an_output_of_another_width(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(d.output(x, timesteps[0])[..., :3], timesteps[0], x)


@way(plain)
def an_output_of_one_sample(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(d.output(x, timesteps[0])[:1], timesteps[0], x)


@way(plain)
def an_output_of_no_dimension(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(torch.tensor(0.1), timesteps[0], x)


@way(plain)
def an_integer_state(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(d.output(x, timesteps[0]), timesteps[0], x.int())


@way(plain)
def no_output(d: Drive) -> None:
    timesteps = d.begin()
    d.take(None, timesteps[0], d.start())  # type: ignore[arg-type]


@way(plain)
def a_list_as_the_state(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    d.take(d.output(x, timesteps[0]), timesteps[0], x.tolist())  # type: ignore[arg-type]


@way(plain)
def a_wrong_kind_of_timestep(d: Drive) -> None:
    d.begin()
    d.take(d.start(), "first", d.start())


@way(plain)
def no_timestep(d: Drive) -> None:
    d.begin()
    d.take(d.start(), None, d.start())


@way(lambda row: plain(row) and bool(row.case.kinds[0]))
def an_unknown_prediction_type(d: Drive) -> None:
    d.scheduler = d.new(prediction_type="colour")
    d.loop(d.begin()[:2])


@way(takes("generator"))
def a_wrong_generator(d: Drive) -> None:
    d.step(d.start(), d.begin()[0], generator=3)


@way(plain)
def timesteps_of_a_whole_batch(d: Drive) -> None:
    d.loop([t.repeat(2) for t in d.begin()])


@way(has("set_begin_index"))
def a_begin_index_beyond_the_grid(d: Drive) -> None:
    timesteps = d.begin()
    d.scheduler.set_begin_index(40)
    d.loop(timesteps)


@way(has("add_noise"))
def noise_added_beyond_the_table(d: Drive) -> None:
    d.begin()
    x = d.start()
    d.show(d.scheduler.add_noise(x, x, torch.tensor([4000, 4000])))
