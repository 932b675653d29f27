"""The model runner: what a plan becomes, and what goes wrong in one step stays there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import numpy as np
import pytest
import torch
from fake_transformer import NAN_TOKEN, FakeTransformer, continuation, fake_runner
from late_executor import LateExecutor
from tiny_engine import TinyEngine

from engine.core.enums import FinishReason
from engine.core.results import MAX_FAILURES
from engine.runtime.executor import ExecutorDiedError, StepFailedError
from engine.runtime.model_runner import ModelRunner
from engine.sampling_params import SamplingParams


def prompts(rng: Random, count: int) -> dict[int, list[int]]:
    """Some share their beginnings."""
    stem = [rng.randrange(NAN_TOKEN) for _ in range(20)]
    tails = [[rng.randrange(NAN_TOKEN) for _ in range(rng.randint(1, 20))] for _ in range(count)]
    return {i: stem[: rng.choice([0, 9, 20])] + tail for i, tail in enumerate(tails)}


def check_texts(engine: TinyEngine, asked: dict[int, list[int]], but: set[int]) -> None:
    """All but some have the text that belongs to their prompt."""
    for request_id, prompt in asked.items():
        request = engine.served.requests[request_id]
        if request_id not in but:
            assert request.finish_reason == FinishReason.LENGTH
            assert engine.served.text(request_id) == continuation(prompt, request.max_tokens)


def faulty(runner: ModelRunner) -> FakeTransformer:
    assert isinstance(runner.transformer, FakeTransformer)
    return runner.transformer


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_random_runs(page_size: int) -> None:
    """Any settings, any number of plans in flight, more requests than rows: the texts are right."""
    for _ in range(6):
        rng = Random(seed := Random().getrandbits(32))
        print("seed", seed)
        running = rng.randint(1, 5)
        runner = fake_runner(
            page_size=page_size,
            num_pages=-(-rng.randint(70, 200) // page_size),
            max_running_requests=running,
            max_num_batched_tokens=rng.randint(running, 30),
        )
        engine = TinyEngine(
            runner,
            late=rng.getrandbits(16),
            max_plans_in_flight=rng.randint(1, 4),
            schedule_conservativeness=rng.choice([0.01, 1.0]),
            prefix_cache=rng.random() < 0.7,
            mode=rng.choice(["mixed", "prefill_first"]),
        )
        asked = prompts(rng, 8 * running)
        engine.serve(asked, rng.choice([1, 2, 20]))
        check_texts(engine, asked, set())
        assert engine.replay() > 0


@pytest.mark.parametrize("plans", [1, 2, 4])
def test_rows_suffice_for_texts_of_one_token(plans: int) -> None:
    """Each plan may end all its requests, and none is taken in before the next ones have rows."""
    engine = TinyEngine(fake_runner(), late=True, max_plans_in_flight=plans)
    asked = {i: [i % NAN_TOKEN, i % 7] for i in range(40)}
    engine.serve(asked, 1)
    check_texts(engine, asked, set())
    assert isinstance(engine.executor, LateExecutor)
    assert engine.executor.most_in_flight == plans


def test_no_numbers_end_one_request() -> None:
    """A request whose logits are NaN ends with an error; its pages then serve others unharmed."""
    runner = fake_runner(num_pages=30)
    engine = TinyEngine(runner, late=True, max_plans_in_flight=3)
    asked = prompts(Random(1), 24)
    broken = {3, 10, 11}
    for request_id in broken:
        asked[request_id] = [*asked[request_id][:6], NAN_TOKEN, 5]
    engine.serve(asked, 6)
    for request_id in broken:
        assert engine.served.requests[request_id].finish_reason == FinishReason.ERROR
        assert engine.served.text(request_id) == []
    check_texts(engine, asked, broken)
    assert engine.replay() > 0


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_step_without_memory_is_computed_again(error: Exception) -> None:
    """Steps that fail for want of memory are told of, and every text is still the right one."""
    runner = fake_runner()
    faulty(runner).faults = dict.fromkeys((0, 9), error)
    engine = TinyEngine(runner, late=True)
    asked = prompts(Random(2), 12)
    engine.serve(asked, 9)
    check_texts(engine, asked, set())
    assert len(engine.served.failures) == 2
    for failure in engine.served.failures:
        assert isinstance(failure, StepFailedError)
        assert "out of memory in a step of" in str(failure)
        assert failure.__cause__ is error
    assert engine.replay() > 0


@pytest.mark.parametrize("plans", [2, 3, 4])
def test_nothing_follows_a_step_that_was_not_launched(plans: int) -> None:
    """What such a step would have told the device is missing, so no step builds upon it."""
    runner = fake_runner(page_size=1, num_pages=150)
    refused: set[int] = set()

    class Refuses:
        def launch(self, plan):
            flying = {other.plan_id for other in engine.scheduler.in_flight}
            assert not flying & refused
            if plan.plan_id % 7 == 6:
                refused.add(plan.plan_id)
                raise StepFailedError("out of memory")
            return runner.launch(plan)

    engine = TinyEngine(runner, executor=Refuses(), late=True, max_plans_in_flight=plans)
    asked = prompts(Random(5), 20)
    engine.serve(asked, 9)
    assert len(refused) > 2
    failed = {i for i, r in engine.served.requests.items() if r.failures >= MAX_FAILURES}
    check_texts(engine, asked, failed)


def test_a_kept_failure_keeps_no_tensors() -> None:
    """An error that somebody remembers does not hold on to the memory of the step that failed."""
    runner = fake_runner()
    forward, seen = runner.transformer.forward, []

    def fails_once(*args):
        activations = torch.zeros(1000)
        if not seen:
            seen.append(weakref.ref(activations))
            raise OUT_OF_MEMORY[0]
        return forward(*args)

    runner.transformer.forward = fails_once
    engine = TinyEngine(runner)
    engine.serve({0: [1, 2]}, 3)
    assert len(engine.served.failures) == 1
    assert seen[0]() is None


def test_requests_that_always_fail_end() -> None:
    """If no step ever succeeds, every request ends with an error."""
    runner = fake_runner()
    faulty(runner).faults = dict.fromkeys(range(1000), OUT_OF_MEMORY[0])
    engine = TinyEngine(runner, late=True)
    engine.serve(prompts(Random(3), 5), 9)
    reasons = {r.finish_reason for r in engine.served.requests.values()}
    assert reasons == {FinishReason.ERROR}


def test_a_lost_device_is_the_end_of_all() -> None:
    """An error of CUDA is no failed step: every request ends, and the loop takes no more."""
    runner = fake_runner()
    faulty(runner).faults = {4: RuntimeError("CUDA error: an illegal memory access\nmore")}
    engine = TinyEngine(runner, late=True)
    with pytest.raises(ExecutorDiedError, match="the device is lost: CUDA error: an illegal"):
        engine.serve(prompts(Random(4), 5), 9)
    reasons = {r.finish_reason for r in engine.served.requests.values()}
    assert reasons <= {FinishReason.ERROR, FinishReason.LENGTH}
    assert not engine.loop.has_work
    with pytest.raises(ExecutorDiedError):
        engine.serve({99: [1]}, 1)


def test_a_loss_that_preparing_a_step_reveals_is_one_too() -> None:
    """The first call of CUDA after the loss may be one that gives a request its row."""
    runner = fake_runner()

    def build(plan: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner._builder.build = build
    engine = TinyEngine(runner)
    with pytest.raises(ExecutorDiedError, match="an illegal memory access"):
        engine.serve({0: [1]}, 1)
    assert engine.served.requests[0].finish_reason == FinishReason.ERROR


def test_a_runner_of_a_lost_device_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a device takes no memory back; who closes the runner has heard of the loss before."""
    runner = fake_runner()
    runner._on_gpu = True
    calls = []

    def empty_cache() -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    runner.close()
    assert calls


