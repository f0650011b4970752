"""The code blocks of docs/integrations.md, run one after the other as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"


def test_the_pages_blocks_run_and_say_what_is_so(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for name in ("images", "x", "draft", "final"):
        assert names[name].shape == (4, 3, 8, 8) and names[name].isfinite().all()
    assert names["report"].network_calls > 0 and capsys.readouterr().out
    other = names["on_tree"](
        names["adapter"],
        names["Schedule"].karras(),
        (4, 3, 8, 8),
        solver="dpm++sde",
        steps=40,
        seed=1,
        prediction_type="x0",
    )
    near, far = ((names["final"] - v).square().mean().sqrt() for v in (names["draft"], other))
    assert near < 0.5 * far, "the draft is the final's, another seed's picture is not"


def test_every_name_in_the_table_exists() -> None:
    from fastdiff.integrations import networks

    for name in re.findall(r"\| `(\w+)\([^|]*` \|$", PAGE.read_text(encoding="utf-8"), flags=re.M):
        assert hasattr(networks, name), name


def test_importing_fastdiff_imports_no_peer() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fastdiff, fastdiff.integrations.k_diffusion, fastdiff.sampling.adaptive,"
        " fastdiff.integrations.networks;"
    )
    code += "print([m for m in ('diffusers', 'k_diffusion', 'torchsde') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
