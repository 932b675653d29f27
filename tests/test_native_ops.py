"""The native ops: built by g++ here, and by nvcc where it is; as Python they compute the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, ON_GPU, relative_error
from native_builds import shared_builds
from torch import library as torch_library

from engine.native import build, ops
from engine.native.build import OPS_CPU, OPS_CUDA, Extension, NativeUnavailableError

ROOT = Path(__file__).parent.parent
EPS = 1e-5
SHAPES = ((1, 8), (3, 7), (5, 4096), (2, 3, 12), (1, 70000), (0, 16))
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ops, built in a fresh folder, unless the tests are told of one."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_NATIVE_DIR", str(shared_builds(tmp_path_factory)))
        return ops.load()


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def test_ops_are_built_here(loaded: str) -> None:
    """With g++ the ops are native."""
    assert loaded == "native"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The residual becomes the rounded sum; the result is its norm, whatever the row's length."""
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    weight = random(shape[-1], dtype=dtype)
    summed = (x.float() + residual.float()).to(dtype)
    out = ops.add_rms_norm_(x, residual, weight, EPS)
    torch.testing.assert_close(residual, summed, rtol=0, atol=0)
    wide = summed.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
    assert out.dtype == dtype
    assert relative_error(out, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 16), (3, 14), (5, 28672), (2, 3, 24), (0, 16)])
def test_silu_mul_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """silu(gate) * up, whatever the row's length."""
    gate_up = random(*shape, dtype=dtype)
    gate, up = gate_up.double().chunk(2, -1)
    out = ops.silu_mul(gate_up)
    assert out.shape == up.shape
    assert relative_error(out, gate * gate.sigmoid() * up) < TOLERANCE[dtype]


def test_unaligned_rows_are_computed(loaded: str) -> None:
    """A tensor that starts at no multiple of 16 bytes gives the same."""
    gate_up = random(8 * 16 + 1, dtype=torch.bfloat16)[1:].view(8, 16)
    gate, up = gate_up.double().chunk(2, -1)
    assert relative_error(ops.silu_mul(gate_up), gate * gate.sigmoid() * up) < 5e-3


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_opcheck_is_green(dtype: torch.dtype) -> None:
    """Schema, meta kernel and tracing hold what they promise, by torch's own check."""
    x, residual, weight = (random(*s, dtype=dtype) for s in ((4, 32), (4, 32), (32,)))
    torch_library.opcheck(torch.ops.workbench.add_rms_norm_.default, (x, residual, weight, EPS))
    torch_library.opcheck(torch.ops.workbench.silu_mul.default, (random(4, 32, dtype=dtype),))


