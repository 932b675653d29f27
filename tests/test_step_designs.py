"""Which steps a calibration measures, and the plans that are made of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from engine.core.plan import StepPlan
from engine.profiling.coarse_order import coarse_first
from engine.profiling.made_plans import PlanMaker
from engine.profiling.measuring import (
    FEATURES,
    Measurements,
    features_of,
    measure_steps,
    repeat_rested,
)
from engine.profiling.step_shapes import Chunk, EngineLimits, StepDesign, as_served, design_steps
from engine.runtime.executor import StepOutput
from engine.runtime.host_step import StepBuilder
from engine.runtime.request_rows import RequestRows
from simulator.cost_model import StepShape

H200 = EngineLimits(
    num_pages=45_000, page_size=16, max_model_len=131_072, max_num_batched_tokens=8192,
    max_running_requests=256, graph_batch_sizes=(1, 2, 4, *range(8, 257, 8)),
)  # fmt: skip
SMALL = EngineLimits(
    num_pages=64, page_size=4, max_model_len=100, max_num_batched_tokens=48, max_running_requests=6
)


@pytest.mark.parametrize("limits", [H200, SMALL, replace(SMALL, num_pages=3)])
def test_all_designs_are_possible_and_none_comes_twice(limits: EngineLimits) -> None:
    """What an engine cannot hold, or not in one step, is not asked of it; all requests have text.

    Even where there are fewer pages than requests in a step.
    """
    designs = design_steps(limits)
    assert len(set(designs)) == len(designs) > min(40, limits.num_pages)
    for design in designs:
        lengths = [c.tokens + c.context for c in design.chunks] + [*design.decodes]
        assert sum(-(-n // limits.page_size) for n in lengths) <= limits.num_pages
        assert 0 < min(lengths) <= max(lengths) <= limits.max_model_len
        assert len(lengths) <= limits.max_running_requests
        tokens = sum(c.tokens for c in design.chunks) + len(design.decodes)
        assert 0 < tokens <= limits.max_num_batched_tokens


def test_the_design_covers_what_steps_can_be() -> None:
    """Every graph at several contexts, prompts densely, prefixes, many prompts, mixtures."""
    designs = design_steps(H200)
    assert 400 < len(designs) < 900  # five minutes of three passes
    decodes = [d.decodes for d in designs if not d.chunks]
    for before, batch in pairwise((0, *H200.graph_batch_sizes)):
        of_graph = [lengths for lengths in decodes if before < len(lengths) <= batch]
        assert len({round(sum(lengths) / len(lengths), -1) for lengths in of_graph}) >= 6
        assert {batch, (before + batch + 1) // 2} <= {len(lengths) for lengths in of_graph}
    prompts = sorted(d.chunks[0].tokens for d in designs
                     if len(d.chunks) == 1 and not (d.decodes or d.chunks[0].context))  # fmt: skip
    assert (prompts[0], prompts[-1]) == (1, 8192)
    assert all(after - before <= (64 if after <= 2048 else 128 if after <= 4096 else 512)
               for before, after in pairwise(prompts))  # fmt: skip
    assert any(c.context >= 16_384 for d in designs for c in d.chunks)
    assert any(len(d.chunks) == 64 for d in designs)
    assert any(d.chunks and len(d.decodes) == 255 for d in designs)
    assert any(not d.samples for d in designs)
    assert any(len(set(d.decodes)) > 1 for d in designs)


@pytest.mark.parametrize(("requests", "mean"), [(1, 700), (2, 32), (8, 128), (256, 1024)])
def test_lengths_as_served(requests: int, mean: int) -> None:
    """They differ as texts do, keep their mean and their limit, and do not come by length."""
    lengths = as_served(requests, mean, 3000)
    assert len(lengths) == requests
    assert min(lengths) >= 1
    assert max(lengths) <= 3000
    assert sum(lengths) / requests == pytest.approx(mean, rel=0.02)
    assert lengths == as_served(requests, mean, 3000)
    if requests > 2:
        assert mean < 0.75 * max(lengths)
        assert list(lengths) not in (sorted(lengths), sorted(lengths)[::-1])


def test_the_beginning_of_the_design_is_a_coarser_one() -> None:
    """Half of the steps have every graph and prompts up to the budget already."""
    designs = design_steps(H200)
    first = designs[: len(designs) // 2]
    assert {len(d.decodes) for d in first if not d.chunks} >= set(H200.graph_batch_sizes)
    assert max(sum(c.tokens for c in d.chunks) for d in first) == 8192


def test_a_plan_is_what_its_design_says() -> None:
    """Tokens, positions, rows and pages on the device; sums as a scheduler gives them."""
    maker = PlanMaker(H200, vocab_size=1000)
    builder = StepBuilder(RequestRows(512, lambda *_: None), max_pages=9000, page_size=16)
    design = StepDesign((Chunk(40, 100), Chunk(5)), (33, 17, 1))
    before, plan = maker.make(design)
    assert before is not None
    shown = builder.build(before)
    assert shown.positions.tolist() == [32, 16, 0]
    # 3, 2 and 1 pages, all others than those of the chunks
    assert len(shown.new_pages) == 6
    host = builder.build(plan)
    assert host.prefill is not None
    assert host.prefill.starts.tolist() == [3, 43, 48]
    assert host.prefill.contexts.tolist() == [100, 0]
    assert host.positions.tolist() == [32, 16, 0, *range(100, 140), *range(5)]
    assert len(host.logit_rows) == 5
    assert host.token_ids[:3].max() < 0  # the device's own tokens
    assert host.token_ids[3:].min() >= 0
    own = set(host.new_pages.tolist()) - set(shown.new_pages.tolist())
    assert len(own) == 9 + 1
    assert dict(zip(FEATURES, features_of(plan), strict=True)) == dict(
        prefill_tokens=45, prefill_requests=2, prefill_context=100,
        prefill_pairs=40 * 100 + 40 * 41 // 2 + 15, prefill_max_context=140,
        decode_requests=3, decode_tokens=3, decode_context=51, decode_max_context=33,
        shared_context=0, sampled_tokens=5, graph_batch=0,
    )  # fmt: skip
    assert StepShape._fields[:-1] == FEATURES


def test_requests_differ_as_served_ones_do() -> None:
    """Each has a text of its own, and its pages are runs of others' that were freed."""
    _, plan = PlanMaker(H200, vocab_size=1000).make(StepDesign((Chunk(160),) * 3))
    requests = [item.request for item in plan.prefills]
    texts = [request.tokens.ids(0, 160).tolist() for request in requests if request.tokens]
    assert len({tuple(text) for text in texts}) == 3
    assert all(len(set(text)) > 100 for text in texts)
    steps = np.diff(requests[0].pages)
    assert (steps == 1).sum() >= 6
    assert (steps != 1).sum() >= 2


