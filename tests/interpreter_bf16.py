"""Makes Triton's CPU interpreter compute bf16 as a GPU does, on triton 3.6 to 3.8.

The interpreter keeps bf16 values as uint16 bit patterns and passes them to numpy as such: products,
sums and casts come out as garbage. `install` widens bf16 operands to fp32, computes, and rounds the
result to the nearest even bf16. It also lets `range` take a scalar tensor on numpy >= 2.4, where
triton 3.6 fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Handle = interpreter.TensorHandle
_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
_PRIMITIVE_BITS = 16  # narrower floats keep the interpreter's own conversion


def widen(bits: Any) -> Any:
    """bf16 bit patterns (uint16) as float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: Any) -> Any:
    """float32 as bf16 bit patterns, rounded to nearest even; NaN stays NaN."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)[()]


def _is_bf16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _as_fp32(handle: Any) -> Any:
    return _Handle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def install() -> None:
    """Patch the interpreter; once per process, before a kernel is launched."""
    _patch_builder(interpreter.InterpreterBuilder)
    _patch_reductions()
    _patch_index()


def _patch_builder(builder: Any) -> None:
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op
    dot, fma, fp_to_fp = builder.create_dot, builder.create_fma, builder.create_fp_to_fp

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        source = _as_fp32(source)
        if target.scalar == tl.bfloat16:
            return _Handle(narrow(source.data.astype(np.float32)), target.scalar)
        return cast(self, source, target)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if not (_is_bf16(left) and _is_bf16(right)) or op in _BITWISE:
            return binary(self, left, right, op)
        result = op(widen(left.data), widen(right.data))
        if result.dtype == np.bool_:
            return _Handle(result, tl.int1)
        return _Handle(narrow(result), tl.bfloat16)

    def unary_op(self: Any, value: Any, op: Any) -> Any:
        if not _is_bf16(value):
            return unary(self, value, op)
        return _Handle(narrow(op(widen(value.data))), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
        return dot(self, _as_fp32(a), _as_fp32(b), total, precision, imprecise)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not _is_bf16(z):
            return fma(self, x, y, z)
        result = widen(x.data) * widen(y.data) + widen(z.data)
        return _Handle(narrow(result), tl.bfloat16)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        kinds = (source.dtype.scalar, target.scalar)
        wide = min(kind.primitive_bitwidth for kind in kinds) >= _PRIMITIVE_BITS
        if tl.bfloat16 in kinds and wide:
            return cast_impl(self, source, target)
        return fp_to_fp(self, source, target, rounding)

    builder.cast_impl, builder.binary_op, builder.unary_op = cast_impl, binary_op, unary_op
    builder.create_dot, builder.create_fma = create_dot, create_fma
    builder.create_fp_to_fp = create_fp_to_fp


def _patch_reductions() -> None:
    apply_impl = interpreter.ReduceOps.apply_impl

    def patched(self: Any, inputs: Any) -> Any:
        if not any(value.dtype.scalar == tl.bfloat16 for value in inputs):
            return apply_impl(self, inputs)
        wide = tuple(
            self.to_tensor(widen(value.handle.data), tl.float32)
            if value.dtype.scalar == tl.bfloat16
            else value
            for value in inputs
        )
        result = apply_impl(self, wide)
        if not isinstance(result, tuple | list):
            return _narrowed(self, result)
        return tuple(_narrowed(self, value) for value in result)

    interpreter.ReduceOps.apply_impl = patched


def _narrowed(reduction: Any, value: Any) -> Any:
    if value.dtype.scalar != tl.float32:
        return value
    data = value.handle.data
    data = data if value.type.is_block() else data.reshape(())
    return reduction.to_tensor(narrow(data), tl.bfloat16)


def _patch_index() -> None:
    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(
            tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0])
        )

    interpreter._patch_lang_tensor = patched
