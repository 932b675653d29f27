"""Cross-compiles a Triton kernel for sm_90 on any machine and reads what the assembler made of it.

Not for a process in which kernels are interpreted: `run` starts another one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPCODES = (
    "HGMMA",
    "QGMMA",
    "IGMMA",
    "HMMA",
    "UTMALDG",
    "MEMBAR",
    "LDGSTS",
    "STL",
    "LDL",
    "FFMA",
    "LDG",
    "LDG.E.128",
    "STG.E.128",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        kernel: "module:function".
        signature: argument -> type such as "*bf16", "i32", "fp32"; constexprs are left out.
        constants: constexpr -> value.
        options: num_warps, num_stages, ...
        aligned: integer arguments that are multiples of 16 (pointers always are).
    """

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came out: registers and stack bytes per thread, shared memory, counted opcodes."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    warps: int
    opcodes: dict[str, int]


def run(variants: list[Variant]) -> list[Compiled]:
    """Compile in a process of its own, where nothing is interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(variant) for variant in variants]),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return [Compiled(**row) for row in json.loads(process.stdout.splitlines()[-1])]


def _compile(variant: Variant) -> Compiled:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    module, _, name = variant.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    kernel = getattr(kernel, "jit", kernel)
    names = kernel.arg_names
    signature = {n: "constexpr" if n in variant.constants else variant.signature[n] for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or n in variant.aligned
    }
    kind = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = kind(kernel, signature, dict(variant.constants), attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(variant.options))
    return read_binary(made.asm["cubin"], made.metadata.shared, made.metadata.num_warps)


def read_binary(binary: bytes, shared_bytes: int, warps: int) -> Compiled:
    """What is in a cubin; dynamic shared memory and warps only its launch knows."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found, usage.stdout + usage.stderr
    counts = {op: len(re.findall(rf"\b{op}\b", code.stdout)) for op in OPCODES}
    return Compiled(int(found[1]), int(found[2]), shared_bytes, warps, counts)


if __name__ == "__main__":
    rows = [asdict(_compile(Variant(**row))) for row in json.load(sys.stdin)]
    print(json.dumps(rows))
