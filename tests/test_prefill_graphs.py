"""For which steps with prefill graphs are captured, and what they are padded with."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tiny_engine import make_runner

from engine.core.graph_sizes import (
    LAUNCH_SECONDS,
    PREFILL_BYTES,
    PREFILL_FLOPS,
    TOKEN_SIZES,
    default_graph_tokens,
    graph_chunks,
    graph_tokens_for,
)
from engine.core.model_spec import load_model_spec
from engine.models.step_inputs import PrefillInputs, StepInputs
from engine.runtime.host_step import HostPrefill, HostStep
from engine.runtime.prefill_graphs import PrefillGraphs
from engine.runtime.runner_config import RunnerConfig

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=90, hidden_size=32,
    intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4, hidden_act="silu",
    torch_dtype="float32", tie_word_embeddings=False, attention_bias=False,
)  # fmt: skip


def test_graphs_reach_as_far_as_launches_are_the_limit() -> None:
    """A small model's steps are short: its graphs reach far; a large one's need none so soon."""
    small, middle, large = (
        default_graph_tokens(load_model_spec(name))
        for name in ("Qwen3-0.6B", "Llama-3.1-8B", "Llama-3.1-70B")
    )
    assert small[-1] == TOKEN_SIZES[-1]
    assert 1024 <= middle[-1] <= 1280
    assert large[-1] < middle[-1]
    spec = load_model_spec("Llama-3.1-8B")
    flops = spec.flops_per_token_by_group()
    flops.pop("lm_head")
    shorter, longer = (
        2 * spec.num_parameters / PREFILL_BYTES + tokens * sum(flops.values()) / PREFILL_FLOPS
        for tokens in middle[-2:]
    )
    assert shorter < spec.num_layers * LAUNCH_SECONDS <= longer  # the last one is padding


def test_padding_stays_small() -> None:
    """From 16 tokens on a step is padded by less than what it is, from 192 on by a third."""
    for smaller, larger in pairwise(TOKEN_SIZES):
        assert larger <= 2 * smaller
        assert smaller < 192 or 3 * larger <= 4 * smaller


def test_none_is_larger_than_a_step() -> None:
    """Sizes that no step can have are left out."""
    config = RunnerConfig(model="m", cuda_graph_tokens=(16, 64, 128), max_num_batched_tokens=100)
    assert config.graph_tokens == (16, 64)
    assert RunnerConfig(model="m").graph_tokens == ()


def test_a_graph_has_room_for_its_chunks() -> None:
    """The least with room for tokens and chunks, unless that is a large one for chunks only."""
    sizes = TOKEN_SIZES[:12]
    for tokens in (1, 63, 64, 500, 1000):
        for chunks in range(1, 40):
            fits = [size for size in sizes if size >= tokens and graph_chunks(size) >= chunks]
            least = fits[0] if fits else 0
            for_chunks = chunks > graph_chunks(tokens) and 2 * least > sizes[-1]
            assert graph_tokens_for(sizes, tokens, chunks) == (0 if for_chunks else least)
    assert graph_tokens_for((), 5, 1) == 0


def random_step(rng: Random, rows: int, max_pages: int) -> HostStep:
    """Some decoding requests, then some chunks, after random prefixes and on rows of their own."""
    decodes, chunks = rng.randrange(5), rng.randrange(1, 5)
    lengths = [rng.randrange(1, 9) for _ in range(chunks)]
    contexts = [rng.randrange(0, 20) for _ in range(chunks)]
    owners = rng.sample(range(rows), decodes + chunks)
    decode_positions = [rng.randrange(1, 30) for _ in range(decodes)]
    positions = decode_positions + [
        position
        for context, length in zip(contexts, lengths, strict=True)
        for position in range(context, context + length)
    ]
    starts = np.cumsum([decodes, *lengths], dtype=np.int32)
    chunk_rows = np.array(owners[decodes:], np.int32)
    nothing = np.empty(0, np.int32)
    return HostStep(
        np.array([rng.randrange(90) for _ in positions], np.int32),
        np.array(positions, np.int32),
        np.concatenate([np.array(owners[:decodes], np.int32), np.repeat(chunk_rows, lengths)]),
        HostPrefill(starts, chunk_rows, np.array(contexts, np.int32)),
        np.array([*range(decodes), *(starts[1:] - 1)], np.int32),
        nothing,
        nothing,
        [],
    )


@pytest.mark.parametrize("size", [64, 128])
def test_padding_changes_no_logits(size: int, tmp_path: Path) -> None:
    """A step in the columns of a larger graph has the logits that it has alone."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    runner = make_runner(
        str(tmp_path / "config.json"), load_format="dummy", device="cpu", dtype="fp32",
        num_pages=80, max_running_requests=16,
    )  # fmt: skip
    model, cache = runner.transformer, runner.steps._cache
    state, rng = runner.steps.state, Random(5)
    rows, max_pages = state.page_table.shape
    pages = torch.arange((rows - 1) * max_pages).reshape(rows - 1, max_pages) % cache.num_pages
    state.page_table[:-1] = pages.int()
    nothing = torch.empty(0, dtype=torch.int32)
    template = StepInputs(
        nothing, nothing, nothing, state.page_table, state.last_tokens, state.counters
    )
    graphs = PrefillGraphs(model, cache, template, (size,), 16, None)
    for _ in range(20):
        cache.pool.normal_()
        host = random_step(rng, 8, max_pages)
        chunks = host.prefill
        tensors = {
            name: torch.from_numpy(getattr(host, name))
            for name in ("token_ids", "positions", "rows")
        }
        alone = replace(
            template,
            **tensors,
            prefill=PrefillInputs(
                *map(torch.from_numpy, (chunks.starts, chunks.rows, chunks.contexts)),
                *(tensors[name][: chunks.decodes] for name in ("rows", "positions")),
            ),
            logit_rows=torch.from_numpy(host.logit_rows),
        )
        before = cache.pool.clone()
        expected = model.forward(alone, cache)
        cache.pool.copy_(before)
        inputs, padded = graphs._padding(size)
        inputs.copy_(torch.from_numpy(graphs.columns(host, chunks, size)))
        query, residual = graphs._begin(padded)
        padded = replace(padded, logit_rows=alone.logit_rows)
        found = model.finish(query, residual, padded, cache)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
