"""For which steps with prefill graphs are captured."""

from __future__ import annotations

from itertools import pairwise

from engine.core.model_spec import load_model_spec
from engine.runtime.runner_config import RunnerConfig
from engine.runtime.token_graphs import FLOPS, LAUNCH_SECONDS, SIZES, default_graph_tokens


def test_graphs_reach_as_far_as_launches_are_the_limit() -> None:
    """A small model's steps are short: its graphs reach far; a large one's need none so soon."""
    small, middle, large = (
        default_graph_tokens(load_model_spec(name))
        for name in ("Qwen3-0.6B", "Llama-3.1-8B", "Llama-3.1-70B")
    )
    assert small[-1] == SIZES[-1]
    assert 256 <= middle[-1] < 1024
    assert large[-1] < middle[-1]
    spec = load_model_spec("Llama-3.1-8B")
    flops = spec.flops_per_token_by_group()
    flops.pop("lm_head")
    most = spec.num_layers * LAUNCH_SECONDS * FLOPS / sum(flops.values())
    assert middle[-2] < most <= middle[-1]  # the last is what the longest of them is padded to


def test_padding_stays_small() -> None:
    """From 16 tokens on a step is padded by less than what it is, from 192 on by a third."""
    for smaller, larger in pairwise(SIZES):
        assert larger <= 2 * smaller
        assert smaller < 192 or 3 * larger <= 4 * smaller


def test_none_is_larger_than_a_step() -> None:
    """Sizes that no step can have are left out."""
    config = RunnerConfig(model="m", cuda_graph_tokens=(16, 64, 128), max_num_batched_tokens=100)
    assert config.graph_tokens == (16, 64)
    assert RunnerConfig(model="m").graph_tokens == ()
