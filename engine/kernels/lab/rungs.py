"""What the ladders of the kernel lab are, in words: each rung, what it changes, what serves.

Free of torch, so that `workbench kernels explain` works wherever the workbench is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Ceiling = Literal["bandwidth", "product"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One implementation.

    Attributes:
        name: as the tables name it.
        language: what it is written in.
        changed: what it does otherwise than the rung before, and why that should help.
        can_serve: False if it is there for comparison only, because a server's data are otherwise.
    """

    name: str
    language: str
    changed: str
    can_serve: bool = True


@dataclass(frozen=True, slots=True)
class Ladder:
    """An op and its implementations, from naive to best.

    Attributes:
        op: its name.
        title: what it computes.
        ceiling: what bounds it on a GPU: copying bytes, or bfloat16 products.
        rungs: in order.
        engine: the rung that serves requests, or "" if none does.
        engine_note: why it is that one, and what else the engine does with this op.
    """

    op: str
    title: str
    ceiling: Ceiling
    rungs: tuple[Rung, ...]
    engine: str
    engine_note: str


_NAIVE_ROW = (
    "One thread per row. Neighbouring threads read addresses a whole row apart, so each 2-byte "
    "read moves a 32-byte sector, and there are only as many threads as rows."
)
_BLOCK_ROW = (
    "A block of 256 threads per row: neighbouring threads read neighbouring numbers, so reads "
    "coalesce, and the row's passes after the first mostly hit the caches. Threads meet in shared "
    "memory, a tree of eight barriers per sum."
)
_VECTOR_ROW = (
    "16 bytes per load, and the row stays in registers: it is read once, with several loads in "
    "flight per thread. Warps reduce by shuffles, so a sum costs one barrier instead of eight."
)

