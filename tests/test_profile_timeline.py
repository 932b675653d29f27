"""The analysis of steps: classes by place and by range, time by range, rates of what is counted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from profile_traces import (
    BEGIN,
    END,
    LAYER,
    STEP_CLASSES,
    STEP_KERNELS,
    call,
    graph_steps,
    kernel,
    op,
    ranged,
)

import engine
from engine.core.model_spec import load_model_spec
from engine.profiling.op_classes import MEASURED
from workbench.profile.ceilings import Ceilings
from workbench.profile.counted_work import counted_work
from workbench.profile.kernel_classes import classify, disagreements
from workbench.profile.step_text import parse_step, shape_of
from workbench.profile.timeline import analyse
from workbench.profile.timeline_text import timeline_text
from workbench.profile.trace import TraceFileError, parse_events

LLAMA = load_model_spec("Llama-3.1-8B")
CEILINGS = Ceilings(4.0, 700.0, "made up")


def classes(*names: str) -> list[str]:
    """Of kernels in this order."""
    return classify(parse_events([kernel(name, at, 1) for at, name in enumerate(names)]).device)


def test_products_are_told_by_their_place() -> None:
    """The same kernel is another product before, between and after the others."""
    assert classes(*STEP_KERNELS) == list(STEP_CLASSES)


def test_steps_may_follow_each_other() -> None:
    """The next step begins like the first."""
    assert classes(*STEP_KERNELS, *STEP_KERNELS) == 2 * list(STEP_CLASSES)


def test_a_single_row_needs_no_norms() -> None:
    """One kernel norms and multiplies."""
    layer = ("_gemv_kernel", "_rotary_kernel", "_decode_attention_kernel", *3 * ("_gemv_kernel",))
    found = classes(*BEGIN, *layer, *layer, "_gemv_kernel", "_scan_kernel", "_choose_kernel")
    wanted = ["qkv", "rotary", "attention_decode", "output", "gate_up", "down"]
    assert found == ["page_table", "embedding", *wanted, *wanted, "lm_head", "sampling", "sampling"]


def test_a_reduction_belongs_to_the_product_before_it() -> None:
    """As cuBLAS has it after a product that is split."""
    found = classes("nvjet_a", "cublasLt::splitKreduce_kernel", "_rotary_kernel",
                    "_prefill_attention_kernel", "nvjet_b", "splitKreduce", "_rms_norm_kernel",
                    "nvjet_c", "_silu_mul_kernel", "nvjet_d")  # fmt: skip
    assert found == ["qkv", "qkv", "rotary", "attention_prefill", "output", "output", "norm",
                     "gate_up", "activation", "down"]  # fmt: skip


def test_a_mixture_has_a_router_and_experts() -> None:
    """Instead of the two products of an MLP."""
    layer = (*LAYER[:6], "_skinny_kernel", "_route_kernel", "_count_kernel", "_sort_pairs_kernel",
             "_grouped_gate_up_kernel", "_grouped_down_kernel")  # fmt: skip
    wanted = [*STEP_CLASSES[2:8], "router", "routing", *4 * ["experts"]]
    assert classes(*layer, *layer, *END) == [*wanted, *wanted, *STEP_CLASSES[-4:]]


def test_every_kernel_of_the_engine_has_a_class() -> None:
    """Those that multiply by their place, all others by their name; a library's are its own."""
    sources = Path(engine.__file__).parent.glob("kernels/*.py")
    own = {
        name
        for path in sources
        for name in re.findall(r"^@kernel.*\ndef (_\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    assert len(own) > 15
    unknown = {name for name in own if classes(name) == ["other"]}
    assert not unknown
    assert classes("at::native::vectorized_gather_kernel<16, long>") == ["other"]
    assert classes("ncclDevKernel_AllReduce") == ["communication"]


def test_places_are_held_against_ranges() -> None:
    """A step launched inside of ranges agrees; one whose kernels come in another order does not."""
    trace = parse_events(graph_steps())
    checked, wrong = disagreements(trace.during(trace.ranges("labelled")[0]))
    assert (checked, wrong) == (len(STEP_KERNELS), [])
    events = [event for event in graph_steps(0) if event["name"] != "_rotary_kernel"]
    trace = parse_events(events)
    _, wrong = disagreements(trace.during(trace.ranges("labelled")[0]))
    assert ("linear_hopper", "qkv", "lm_head") in wrong


def test_a_timeline_adds_up() -> None:
    """Ranges sum to the busy time, which with the idle time is the step."""
    found = analyse(parse_events(graph_steps(steps=4)), None, None, None)
    assert found.steps == 4
    assert sum(found.groups.values()) == pytest.approx(found.busy_share * found.step_us)
    assert sum(found.groups.values()) + found.idle_us == pytest.approx(found.step_us)
    assert sum(one.us for one in found.classes) == pytest.approx(5.0 * len(STEP_KERNELS))
    assert sum(one.added_us for one in found.kernels) == pytest.approx(5.0 * len(STEP_KERNELS))
    assert found.labels_checked == len(STEP_KERNELS)
    assert not found.labels_wrong
    assert found.longest[0].duration_us == pytest.approx(30.0)
    assert found.longest[0].cause == "the host, in aten::copy_ of step"
    assert found.missing == ["TB/s and TFLOP/s: the trace does not say which model and step ran"]


def test_rates_are_counted_work_over_time() -> None:
    """Of each class, and of a kernel that is all of its class."""
    model, shape = replace(LLAMA, num_layers=2), shape_of(parse_step("decode:32x1024"))
    found = analyse(parse_events(graph_steps()), model, shape, CEILINGS)
    by_kind = {one.kind: one for one in found.classes}
    moved = counted_work(model, shape)["attention_decode"].num_bytes
    rate = by_kind["attention_decode"].rate
    assert rate is not None
    assert rate.tb_s == pytest.approx(moved / 10.0 / 1e6)
    assert by_kind["norm"].rate is None
    (attention,) = [one for one in found.kernels if one.kind == "attention_decode"]
    assert attention.rate == rate
    assert not any(found.missing)


def test_rates_without_ceilings_are_rates() -> None:
    """As of every report of nsys: TB/s and TFLOP/s are told, and no share of what nobody knows."""
    model, shape = replace(LLAMA, num_layers=2), shape_of(parse_step("decode:32x1024"))
    known, unknown = (
        analyse(parse_events(graph_steps()), model, shape, ceilings)
        for ceilings in (CEILINGS, None)
    )
    for one, other in zip(known.classes, unknown.classes, strict=True):
        if one.rate is None:
            assert other.rate is None
        else:
            assert other.rate == replace(one.rate, fraction=None, bound=None)
    assert unknown.missing == ["shares of the ceiling: none were measured with this trace"]
    assert " -\n" in timeline_text(unknown)


def test_the_text_says_it_all() -> None:
    """Busy time, gaps with causes, ranges, classes, kernels and the check."""
    text = timeline_text(analyse(parse_events(graph_steps()), None, None, None), kernels=2)
    said = (
        "2 steps", "GPU busy", "> 20 us", "aten::copy_ of step", "attention", "gate_up",
        "classes checked: 22 of 22", "more)",
    )  # fmt: skip
    assert not [part for part in said if part not in text]


def test_a_cpu_trace_is_divided_by_ranges() -> None:
    """Ops by their own time; what cannot be said is said."""
    events = [ranged(MEASURED, 0, 100), ranged("step", 1, 90), ranged("qkv", 5, 40),
              op("aten::linear", 6, 30), op("aten::mm", 8, 25), ranged("down", 50, 20)]  # fmt: skip
    found = analyse(parse_events(events), None, None, None)
    assert (found.device, found.steps, found.step_us) == ("cpu", 1, 100)
    assert (found.groups["attention"], found.groups["MLP"]) == (40, 20)
    assert [(one.name, one.added_us) for one in found.kernels] == [
        ("aten::mm", 25),
        ("aten::linear", 5),
    ]
    assert "no GPU" in timeline_text(found)


def test_a_trace_of_nothing_is_refused() -> None:
    """Whether it is empty or its kernels are outside of the measured steps."""
    with pytest.raises(TraceFileError, match="empty"):
        analyse(parse_events([]), None, None, None)
    events = [ranged(MEASURED, 0, 1), call("cudaLaunchKernel", 5, 1, 3), kernel("k", 9, 1, 3)]
    with pytest.raises(TraceFileError, match="none in the range"):
        analyse(parse_events(events), None, None, None)
