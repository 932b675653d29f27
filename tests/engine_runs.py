"""Runs of the engine's driver on `fake_executor.FakeRunner`, and replays of what they record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fake_executor import MS, FakeClock, FakeRunner, Faults, continuation

from engine.core.events import Segment, concatenate
from engine.core.journal import Journal, read_calls, replay
from engine.core.scheduler import Scheduler
from workbench.record.header import RunHeader
from workbench.record.run_record import JOURNAL, RunReader
from workbench.running.capacity import Capacity
from workbench.running.deployment import scheduler_config
from workbench.running.engine_prompts import RealPrompts
from workbench.running.engine_run import EngineRun, prepare
from workbench.running.engine_setup import EngineOptions
from workbench.running.execution import DetailName, Ended
from workbench.scenario.source import load_resolved, load_scenario
from workbench.workload.workload import build_workload

DUMMY = EngineOptions(load_format="dummy")
SMALL = (
    "workload.num_requests=30",
    "load.warmup_requests=0",
    "workload.output_len={kind: uniform, min: 1, max: 40}",
)


@dataclass
class Played:
    """A run that is over."""

    ready: EngineRun
    runner: FakeRunner
    ended: Ended
    tables: Segment

    @property
    def summary(self) -> dict[str, Any]:
        assert self.ended.summary is not None
        return self.ended.summary


def prepared(
    scenario: str = "quickstart",
    *overrides: str,
    options: EngineOptions = DUMMY,
    detail: DetailName = "pages",
    faults: Faults | None = None,
    step_ns: Callable[..., int] = lambda plan: MS,
    tick_ns: int = 50_000,
) -> EngineRun:
    """A run of a scenario on a fake runner."""
    return prepare(
        load_scenario(scenario, overrides),
        detail,
        options,
        build=lambda config, clock, _: FakeRunner(config, clock, step_ns=step_ns, faults=faults),
        clock=FakeClock(tick_ns),
    )


def play(scenario: str = "quickstart", *overrides: str, **options: Any) -> Played:
    """Prepare and run; the journal is kept."""
    should_stop = options.pop("should_stop", lambda: False)
    ready = prepared(scenario, *overrides, **options)
    segments: list[Segment] = []
    ended = ready.run([segments.append], journal=True, should_stop=should_stop)
    names = tuple(dict.fromkeys(name for segment in segments for name in segment))
    runner = ready.runner
    assert isinstance(runner, FakeRunner)
    return Played(ready, runner, ended, concatenate(segments, names))


def check_answers(runner: FakeRunner) -> int:
    """Every token of every request is the one that follows its text; returns their number."""
    count = 0
    for request in runner.requests.values():
        outputs = len(request.tokens) - request.prompt_tokens
        prompt = request.tokens.ids(0, request.prompt_tokens)
        answer = request.tokens.ids(request.prompt_tokens, len(request.tokens))
        expected = continuation(prompt, outputs, runner.spec.vocab_size)
        assert answer.tolist() == expected, request
        count += outputs
    return count


def replay_journal(header: RunHeader, journal: np.ndarray, files: dict[str, str]) -> int:
    """Give a recorded journal to a fresh scheduler that knows only the header of the run."""
    loaded = load_resolved(header.scenario, "header.json", (), files)
    (facts,), engine, scenario = header.replicas, header.engine, loaded.scenario
    assert facts.max_model_len is not None
    capacity = Capacity(header.model, facts.max_model_len, (facts,), 1)
    vocab_size = engine["vocab_size"]
    workload = build_workload(
        scenario, vocab_size=vocab_size, max_context_tokens=capacity.max_context_tokens
    ).workload
    graphs = tuple(engine["cuda_graph_batch_sizes"])
    (pool,) = scenario.deployment.pools
    config = scheduler_config(
        scenario,
        pool.model_copy(update={"cuda_graph_batch_sizes": graphs}),
        num_pages=facts.num_pages,
        max_model_len=facts.max_model_len,
    )
    prompts = RealPrompts(workload, vocab_size, header.seed)
    return replay(read_calls(journal), Scheduler(config), prompts)


def replay_record(run: RunReader) -> int:
    """The same from nothing but a run's directory."""
    files = {key: facts.path for key, facts in run.header.inputs.items()}
    return replay_journal(run.header, run.arrays(JOURNAL)["0"].astype(np.int64), files)


def replay_played(played: Played) -> int:
    """The same of a run in memory."""
    (journal,) = played.ended.journals
    assert isinstance(journal, Journal)
    header = played.ready.header
    files = {key: facts.path for key, facts in header.inputs.items()}
    return replay_journal(header, journal.to_array(), files)
