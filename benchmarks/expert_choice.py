"""Which experts tokens really choose: counted while the engine runs, on a CPU.

    python benchmarks/expert_choice.py [--json FILE] [--commit ID]

Two mixtures: `demo-moe`, which was trained, writing on at many places of a text; and random weights
with the router of Qwen3-30B-A3B (128 experts, 8 for each token) at a quarter of its width and a
third of its depth, which decode, and read one prompt of random tokens. Of each step and layer: how
many experts were chosen at all, and how many tokens the busiest one had. `docs/calibration.md` says
what kernel tables assume by that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from engine.demo import demo_model_folder, held_out_text
from engine.kernels import moe_routing
from engine.runtime.llm import LLM
from engine.sampling_params import SamplingParams
from simulator.composition.kernel_experts import expected_choice

BATCHES = (4, 8, 16, 32, 64)
PROMPT, WRITTEN = 200, 40  # characters, tokens
COUNTED_STEPS = 25
SMALL = {
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "moe_intermediate_size": 64, "intermediate_size": 512, "num_hidden_layers": 16,
    "vocab_size": 32_000,
}  # fmt: skip
ROOM = {"device": "cpu", "max_model_len": 1024, "num_pages": 2000, "max_num_batched_tokens": 2048}


class Counted:
    """Experts of each layer of each step, while it lasts."""

    def __init__(self) -> None:
        self.layers: list[np.ndarray] = []
        plain: Callable[..., Any] = moe_routing.IMPLEMENTATIONS["torch"]

        def route(*arguments: Any, **named: Any) -> Any:
            chosen = plain(*arguments, **named)
            self.layers.append(
                next(part for part in chosen if not part.is_floating_point()).numpy()
            )
            return chosen

        moe_routing.IMPLEMENTATIONS["torch"] = route  # type: ignore[index]

    def of(self, tokens: int, experts: int, last: int) -> dict[str, Any]:
        """Means over the last steps with so many tokens; and what even choice gives."""
        own = [each for each in self.layers if len(each) == tokens][-last:]
        even = expected_choice(experts, own[0].shape[1], np.array([float(tokens)]), 0.0)
        return {
            "tokens": tokens,
            "active": float(np.mean([len(np.unique(each)) for each in own])),
            "largest": float(np.mean([np.bincount(each.ravel()).max() for each in own])),
            "even_active": float(even.active[0]),
            "even_largest": float(even.largest[0]),
            "layers_counted": len(own),
        }


def trained(counted: Counted) -> list[dict[str, Any]]:
    """Decode steps of demo-moe."""
    llm, text = LLM(str(demo_model_folder("demo-moe")), **ROOM), held_out_text()
    found = []
    for batch in BATCHES:
        apart = len(text) // (batch + 1)
        prompts = [text[at * apart :][:PROMPT] for at in range(batch)]
        counted.layers.clear()
        llm.generate(prompts, SamplingParams(max_tokens=WRITTEN, ignore_eos=True, seed=1))
        found.append(counted.of(batch, 16, 4 * COUNTED_STEPS))
    return found


def random_weights(counted: Counted) -> dict[str, Any]:
    """Decode steps, and one prompt layer by layer, of weights that nobody trained."""
    card = files("engine.core") / "model_cards" / "Qwen3-30B-A3B.json"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.json"
        path.write_text(json.dumps(json.loads(card.read_text()) | SMALL))
        llm = LLM(str(path), load_format="dummy", **ROOM)
        draw = np.random.default_rng(0)
        llm.generate([draw.integers(0, 32_000, 512).tolist()], SamplingParams(max_tokens=1))
        prompt = [len(np.unique(each)) for each in counted.layers if len(each) == 512]
        counted.layers.clear()
        prompts = [draw.integers(0, 32_000, 40).tolist() for _ in range(32)]
        llm.generate(prompts, SamplingParams(max_tokens=30, ignore_eos=True))
    layers = SMALL["num_hidden_layers"]
    return {"active_by_layer_of_a_prompt_of_512": prompt, "decode": counted.of(32, 128, layers)}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the tree")
    arguments = parser.parse_args()
    counted = Counted()
    found = {"schema": "expert-choice/v1", "commit": arguments.commit,
             "demo_moe_decode": trained(counted)}  # fmt: skip
    counted.layers.clear()
    found["random_weights"] = random_weights(counted)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
