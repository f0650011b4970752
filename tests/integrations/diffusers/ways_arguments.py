"""Ways to call: draws, gradient modes, threads, compilation, and methods other than `step`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from driving import SHAPE, STEPS, Drive, Row, has, plain, takes, way
from torch import Tensor

# -- results, draws and modes


@way(lambda row: plain(row) and row.id not in ("CogVideoXDPM", "DDPMWuerstchen"))
def results_as_outputs(d: Drive) -> None:
    x = d.start()
    for t in d.begin()[:2]:
        out = d.output(x, t)
        result = d.scheduler.step(out, t, x, **d.options(x))
        d.show(sorted(k for k in result.keys() if result[k] is not None), result.prev_sample)
        x = result[0]


def _drawing(row: Row) -> bool:
    return row.case.stochastic


@way(_drawing)
def a_list_of_generators(d: Drive) -> None:
    d.generator = [torch.Generator().manual_seed(i) for i in range(2)]
    d.loop(d.begin())


@way(_drawing)
def a_list_of_one_generator(d: Drive) -> None:
    d.generator = [torch.Generator().manual_seed(3)]
    d.loop(d.begin())


@way(_drawing)
def too_few_generators(d: Drive) -> None:
    d.generator = [torch.Generator().manual_seed(i) for i in range(2)]
    d.loop(d.begin(), d.start(shape=(3, 3, 4, 4)))


@way(_drawing)
def generators_after_a_loop(d: Drive) -> None:
    d.loop(d.begin())
    d.show(d.generator.get_state())


@way(takes("generator"))
def draws_of_the_global_generator_repeat(d: Drive) -> None:
    d.generator = None
    torch.manual_seed(4)
    with torch.no_grad():
        first = d.loop(d.begin())
        torch.manual_seed(4)
        again = d.loop(d.begin())
    d.seen = [bool(torch.equal(first, again))]


@way(takes("generator"))
def a_generator_for_steps_that_draw_nothing(d: Drive) -> None:
    generator = torch.Generator().manual_seed(9)
    x = d.start()
    for t in d.begin():
        x = d.step(x, t, generator=generator)
    d.show(generator.get_state())


@way(takes("eta"))
def an_eta(d: Drive) -> None:
    x = d.start()
    generator = torch.Generator().manual_seed(9)
    for t in d.begin():
        x = d.step(x, t, eta=0.3, generator=generator)


@way(takes("eta"))
def another_eta_at_every_step(d: Drive) -> None:
    x = d.start()
    generator = torch.Generator().manual_seed(9)
    for i, t in enumerate(d.begin()):
        x = d.step(x, t, eta=0.2 * i, generator=generator)


@way()
def inference_mode(d: Drive) -> None:
    with torch.inference_mode():
        d.loop(d.begin())


@way(plain)
def no_grad_for_states_that_require_gradients(d: Drive) -> None:
    with torch.no_grad():
        x = d.loop(d.begin(), d.start().requires_grad_())
    d.show(x.requires_grad)


@way()
def gradients_through_two_steps(d: Drive) -> None:
    leaf = (0.5 * d.start(torch.float64)).requires_grad_()
    x = d.loop(d.begin()[:2], leaf)
    weights = torch.linspace(0, 1, x.numel(), dtype=x.dtype).view_as(x)
    (gradient,) = torch.autograd.grad((x * weights).sum(), leaf)
    d.show(gradient)


@way()
def gradients_of_the_outputs_alone(d: Drive) -> None:
    timesteps = d.begin()
    x, leaf = 0.5 * d.start(), None
    for t in timesteps[:3]:
        leaf = d.output(x, t).requires_grad_() if leaf is None else leaf
        x = d.take(leaf, t, x)
    assert leaf is not None
    d.show(*torch.autograd.grad(x.sum(), leaf))


@way(plain)
def threads_of_one_object(d: Drive) -> None:
    """Two runs of one object at once; the peer takes them one by one, on an object each."""

    def run(steps: int) -> list[Tensor]:
        own = Drive(d.row, d.mine)
        own.scheduler = d.scheduler if d.mine else own.scheduler
        with torch.no_grad():
            own.loop(own.begin(steps))
        return own.seen

    with ThreadPoolExecutor(2 if d.mine else 1) as pool:
        for seen in pool.map(run, (STEPS, 7)):
            d.seen += seen


_COMPILED = ("DDPM", "PNDM", "HeunDiscrete", "UniPCMultistep", "FlowMatchEulerDiscrete")


@way(lambda row: row.id in _COMPILED)
def a_compiled_step(d: Drive) -> None:
    """The step under torch.compile; the peer's as it is."""
    if d.mine:
        d.scheduler.step = torch.compile(d.scheduler.step, backend="aot_eager")
    d.loop(d.begin()[:3])


