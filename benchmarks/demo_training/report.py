"""From the output of training to what is committed: behaviour files, results, pictures, texts."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from demo_training.export import write_json
from demo_training.memory import SPAN_TOKENS, TrainingText
from demo_training.pictures import draw_all
from demo_training.prepared import read_facts, read_tokens

_SHIPPED: Final = ("demo-dense", "demo-draft", "demo-moe")
_LENGTHS_OF: Final = "temperature 1"


def report(data: Path, trained: Path, root: Path) -> None:
    """Write everything into its place.

    Args:
        data: folder of `prepared.prepare`.
        trained: folder of `family.run`.
        root: of the repository.
    """
    demo = root / "engine" / "demo"
    for name in _SHIPPED:
        shutil.copytree(trained / name, demo / name, dirs_exist_ok=True)
        shutil.copyfile(
            trained / name / "config.json", root / f"engine/core/model_cards/{name}.json"
        )
    shutil.copyfile(data / "NOTICE.txt", demo / "NOTICE.txt")
    shutil.copyfile(data / "excerpt.txt", demo / "held_out.txt")
    packed = lzma.compress((data / "files.tsv").read_bytes(), preset=9 | lzma.PRESET_EXTREME)
    (root / "benchmarks/demo_training/files.tsv.xz").write_bytes(packed)
    _write_behaviour(trained, demo / "behaviour")
    results = _results(data, trained)
    write_json(root / "benchmarks/results/demo_models.json", results)
    draw_all(results, root / "docs")


def _write_behaviour(trained: Path, folder: Path) -> None:
    """What simulations may use in place of guesses; docs/demo_models.md explains the fields."""
    folder.mkdir(exist_ok=True)
    texts = _read(trained / "texts.json")
    recorded = texts["texts"][_LENGTHS_OF]
    lengths = {
        "temperature": 1.0,
        "prompt_tokens": len(texts["prompts"][0]),
        "max_tokens": texts["most_tokens"],
        "cut": sum(text[-1] != 0 for text in recorded),
        "output_tokens": [len(text) for text in recorded],
    }
    (folder / "output_lengths.json").write_text(json.dumps({"demo-dense": lengths}) + "\n")
    acceptance = {
        "target": "demo-dense", "draft": "demo-draft", **_read(trained / "acceptance.json"),
    }  # fmt: skip
    write_json(folder / "acceptance.json", acceptance)
    (folder / "expert_load.json").write_text(json.dumps(_read(trained / "expert_load.json")) + "\n")
    shutil.copyfile(trained / "routing.npz", folder / "routing.npz")


def _results(data: Path, trained: Path) -> dict[str, Any]:
    texts = _read(trained / "texts.json")["texts"]
    known = TrainingText(read_tokens(data, "train"))
    held_out = read_tokens(data, "held_out")
    copied = {name: known.copied(text) for name, text in texts.items()}
    copied["the held-out text itself"] = known.copied(_pieces(held_out))
    return {
        "data": read_facts(data),
        "training": _read(trained / "training_log.json"),
        "compressors_bits_per_byte": _compressed((data / "held_out.txt").read_bytes()),
        "perplexity": _read(trained / "perplexity.json"),
        "acceptance": _read(trained / "acceptance.json"),
        "expert_load": _read(trained / "expert_load.json"),
        "copied_spans": {"span_tokens": SPAN_TOKENS, **copied},
    }


def _pieces(tokens: NDArray[np.uint16]) -> list[list[int]]:
    """The text in parts as long as generated ones are."""
    return [part.tolist() for part in np.array_split(tokens, len(tokens) // 464)]


def _compressed(text: bytes) -> dict[str, float]:
    sizes = {
        "gzip -9": len(gzip.compress(text, 9)),
        "bzip2 -9": len(bz2.compress(text, 9)),
        "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
