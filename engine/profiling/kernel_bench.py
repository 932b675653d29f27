"""The engine's ops, ready to run on made-up operands of any size.

Weights, keys and values come from two large stores of random numbers. Each launch of a series
reads another part of them, so that nothing lies in the L2 cache that would not when a model runs:
the next layer's weights and the next layer's keys are other ones there, too. Activations are the
same each time, as they are when the op before has just written them.

Ops are those that `engine.kernels.registry` chooses for the device, which choose their kernels by
the operands as they do in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.registry import KernelSet, select_kernels
from engine.kernels.rotary import QKNorm
from engine.profiling.kernel_cases import (
    COPIES,
    PAGE_SIZE,
    KernelCase,
    KernelLimits,
    draw_experts,
    lengths_of,
)
from engine.profiling.kernel_work import Work
from engine.profiling.kv_copies import KVCopies
from engine.runtime.device_state import NOTHING_SPECIAL, DeviceState

_EPS: Final = 1e-5
_BOUND: Final = 0.03  # of random weights: products of them keep the size of what they multiply
_ALIGNED: Final = 128  # elements
_LONGEST: Final = 40_960  # of a request in the engine; picks grids


class _Mixture(NamedTuple):
    """Experts on some tokens: as `Work`, but `launch` also gets what the tokens are."""

    launch: Callable[[torch.Tensor, int], torch.Tensor]
    read_bytes: int
    flops: int


class KernelBench:
    """Makes operands for ops on one device.

    Args:
        device: a GPU, or a CPU.
        dtype: of weights and activations.
        limits: how large the stores are; cases within them can be made.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, limits: KernelLimits) -> None:
        self.device, self.dtype = device, dtype
        self.ops: KernelSet = select_kernels(device)
        self._weights = self._random(limits.weight_bytes // 2)
        size = limits.kv_bytes // 4
        self._layers = [(self._random(size), self._random(size)) for _ in range(limits.kv_layers)]
        self._counters = torch.zeros(1 << 14, dtype=torch.int32, device=device)
        self._orders: dict[int, NDArray[np.int32]] = {}
        self._make: dict[str, Callable[[KernelCase], Work]] = {
            "norm_linear": self._norm_linear,
            "lm_head": self._norm_linear,
            "residual_linear": self._residual_linear,
            "norm_gated_linear": self._norm_gated_linear,
            "linear": self._linear,
            "norm": self._norm,
            "embed_tokens": self._embed_tokens,
            "sample": self._sample,
            "rotary_kv_write": self._rotary_kv_write,
            "decode_attention": self._decode_attention,
            "prefill_attention": self._prefill_attention,
            "route": self._route,
            "moe_mlp": self._moe_mlp,
            "projections": self._projections,
            "mlp": self._mlp,
            "moe_layer": self._moe_layer,
        }
        self._copies = KVCopies(self._layers)
        self._make |= dict.fromkeys(COPIES, self._copies.work)

    def work(self, case: KernelCase) -> Work:
        """The op of a case on its operands."""
        return self._make[case.op](case)

    def _random(self, *shape: int) -> torch.Tensor:
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        return out.uniform_(-_BOUND, _BOUND)

    def _ints(self, values: Sequence[int] | NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.int32)).to(self.device)

    def _weight(self, time: int, *shape: int, first: int = 0) -> torch.Tensor:
        """The part of the store for one launch, from element `first` of its share on."""
        size = int(np.prod(shape))
        room = (len(self._weights) - first - size) // _ALIGNED
        step = -(-(first + size) // _ALIGNED)
        start = first + (time * step) % max(1, room + 1) * _ALIGNED
        return self._weights[start : start + size].view(shape)

    # Products, with the norm before them.

    def _norm_linear(self, case: KernelCase) -> Work:
        (out_features, inner), (tokens,) = case.sizes, case.point
        residual, pending = self._residual(tokens, inner)
        scale, whole = self._random(inner) + 1, case.op == "lm_head"
        run = self.ops.norm_linear

        def launch(time: int) -> object:
            weight = self._weight(time, out_features, inner)
            return run(pending, residual, scale, _EPS, weight, whole=whole)

        return Work(launch, 2 * out_features * inner, flops=2 * tokens * out_features * inner)

    def _norm_gated_linear(self, case: KernelCase) -> Work:
        (out_features, inner), (tokens,) = case.sizes, case.point
        residual, pending = self._residual(tokens, inner)
        scale, run = self._random(inner) + 1, self.ops.norm_gated_linear

        def launch(time: int) -> object:
            weight = self._weight(time, out_features, inner)
            return run(pending, residual, scale, _EPS, weight)

        return Work(launch, 2 * out_features * inner, flops=2 * tokens * out_features * inner)

    def _residual_linear(self, case: KernelCase) -> Work:
        (out_features, inner), (tokens,) = case.sizes, case.point
        x, residual = self._random(tokens, inner), self._random(tokens, out_features)
        run = self.ops.residual_linear

        def launch(time: int) -> object:
            return run(x, self._weight(time, out_features, inner), None, residual)

        return Work(launch, 2 * out_features * inner, flops=2 * tokens * out_features * inner)

    def _linear(self, case: KernelCase) -> Work:
        (out_features, inner), (tokens,) = case.sizes, case.point
        x, run = self._random(tokens, inner), self.ops.linear

        def launch(time: int) -> object:
            return run(x, self._weight(time, out_features, inner), whole=True)

        return Work(launch, 2 * out_features * inner, flops=2 * tokens * out_features * inner)

    def _residual(self, tokens: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The residual stream, and what is to be added to it: nothing to a single row."""
        return self._random(tokens, hidden), self._random(tokens, hidden) if tokens > 1 else None

    # Small ops.

    def _norm(self, case: KernelCase) -> Work:
        (hidden,), (tokens,) = case.sizes, case.point
        residual, pending = self._residual(tokens, hidden)
        scale, run = self._random(hidden) + 1, self.ops.norm
        return Work(lambda _: run(pending, residual, scale, _EPS), moved_bytes=8 * tokens * hidden)

    def _embed_tokens(self, case: KernelCase) -> Work:
        (hidden,), (tokens,) = case.sizes, case.point
        table = self._weights[: len(self._weights) // hidden * hidden].view(-1, hidden)
        ids = self._ints(np.random.default_rng(1).integers(0, min(len(table), 1 << 15), tokens))
        last, run = self._ints([0]), self.ops.embed_tokens
        return Work(lambda _: run(ids, last, table), moved_bytes=4 * tokens * hidden)

    def _sample(self, case: KernelCase) -> Work:
        (vocab,), (tokens,) = case.sizes, case.point
        logits = self._random(tokens, vocab)
        state = DeviceState(tokens, 1, 0, 1, self.device)
        rows = self._ints(range(tokens))
        batch = state.sampling_batch(rows, rows, NOTHING_SPECIAL)
        run = self.ops.sample
        return Work(
            lambda _: run(logits, batch, state.last_tokens, rows), moved_bytes=2 * tokens * vocab
        )

    def _rotary_kv_write(self, case: KernelCase) -> Work:
        (heads, kv_heads, head_dim, _), (tokens,) = case.sizes, case.point
        turn = self._rotation(case.sizes, tokens)
        qkv = self._random(tokens, (heads + 2 * kv_heads) * head_dim)
        return Work(lambda _: turn(qkv), moved_bytes=4 * qkv.numel())

    def _rotation(
        self, sizes: tuple[int, ...], tokens: int
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """What turns queries and writes keys and values of a prompt."""
        _, kv_heads, head_dim, normed = sizes
        keys, values = self._caches(kv_heads, head_dim)[0]
        norm = QKNorm(self._random(head_dim) + 1, self._random(head_dim) + 1, _EPS)
        cos_sin = torch.ones(tokens, head_dim, dtype=torch.float32, device=self.device)
        table, rows = self._table([tokens], 1, len(keys)), self._ints([0] * tokens)
        positions, run = self._ints(range(tokens)), self.ops.rotary_kv_write
        given = norm if normed else None

        def turn(qkv: torch.Tensor) -> torch.Tensor:
            queries: torch.Tensor = run(
                qkv, None, given, cos_sin, positions, rows, table, keys, values
            )
            return queries

        return turn

    # Attention.

    def _caches(self, kv_heads: int, head_dim: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer as pages [n, page_size, Hk, D]."""
        size = PAGE_SIZE * kv_heads * head_dim
        pages = len(self._layers[0][0]) // size
        shape = (pages, PAGE_SIZE, kv_heads, head_dim)
        return [
            (keys[: pages * size].view(shape), values[: pages * size].view(shape))
            for keys, values in self._layers
        ]

    def _table(self, lengths: Sequence[int], times: int, pages: int) -> torch.Tensor:
        """A page table with rows for requests of these lengths, so many times over.

        Pages lie anywhere, and each time they are other ones until there are no more.
        """
        needed = [-(-length // PAGE_SIZE) for length in lengths]
        total = sum(needed)
        order = self._order(pages)
        table = np.zeros((times * len(lengths), max(needed)), np.int32)
        for time in range(times):
            at = time * total % max(1, pages - total + 1)
            for row, count in enumerate(needed):
                table[time * len(lengths) + row, :count] = order[at : at + count]
                at += count
        return torch.from_numpy(table).to(self.device)

    def _order(self, pages: int) -> NDArray[np.int32]:
        """So many pages, mixed up."""
        if pages not in self._orders:
            order = np.random.default_rng(1).permutation(pages)
            self._orders[pages] = order.astype(np.int32)
        return self._orders[pages]

    def _rows(self, times: int, requests: int) -> list[torch.Tensor]:
        """Rows of `_table` for each time; each starts at a round address, as in a step."""
        padded = -(-requests // _ALIGNED) * _ALIGNED
        rows = np.arange(times)[:, None] * requests + np.arange(padded)
        whole = self._ints(rows)
        return [row[:requests] for row in whole]

    def _times(self, tokens: int, kv_heads: int, head_dim: int) -> int:
        """How often so many tokens can be read before the store begins anew, in reason."""
        stored = len(self._layers[0][0]) // (kv_heads * head_dim)
        return max(1, min(64, stored // max(PAGE_SIZE, tokens)))

    def _decode_attention(self, case: KernelCase) -> Work:
        (heads, kv_heads, head_dim), (requests, context) = case.sizes, case.point
        lengths = lengths_of(requests, context)
        caches = self._caches(kv_heads, head_dim)
        times = self._times(context, kv_heads, head_dim)
        table = self._table(lengths, times, len(caches[0][0]))
        rows = self._rows(times, requests)
        positions = self._ints([length - 1 for length in lengths])
        q = self._random(requests, heads, head_dim)
        out, run, scale = torch.empty_like(q), self.ops.decode_attention, head_dim**-0.5

        def launch(time: int) -> object:
            keys, values = caches[time % len(caches)]
            return run(
                q, keys, values, table, rows[time % times], positions, scale, _LONGEST,
                self._counters, out=out,
            )  # fmt: skip

        return Work(launch, 4 * context * kv_heads * head_dim)

    def _prefill_attention(self, case: KernelCase) -> Work:
        (heads, kv_heads, head_dim), (chunks, tokens, prefix) = case.sizes, case.point
        caches = self._caches(kv_heads, head_dim)
        context = chunks * (tokens + prefix)
        times = self._times(context, kv_heads, head_dim)
        table = self._table([tokens + prefix] * chunks, times, len(caches[0][0]))
        rows = self._rows(times, chunks)
        starts = self._ints(range(0, chunks * tokens + 1, tokens))
        contexts = self._ints([prefix] * chunks)
        q = self._random(chunks * tokens, heads, head_dim)
        out, run, scale = torch.empty_like(q), self.ops.prefill_attention, head_dim**-0.5

        def launch(time: int) -> object:
            at, (keys, values) = rows[time % times], caches[time % len(caches)]
            return run(q, keys, values, table, starts, at, contexts, scale, out=out)

        pairs = chunks * tokens * (prefix + tokens // 2)
        return Work(launch, 4 * context * kv_heads * head_dim, flops=4 * pairs * heads * head_dim)

    # Mixtures of experts.

    def _route(self, case: KernelCase) -> Work:
        (experts, top_k), (tokens,) = case.sizes, case.point
        logits, run = self._random(tokens, experts), self.ops.route
        return Work(lambda _: run(logits, top_k, True))

    def _moe_mlp(self, case: KernelCase) -> Work:
        tokens, hidden = case.point[0], case.sizes[2]
        mixture, x = self._mixture(case), self._random(tokens, hidden)
        return Work(lambda time: mixture.launch(x, time), mixture.read_bytes, flops=mixture.flops)

    def _mixture(self, case: KernelCase) -> _Mixture:
        (experts, top_k, hidden, width), (tokens, active, _) = case.sizes, case.point
        if case.draw is None:
            raise ValueError(f"{case} does not say which experts are chosen")
        gate_up = self._weight(0, experts, 2 * width, hidden)
        down = self._weight(0, experts, hidden, width, first=2 * experts * width * hidden)
        shares = torch.full((tokens, top_k), 1 / top_k, device=self.device)
        drawn = draw_experts(tokens, experts, top_k, case.draw)
        # Others each time, or the experts of a few tokens would stay in the L2 cache.
        turns = max(1, experts // max(1, active))
        chosen = [self._ints((drawn + time * active) % experts) for time in range(turns)]
        run = self.ops.moe_mlp

        def launch(x: torch.Tensor, time: int) -> torch.Tensor:
            mixed: torch.Tensor = run(x, gate_up, down, shares, chosen[time % turns])
            return mixed

        flops = 6 * tokens * top_k * hidden * width
        return _Mixture(launch, 6 * active * hidden * width, flops)

    # Parts of a layer: each launch goes on from what the last one has left, the first from what
    # stays, because a graph will read it.

    def _projections(self, case: KernelCase) -> Work:
        (heads, kv_heads, head_dim, _, hidden), (tokens,) = case.sizes, case.point
        width, query = (heads + 2 * kv_heads) * head_dim, heads * head_dim
        residual, first = self._residual(tokens, hidden)
        pending = first
        scale, turn = self._random(hidden) + 1, self._rotation(case.sizes[:4], tokens)
        ops = self.ops

        def launch(time: int) -> object:
            nonlocal pending
            pending = pending if time else first
            weight = self._weight(time, width + query, hidden)
            qkv = ops.norm_linear(pending, residual, scale, _EPS, weight[:width])
            turned = turn(qkv).view(tokens, query)
            output = weight[width:].view(hidden, query)
            pending = ops.residual_linear(turned, output, None, residual)
            return pending

        size = (width + query) * hidden
        return Work(launch, 2 * size, flops=2 * tokens * size)

    def _mlp(self, case: KernelCase) -> Work:
        (hidden, width), (tokens,) = case.sizes, case.point
        residual, first = self._residual(tokens, hidden)
        pending, scale, ops = first, self._random(hidden) + 1, self.ops

        def launch(time: int) -> object:
            nonlocal pending
            pending = pending if time else first
            weight = self._weight(time, 3 * width, hidden)
            gate_up, down = weight[: 2 * width], weight[2 * width :].view(hidden, width)
            gated = ops.norm_gated_linear(pending, residual, scale, _EPS, gate_up)
            pending = ops.residual_linear(gated, down, None, residual)
            return pending

        return Work(launch, 6 * hidden * width, flops=6 * tokens * hidden * width)

    def _moe_layer(self, case: KernelCase) -> Work:
        experts, top_k, hidden, _ = case.sizes
        tokens, *_ = case.point
        mixture, ops = self._mixture(case), self.ops
        residual, first = self._residual(tokens, hidden)
        pending, scale = first, self._random(hidden) + 1
        router = self._weights[-experts * hidden :].view(experts, hidden)

        def launch(time: int) -> object:
            nonlocal pending
            pending = pending if time else first
            x = ops.norm(pending, residual, scale, _EPS)
            ops.route(ops.linear(x, router, whole=True), top_k, True)
            pending = mixture.launch(x, time)
            return pending

        return Work(launch, mixture.read_bytes, flops=mixture.flops)