@pytest.mark.parametrize("module", [ops, torch.ops.workbench], ids=["functions", "ops"])
def test_torch_compile_takes_them_whole(module: Any) -> None:
    """A function of both compiles without a graph break, and computes the same."""

    def block(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return module.silu_mul(module.add_rms_norm_(x, residual, weight, EPS) * 2)

    x, residual, weight = (random(*s, dtype=torch.float32) for s in ((4, 32), (4, 32), (32,)))
    kept = residual.clone()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out = compiled(x, residual, weight)
    assert not torch.equal(residual, kept)
    torch.testing.assert_close(out, block(x, kept, weight))
    torch.testing.assert_close(residual, kept)


def test_meta_kernels_tell_shapes() -> None:
    """On the meta device only shapes are computed."""
    x = torch.empty(3, 64, device="meta", dtype=torch.bfloat16)
    assert torch.ops.workbench.silu_mul(x).shape == (3, 32)
    out = torch.ops.workbench.add_rms_norm_(x, x.clone(), x[0], EPS)
    assert (out.shape, out.dtype) == ((3, 64), torch.bfloat16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.silu_mul(torch.randn(2, 7, device=DEVICE)), "equally long"),
        (lambda: ops.silu_mul(torch.randn(2, 8, device=DEVICE).double()), "float32 or bfloat16"),
        (lambda: ops.silu_mul(torch.randn(8, 2, device=DEVICE).T), "contiguous"),
        (lambda: ops.silu_mul(torch.randn((), device=DEVICE)), "2 I"),
        (
            lambda: ops.add_rms_norm_(*(torch.randn(2, n, device=DEVICE) for n in (8, 8)),
                                      torch.randn(7, device=DEVICE), EPS),
            "weight",
        ),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused(call: object, message: str) -> None:
    """Shapes, dtypes and strides that do not fit are errors that say so."""
    with pytest.raises(RuntimeError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("device", [DEVICE, "meta"])
def test_a_number_is_no_row_for_python_either(device: str) -> None:
    """Where the ops run as Python, and where only shapes are told, as where they are native."""
    number = torch.ones((), device=device)
    run = {"meta": (ops._silu_mul_meta, ops._add_rms_norm_meta)}.get(
        str(device), (ops._silu_mul_python, ops._add_rms_norm_python)
    )
    with pytest.raises(RuntimeError, match="2 I"):
        run[0](number)
    with pytest.raises(RuntimeError, match="must be"):
        run[1](number, number.clone(), number, EPS)


PYTHON_ONLY = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    from torch import library as torch_library
    from engine.native import ops
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    torch.manual_seed(0)
    residual, weight = torch.randn(4, 32).bfloat16(), torch.randn(32).bfloat16()
    kept = residual.clone()
    first = ops.add_rms_norm_(x, residual, weight, 1e-5)
    ops.silu_mul(x)
said = [w for w in said if "ops run as Python" in str(w.message)]
assert len(said) == 1 and "not installed" in str(said[0].message), said
assert ops.load() == "python"
torch_library.opcheck(torch.ops.workbench.silu_mul.default, (x,))
torch_library.opcheck(
    torch.ops.workbench.add_rms_norm_.default, (x, kept.clone(), weight, 1e-5)
)
compiled = torch.compile(torch.ops.workbench.silu_mul, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x), ops.silu_mul(x))
compiled = torch.compile(ops.silu_mul, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x), ops.silu_mul(x))
print("fine")
"""


def test_without_a_compiler_the_ops_run_as_python(tmp_path: Path) -> None:
    """Where g++ is not found the ops are there all the same; one warning says what is missing."""
    done = subprocess.run(
        [sys.executable, "-c", PYTHON_ONLY],
        env={
            **os.environ, "PATH": str(tmp_path), "WORKBENCH_NATIVE_DIR": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["fine"], done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_cuda_sources_compile_for_hopper(tmp_path: Path) -> None:
    """Where nvcc is, the GPU's half becomes a library; only loading it takes a GPU."""
    assert build.compile_into(OPS_CUDA, tmp_path).stat().st_size > 0


def test_paths_may_hold_whatever_a_shell_or_ninja_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, quotes, colons and dollars are parts of names: of sources, headers and results."""
    folder = tmp_path / "sp ace $HOME it's a:b"
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "it.h").touch()
    (folder / "tiny.cpp").write_text("#include <it.h>\nint one() { return WHAT[0]; }\n")
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setattr(build, "_package", lambda name: folder)
    flags = ("-shared", "-fPIC", '-DWHAT="a b"')
    tiny = Extension("tiny", "tiny.cpp", (), "g++", flags, ("it",))
    assert build.compile_into(tiny, folder).stat().st_size > 0


def test_a_library_that_was_cut_off_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That could end the process; what is raised has the ops run as Python."""
    library = build.build(OPS_CPU).read_bytes()
    cut = tmp_path / "cut.so"
    cut.write_bytes(library[: len(library) // 2])
    monkeypatch.setattr(ops, "build", lambda _: cut)
    with pytest.raises(OSError, match=r"cut\.so is not whole; `workbench native` builds it again"):
        ops._load_library(OPS_CPU)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error ends with what the compiler said, and no build is left behind."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in (OPS_CPU.source, *OPS_CPU.headers):
        (broken / name).write_text("#error no such luck\n")
    monkeypatch.setattr(build, "FOLDER", broken)
    with pytest.raises(NativeUnavailableError, match="no such luck"):
        build.build(OPS_CPU)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".workbench_ops_cpu.lock"] == ["broken"]


def test_a_build_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key changes with the sources and the flags, not with torch's version."""
    key = build.key_of(OPS_CPU)
    with warnings.catch_warnings():
        monkeypatch.setattr(torch, "__version__", "2.11.0")
        assert build.key_of(OPS_CPU) == key
    assert build.key_of(OPS_CUDA) != key


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_ops_are_captured_in_a_graph() -> None:
    """Replays of a CUDA Graph run both ops on the stream of the capture."""
    gate_up = random(64, 512, dtype=torch.bfloat16)
    ops.silu_mul(gate_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.workbench.silu_mul(gate_up)
    gate_up.copy_(random(64, 512, dtype=torch.bfloat16))
    graph.replay()
    torch.testing.assert_close(out, torch.ops.workbench.silu_mul(gate_up))