def test_two_makers_share_nothing() -> None:
    """Their plans take turns on one engine: requests and pages are each one's own."""
    own = replace(H200, num_pages=100, max_running_requests=4)
    rest = replace(H200, num_pages=H200.num_pages - 100)
    makers = (
        PlanMaker(rest, 1000),
        PlanMaker(own, 1000, first_request=H200.max_running_requests, first_page=rest.num_pages),
    )
    design = StepDesign((Chunk(40, 100),), (33, 17, 1))
    plans = [maker.make(design)[1] for maker in makers]
    requests = [
        [item.request for item in plan.prefills] + [r for r, _ in plan.decode_members()]
        for plan in plans
    ]
    numbers, pages = (
        [{value for r in of_plan for value in values(r)} for of_plan in requests]
        for values in (lambda r: [r.request_id], lambda r: r.pages)
    )
    assert not numbers[0] & numbers[1]
    assert not pages[0] & pages[1]
    assert max(pages[0]) < rest.num_pages <= min(pages[1])
    assert max(pages[1]) < H200.num_pages


def test_a_decode_plan_names_its_graph() -> None:
    """The smallest that holds it; one request more than the largest holds has none."""
    maker = PlanMaker(H200, vocab_size=1000)
    for batch, graph in ((1, 1), (3, 4), (4, 4), (9, 16), (256, 256)):
        assert maker.make(StepDesign(decodes=(20,) * batch))[1].graph_batch == graph
    assert PlanMaker(SMALL, 100).make(StepDesign(decodes=(20,) * 3))[1].graph_batch == 0
    _, plan = maker.make(StepDesign((Chunk(7),), samples=False))
    assert plan.sampling_requests() == []


def test_an_impossible_step_is_refused() -> None:
    """By name, before the engine would fail at it."""
    with pytest.raises(ValueError, match="cannot run StepDesign"):
        PlanMaker(SMALL, 100).make(StepDesign((Chunk(49),)))


class Device:
    """An executor that takes a µs a token, and notes what it was given."""

    def __init__(self) -> None:
        self.launched: list[StepPlan] = []

    def launch(self, plan: StepPlan) -> Device:
        self.launched.append(plan)
        return self

    def is_done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        plan = self.launched[-1]
        ns = 1000 * (plan.prefill_tokens + plan.decode_tokens)
        return StepOutput(np.empty(0, np.int32), None, None, 0, ns)


