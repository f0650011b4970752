"""Ways to treat states and outputs: edits between the calls, batches, shapes, dtypes and memory."""

from __future__ import annotations

import torch
from driving import Drive, plain, takes, way

# -- states


@way()
def a_callback_returns_other_latents(d: Drive) -> None:
    first = x = d.start()
    for t in d.begin(6):
        x = 0.95 * d.step(x, t) + 0.01 * first


@way()
def a_callback_edits_latents_in_place(d: Drive) -> None:
    x = d.start()
    for t in d.begin(6):
        x = d.step(x, t)
        x.mul_(0.95).add_(0.01)


@way()
def a_callback_replaces_one_sample(d: Drive) -> None:
    x = d.start()
    for t in d.begin(6):
        x = d.step(x, t).clone()
        x[0] = 0.5 * x[1]


@way()
def the_given_state_is_edited_after_the_step(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        before, x = x, d.step(x, t)
        before.mul_(0.5)


@way()
def the_output_is_edited_after_the_step(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        out = d.output(x, t)
        x = d.take(out, t, x)
        out.mul_(0.5)


@way()
def another_batch_size_in_a_run(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    d.loop(timesteps[2:], torch.cat([x, x[:1]]))


@way()
def another_shape_in_a_run(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    d.loop(timesteps[2:], x[..., :3])


@way()
def another_batch_size_after_set_timesteps(d: Drive) -> None:
    d.loop(d.begin())
    d.loop(d.begin(), d.start(shape=(3, 3, 4, 4)))


@way(plain)
def states_of_two_dimensions(d: Drive) -> None:
    d.loop(d.begin(), d.start(shape=(3, 10)))


@way(lambda row: row.case.name != "FlowMatchLCMScheduler")
def states_of_five_dimensions(d: Drive) -> None:
    d.loop(d.begin(), d.start(shape=(2, 3, 2, 3, 2)))


@way(plain)
def an_empty_batch(d: Drive) -> None:
    d.loop(d.begin(), d.start(shape=(0, 3, 4, 4)))


@way()
def states_in_float16(d: Drive) -> None:
    d.loop(d.begin(), d.start(torch.float16))


@way()
def states_in_bfloat16(d: Drive) -> None:
    d.loop(d.begin(), d.start(torch.bfloat16))


@way()
def states_in_float64(d: Drive) -> None:
    d.loop(d.begin(), d.start(torch.float64))


def _mixed(d: Drive, state: torch.dtype, output: torch.dtype) -> None:
    x = d.start(state)
    d.tolerance = 2e-2 if output == torch.float16 else 1e-1
    for t in d.begin():
        x = d.take(d.output(x, t).to(output), t, x)


@way()
def outputs_in_float16_for_states_in_float32(d: Drive) -> None:
    _mixed(d, torch.float32, torch.float16)


@way()
def outputs_in_float32_for_states_in_float16(d: Drive) -> None:
    _mixed(d, torch.float16, torch.float32)


@way()
def outputs_in_bfloat16_for_states_in_float64(d: Drive) -> None:
    _mixed(d, torch.float64, torch.bfloat16)


@way()
def another_dtype_in_a_run(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    d.loop(timesteps[2:], x.double())


@way()
def transposed_states(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        x = d.step(x.transpose(2, 3), t).transpose(2, 3)


@way(plain)
def states_in_channels_last(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        x = d.step(x.contiguous(memory_format=torch.channels_last), t)


@way(plain)
def expanded_states_and_outputs(d: Drive) -> None:
    x = d.start()[:1].expand(2, -1, -1, -1)
    timesteps = d.begin()
    d.take(
        0.1 * x[:, :1].expand_as(x) if not d.row.case.learned else x.repeat(1, 2, 1, 1),
        timesteps[0],
        x,
    )


@way(plain)
def states_with_values_that_are_not_finite(d: Drive) -> None:
    x = d.start()
    x[0, 0, 0, 0] = float("nan")
    x[1, 0, 0, 0] = float("inf")
    d.loop(d.begin()[:2], x)


@way(takes("order"))
def another_order_at_every_step(d: Drive) -> None:
    x = d.start()
    for i, t in enumerate(d.begin()):
        x = d.step(x, t, order=4 - i % 3)


@way(takes("s_churn"))
def another_churn_at_every_step(d: Drive) -> None:
    x = d.start()
    generator = torch.Generator().manual_seed(9)
    for i, t in enumerate(d.begin()):
        x = d.step(x, t, s_churn=2.0 * i, generator=generator)
