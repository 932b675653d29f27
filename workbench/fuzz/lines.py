"""Which lines of the core have ever run: a branch that no run takes is a hole in the fuzzer.

Some runs are traced. A function whose lines have all been seen is not traced again, so tracing
costs less and less.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

TRACED_EVERY: Final = 8  # of the seeds, one is traced
_MODULES: Final = (
    "admission", "decode_batch", "fast_forward", "handoff", "kv_memory", "memory_policy",
    "page_pool", "planner", "radix_cache", "radix_node", "radix_tree", "request_book", "results",
    "scheduler", "transfers", "waiting_queue",
)  # fmt: skip
Line = tuple[str, int]  # module, line number


@contextmanager
def traced(seen: set[Line]) -> Iterator[None]:
    """Add the lines of the core that run in the block to `seen`."""
    files = _files()
    before = sys.gettrace()
    complete: dict[CodeType, bool] = {}

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        name = files.get(code.co_filename)
        if name is None:
            return None
        if code not in complete:
            complete[code] = all((name, line) in seen for line in _lines_of(code))
        return None if complete[code] else step

    def step(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            seen.add((files[frame.f_code.co_filename], frame.f_lineno))
        return step

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


@cache
def due() -> dict[Line, str]:
    """Every line that must run in a long exploration, as "function: text".

    Left out are refusals of what no driver of ours does (`raise`), functions for people and for
    recounts, and stubs.
    """
    lines: dict[Line, str] = {}
    for file, name in _files().items():
        text = Path(file).read_text(encoding="utf-8")
        source = text.splitlines()
        exempt = _exempt(ast.parse(text))
        code = compile(text, file, "exec")
        for function in _functions(code):
            for line in _lines_of(function):
                if line not in exempt and source[line - 1].strip():
                    lines[name, line] = f"{function.co_name}: {source[line - 1].strip()}"
    return lines


def unreached(seen: set[Line]) -> list[Line]:
    """Lines that are due, have not run, and are not known as second locks, in order."""
    return sorted(
        line for line, text in due().items() if line not in seen and (line[0], text) not in SPARE
    )


# Lines that no sequence of calls is known to reach: second locks on doors that are shut, and what
# takes more than the few requests of a run. Text, not number, so that the list outlives edits.
SPARE: Final = frozenset({
    # Members that need a page at the same iteration were always in one bucket before.
    ("decode_batch", "page_given: later.update(bucket)"),
    # More than 1024 stale entries: the soak gets there.
    ("decode_batch", "_push: heap[:] = [entry for entry in heap if not self._stale(entry)]"),
    ("decode_batch", "_push: heapq.heapify(heap)"),
    # Settings change between a skip and the question for it.
    ("fast_forward", "stable_steps: return 0"),
    # Callers ask only where there is a cache, a lease, a head of the queue, a member, a log.
    ("kv_memory", "evict: return"),
    ("page_pool", "end_lease: return None"),
    ("planner", "_plan_decodes: return True"),
    ("planner", "_try_admit: return 0"),
    ("planner", "_record_items: return"),
    # A request that leaves the batch is settled at once, before its span can be asked for.
    ("request_book", "_span_committed: last = request.span_last"),
    # Only what is cut off has unfinished requests; runs here come to their end.
    ("request_book", "write_unfinished: self._close_span(request)"),
    ("request_book", "write_unfinished: self._write_row(request)"),
    # No failed step meets a request that has ended under the same epoch.
    ("results", "_fail: continue"),
})  # fmt: skip


def _exempt(tree: ast.AST) -> set[int]:
    """Lines that need not run."""
    exempt: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or (
            isinstance(node, ast.FunctionDef) and node.name in _FOR_PEOPLE
        ):
            exempt |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body):
            body = node.body[-1]
            exempt |= set(range(node.body[0].lineno, (body.end_lineno or body.lineno) + 1))
    return exempt


_FOR_PEOPLE: Final = frozenset({"__repr__", "__init__", "__len__"})


@cache
def _files() -> dict[str, str]:
    files = {}
    for name in _MODULES:
        file = importlib.import_module(f"engine.core.{name}").__file__
        if file is not None:
            files[file] = name
    return files


def _functions(code: CodeType) -> Iterator[CodeType]:
    """The functions of a module, those inside others too; no class and no module body."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if not (constant.co_flags & _OPTIMIZED):  # a class body
                yield from _functions(constant)
                continue
            if constant.co_name not in _COMPREHENSIONS:
                yield constant
            yield from _functions(constant)


_OPTIMIZED: Final = 1  # CO_OPTIMIZED: code with fast locals, which functions have
_COMPREHENSIONS: Final = frozenset(
    {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>"}
)


def _lines_of(code: CodeType) -> set[int]:
    """Lines of a function's body."""
    first = code.co_firstlineno
    return {line for _, _, line in code.co_lines() if line is not None and line > first}