_LADDERS = (
    Ladder(
        "softmax",
        "softmax of the rows of a bfloat16 matrix, float32 inside",
        "bandwidth",
        (
            Rung(
                "torch-naive",
                "PyTorch",
                "The definition, an operation per kernel: widen, maximum, subtract, exp, sum, "
                "divide, narrow. Every step writes float32 rows to memory and reads them back.",
            ),
            Rung("cuda-naive", "CUDA C++", f"One kernel instead of seven. {_NAIVE_ROW}"),
            Rung("cuda-block", "CUDA C++", _BLOCK_ROW),
            Rung(
                "cuda-vector",
                "CUDA C++",
                f"{_VECTOR_ROW} A row too long for one block's registers is shared by a cluster "
                "of four, which exchange maximum and sum through distributed shared memory.",
            ),
            Rung(
                "triton",
                "Triton",
                "The same plan in twenty lines: a program per row, which the compiler vectorises. "
                "A row of 1,024 is one warp's here, with four loads in flight per thread and no "
                "barrier; the rung before spreads it over four warps that wait for each other. "
                "Rows longer than 32,768 are walked over twice, with an online softmax, because "
                "they do not fit the registers of one program.",
            ),
            Rung("library", "torch.softmax", "PyTorch's own kernel."),
        ),
        "",
        "The engine runs no softmax by itself: in attention it is fused into the products (see "
        "attention_prefill and attention_decode), in the sampler into the walk over the logits, "
        "in the router of experts into the choice of the largest, so its rows never go to memory.",
    ),
    Ladder(
        "rms_norm",
        "RMSNorm of the rows of a bfloat16 matrix, float32 inside",
        "bandwidth",
        (
            Rung(
                "torch-naive",
                "PyTorch",
                "The definition, an operation per kernel: widen, square, mean, add, rsqrt, "
                "multiply, narrow, scale. Most of them move the matrix, some as float32.",
            ),
            Rung("cuda-naive", "CUDA C++", f"One kernel. {_NAIVE_ROW}"),
            Rung("cuda-block", "CUDA C++", _BLOCK_ROW),
            Rung("cuda-vector", "CUDA C++", _VECTOR_ROW),
            Rung(
                "triton",
                "Triton, the engine's kernel",
                "The same plan, a program per row, but the weights are loaded before the row; the "
                "rung before loads them after its sum. This is the engine's `rms_norm_triton`, "
                "which can also add the residual, sum the parts of a split product before it, and "
                "start while the kernel before it still runs.",
            ),
            Rung("library", "F.rms_norm", "PyTorch's own kernel."),
        ),
        "triton",
        "In a step the norm nearly always comes with the residual addition, which Triton's kernel "
        "has fused; alone it only runs once per step. That fused op is timed beside the native one "
        "in docs/kernel_lab.md.",
    ),
    Ladder(
        "layer_norm",
        "LayerNorm of the rows of a bfloat16 matrix, float32 inside",
        "bandwidth",
        (
            Rung(
                "torch-naive",
                "PyTorch",
                "The definition, an operation per kernel: widen, mean, subtract, square, mean, "
                "rsqrt, multiply, scale, shift, narrow, over float32 rows in memory.",
            ),
            Rung(
                "cuda-naive",
                "CUDA C++",
                f"One kernel, in three passes: mean, variance of the centred numbers, result. "
                f"{_NAIVE_ROW}",
            ),
            Rung("cuda-block", "CUDA C++", _BLOCK_ROW),
            Rung(
                "cuda-vector",
                "CUDA C++",
                f"{_VECTOR_ROW} So the exact two-pass variance costs no second read.",
            ),
            Rung("triton", "Triton", "The same plan, a program per row."),
            Rung("library", "F.layer_norm", "PyTorch's own kernel."),
        ),
        "",
        "No model that the engine serves has a LayerNorm; RMSNorm took its place. The diffusion "
        "transformer of `workbench profile gaps` calls PyTorch's, which is not the fastest: it is "
        "there to show launches, with the ops that such models are written in.",
    ),
    Ladder(
        "attention_prefill",
        "causal attention of one prompt, bfloat16, 32 query and 8 KV heads of 128",
        "product",
        (
            Rung(
                "torch-naive",
                "PyTorch",
                "The definition: two products around a softmax, with the logits of all pairs of "
                "tokens in memory, also of those that causality hides.",
            ),
            Rung(
                "cuda-naive",
                "CUDA C++",
                "One kernel with an online softmax, so no logits in memory, and nothing hidden is "
                "computed. A warp per query multiplies on the ordinary units, and each query "
                "reads all its keys and values by itself.",
            ),
            Rung(
                "cuda-tensor",
                "CUDA C++",
                "Tiles of 128 queries by 48 keys on tensor cores (mma.sync), so a key is read once "
                "for 128 queries; asynchronous copies bring the next tile to swizzled shared "
                "memory meanwhile; weights stay in registers between the two products.",
            ),
            Rung(
                "triton",
                "Triton, the engine's portable kernel",
                "The same plan for any page size and head dimension: here the compiler lays out "
                "shared memory, pipelines the loads and picks Hopper's wgmma, which takes its "
                "operands from shared memory asynchronously. It reads paged KV.",
            ),
            Rung(
                "gluon",
                "Gluon, the engine's kernel on Hopper",
                "FlashAttention-3's schedule: one warp feeds two warp groups through the tensor "
                "memory accelerator, and the softmax of one block runs while the products of "
                "another do. It reads paged KV, too.",
            ),
            Rung(
                "library-flash",
                "SDPA, FlashAttention-2",
                "The FlashAttention-2 in PyTorch, with mma.sync. Contiguous KV.",
            ),
            Rung("library", "SDPA, cuDNN", "The fused attention of cuDNN. Contiguous KV."),
        ),
        "gluon",
        "Only the engine's kernels read KV from pages and take chunks with a context before them; "
        "`triton` serves where `gluon` cannot run (other GPUs, head dimensions or page sizes).",
    ),
    Ladder(
        "attention_decode",
        "attention of one new token per request over pages of 16, bfloat16, 32 / 8 heads of 128",
        "bandwidth",
        (
            Rung(
                "torch-naive",
                "PyTorch",
                "Gathers the pages to contiguous keys and values, repeats them for the query "
                "heads that share them, then product, softmax, product.",
            ),
            Rung(
                "cuda-naive",
                "CUDA C++",
                "One kernel that reads pages in place, with an online softmax. A warp per query "
                "head of a request: four heads read the same KV, and one long context keeps 32 "
                "warps of a whole GPU busy.",
            ),
            Rung(
                "cuda-tensor",
                "CUDA C++",
                "The query heads that share a KV head are the rows of one tensor-core product, so "
                "KV is read once; contexts are split, so that every multiprocessor has work; "
                "each warp keeps copies of three tiles in flight. A second kernel combines.",
            ),
            Rung(
                "triton",
                "Triton, the engine's kernel",
                "The blocks of all requests in one line, of which each program takes an equal "
                "piece, decided on the device, so one CUDA Graph serves every mix of contexts; "
                "the last program of a request combines, so there is no second kernel.",
            ),
            Rung(
                "library",
                "SDPA after a gather",
                "PyTorch's attention takes no page tables: the gather, timed with it, reads and "
                "writes the KV once more than needed.",
            ),
            Rung(
                "library-contiguous",
                "SDPA, KV gathered before",
                "What the library would reach if the KV of each request were contiguous, which "
                "in a server it is not: the gather is not timed.",
                can_serve=False,
            ),
        ),
        "triton",
        "It serves from a CUDA Graph whatever the contexts are, with any page size.",
    ),
)

LADDERS: Mapping[str, Ladder] = {ladder.op: ladder for ladder in _LADDERS}


def ladder_of(op: str) -> Ladder:
    """The ladder of an op.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if op not in LADDERS:
        raise ValueError(f"no ladder {op!r}; ladders: {', '.join(LADDERS)}")
    return LADDERS[op]
