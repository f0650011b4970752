"""Arguments of samplers that no run can use are refused in a sentence before the first step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fastdiff import Sampler, Schedule

SCHEDULE = Schedule.linear(50)
SENTENCE = r"^fastdiff\.[\w.]+: [^\n]*\Z"
NO_FUNCTIONS = (1, 2.5, [], {}, "text", True)


def words(value: Any) -> str:
    """Returns the name of a value in a test's name, the same in every process."""
    return type(value).__name__ if type(value) is object else repr(value)


def net(x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
    return 0.1 * x


@pytest.mark.parametrize("hook", ["callback", "classifier", "guidance"])
@pytest.mark.parametrize("value", NO_FUNCTIONS, ids=words)
def test_a_hook_that_is_no_function(hook: str, value: Any) -> None:
    sampler = Sampler(net, SCHEDULE, steps=2)
    with pytest.raises(TypeError, match=rf"^fastdiff\.Sampler\.sample: expected {hook} as a func"):
        sampler.sample((2, 3), seed=0, **{hook: value})


@pytest.mark.parametrize(
    "ids", [["a", "b"], [None, 1], [[1], [2, 3]], "ab", {}, [2**70, 1]], ids=words
)
def test_sample_ids_that_are_no_numbers(ids: Any) -> None:
    with pytest.raises(ValueError, match=SENTENCE):
        Sampler(net, SCHEDULE, steps=2).sample((2, 3), seed=0, sample_ids=ids)


@pytest.mark.parametrize("value", [{}, torch.zeros(2), "text", object(), 1j, [[1], [2]]], ids=words)
@pytest.mark.parametrize("name", ["start", "steps", "dtype"])
def test_numbers_and_dtypes_of_a_call(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=SENTENCE):
        Sampler(net, SCHEDULE, steps=2).sample(x_T=torch.zeros(2, 3), seed=0, **{name: value})


@pytest.mark.parametrize("value", [{}, torch.zeros(2), "3", object(), 1j, [1]], ids=words)
def test_strengths_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^fastdiff\.Sampler\.sample: expected strength "):
        Sampler(net, SCHEDULE, steps=2).sample(image=torch.zeros(2, 3), seed=0, strength=value)


def test_a_network_batch_beyond_all_memory() -> None:
    sampler = Sampler(net, SCHEDULE, steps=2, network_batch=10**15)
    with pytest.raises(torch.OutOfMemoryError, match="expected a network_batch that fits into mem"):
        sampler.sample((2, 3), seed=0)


@pytest.mark.parametrize("setting", ["on_oom", "graph", "eta"])
def test_a_tensor_as_a_setting(setting: str) -> None:
    """Its truth value is undefined."""
    with pytest.raises((TypeError, ValueError), match=SENTENCE):
        Sampler(net, SCHEDULE, steps=2, **{setting: torch.zeros(2)})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 1), (2,), (2, 1, 1)], ids=str)
def test_rescaled_guidance_of_one_element(shape: tuple[int, ...]) -> None:
    """A single number has no deviation: the samples would not be numbers."""
    sampler = Sampler(net, SCHEDULE, steps=2, guidance_rescale=0.7, solver="ddim")
    halves: dict[str, Any] = {"cond": {"y": torch.arange(shape[0])}}
    halves["uncond"] = {"y": torch.zeros(shape[0], dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"at least 2 elements with guidance_rescale"):
        sampler.sample(shape, seed=0, guidance_scale=3.0, **halves)
    assert sampler.sample(shape, seed=0).isfinite().all(), "without guidance nothing is rescaled"
    assert sampler.sample((2, 2), seed=0, guidance_scale=1.0).isfinite().all()


def test_a_shape_that_is_a_number() -> None:
    sampler = Sampler(net, SCHEDULE, steps=2)
    expected = r"^fastdiff\.Sampler\.sample: expected shape \[B, …\] of sizes >= 0, got 4\.$"
    with pytest.raises(ValueError, match=expected):
        sampler.sample(4, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=expected):
        sampler.sample(4, x_T=torch.zeros(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^fastdiff\.Sampler\.stream: expected shape \[…\], one "):
        sampler.stream(2, 4, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^fastdiff\.Sampler\.serve: expected shape \[…\], one "):
        list(sampler.serve([], 4))  # type: ignore[arg-type]


def three(x: torch.Tensor, sigma: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    return x


class Images(torch.nn.Module):
    """A network that takes no time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "cond", "words"),
    [
        (
            three,
            {},
            r"model\(x, t\), got one that takes \(x, sigma, emb\) .*a required argument: 'emb'",
        ),
        (Images(), {}, r"model\(x, t\), got one that takes \(x\) .*too many positional arguments"),
        (
            lambda x, t, label: x,
            {"y": torch.zeros(2)},
            r"model\(x, t, y=…\), got one that takes \(x, t, label\)",
        ),
    ],
    ids=["a third argument", "a module without time", "another keyword"],
)
def test_a_network_of_other_arguments(model: Any, cond: dict[str, Any], words: str) -> None:
    sampler = Sampler(model, SCHEDULE, solver="ddim", steps=2)
    with pytest.raises(TypeError, match=SENTENCE) as caught:
        sampler.sample((2, 3), seed=0, cond=cond)
    assert re.search(words, str(caught.value))


def test_an_error_of_the_network_is_its_own() -> None:
    def fails(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + len(1)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"^object of type 'int' has no len\(\)$"):
        Sampler(fails, SCHEDULE, solver="ddim", steps=2).sample((2, 3), seed=0)


@pytest.mark.parametrize("name", ["where", "options", "settings"])
def test_a_name_of_an_argument_inside_is_no_setting(name: str) -> None:
    """A function below `Sampler` has an argument of this name; it once took the setting."""
    with pytest.raises(ValueError, match=f"takes the options .*, got '{name}'"):
        Sampler(net, SCHEDULE, steps=2, **{name: 1.0})  # type: ignore[arg-type]
