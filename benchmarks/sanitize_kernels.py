"""Serves a few requests on tiny models, so that compute-sanitizer sees every kernel of the engine.

    compute-sanitizer --tool memcheck python benchmarks/sanitize_kernels.py
    compute-sanitizer --tool racecheck python benchmarks/sanitize_kernels.py

Without CUDA Graphs, in which the sanitizer finds less. Dense and mixture layers, one row and many,
chunks with and without a context, greedy rows and drawn ones. Prints how many tokens came out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from engine_speed import NoEnds

from engine.core.config import SchedulerConfig
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from engine.runtime.build import build_runner
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.serving_loop import ServingLoop, Turn
from engine.sampling_params import SamplingParams

COMMON = {
    "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 3000, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "dense": {**COMMON, "architectures": ["Qwen3ForCausalLM"]},
    "narrow heads": {**COMMON, "architectures": ["Qwen2ForCausalLM"], "head_dim": 64},
    "mixture": {
        **COMMON, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True,
    },
}  # fmt: skip
DRAWN = SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=1, logprobs=3)


def serve(config: dict[str, Any], folder: Path, requests: int) -> int:
    """Serve some requests of a model; returns the tokens that came out."""
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    runner = build_runner(
        RunnerConfig(
            model=str(file), load_format="dummy", max_num_batched_tokens=128,
            max_running_requests=96, num_pages=600,
        ),
        time.perf_counter_ns,
    )  # fmt: skip
    scheduler = Scheduler(SchedulerConfig(
        num_pages=runner.num_pages, max_model_len=512, max_num_batched_tokens=128,
        max_running_requests=96,
    ))  # fmt: skip
    loop = ServingLoop(scheduler, runner, time.perf_counter_ns, NoEnds())
    rng = np.random.default_rng(0)
    asked = []
    for number in range(requests):
        prompt = int(rng.integers(1, 150))
        ids = rng.integers(0, 3000, prompt, dtype=np.int32)
        if number % 5 == 4:
            runner.register(number, DRAWN)
        asked.append(Request(number, prompt, 5, tokens=TokenBuffer(ids, prompt + 5)))
        loop.add(asked[-1])
    while loop.has_work:
        if loop.turn() is Turn.WAIT:
            loop.commit_oldest()
    return sum(request.committed_outputs for request in asked)


def main() -> None:
    """Few requests (single rows, small batches), then many, of every model."""
    for name, config in MODELS.items():
        for requests in (1, 20, 80):
            with tempfile.TemporaryDirectory() as folder:
                tokens = serve(config, Path(folder), requests)
            print(f"{name}, {requests} requests: {tokens} tokens", flush=True)
            if tokens != 5 * requests:
                raise SystemExit("tokens are missing")


if __name__ == "__main__":
    main()
