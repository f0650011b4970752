"""Someone with a network: README, "With your own network", and docs/jobs.md, "Models"."""

import torch

import fastdiff
from fastdiff import Sampler, Schedule, jobs


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + t.view(-1, 1, 1, 1) / 1000


def factory() -> jobs.Model:
    torch.manual_seed(0)
    network = Network()
    return jobs.Model(
        network,
        shape=(3, 8, 8),
        schedule=Schedule.cosine(1000),
        settings={"solver": "dpm++2m", "clip_range": 1.0},
    )


if __name__ == "__main__":
    model = factory()
    settings = {"solver": "dpm++2m", "clip_range": 1.0, "network_batch": 4}
    sampler = Sampler(model.network, Schedule.cosine(1000), steps=4, **settings)
    x = sampler.sample((4, 3, 8, 8), seed=0)
    again = sampler.sample((1, 3, 8, 8), seed=0, sample_ids=[3])
    assert torch.equal(again[0], x[3]), "sample 3 of the same run"
    job = jobs.Job.plan("own_network:factory", ids=(0, 3), unit=4, steps=4, trust=True)
    (unit,) = jobs.finished(job, "run")
    expected = fastdiff.to_uint8(x).permute(0, 2, 3, 1).numpy()
    difference = abs(unit.array.astype(int) - expected.astype(int)).max()
    assert difference <= 1, difference  # other threads may round otherwise