def test_what_is_measured_is_not_measured_again() -> None:
    """Time runs out after some steps; later the rest is measured, each three times in all."""
    designs, done = design_steps(SMALL), Measurements()
    passes: list[tuple[int, ...]] = []

    def run(limit: float) -> bool:
        maker = PlanMaker(SMALL, 100)
        return measure_steps(
            Device(), maker, designs, done, deadline_s=limit,
            measured=lambda shape, _times, _share: passes.append(shape),
        )  # fmt: skip

    assert not run(0.0)
    assert not passes
    assert run(float("inf"))
    assert run(float("inf"))
    shapes = {features_of(PlanMaker(SMALL, 100).make(d)[1]) for d in designs}
    assert len(passes) == 3 * len(shapes)
    assert set(done.times) == shapes
    assert set(done.passes.values()) == {3}
    for shape, times in done.times.items():
        assert set(times) == {1000 * (shape[0] + shape[5])}


def test_rested_steps_that_only_decode_are_measured_twice() -> None:
    """With a rest before; prompts alone need a run that does not count only the first time."""
    maker, device, done = PlanMaker(SMALL, 100), Device(), Measurements()
    rest = [maker.make(StepDesign(decodes=(5,)))[1]] * 3
    prompt, decode = StepDesign((Chunk(9),)), StepDesign(decodes=(5, 6))
    mixed = StepDesign((Chunk(9),), (5, 6))
    designs = [prompt, decode, mixed]
    assert measure_steps(
        device, maker, designs, done, deadline_s=float("inf"), rest=rest, measured=lambda *_: None
    )
    shapes = [features_of(maker.make(design)[1]) for design in designs]
    assert [done.passes[shape] for shape in shapes] == [3, 2, 3]
    assert [len(done.times[shape]) for shape in shapes] == [5, 4, 5]
    ran = [features_of(plan) for plan in device.launched]
    assert [ran.count(shape) for shape in shapes] == [1 + 5, 2 + 4, 3 + 5]


class SlowDevice(Device):
    """One that takes a ms a token by a clock of its own."""

    now_s = 0.0

    def launch(self, plan: StepPlan) -> Device:
        self.now_s += 0.001 * (plan.prefill_tokens + plan.decode_tokens)
        return super().launch(plan)

    def monotonic(self) -> float:
        return self.now_s


def measured_in(seconds: float, monkeypatch: pytest.MonkeyPatch, *, paced: bool) -> Measurements:
    device, done = SlowDevice(), Measurements()
    monkeypatch.setattr("engine.profiling.measuring.time", device)
    complete = measure_steps(
        device, PlanMaker(SMALL, 100), coarse_first(design_steps(SMALL)), done, deadline_s=seconds,
        measured=lambda *_: None, paced=paced,
    )  # fmt: skip
    assert complete == (set(done.passes.values()) == {3})
    return done


def test_who_has_little_time_repeats_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """All passes are made if each step can be made twice in each; more time is more times."""
    designs = design_steps(SMALL)
    tokens = sum(sum(c.tokens for c in d.chunks) + len(d.decodes) for d in designs)
    introductions = sum(len(d.decodes) for d in designs)
    least_s = 0.001 * 3 * (2 * tokens + introductions)
    counts = {}
    for factor in (1.25, 2.0, 8.0):
        done = measured_in(factor * least_s, monkeypatch, paced=True)
        assert set(done.passes.values()) == {3}
        counts[factor] = sum(map(len, done.times.values()))
    assert counts[1.25] < counts[2.0] < counts[8.0]
    hasty = measured_in(1.25 * least_s, monkeypatch, paced=False)
    assert set(hasty.passes.values()) != {3}


@pytest.mark.parametrize("limits", [H200, SMALL])
def test_any_beginning_of_a_coarse_order_covers_the_range(limits: EngineLimits) -> None:
    """All steps, none twice; the first few are as large as any in everything, of all kinds."""
    designs = design_steps(limits)
    order = coarse_first(designs)
    assert len(order) == len(designs)
    assert set(order) == set(designs)
    maker = PlanMaker(limits, 100)
    shapes = np.array([features_of(maker.make(design)[1]) for design in order])
    shapes = shapes[:, : FEATURES.index("graph_batch")]
    assert np.array_equal(shapes[:8].max(axis=0), shapes.max(axis=0))
    kinds = shapes[:, [0, 2, 5]] > 0  # prompts, prefixes, decode items
    assert len(np.unique(kinds[:16], axis=0)) == len(np.unique(kinds, axis=0))
    assert coarse_first([]) == []


def test_clocks_recover_before_what_is_measured() -> None:
    """Before each repetition of a step with a prompt, and once before those that only decode."""
    maker, device = PlanMaker(SMALL, 100), Device()
    rest = [maker.make(StepDesign(decodes=(5,)))[1]] * 3
    for design, turns in ((StepDesign((Chunk(9),)), 2), (StepDesign(decodes=(5, 6)), 1)):
        _, plan = maker.make(design)
        device.launched.clear()
        assert len(repeat_rested(device, plan, rest)) == 2
        rested = [*rest, plan] * 2 if turns == 2 else [*rest, plan, plan]
        assert [step.plan_id for step in device.launched] == [
            step.plan_id for step in [plan, *rested]
        ]
