"""What pipelines pass to their transformers and make of the output, against the adapters.

diffusers has no data about it: each pipeline divides, turns or negates in its own code. So small
pipelines are run, and the code of all installed ones is read.
"""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from any_pipelines import drawn, made
from any_runs import close, recorded

from fastdiff.integrations.networks import (
    _SCALED,
    _TIMESTEPS,
    FLOWS,
    FlowAdapter,
    from_diffusers,
)

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed here")

OFF: dict[str, dict[str, float]] = {
    "sd3": {"guidance_scale": 1.0},
    "flux": {},
    "qwen": {"true_cfg_scale": 1.0},
    "lumina": {"guidance_scale": 1.0},
    "wan": {"guidance_scale": 1.0},
    "ltx": {"guidance_scale": 1.0},
    "hunyuan": {},
    "cogvideox": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("family", OFF)
def test_the_adapter_calls_the_network_as_its_pipeline_does(family: str) -> None:
    pipe = made(family)
    network, calls = pipe.transformer, []
    names = list(inspect.signature(inspect.unwrap(type(network).forward)).parameters)

    def seen(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(names[1:], args, strict=False)) | kwargs)

    hook = network.register_forward_pre_hook(seen, with_kwargs=True)
    steps = recorded(pipe.scheduler)
    drawn(pipe, family, **OFF[family])
    hook.remove()
    assert len(steps) == len(calls) > 1
    model = from_diffusers(network)
    for step, call in zip(steps, calls, strict=True):
        first, second = model.names or ("", "")
        cond = {k: v for k, v in call.items() if k not in (first, second) and v is not None}
        for dropped in ("return_dict", "attention_kwargs", "joint_attention_kwargs"):
            cond.pop(dropped, None)
        t = step.t.float()
        if isinstance(model, FlowAdapter):
            t = model.time_offset + model.time_scale / 1000.0 * t
        t = t.reshape(-1)[:1].expand(len(step.sample))
        with torch.no_grad():
            out = model(step.sample, t, **cond)
        close(out, step.output, 2e-5)
        close(t.to(call[second].dtype), call[second].reshape(-1)[: len(t)], 2e-6)


CALLED = ("self.transformer", "current_model")  # Wan's pipelines have two


@functools.cache
def pipelines_of_transformers() -> dict[str, list[tuple[str, ast.Module]]]:
    """The code of the installed pipelines, by the class of their transformer."""
    found: dict[str, list[tuple[str, ast.Module]]] = {}
    for path in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")):
        text = path.read_text()
        if "self.transformer" not in text:
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                for argument in node.args.args:
                    if argument.arg == "transformer" and argument.annotation is not None:
                        kind = ast.unparse(argument.annotation).strip("'\"").split(" ")[0]
                        found.setdefault(kind, []).append((path.name, tree))
    return found


def negates(tree: ast.Module) -> bool:
    """Whether a pipeline negates its prediction, before a step or in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            if ast.unparse(node.operand) in ("noise_pred", "v", "velocity", "model_output"):
                return True
    return False


def times(tree: ast.Module) -> set[str]:
    """How a pipeline makes the network's time: `sigma`, `1 - sigma`, `t - 1` or `t`."""
    assigned: dict[str, list[str]] = {}
    passed: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            name = ast.unparse(node.targets[0])
            assigned.setdefault(name, []).append(ast.unparse(node.value))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLED:
            passed += [
                ast.unparse(k.value) for k in node.keywords if k.arg in ("timestep", "timesteps")
            ]
    result = set()
    for expression in passed:
        name = expression.split(".")[0].split(" ")[0].split("[")[0]
        whole = " ".join([expression, *assigned.get(name, [])])
        divided = "/ 1000" in whole or "num_train_timesteps" in whole
        if divided and ("1 - " in whole or "1.0 - " in whole):
            result.add("1 - sigma")
        elif divided:
            result.add("sigma")
        elif whole.rstrip(")").endswith(" - 1"):
            result.add("t - 1")
        else:
            result.add("t")
    return result


PLAIN = {"time_scale": 1000.0, "time_offset": 0.0, "sign": 1.0}
WORDS = {
    (1000.0, 0.0): "t",
    (1.0, 0.0): "sigma",
    (-1.0, 1.0): "1 - sigma",
    (1000.0, -1.0): "t - 1",
}


@pytest.mark.parametrize("kind", sorted(FLOWS))
def test_the_table_is_what_the_code_of_the_pipelines_says(kind: str) -> None:
    known = PLAIN | FLOWS[kind]
    pipelines = [p for p in pipelines_of_transformers().get(kind, []) if times(p[1])]
    assert pipelines, f"no installed pipeline has a {kind}"
    for name, tree in pipelines:
        # with a time per token, FlowMatchEuler's step has the opposite sign
        turned = "per_token_timesteps" in ast.unparse(tree)
        assert turned or negates(tree) == (known["sign"] < 0), name
        word = WORDS[known["time_scale"], known["time_offset"]]
        assert word in times(tree), (name, times(tree))


def test_every_transformer_of_diffusers_is_known_or_refused_by_a_sentence() -> None:
    known = {*FLOWS, *_TIMESTEPS, *_SCALED}
    named = [getattr(diffusers, n) for n in dir(diffusers) if "ransformer" in n or "DiT" in n]
    classes = {
        kind.__name__: kind
        for kind in named
        if inspect.isclass(kind) and kind.__module__.startswith("diffusers.models.transformers")
    }
    assert len(classes) > 60
    assert known <= classes.keys(), sorted(known - classes.keys())
    for name, kind in classes.items():
        network = kind.__new__(kind)
        torch.nn.Module.__init__(network)
        network._internal_dict = {}
        if name in known:
            adapter = from_diffusers(network)
            assert adapter.names is not None
            parameters = inspect.signature(inspect.unwrap(kind.forward)).parameters
            assert set(adapter.names) <= set(parameters), (name, adapter.names)
        else:
            with pytest.raises(TypeError, match=f"gets one state and one time, got {name}"):
                from_diffusers(network)