# -- other methods


@way(has("scale_model_input"))
def scaled_twice(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        d.show(d.scheduler.scale_model_input(x, t), d.scheduler.scale_model_input(x, t))
        x = d.step(x, t)


@way(has("scale_model_input"))
def scaled_on_a_doubled_batch(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        d.show(d.scheduler.scale_model_input(torch.cat([x, x]), t))
        x = d.step(x, t)


@way(has("scale_model_input"))
def scaled_after_the_step(d: Drive) -> None:
    timesteps = d.begin()
    x = d.start()
    for t, after in zip(timesteps, timesteps[1:], strict=False):
        x = d.step(x, t)
        d.show(d.scheduler.scale_model_input(x, after))


@way(has("scale_model_input"))
def scaled_in_float16(d: Drive) -> None:
    d.show(d.scheduler.scale_model_input(d.start().half(), d.begin()[0]))


@way(plain)
def steps_without_scaling(d: Drive) -> None:
    x = d.start()
    for t in d.begin():
        x = d.take(torch.tanh(x) if not d.row.case.learned else torch.cat([x.tanh()] * 2, 1), t, x)


def _noised(d: Drive, chosen: Tensor) -> None:
    x0, noise = d.start() * 0 + 0.3, d.start(shape=SHAPE)
    d.show(d.scheduler.add_noise(x0, noise, chosen))


@way(has("add_noise"))
def noise_added_before_set_timesteps(d: Drive) -> None:
    timesteps = d.scheduler.timesteps if d.row.case.name != "PNDMScheduler" else torch.arange(1000)
    _noised(d, timesteps[[3, 17]])


@way(has("add_noise"))
def noise_added_after_set_timesteps(d: Drive) -> None:
    _noised(d, d.begin()[[1, 3]])


@way(has("add_noise"))
def noise_added_in_a_run(d: Drive) -> None:
    timesteps = d.begin()
    x = d.loop(timesteps[:2])
    _noised(d, timesteps[[2, 2]])
    d.loop(timesteps[2:], x)


@way(has("add_noise", "set_begin_index"))
def noise_added_at_a_begin_index(d: Drive) -> None:
    timesteps = d.begin(8)
    d.scheduler.set_begin_index(4)
    _noised(d, timesteps[4:5].repeat(2))
    x = d.loop(timesteps[4:6])
    _noised(d, timesteps[6:7].repeat(2))
    d.loop(timesteps[6:], x)


@way(has("add_noise"))
def noise_added_in_float16(d: Drive) -> None:
    t = d.begin()[[1, 3]]
    x = d.start().half()
    d.show(d.scheduler.add_noise(0.1 * x, x, t))


@way(has("add_noise"))
def noise_added_at_an_unknown_timestep(d: Drive) -> None:
    d.begin()
    _noised(d, torch.tensor([123.25, 123.25]))


@way(has("scale_noise"))
def noise_scaled(d: Drive) -> None:
    timesteps = d.begin()
    one = "FlowMatchHeun" in d.row.case.name
    d.show(
        d.scheduler.scale_noise(
            0.1 * d.start(), timesteps[2] if one else timesteps[[2, 2]], d.start()
        )
    )
    d.loop(timesteps[2:])


@way(has("get_velocity"))
def velocities(d: Drive) -> None:
    timesteps = d.begin()
    d.show(d.scheduler.get_velocity(0.1 * d.start(), d.start(), timesteps[[1, 3]]))


@way(plain)
def lengths_and_scales(d: Drive) -> None:
    d.begin()
    s = d.scheduler
    d.show(float(getattr(s, "init_noise_sigma", 1.0)), getattr(s, "order", 1), s.timesteps)
    d.show(len(s) if has("__len__")(d.row) else 0)
