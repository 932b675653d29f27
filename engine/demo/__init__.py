"""Small language models that ship with the program, so that everything runs without a download.

Each is a folder in the Hugging Face layout, trained by `benchmarks/train_demo.py`; what they are
and how good is in docs/demo_models.md. They complete Python code and its documentation. All have
one tokenizer, so that `demo-draft` can propose tokens for `demo-dense`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

DEMO_MODELS: Final = ("demo-dense", "demo-draft", "demo-moe")
_HERE: Final = Path(str(files("engine.demo")))


def demo_model_folder(name: str) -> Path | None:
    """The folder of the demo model of that name (any case); None: no demo model is called so."""
    known = name.casefold()
    return _HERE / known if known in DEMO_MODELS else None


def held_out_text() -> str:
    """Python documentation and library code that no demo model was trained on, about 90 kB."""
    return (_HERE / "held_out.txt").read_text(encoding="utf-8")


@cache
def recorded_behaviour(kind: str) -> dict[str, Any]:
    """What was recorded of the demo models; docs/demo_models.md explains the fields.

    Args:
        kind: "output_lengths", "acceptance" or "expert_load".

    Raises:
        FileNotFoundError: nothing of that kind is recorded.
    """
    path = _HERE / "behaviour" / f"{kind}.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
