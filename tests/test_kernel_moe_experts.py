"""Expert MLPs: every path against the definition, for all ways tokens may be distributed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_device import DEVICE, ON_GPU, relative_error
from moe_cases import Layer, exact, random_experts, random_layer

from engine.kernels import moe_experts
from engine.kernels.moe_configs import CONFIGS, GroupedConfig, Tile, grouped_config
from engine.kernels.moe_experts import IMPLEMENTATIONS, moe_mlp_reference, moe_mlp_triton
from engine.kernels.moe_grouped import moe_mlp_grouped
from engine.kernels.moe_grouped_mm import moe_mlp_grouped_mm
from engine.kernels.moe_pairs import moe_mlp_pairs
from engine.kernels.parts import sum_parts

Path = Callable[..., torch.Tensor]


def grouped(swap: bool, tma: bool, group: int = 1) -> Path:
    """The grouped path with tiles so small that tests have many of them."""
    return partial(
        moe_mlp_grouped,
        config=GroupedConfig(
            16,
            Tile(64, 32, 4, 3, swap=swap, tma=tma, group=group),
            Tile(64, 64, 4, 3, swap=swap, tma=tma, group=group),
        ),
    )


def whole(path: Path) -> Path:
    """A path whose parts, if it has any, are summed."""
    return lambda *layer: sum_parts(path(*layer))


PATHS: dict[str, Path] = {
    "torch": moe_mlp_reference,
    "grouped_mm": moe_mlp_grouped_mm,
    "pairs": moe_mlp_pairs,
    "grouped": grouped(swap=False, tma=False),
    "grouped, swapped": grouped(swap=True, tma=False, group=2),
    "grouped, TMA": grouped(swap=False, tma=True, group=3),
    "grouped, swapped, TMA": grouped(swap=True, tma=True),
}
every_path = pytest.mark.parametrize("path", [whole(p) for p in PATHS.values()], ids=PATHS.keys())

# (tokens, experts, top_k, H, I): one token, more tokens than a block's rows, rows and widths that
# no tile divides, k = 1, k no power of two, k = E. Few tokens are wide: of 64 numbers, one draw in
# 1,500 errs by more than the tolerance through rounding alone, where the experts' sum cancels.
SHAPES = [
    (1, 8, 2, 256, 128), (19, 8, 2, 96, 48), (9, 16, 4, 80, 112), (5, 4, 1, 128, 96),
    (7, 6, 3, 112, 80), (6, 4, 4, 64, 32),
]  # fmt: skip
DTYPES = [torch.bfloat16] if ON_GPU else [torch.bfloat16, torch.float32]
TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 1e-6}


@every_path
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(path: Path, shape: tuple[int, ...]) -> None:
    """Each path computes the weighted sum of the chosen experts' MLPs."""
    layer = random_layer(*shape, torch.bfloat16)
    out = path(*layer)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact(layer)) < TOLERANCE[torch.bfloat16]


@every_path
@pytest.mark.parametrize("expert", [0, 3, 7])
def test_all_tokens_may_choose_one_expert(path: Path, expert: int) -> None:
    """The fullest expert possible, first, between and last; the weights of others are unused."""
    layer = random_layer(20, 8, 1, 64, 48, DTYPES[-1])
    layer.experts.fill_(expert)
    expected = exact(layer)
    layer.gate_up[torch.arange(8, device=DEVICE) != expert] = float("nan")
    layer.down[torch.arange(8, device=DEVICE) != expert] = float("nan")
    assert relative_error(path(*layer), expected) < TOLERANCE[DTYPES[-1]]


@every_path
def test_unchosen_experts_do_not_matter(path: Path) -> None:
    """NaN in weights that nobody chose stays there, also next to a tile that reaches over."""
    layer = random_layer(6, 8, 2, 80, 48, DTYPES[-1])
    layer.experts.copy_(torch.tensor([1, 4, 6])[random_experts(6, 3, 2).long().cpu()])
    expected = exact(layer)
    unchosen = [0, 2, 3, 5, 7]
    layer.gate_up[unchosen] = float("nan")
    layer.down[unchosen] = float("nan")
    assert relative_error(path(*layer), expected) < TOLERANCE[DTYPES[-1]]


@every_path
def test_tokens_do_not_see_each_other(path: Path) -> None:
    """A NaN in one token is in its row of the result and in no other."""
    layer = random_layer(18, 4, 2, 64, 32, DTYPES[-1])
    layer.x[5, 3] = float("nan")
    broken = path(*layer).isnan()
    assert broken[5].all()
    assert broken.sum() == broken[5].sum()


@every_path
def test_tokens_are_conserved(path: Path) -> None:
    """Experts that all compute the identity give back every token, whatever the routing."""
    features = 64
    layer = random_layer(21, 8, 2, features, features, DTYPES[-1])
    gate = 4.0  # silu(4) = 3.928: gate reads it off the last feature, which is 1
    layer.x[:, -1] = 1.0
    layer.gate_up.zero_()
    layer.gate_up[:, :features, -1] = gate
    layer.gate_up[:, features:] = torch.eye(features)
    silu = torch.nn.functional.silu(torch.tensor(gate)).item()
    layer.down.copy_(torch.eye(features) / silu)
    layer.weights.div_(layer.weights.sum(1, keepdim=True))
    assert relative_error(path(*layer), layer.x) < TOLERANCE[DTYPES[-1]]