def test_a_closed_runner_keeps_no_tables() -> None:
    """Whoever still knows a runner that was closed does not keep its device's memory."""
    runner = fake_runner()
    table = weakref.ref(runner.steps.state.page_table)
    runner.close()
    gc.collect()
    assert table() is None


def test_steps_are_launched_on_the_runners_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the thread's present device is: kernels and events go to that one."""
    runner, present = fake_runner(), [torch.device("cuda", 0)]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        present.append(wanted)
        yield
        present.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    runner.device = torch.device("cuda", 1)
    forward, seen = runner.transformer.forward, []

    def watched(*args):
        seen.append(present[-1])
        return forward(*args)

    runner.transformer.forward = watched
    TinyEngine(runner).serve({0: [1]}, 2)
    assert seen == [torch.device("cuda", 1)] * 2


def test_a_defect_is_told_as_it_is() -> None:
    """An error that is neither memory nor device is not dressed up."""
    runner = fake_runner()
    defect = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    faulty(runner).faults = {0: defect}
    with pytest.raises(RuntimeError) as raised:
        TinyEngine(runner).serve({0: [1]}, 1)
    assert raised.value is defect
    assert defect.__cause__ is None


def test_an_unseeded_request_leaves_the_process_alone() -> None:
    """Choosing a seed for a request does not reseed torch."""
    runner = fake_runner()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    runner.register(0, SamplingParams(temperature=1.0))
    TinyEngine(runner).serve({0: [1, 2, 3]}, 4)
    assert torch.equal(torch.rand(3), expected)


