"""CUDA C++ kernels, compiled when they are first needed by the NVRTC that torch brings along.

Triton has no clusters whose blocks share what they load; a kernel that wants them is written in
CUDA C++, in a `.cu` file beside the Python file that launches it. Binaries lie in Triton's cache,
under a hash of the text, and `compile_only` (`engine.kernels.launching`) compiles them beside
Triton's kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton.runtime.cache import get_cache_manager

from engine.kernels.launching import order

ARCHITECTURE = "sm_90a"
OPTIONS = (f"--gpu-architecture={ARCHITECTURE}", "--std=c++17")
_CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 4, 6  # CUlaunchAttributeID
_MAX_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute
MOST_SHARED_BYTES = 227 * 1024  # that a block of a Hopper GPU can have
_BFLOAT16 = 9  # CUtensorMapDataType
_SWIZZLE_128B, _L2_PROMOTION_256B = 3, 3


class NvrtcError(RuntimeError):
    """NVRTC is missing, or did not compile a kernel; says why."""


class CudaDriverError(RuntimeError):
    """A call of the CUDA driver failed, often because an earlier kernel did and all is lost."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: what it is, and 64 bytes of value."""

    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_uint * 16))


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )  # fmt: skip


class TensorMap(ctypes.Structure):
    """CUtensorMap: how the tensor memory accelerator sees a matrix."""

    _fields_ = (("opaque", ctypes.c_ubyte * 128),)


class Launch(NamedTuple):
    """The shape of a launch.

    Attributes:
        grid: blocks in x and y.
        threads: of a block.
        cluster: blocks of a cluster, along x.
        shared_bytes: dynamic shared memory of a block.
    """

    grid: tuple[int, int]
    threads: int
    cluster: int
    shared_bytes: int


@cache
def nvrtc() -> Any:
    """The library.

    Raises:
        NvrtcError: it is not there.
    """
    major = (torch.version.cuda or "13").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    packages = Path(torch.__file__).parent.parent / "nvidia"
    for path in sorted(packages.glob(f"*/lib/{name}")):
        for part in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(part))  # NVRTC asks for it by its name alone
        return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise NvrtcError(
            f"{name}, with which torch compiles kernels, is neither in {packages} nor known to the "
            "loader: pip install nvidia-cuda-nvrtc"
        ) from error


@cache
def nvrtc_version() -> str:
    """As 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile_source(source: str, name: str) -> bytes:
    """The binary of a CUDA C++ text.

    Args:
        source: without includes.
        name: of the file, for messages.

    Raises:
        NvrtcError: with the compiler's messages.
    """
    library, program = nvrtc(), ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 0, None, None
    ))  # fmt: skip
    given = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    try:
        result = library.nvrtcCompileProgram(program, len(OPTIONS), given)
        size = ctypes.c_size_t()
        if result:
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise NvrtcError(f"{name} did not compile:\n{log.value.decode()}")
        _check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        _check(library.nvrtcGetCUBIN(program, binary))
        return binary.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _check(result: int) -> None:
    if result:
        raise NvrtcError(f"NVRTC failed with error {result}")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: Any) -> None:
    result = getattr(_driver(), function)(*arguments)
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise CudaDriverError(f"CUDA error in {function}: {(text.value or b'?').decode()}")


class CudaKernel:
    """One variant of a CUDA C++ kernel.

    Args:
        path: of the `.cu` file.
        function: the `extern "C"` kernel in it.
        defines: macros that make the variant.
    """

    def __init__(self, path: Path, function: str, defines: Mapping[str, str | int]) -> None:
        macros = "".join(f"#define {key} {value}\n" for key, value in defines.items())
        self.source = f"{macros}#line 1\n{path.read_text(encoding='utf-8')}"
        self._file, self._function = path.name, function
        self._loaded: dict[int, ctypes.c_void_p] = {}  # by device

    def launch(self, shape: Launch, arguments: Sequence[Any], device: torch.device) -> None:
        """Queue the kernel on the current stream, as one that may start early (see `pdl`).

        Args:
            shape: of the launch.
            arguments: ctypes values, in the order of the kernel's parameters.
            device: where its tensors are; this thread's present one.
        """
        if order(self._load):
            return
        function = self._loaded.get(_index(device)) or self._load(device)
        attributes = (_Attribute * 2)()
        attributes[0].id = _PROGRAMMATIC_SERIALIZATION
        attributes[0].value[0] = 1
        attributes[1].id = _CLUSTER_DIMENSION
        attributes[1].value[0:3] = (shape.cluster, 1, 1)
        config = _LaunchConfig(
            (*shape.grid, 1), (shape.threads, 1, 1), shape.shared_bytes,
            torch.cuda.current_stream(device).cuda_stream, attributes, len(attributes),
        )  # fmt: skip
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        _call("cuLaunchKernelEx", ctypes.byref(config), function, pointers, None)

    def binary(self) -> bytes:
        """Compile it, or take it from the cache."""
        facts = f"{nvrtc_version()} {' '.join(OPTIONS)}\n{self.source}"
        manager = get_cache_manager(hashlib.sha256(facts.encode()).hexdigest())
        name = f"{self._function}.cubin"
        if path := manager.get_file(name):
            return Path(path).read_bytes()
        made = compile_source(self.source, self._file)
        manager.put(made, name)
        return made

    def _load(self, device: torch.device) -> ctypes.c_void_p:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{self._file} is to be loaded before it is captured")
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        binary = self.binary()
        with torch.cuda.device(_index(device)):
            torch.cuda.current_stream().query()  # makes the device's context current
            _call("cuModuleLoadData", ctypes.byref(module), binary)
            _call("cuModuleGetFunction", ctypes.byref(function), module, self._function.encode())
            _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_BYTES, MOST_SHARED_BYTES)
        self._loaded[_index(device)] = function
        return function


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def tensor_map(matrix: torch.Tensor, box_rows: int, box_columns: int) -> TensorMap:
    """Boxes of a contiguous bfloat16 matrix, with the 128-byte swizzle; zeros lie beyond its edges.

    Args:
        matrix: [rows, columns]; its rows start at multiples of 16 bytes.
        box_rows: at most 256.
        box_columns: 64, the width of the swizzle.
    """
    rows, columns = matrix.shape
    return _tensor_map(matrix.data_ptr(), rows, columns, box_rows, box_columns)


@lru_cache(maxsize=4096)  # it says where a matrix lies and nothing of what is there
def _tensor_map(
    address: int, rows: int, columns: int, box_rows: int, box_columns: int
) -> TensorMap:
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    offset = -ctypes.addressof(room) % 64  # the driver wants it aligned
    made = TensorMap.from_buffer(room, offset)
    _call(
        "cuTensorMapEncodeTiled", ctypes.byref(made), _BFLOAT16, 2, ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(columns * 2),
        (ctypes.c_uint32 * 2)(box_columns, box_rows), (ctypes.c_uint32 * 2)(1, 1),
        0, _SWIZZLE_128B, _L2_PROMOTION_256B, 0,
    )  # fmt: skip
    return made
