"""Models by name: their samples are those of a Sampler, bit for bit; identities; refusals.

One file over 400 lines: all cases use the same module of factories.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.jobs import Model, open_model
from fastdiff.jobs.models import Classes, InvalidEntry
from fastdiff.models import MLP, ImageUNet, UNet
from fastdiff.pretrained import read_config
from fastdiff.sampling import plans

SHIPPED = "fashion-mnist"

SOURCE = """
    import torch
    from fastdiff import Sampler, Schedule
    from fastdiff.jobs import Model
    from fastdiff.models import MLP

    class Small(torch.nn.Module):
        null_label = 3

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(8.0).view(4, 2) / 8)

        def forward(self, x, t, y):
            return torch.tanh(x + self.weight[y]) + 0.001 * t.to(x.dtype)[:, None]

    def whole():
        settings = {"solver": "ddim", "prediction_type": "v", "guidance_scale": 2.0, "steps": 4}
        return Model(Small(), (2,), schedule=Schedule.cosine(100), settings=settings,
                     classes=("a", "b", "c"))

    def sampler():
        torch.manual_seed(0)
        network = MLP(2, num_classes=5, width=8, depth=1, emb=8)
        torch.nn.init.normal_(network.linear_out.weight)  # it begins as zero
        return Sampler(network, Schedule.cosine(100), solver="unipc", steps=3, prediction_type="v",
                       network_dtype=torch.float64)

    def shaped():
        made = sampler()
        made.shape = (2,)
        return made

    def ready():
        return Sampler(lambda x, t: 0.5 * x, plan=sampler().plan, guidance_scale=1.0)

    def conditioned(x, t, *, level, size=1):
        return x * level[:, None] * size

    def arguments():
        return Model(conditioned, (2,), schedule=Schedule.cosine(100))

    def own():
        def conditions(entries):
            y = torch.tensor([len(entry) for entry in entries])
            return {"y": y}, {"y": torch.zeros_like(y)}

        return Model(lambda x, t, y: x + y[:, None], (2,), schedule=Schedule.cosine(100),
                     conditions=conditions, decode=lambda x: x[:, :, None, None],
                     facts={"texts": 1})

    def needy(path):
        return whole()

    def wrong():
        return 3

    def unsafe():
        return Model(Small(), (2,), schedule=Schedule.cosine(100), classes="abc",
                     facts={"where": object()})

    number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory, found as with `python -m`."""
    (tmp_path / "my_models.py").write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    yield "my_models"
    sys.modules.pop("my_models", None)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert (
        text.startswith("fastdiff.")
        and ": expected " in text
        and ", got " in text
        and "\n" not in text
    ), text
    return text


def draw(sampler: Sampler, model: Model, entries: list[Any], seed: int = 1) -> torch.Tensor:
    cond, uncond = model.conditions(entries)
    return sampler.sample((len(entries), *model.shape), seed=seed, cond=cond, uncond=uncond)


def test_the_shipped_model() -> None:
    model = open_model(SHIPPED)
    assert (
        model.shape == (1, 28, 28)
        and len(model.classes) == 10
        and model.default_entries == list(range(10))
    )
    entries = [model.conditioning.parse(v) for v in (3, "Coat", "9", {"y": 0})]
    assert entries == [3, 4, 9, 0] == model.labels(entries)
    by_hand = Sampler.from_pretrained(SHIPPED, steps=4)
    assert by_hand.guidance_scale != 1
    y = torch.tensor(entries)
    expected = by_hand.sample(
        (4, 1, 28, 28), seed=1, cond={"y": y}, uncond={"y": torch.full_like(y, 10)}
    )
    assert torch.equal(draw(model.sampler(steps=4), model, entries), expected)
    assert not model.network.training and not any(
        p.requires_grad for p in model.network.parameters()
    )
    # a setting of the run replaces the model's, and options that only the model's solver has are
    # dropped
    other = Sampler.from_pretrained(SHIPPED, solver="dpm++2m", steps=4, guidance_scale=1.0)
    mine = model.sampler(solver="dpm++2m", steps=4, guidance_scale=1.0)
    assert mine.plan.hash == other.plan.hash and mine.guidance_scale == 1


@pytest.mark.parametrize(
    "solver", ["ddim", "ddpm", "edm", "kdpm2", "dpm++2s", "unipc", "dpm++2m_sde"]
)
def test_a_workers_sampler_computes_no_table(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(SHIPPED)
    entries, settings = [2, 7], {"guidance_scale": 1.5, "network_batch": 2}
    first = model.sampler(solver=solver, steps=3, **settings)
    expected = draw(first, model, entries)
    p = first.plan
    stored = fastdiff.Plan(
        p.table.copy(),
        json.loads(json.dumps(p.info)),
        initial_std=p.initial_std,
        whole_times=p.whole_times,
    )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan was made")

    monkeypatch.setattr(plans, "make_plan", refuse)
    assert torch.equal(
        draw(model.sampler(plan=stored, solver=solver, steps=3, **settings), model, entries),
        expected,
    )
    # execution settings are the model's where the run sets no others
    scale = read_config("fashion-mnist")["sampler"]["guidance_scale"]
    assert model.sampler(plan=stored).guidance_scale == scale != 1.5
    with pytest.raises(AssertionError, match="a plan was made"):
        model.sampler(solver=solver, steps=3)


def test_folders_of_other_networks(tmp_path: Path) -> None:
    """Vectors without classes, a U-Net without class names, and a network that needs an image."""
    schedule = Schedule.cosine(50)
    Sampler(MLP(3, width=8, depth=1, emb=8), schedule, prediction_type="v").save_pretrained(
        tmp_path / "mlp"
    )
    vectors = open_model(str(tmp_path / "mlp"))
    assert (
        vectors.shape == (3,)
        and vectors.default_entries == [None]
        and vectors.conditions([None] * 2) == (None, None)
    )
    assert torch.isfinite(draw(vectors.sampler(steps=2), vectors, [None] * 2)).all()
    network = UNet(size=8, num_classes=3, widths=[8], emb=8, heads=1)
    Sampler(network, schedule, prediction_type="v").save_pretrained(tmp_path / "unet")
    unnamed = open_model(str(tmp_path / "unet"))
    assert unnamed.classes == () and unnamed.default_entries == [0, 1, 2]
    cond, uncond = unnamed.conditions([2, 0])
    assert (
        cond is not None
        and cond["y"].tolist() == [2, 0]
        and uncond is not None
        and uncond["y"].tolist() == [3, 3]
    )
    image = ImageUNet(size=8, num_classes=0, widths=[8], emb=8, heads=1)
    Sampler(image, schedule, prediction_type="v").save_pretrained(tmp_path / "image")
    needing = open_model(str(tmp_path / "image"))
    assert needing.default_entries is None
    entry = needing.conditioning.parse({"image": torch.zeros(1, 8, 8).tolist()})
    assert draw(needing.sampler(steps=1), needing, [entry, entry]).shape == (2, 1, 8, 8)
    with pytest.raises(InvalidEntry, match="image"):
        needing.conditioning.parse({"y": 3})


def test_a_factorys_model(module: str) -> None:
    model = open_model(f"{module}:whole")
    assert model.shape == (2,) and model.classes == ("a", "b", "c")
    network = model.network
    y = torch.tensor([0, 2, 1])
    by_hand = Sampler(
        network,
        Schedule.cosine(100),
        solver="ddim",
        prediction_type="v",
        guidance_scale=2.0,
        steps=4,
    )
    expected = by_hand.sample((3, 2), seed=1, cond={"y": y}, uncond={"y": torch.full_like(y, 3)})
    sampler = model.sampler()
    assert torch.equal(draw(sampler, model, [0, 2, 1]), expected)
    assert torch.equal(draw(model.sampler(plan=sampler.plan), model, [0, 2, 1]), expected)


def test_a_factorys_sampler(module: str) -> None:
    """Its schedule, settings and network_dtype are used, and the classes of its network."""
    model = open_model(f"{module}:sampler", shape=(2,))
    assert open_model(f"{module}:shaped").shape == (2,)
    by_hand = sys.modules[module].sampler()
    y = torch.tensor([0, 4])
    expected = by_hand.sample((2, 2), seed=1, cond={"y": y})
    assert model.default_entries == [0, 1, 2, 3, 4]
    assert torch.equal(draw(model.sampler(), model, [0, 4]), expected)
    assert torch.equal(draw(model.sampler(plan=by_hand.plan), model, [0, 4]), expected)
    assert (
        model.sampler(solver="heun", steps=5).plan.hash
        == Sampler(
            by_hand.model, by_hand.schedule, solver="heun", steps=5, prediction_type="v"
        ).plan.hash
    )
    with pytest.raises(ValueError, match="shape") as caught:
        open_model(f"{module}:sampler")
    one_sentence(caught.value)


def test_a_sampler_with_a_guide_is_refused(module: str) -> None:
    """By a factory and by a model's own function: a run spec has one network's weights."""
    open_model(f"{module}:whole")  # imports the module
    network = sys.modules[module].Small()
    guided = Sampler(network, Schedule.linear(20), steps=4, guidance_scale=2.0, guide=network)
    sys.modules[module].guided = lambda: guided  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="got a guide too") as caught:
        open_model(f"{module}:guided", shape=(2,))
    one_sentence(caught.value)
    model = Model(network, (2,), sampler=lambda plan=None, **settings: guided)
    with pytest.raises(ValueError, match="got a guide too") as caught:
        model.check(model.sampler(), [None])
    one_sentence(caught.value)


def test_a_factorys_sampler_of_a_ready_plan(module: str) -> None:
    model = open_model(f"{module}:ready", shape=[2])
    expected = sys.modules[module].ready().sample((2, 2), seed=1)
    assert torch.equal(draw(model.sampler(), model, [None] * 2), expected)
    assert torch.equal(draw(model.sampler(plan=model.sampler().plan), model, [None] * 2), expected)
    with pytest.raises(ValueError, match="'steps'") as caught:
        model.sampler(steps=3, guidance_scale=1.0)
    one_sentence(caught.value)


def test_arguments_of_a_network(module: str) -> None:
    model = open_model(f"{module}:arguments")
    assert model.default_entries is None
    entries = [model.conditioning.parse({"level": v, "size": [1, 2]}) for v in (0.5, 1.5)]
    cond, uncond = model.conditions(entries)
    assert cond is not None and uncond is None and model.labels(entries) is None
    assert cond["level"].dtype == torch.float32 and cond["level"].tolist() == [0.5, 1.5]
    assert cond["size"].dtype == torch.int64 and cond["size"].shape == (2, 2)
    assert cond["size"].tolist() == [[1, 2], [1, 2]]
    signatures = [
        model.conditioning.signature(e)
        for e in (*entries, {"level": 1, "size": [1, 2]}, {"level": 1.0})
    ]
    assert signatures[0] == signatures[1] and len({str(s) for s in signatures}) == 3
    for wrong in (
        3,
        "x",
        {},
        {"size": 1},
        {"level": 1.0, "z": 1},
        {"level": "x"},
        {"level": [1.0, [2.0]]},
        {"level": float("nan")},
        {"level": []},
        {"level": None},
    ):
        with pytest.raises(InvalidEntry) as caught:
            model.conditioning.parse(wrong)
        one_sentence(caught.value)


def test_conditions_and_decoder_of_ones_own(module: str) -> None:
    model = open_model(f"{module}:own")
    entries = [model.conditioning.parse(v) for v in ("abc", {"any": "thing"})]
    cond, uncond = model.conditions(entries)
    assert (
        cond is not None
        and cond["y"].tolist() == [3, 1]
        and uncond is not None
        and uncond["y"].tolist() == [0, 0]
    )
    assert model.decode is not None and model.decode(torch.zeros(2, 2)).shape == (2, 2, 1, 1)
    assert model.identity["texts"] == 1 and model.identity["weights_sha256"] is None
    assert open_model(f"{module}:own", decode="pipe").decode is not None


def test_guidance_needs_a_call_without_conditions(module: str) -> None:
    model = open_model(f"{module}:arguments")
    entries = [{"level": 0.5}]
    model.check(model.sampler(steps=2), entries)
    for scale in (2.0, 0.0, [1.0, 3.0]):
        with pytest.raises(ValueError, match="guidance_scale 1") as caught:
            model.check(model.sampler(steps=2, guidance_scale=scale), entries)
        one_sentence(caught.value)
    shipped = open_model(SHIPPED)
    shipped.check(shipped.sampler(steps=2), [3])


def test_identities_name_what_samples_depend_on(module: str) -> None:
    shipped = open_model(SHIPPED).identity
    assert (
        shipped["kind"] == "folder"
        and shipped["name"] == SHIPPED
        and len(shipped["weights_sha256"]) == 64
    )
    model = open_model(f"{module}:whole")
    assert model.identity["kind"] == "factory" and model.identity["decode"] is None
    code = (
        "import json, sys; from fastdiff.jobs import open_model;"
        " print(json.dumps([open_model(n).identity for n in {}]));"
        # imported only when a pipeline is opened
        "assert not {{'diffusers', 'transformers'}} & sys.modules.keys()"
    )
    names = [SHIPPED, f"{module}:whole"]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.format(names)],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONPATH": ":".join(p for p in sys.path if p),
            "PYTHONHASHSEED": "7",
            "OMP_NUM_THREADS": "2",
        },
    )
    assert json.loads(ran.stdout) == json.loads(json.dumps([shipped, model.identity]))
    # one weight
    again = sys.modules[module].whole()
    with torch.no_grad():
        again.network.weight[2, 1] += 2.0**-20
    changed = again.identity
    assert changed["weights_sha256"] != model.identity["weights_sha256"]
    # a change of the source that changes no weight
    path = Path(f"{module}.py")
    path.write_text(path.read_text().replace("torch.tanh", "torch.sin"))
    edited = open_model(f"{module}:whole").identity
    assert {k for k in edited if edited[k] != model.identity[k]} == {"source_sha256"}


def test_a_folders_identity_follows_its_weights(tmp_path: Path) -> None:
    network = MLP(2, width=8, depth=1, emb=8)
    found = []
    for _ in range(2):
        Sampler(network, Schedule.cosine(50), prediction_type="v").save_pretrained(tmp_path)
        found.append(open_model(str(tmp_path)).identity)
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] += 2.0**-20
    assert {k for k in found[0] if found[0][k] != found[1][k]} == {"weights_sha256"}


def test_weights_of_every_dtype_are_distinguished() -> None:
    """The hash depends on names, dtypes, shapes and bytes; a method counts as its module."""

    def identity(**tensors: torch.Tensor) -> Any:
        holder = torch.nn.Module()
        for name, value in tensors.items():
            holder.register_buffer(name, value)
        holder.forward = lambda x, t: x  # type: ignore[assignment]
        return Model(holder, (2,), schedule=Schedule.cosine(10)).identity["weights_sha256"]

    zeros = torch.zeros(4)
    others = [
        zeros.to(torch.float16),
        zeros.to(torch.bfloat16),
        torch.zeros(2, 2),
        torch.zeros(()),
        torch.zeros(0),
    ]
    hashes = [
        identity(a=zeros),
        identity(b=zeros),
        identity(a=zeros, b=zeros),
        *(identity(a=o) for o in others),
    ]
    assert len(set(hashes)) == len(hashes) and hashes[0] == identity(a=torch.zeros(4))
    network = MLP(2, width=8, depth=1, emb=8)
    whole = Model(network, (2,), schedule=Schedule.cosine(10)).identity
    assert (
        Model(network.forward, (2,), schedule=Schedule.cosine(10)).identity["weights_sha256"]
        == whole["weights_sha256"]
    )


@pytest.mark.parametrize(
    "name, error, words",
    [
        ("nothing-here", FileNotFoundError, "package.module:function"),
        ("no_such_module:make", ImportError, "no_such_module"),
        ("my_models:missing", ImportError, "missing"),
        ("my_models:number", TypeError, "function"),
        ("my_models:needy", TypeError, "path"),
        ("my_models:wrong", TypeError, "got int"),
        ("my_models:unsafe", ValueError, "JSON"),
        ("broken:make", ImportError, "SyntaxError"),
        ("needing:make", ImportError, "no_such_library"),
    ],
)
def test_factories_that_are_none(
    name: str, error: type[Exception], words: str, module: str
) -> None:
    Path("broken.py").write_text("def make(:\n")
    Path("needing.py").write_text("import no_such_library.inside\n")
    with pytest.raises(error, match=words) as caught:
        open_model(name)
    one_sentence(caught.value)


def test_other_refusals(module: str, tmp_path: Path) -> None:
    for arguments, words in (
        ({"name": SHIPPED, "shape": (1, 32, 32)}, "shape"),
        ({"name": SHIPPED, "shape": (0,)}, "shape"),
        ({"name": SHIPPED, "decode": "pipe"}, "VAE"),
        ({"name": f"{module}:whole", "decode": "pipe"}, "VAE"),
        ({"name": SHIPPED, "decode": str(tmp_path)}, "config.json"),
        ({"name": str(tmp_path)}, "config.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            open_model(**arguments)  # type: ignore[arg-type]
        one_sentence(caught.value)
    network, schedule = MLP(2, width=8, depth=1, emb=8), Schedule.cosine(10)
    for made in (
        lambda: Model(3, (2,), schedule=schedule),  # type: ignore[arg-type]
        lambda: Model(network, (2,)),
        lambda: Model(network, (2, 0), schedule=schedule),
        lambda: Model(network, "12", schedule=schedule),
        lambda: Model(network, (2,), schedule=schedule, decode=3),  # type: ignore[arg-type]
        lambda: Model(network, (2,), schedule=schedule, classes="ab", num_classes=3),
        lambda: Model(
            network, (2,), schedule=schedule, classes="ab", conditions=lambda entries: (None, None)
        ),
        lambda: Classes(0),
        lambda: Classes(2, null_label=True),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            made()
        one_sentence(raised.value)


def test_class_names() -> None:
    """Exact names come first, then parts of names that only one class has, then numbers."""
    takes = Classes(4, ("tench, Tinca tinca", "crane", "crane, machine", "2"), null_label=4)
    assert [takes.parse(v) for v in ("tench", "Tinca tinca", "tench, Tinca tinca", "machine")] == [
        0,
        0,
        0,
        2,
    ]
    assert (
        takes.parse("crane") == 1
        and takes.parse("2") == 3
        and takes.parse(2) == 2
        and takes.parse({"class": "0"}) == 0
    )
    for wrong in (
        "Crane",
        4,
        -1,
        "-1",
        True,
        1.0,
        None,
        ["crane"],
        {"class": 1, "y": 1},
        {"label": 1},
    ):
        with pytest.raises(InvalidEntry) as caught:
            takes.parse(wrong)
        one_sentence(caught.value)
    many = Classes(1000, tuple(f"class {i}" for i in range(1000)))
    with pytest.raises(InvalidEntry, match="class 11, …") as caught:
        many.parse("x" * 500)
    assert len(one_sentence(caught.value)) < 400