def test_sampling_parameters_follow_their_request() -> None:
    """A drawing request keeps its draws whatever row it has, and the row's next owner is greedy."""
    texts = []
    for others in (0, 7):
        runner = fake_runner(max_running_requests=2)
        asked = {i: [i + 1, 5] for i in range(others)}
        asked[50] = [9, 9, 9]
        asked |= {i: [i % 60, 7] for i in range(100, 120)}
        runner.register(50, SamplingParams(temperature=1e3, seed=11))
        engine = TinyEngine(runner, late=True)
        engine.serve(asked, 5)
        texts.append(engine.served.text(50))
        check_texts(engine, asked, {50})
    assert texts[0] == texts[1]
    assert texts[0] != continuation([9, 9, 9], 5)


def test_logprobs_come_to_those_who_ask() -> None:
    """A step has log-probabilities if one of its requests wants them, of all of its rows."""
    runner = fake_runner()
    outputs = []
    launch = runner.launch

    class Watch:
        def launch(self, plan):
            step = launch(plan)
            outputs.append((len(plan.sampling_requests()), step.result()))
            return step

    runner.register(1, SamplingParams(temperature=0.0, logprobs=3))
    TinyEngine(runner, executor=Watch()).serve({0: [1], 1: [2], 2: [3, 4]}, 3)
    wanted = [(rows, output) for rows, output in outputs if output.logprobs is not None]
    assert len(wanted) == 3
    for rows, output in wanted:
        assert output.logprobs.shape == (rows,)
        assert output.top_logprobs.token_ids.shape == (rows, 3)
        assert np.allclose(output.logprobs, np.log(np.e / (np.e + 60)), atol=1e-5)
    runner.forget(1)


@pytest.mark.parametrize(
    ("budget", "running", "length"), [(16, 4, 120), (100, 4, 20), (16, 1, 10), (8, 8, 2)]
)
def test_trial_steps_are_as_large_as_any(budget: int, running: int, length: int) -> None:
    """No plan has more tokens than the largest trial step, and one of as many can come."""
    settings = dict(
        max_num_batched_tokens=budget, max_running_requests=running, max_model_len=length
    )
    runner = fake_runner(**settings, num_pages=running * length)
    with torch.inference_mode():
        runner.steps.run_largest_steps()
    largest = max(faulty(runner).tokens)
    assert faulty(runner).tokens[-1] == running  # the largest decode step
    faulty(runner).tokens.clear()
    engine = TinyEngine(runner, prefix_cache=False, schedule_conservativeness=0.01)
    engine.serve({i: [1] * (length - 1) for i in range(2 * running)}, 1)
    assert max(faulty(runner).tokens) == largest
    assert runner.steps.state.page_table[-1].unique().tolist() == [runner.num_pages]
