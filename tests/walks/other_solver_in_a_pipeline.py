"""Someone with a diffusers pipeline who wants another solver: docs/diffusers.md and README."""

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import fastdiff
from fastdiff import Sampler

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=8,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    norm_num_groups=4,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
)
pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
pipe.set_progress_bar_config(disable=True)


def draw() -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return pipe(num_inference_steps=4, generator=generator, output_type="np").images


before = draw()
fastdiff.swap(pipe)
assert abs(draw() - before).max() < 1e-5, "the drop-in has the numbers of diffusers' scheduler"
x = Sampler.from_diffusers(pipe, steps=4, solver="dpm++2m").sample((2, 3, 8, 8), seed=0)
y = Sampler.from_diffusers(pipe, steps=4).sample((2, 3, 8, 8), seed=0)
assert x.shape == (2, 3, 8, 8) and bool(x.isfinite().all()) and not torch.equal(x, y)
