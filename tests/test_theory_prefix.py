"""Prefix hits on a trace with block hashes are what the hashes say, token for token.

With an infinite cache and requests served one at a time, a request finds exactly the whole pages
of prompt text that it shares with an earlier one, but for its last token, which is always computed.
That number follows from the trace's `hash_ids` alone: it takes no token, page table or tree.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.config import SchedulerConfig
from engine.core.events import Columns, Detail, EventLog
from engine.core.workload import Workload
from simulator.world import ReplicaConfig, World
from workbench.workload.arrivals import all_at_once
from workbench.workload.prompts import trace_requests
from workbench.workload.traces import Trace, read_trace

BLOCK = 512
PAGE_SIZES = (1, 16, 64, 512)
TRACES = os.environ.get("WORKBENCH_TRACES")


def expected_hits(trace: Trace, page_size: int) -> list[int]:
    """Cached tokens of each prompt, by brute force over block hashes.

    A hash stands for its block and all text before it, so prompts share text as long as they share
    hashes; of a block that ends a prompt early, only the shorter part.
    """
    assert trace.hash_ids is not None
    assert trace.hash_offsets is not None
    hashes, offsets = trace.hash_ids.tolist(), trace.hash_offsets.tolist()
    seen: dict[int, int] = {}  # hash -> most tokens of its block in any earlier prompt
    hits = []
    for row, prompt in enumerate(trace.prompt_tokens.tolist()):
        blocks = hashes[offsets[row] : offsets[row + 1]]
        sizes = [BLOCK] * (len(blocks) - 1) + [prompt - BLOCK * (len(blocks) - 1)]
        shared = 0
        for block, size in zip(blocks, sizes, strict=True):
            common = min(size, seen.get(block, 0))
            shared += common
            if common < BLOCK:
                break
        hits.append(min(shared, prompt - 1) // page_size * page_size)
        for block, size in zip(blocks, sizes, strict=True):
            seen[block] = max(size, seen.get(block, 0))
    return hits


def simulated(trace: Trace, page_size: int, hits: list[int]) -> Columns:
    """The requests table, by id, of a replica that forgets nothing and serves one by one.

    Its pool has room for all text that is not among the expected `hits`.
    """
    asked = trace_requests(trace, vocab_size=1_000_003)
    workload = Workload.from_lengths(
        all_at_once(len(trace)), asked.prompt_tokens, asked.output_tokens, segments=asked.segments
    )
    tokens = asked.prompt_tokens + asked.output_tokens
    pages = int((-(-tokens // page_size)).sum()) - sum(hits) // page_size
    scheduler = SchedulerConfig(
        num_pages=pages, page_size=page_size, max_model_len=int(tokens.max())
    )
    replica = ReplicaConfig(scheduler, ConstantCosts(1_000_000))
    world = World(workload, [replica], max_concurrency=1, log=EventLog(Detail.NONE))
    requests = world.run().tables["requests"]
    order = np.argsort(requests["request_id"])
    return {name: column[order] for name, column in requests.items()}


def chat_trace(path: Path) -> Trace:
    """Conversations whose turns grow by a few hundred tokens, as lines of a Mooncake trace.

    Text ends inside blocks, prompts repeat and end at block borders, and beginnings come back late.
    """
    rng = np.random.default_rng(5)
    system = [7, 8]  # the first blocks of every second conversation
    fresh = 100
    talks = [list(system) if i % 2 else [] for i in range(30)]
    lines = []
    for at in range(300):
        blocks = talks[rng.integers(len(talks))]
        for _ in range(rng.integers(0, 3) + (not blocks)):
            blocks.append(fresh := fresh + 1)
        short = int(rng.choice([0, 0, 1, 100, 448, 496, 511]))
        lines.append(
            f'{{"timestamp": {at * 1000}, "input_length": {len(blocks) * BLOCK - short}, '
            f'"output_length": {rng.integers(1, 700)}, "hash_ids": {blocks}}}'
        )
    path.write_text("\n".join(lines) + "\n")
    return read_trace(path)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_hits_are_those_of_the_hashes(page_size: int, tmp_path: Path) -> None:
    """Every request of a conversational trace hits exactly what its hashes promise."""
    trace = chat_trace(tmp_path / "chat.jsonl")
    hits = expected_hits(trace, page_size)
    assert 0.5 < sum(hits) / int(trace.prompt_tokens.sum()) < 0.99
    assert simulated(trace, page_size, hits)["cached_tokens"].tolist() == hits


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_example_by_hand(page_size: int, tmp_path: Path) -> None:
    """Four prompts whose hits can be counted on fingers."""
    rows = [
        (1024, "[1, 2]"),  # nothing is cached
        (1024, "[1, 2]"),  # all, but the last token is computed: its page is, too
        (1300, "[1, 2, 3]"),  # the two blocks
        (800, "[1, 2]"),  # of block 2 only 288 tokens are asked for, the last one computed
    ]
    path = tmp_path / "hand.jsonl"
    path.write_text(
        "".join(
            f'{{"timestamp": 0, "input_length": {n}, "output_length": 1, "hash_ids": {ids}}}\n'
            for n, ids in rows
        )
    )
    trace = read_trace(path)
    by_hand = {
        1: [0, 1023, 1024, 799],
        16: [0, 1008, 1024, 784],
        64: [0, 960, 1024, 768],
        512: [0, 512, 1024, 512],
    }[page_size]
    assert expected_hits(trace, page_size) == by_hand
    assert simulated(trace, page_size, by_hand)["cached_tokens"].tolist() == by_hand


@pytest.mark.skipif(TRACES is None, reason="WORKBENCH_TRACES names no folder with traces")
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_mooncake_trace(page_size: int) -> None:
    """The whole synthetic Mooncake trace hits exactly what its hashes promise."""
    trace = read_trace(Path(TRACES or "") / "mooncake_synthetic.jsonl")
    hits = expected_hits(trace, page_size)
    done = simulated(trace, page_size, hits)
    assert done["cached_tokens"].tolist() == hits
    rate = sum(hits) / int(trace.prompt_tokens.sum())
    print(f"\nMooncake, pages of {page_size}: hit rate {rate:.6f}, {sum(hits)} tokens")
