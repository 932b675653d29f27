"""The kernel lab: every rung computes its op; on a CPU those that can run there."""

from __future__ import annotations

from itertools import product

import pytest
import sm90_gate
import torch
from kernel_device import DEVICE, ON_GPU

from engine.kernels.lab import attention_decode, attention_prefill, softmax
from engine.kernels.lab.case import Lab, label
from engine.kernels.lab.cuda_launch import lab_kernel, row_shape
from engine.kernels.lab.labs import LABS
from engine.kernels.lab.rungs import LADDERS, ladder_of
from engine.kernels.nvrtc import compile_source

TOLERANCE = 1e-2  # of bfloat16 operands
EVERYWHERE = ("torch-naive", "triton", "library", "library-contiguous")
CASES = [
    pytest.param(op, name, size, id=f"{op}/{name}/{label(size)}")
    for op, lab in LABS.items()
    for name, size in product(lab.rungs, lab.small_sizes)
]
CUDA_VARIANTS = (
    ("softmax.cu", "softmax_vector", {"THREADS": 64, "VECTORS": 2, "CLUSTER": 1}),
    ("softmax.cu", "softmax_vector", {"THREADS": 1024, "VECTORS": 4, "CLUSTER": 4}),
    ("norm.cu", "norm_vector", {"MEAN": 0, "THREADS": 256, "VECTORS": 2}),
    ("norm.cu", "norm_vector", {"MEAN": 1, "THREADS": 1024, "VECTORS": 4}),
    (
        "attention_prefill.cu", "attention_tensor",
        {"KEYS": attention_prefill.KEYS, "WARPS": attention_prefill.WARPS},
    ),
    ("attention_decode.cu", "decode_tensor", {"GROUP": 4}),
)  # fmt: skip


@pytest.mark.parametrize(("op", "name", "size"), CASES)
def test_every_rung_computes_its_op(op: str, name: str, size: dict[str, int]) -> None:
    """Odd sizes included, a rung is within bfloat16's rounding of float64."""
    if not ON_GPU and name not in EVERYWHERE:
        pytest.skip("needs a Hopper GPU")
    if (
        not ON_GPU
        and name == "triton"
        and (size.get("tokens", 0) > 100 or max(size.values()) > 20_000)
    ):
        pytest.skip("too much for the interpreter")
    torch.manual_seed(0)
    lab: Lab = LABS[op]
    case = lab.make(DEVICE, **size)
    assert lab.error(case, lab.rungs[name](case)) < TOLERANCE


def test_ladders_in_words_are_those_in_code() -> None:
    """Every rung that is explained can be run, in the same order; the engine's is one of them."""
    assert list(LADDERS) == list(LABS)
    for op, ladder in LADDERS.items():
        assert [rung.name for rung in ladder.rungs] == list(LABS[op].rungs)
        assert ladder.engine in ("", *LABS[op].rungs)


def test_unknown_ladder_lists_those_there_are() -> None:
    """The error for a ladder that does not exist names all that do."""
    with pytest.raises(ValueError, match="softmax, rms_norm, layer_norm"):
        ladder_of("gelu")


@pytest.mark.parametrize("columns", [8, 1000, 1024, 2056, 8192, 32768, 32776, 131072, 262144])
def test_rows_are_cut_so_that_all_of_them_is_held(columns: int) -> None:
    """Threads, vectors and blocks of a cluster hold a row; a block is whole warps, 1024 at most."""
    threads, vectors, cluster = row_shape(columns)
    assert threads * vectors * cluster * 8 >= columns
    assert threads % 32 == 0
    assert threads <= 1024
    assert threads & (threads - 1) == 0  # the sum over warps relies on it


@pytest.mark.parametrize("columns", [1001, 300_000])
def test_rows_that_do_not_fit_are_refused(columns: int) -> None:
    """A row of odd length, or one that no cluster holds, is an error that names its length."""
    with pytest.raises(ValueError, match=str(columns)):
        row_shape(columns)


@pytest.mark.parametrize(("file", "function", "defines"), CUDA_VARIANTS)
def test_cuda_rungs_compile_for_hopper_without_spills(
    file: str, function: str, defines: dict[str, int]
) -> None:
    """Each variant becomes machine code of sm_90a with nothing of a thread in local memory."""
    made = lab_kernel(file, function, defines)
    compiled = sm90_gate.read_binary(compile_source(made.source, file), 0, 1)
    assert compiled.stack_bytes == 0
    if function in ("attention_tensor", "decode_tensor"):
        assert compiled.opcodes["HMMA"] > 0
        assert compiled.opcodes["LDGSTS"] > 0
    else:
        assert compiled.opcodes["LDG.E.128"] + compiled.opcodes["LDG"] > 0


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_rows_of_infinities_give_what_torch_gives() -> None:
    """Rows with infinities or NaN are those of torch.softmax, in every rung."""
    x = torch.randn(4, 1024, device=DEVICE, dtype=torch.bfloat16)
    x[0, :], x[1, 5:], x[2, 7] = -torch.inf, -torch.inf, torch.nan
    wanted = torch.softmax(x, -1)
    for name, run in softmax.LAB.rungs.items():
        torch.testing.assert_close(
            run(softmax.SoftmaxCase(x)), wanted, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("batch", "longest"), [(1, 1), (1, 65536), (64, 8192), (300, 100)])
def test_splits_give_every_block_a_tile(batch: int, longest: int) -> None:
    """A context is cut into at least one piece and no more than it has tiles for four warps."""
    splits = attention_decode.splits_of(batch, longest, torch.device("cpu"))
    assert 1 <= splits <= -(-longest // 64)
