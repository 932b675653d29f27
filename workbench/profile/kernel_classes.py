"""Which kernel of a step computes what, by its name and its place among the others.

A CUDA Graph's kernels carry no ranges, so they are told by the order in which the engine launches
them: in every layer the product before the rotary embedding gives queries, keys and values, the one
after attention its output, and then come the MLP's two; the one before sampling is the lm_head.
`disagreements` holds that against a step that was launched inside of ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from engine.profiling.op_classes import GROUP_OF, RANGE
from workbench.profile.trace import DeviceWork, HostWork, Trace

# The engine's own kernels that do one thing -> class.
_OWN: Final[Mapping[str, str]] = {
    "_write_pages_kernel": "page_table", "_embed_tokens_kernel": "embedding",
    "_rms_norm_kernel": "norm", "_rotary_kernel": "rotary", "_silu_mul_kernel": "activation",
    "_decode_attention_kernel": "attention_decode",
    "_prefill_attention_kernel": "attention_prefill",
    "_prefill_attention_hopper_kernel": "attention_prefill",
    "_route_kernel": "routing", "_count_kernel": "experts", "_sort_pairs_kernel": "experts",
    "_grouped_gate_up_kernel": "experts", "_grouped_down_kernel": "experts",
    "_pairs_gate_up_kernel": "experts", "_pairs_down_kernel": "experts",
    "_scan_kernel": "sampling", "_choose_kernel": "sampling", "_top_kernel": "sampling",
    "_masses_kernel": "sampling", "_gather_kernel": "sampling",
}  # fmt: skip
# What the names of libraries' kernels contain, in lower case.
_COMMUNICATION: Final = ("nccl", "all_reduce", "allreduce")
_PRODUCTS: Final = (
    "gemv", "skinny", "linear_hopper", "nvjet", "gemm", "splitk", "cutlass", "cublas", "matmul",
)  # fmt: skip
_CONTINUES: Final = ("splitkreduce",)  # ends the product before it
# After a product of a layer comes:
_AFTER: Final = {"output": "gate_up", "gate_up": "down", "down": "qkv", "qkv": "output"}


def classify(work: Sequence[DeviceWork]) -> list[str]:
    """Class of each piece of work of some steps, in the order in which they ran."""
    found = [_by_name(one) for one in work]
    expected, last = "qkv", ""
    for at, one in enumerate(work):
        if found[at] == "product":
            if last and any(part in one.name.casefold() for part in _CONTINUES):
                found[at] = last
                continue
            if expected == "gate_up" and _follows(found, at, ("routing", "experts")):
                last = found[at] = "router"
                expected = "qkv"
                continue
            if expected == "qkv" and not _follows(found, at, ("rotary",)):
                last = found[at] = "lm_head"
                continue
            last = found[at] = expected
            expected = _AFTER[expected]
        elif found[at] in ("attention_decode", "attention_prefill"):
            expected, last = "output", ""
        elif found[at] in ("embedding", "experts"):
            expected, last = "qkv", ""
        elif found[at] != "other":
            last = ""
    return found


def _by_name(one: DeviceWork) -> str:
    if one.kind == "copy":
        return "copy"
    own = _OWN.get(one.name)
    if own is not None:
        return own
    name = one.name.casefold()
    if any(part in name for part in _PRODUCTS):
        return "product"
    return "communication" if any(part in name for part in _COMMUNICATION) else "other"


def _follows(found: Sequence[str], at: int, wanted: tuple[str, ...]) -> bool:
    """Whether the next kernel that is no product, norm or copy is one of these."""
    for kind in found[at + 1 :]:
        if kind not in ("product", "other", "copy"):
            return kind in wanted
    return False


def classes_by_range(trace: Trace) -> list[str | None]:
    """Class of each piece of work by the range that it was launched in; None: in none."""
    launches = {work.correlation: work for work in trace.host if work.correlation >= 0}
    ranges = [work for work in trace.host if _class_of(work) is not None]
    found: list[str | None] = []
    for one in trace.device:
        launch = launches.get(one.correlation)
        inside = None if launch is None else _innermost(ranges, launch)
        found.append(None if inside is None else _refined(one, _class_of(inside) or ""))
    return found


def _innermost(ranges: Sequence[HostWork], launch: HostWork) -> HostWork | None:
    """The last range that began before a launch and had not ended."""
    inside = [
        one
        for one in ranges
        if one.start_us <= launch.start_us <= one.end_us and one.thread == launch.thread
    ]
    return inside[-1] if inside else None


def _class_of(work: HostWork) -> str | None:
    name = work.name.removeprefix(RANGE)
    return name if name in GROUP_OF and name != work.name else None


def _refined(one: DeviceWork, kind: str) -> str:
    """Kernels of an op that do something of their own beside its main work."""
    own = _by_name(one)
    return own if own in ("norm", "activation", "copy") else kind


def disagreements(trace: Trace) -> tuple[int, list[tuple[str, str, str]]]:
    """(kernels that ran inside of ranges, those that `classify` takes for something else).

    The latter as (name of the kernel, its range, what it was taken for).
    """
    by_range, by_place = classes_by_range(trace), classify(trace.device)
    checked, wrong = 0, []
    for one, wanted, found in zip(trace.device, by_range, by_place, strict=True):
        if wanted is None or one.kind == "copy":
            continue
        checked += 1
        if wanted != found and not (found == "other" and wanted == "sampling"):
            wrong.append((one.name, wanted, found))
    return checked, wrong
