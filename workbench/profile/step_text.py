"""One step in a few letters: decode:32x1024, prefill:1x2048, mixed:1x512+32x1024."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import Final

from engine.core.defaults import MAX_RUNNING_REQUESTS
from engine.core.graph_sizes import default_graph_batch_sizes
from engine.profiling.step_shapes import Chunk, StepDesign
from simulator.cost_model import EAGER, StepShape

_PART: Final = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,6})")
_HELP: Final = (
    "decode:32x1024 decodes 32 requests of 1024 tokens, prefill:1x2048 computes 1 prompt of 2048, "
    "mixed:1x512+32x1024 does both"
)


class StepTextError(ValueError):
    """A step that is not written as one; says how steps are written."""


def parse_step(text: str) -> StepDesign:
    """The step of a text.

    Raises:
        StepTextError: it describes none.
    """
    kind, _, sizes = text.partition(":")
    parts = [_PART.fullmatch(part) for part in sizes.split("+")]
    wanted = {"decode": 1, "prefill": 1, "mixed": 2}.get(kind)
    pairs = [(int(found[1]), int(found[2])) for found in parts if found]
    if wanted != len(parts) or len(pairs) != len(parts):
        raise StepTextError(f"{text!r} is no step: {_HELP}")
    if kind == "decode":
        return StepDesign(decodes=_decodes(*pairs[0]))
    decodes = _decodes(*pairs[1]) if kind == "mixed" else ()
    prompts, tokens = pairs[0]
    return StepDesign((Chunk(tokens),) * prompts, decodes)


def _decodes(requests: int, context: int) -> tuple[int, ...]:
    return (context,) * requests


def shape_of(design: StepDesign, graph_batch_sizes: Sequence[int] | None = None) -> StepShape:
    """The features of a step.

    Args:
        design: the step.
        graph_batch_sizes: of the engine; none: it runs kernel by kernel; None: those that an engine
            has by default, or if more requests may run than that by default, for so many.
    """
    chunks, decodes = design.chunks, design.decodes
    sizes = graph_batch_sizes
    if sizes is None:
        sizes = default_graph_batch_sizes(max(len(decodes), MAX_RUNNING_REQUESTS))
    at = bisect.bisect_left(sizes, len(decodes))
    replayed = decodes and not chunks and at < len(sizes)
    pairs = sum(c.tokens * c.context + c.tokens * (c.tokens + 1) // 2 for c in chunks)
    return StepShape(
        prefill_tokens=sum(chunk.tokens for chunk in chunks),
        prefill_requests=len(chunks),
        prefill_context=sum(chunk.context for chunk in chunks),
        prefill_pairs=pairs,
        prefill_max_context=max((c.tokens + c.context for c in chunks), default=0),
        decode_requests=len(decodes),
        decode_tokens=len(decodes),
        decode_context=sum(decodes),
        decode_max_context=max(decodes, default=0),
        sampled_tokens=len(decodes) + (len(chunks) if design.samples else 0),
        graph_batch=sizes[at] if replayed else EAGER,
    )
