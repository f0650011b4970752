"""Every text file that a user hands in may have a byte order mark, CRLF and no last line end.

Editors on Windows write them so. Each file is read once plainly and once in every other form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conditions import of_arguments, of_classes, of_prompts

from fastdiff import Sampler, Schedule
from fastdiff.cli import bench_diffusers
from fastdiff.jobs import Folder, Job
from fastdiff.jobs.conditions import Conditions
from fastdiff.models import UNet

MARK = b"\xef\xbb\xbf"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "mark": lambda text: MARK + text,
    "crlf": lambda text: text.replace(b"\n", b"\r\n"),
    "no end": lambda text: text.removesuffix(b"\n"),
    "mark and crlf": lambda text: MARK + text.replace(b"\n", b"\r\n"),
    "all": lambda text: MARK + text.removesuffix(b"\n").replace(b"\n", b"\r\n"),
}
Form = Callable[[bytes], bytes]


def conditions(make: Callable[[], Any], text: str) -> Callable[[Path, Form], Any]:
    def read(folder: Path, form: Form) -> Any:
        path = folder / "lines.txt"
        path.write_bytes(form(text.encode()))
        count = len(text.splitlines())
        return Conditions.of(make(), ids=(0, count - 1), file=path).entries(0, count)

    return read


def class_list(folder: Path, form: Form) -> Any:
    """What `--classes "$(cat file)"` passes."""
    text = form(b"Coat, Ankle boot\n").decode()
    return Conditions.of(of_classes(), ids=(0, 3), classes=text).entries(0, 4)


def class_lines(folder: Path, form: Form) -> Any:
    text = form(b'Coat\n"bag, purse"\nT-shirt\n').decode()
    return Conditions.of(of_classes(), ids=(0, 3), classes=text).entries(0, 4)


def spec(folder: Path, form: Form) -> Any:
    job = Job.plan("fashion-mnist", ids=(0, 5), unit=4, steps=1, guidance_scale=1.0, threads=1)
    Folder.create(folder / "run", job.spec)
    file = folder / "run" / "spec.json"
    file.write_bytes(form(file.read_bytes()))
    found = Folder(folder / "run")
    Job.open(found.spec, where=str(folder))
    return found.spec.hash


def model_config(folder: Path, form: Form) -> Any:
    torch.manual_seed(0)
    network = UNet(size=8, widths=(8, 16), emb=16, groups=8)
    Sampler(network, Schedule.cosine(100), steps=2).save_pretrained(folder / "model")
    file = folder / "model" / "config.json"
    file.write_bytes(form(file.read_bytes()))
    x = Sampler.from_pretrained(folder / "model").sample((1, 1, 8, 8), seed=0, cond={"y": None})
    return x.tolist()


def scheduler_config(folder: Path, form: Form) -> Any:
    diffusers = pytest.importorskip("diffusers")
    diffusers.DDIMScheduler(num_train_timesteps=77).save_pretrained(folder)
    file = folder / "scheduler_config.json"
    file.write_bytes(form(file.read_bytes()))
    made = bench_diffusers._of_pipeline(diffusers, folder)
    return type(made).__name__, json.dumps(dict(made.config), sort_keys=True, default=str)


FILES: dict[str, Callable[[Path, Form], Any]] = {
    "classes by name": conditions(of_classes, "Coat\nT-shirt\nAnkle boot\n3\n"),
    "classes as JSON": conditions(of_classes, '{"class": "Coat"}\n"2"\n{"y": 1}\n'),
    "prompts": conditions(of_prompts, 'a red shoe\n"a quoted one"\n""\n'),
    "prompts as JSON": conditions(
        of_prompts, '{"prompt": "bag", "negative_prompt": "blue"}\n{"prompt": "shoe"}\n'
    ),
    "arguments": conditions(of_arguments, '{"y": [1.5, 2.0]}\n{"y": [0.5, 1.0]}\n'),
    "a list of classes": class_list,
    "lines of classes": class_lines,
    "a run's spec": spec,
    "a model's config": model_config,
    "a pipeline's scheduler": scheduler_config,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", FILES)
def test_a_text_file_means_the_same_in_every_form(file: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "edited").mkdir()
    plain = FILES[file](tmp_path / "plain", lambda text: text)
    assert FILES[file](tmp_path / "edited", FORMS[form]) == plain