@every_path
def test_repeats_itself(path: Path) -> None:
    """The same operands give the same bits."""
    layer = random_layer(17, 8, 4, 64, 32, DTYPES[-1])
    assert torch.equal(path(*layer), path(*layer))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 33, 48])
def test_blocks_at_most_half_full(rows: int, swap: bool, tma: bool) -> None:
    """Blocks computed with half their rows give what full ones give, at every border."""
    layer = random_layer(rows + 5, 4, 1, 64, 48, DTYPES[-1])
    layer.experts[:rows] = 2
    layer.experts[rows:] = 3
    tile = Tile(64, 32, 4, 3, swap=swap, tma=tma)
    out = moe_mlp_grouped(*layer, config=GroupedConfig(32, tile, tile, halves=True))
    assert relative_error(sum_parts(out), exact(layer)) < TOLERANCE[DTYPES[-1]]


@pytest.mark.parametrize("top_k", [2, 3])
def test_tiles_of_pairs_do_not_matter(top_k: int) -> None:
    """Rows of weights in several tiles, widths in several steps, give what one tile gives."""
    layer = random_layer(2, 4, top_k, 96, 48, DTYPES[-1])
    for tiles in ((2048, 2048, 4), (4096, 1024, 2)):
        out = moe_mlp_pairs(*layer, *tiles)
        assert relative_error(out, exact(layer)) < TOLERANCE[DTYPES[-1]]


@pytest.mark.parametrize(
    ("tokens", "experts", "path"),
    [
        (0, 8, []), (3, 8, ["moe_mlp_pairs"]), (4, 8, ["moe_mlp_grouped"]),
        (20, 8, ["moe_mlp_grouped"]), (2, 4, ["moe_mlp_pairs"]), (3, 4, ["moe_mlp_grouped"]),
    ],
)  # fmt: skip
def test_the_size_of_the_batch_picks_the_path(
    tokens: int, experts: int, path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few pairs, and no more than experts, go to one path and many to the other; none to none."""
    used = []
    for name in ("moe_mlp_pairs", "moe_mlp_grouped"):
        run = getattr(moe_experts, name)
        monkeypatch.setattr(
            moe_experts, name, lambda *layer, n=name, run=run: (used.append(n), run(*layer))[1]
        )
    monkeypatch.setattr(moe_experts, "PAIRS_LIMIT", 6)
    layer = random_layer(tokens, experts, 2, 64, 32, DTYPES[-1])
    out = sum_parts(moe_mlp_triton(*layer))
    assert relative_error(out, exact(layer)) < TOLERANCE[DTYPES[-1]] or not tokens
    assert out.shape == layer.x.shape
    assert used == path


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_no_tokens(name: str) -> None:
    """An empty batch has an empty result."""
    layer = random_layer(0, 4, 2, 64, 32, DTYPES[-1])
    assert IMPLEMENTATIONS[name](*layer).shape == (0, 64)


def test_blocks_grow_with_tokens_per_expert() -> None:
    """Blocks hold what an expert gets on average, and end at the largest that there is."""
    rows = [grouped_config(tokens * 8, 128, 2048, 768).block_m for tokens in (1, 32, 256, 8192)]
    assert rows == sorted(rows)
    assert rows[0] == min(CONFIGS)
    assert rows[-1] == max(CONFIGS)


def test_blocks_share_weights_that_no_cache_holds() -> None:
    """Blocks of a large expert take turns at a tile; those of a small one need not."""
    large, small = grouped_config(8192, 8, 4096, 14336), grouped_config(65536, 128, 2048, 768)
    assert large.gate_up.group > 1
    assert large.down.group > 1
    assert small.gate_up.group == small.down.group == 1


@pytest.mark.skipif(not ON_GPU, reason="needs CUDA Graphs")
@pytest.mark.parametrize("tokens", [4, 70])
def test_one_graph_serves_every_routing(tokens: int) -> None:
    """A captured call, replayed for other tokens, experts and weights, computes theirs."""
    layer = random_layer(tokens, 16, 4, 128, 96, torch.bfloat16)
    moe_mlp_triton(*layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sum_parts(moe_mlp_triton(*layer))
    for experts in (random_experts(tokens, 16, 4), random_experts(tokens, 4, 4)):
        other = random_layer(tokens, 16, 4, 128, 96, torch.bfloat16)
        other = Layer(other.x, layer.gate_up, layer.down, other.weights, experts)
        for mine, new in zip(layer, other, strict=True):
            mine.copy_(new)
        graph.replay()
        assert relative_error(out, exact(layer)) < TOLERANCE[torch.bfloat16]
