"""The engine's driver in real time, on an executor without tensors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from engine_runs import DUMMY, SMALL, check_answers, play, prepared, replay_played
from fake_executor import MS, Faults

from engine.core.enums import FinishReason
from engine.core.events import Segment
from engine.runtime.executor import ExecutorDiedError
from workbench.running.engine_prompts import RealPrompts
from workbench.running.engine_run import COST_MODEL, build_runner
from workbench.running.engine_setup import EngineOptions
from workbench.running.simulate import prepare as prepare_simulation
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_scenario, shipped_names
from workbench.workload.prompt_bounds import settings_that_fit

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:0{i % 10}.{i:03},{30 + 7 * i},{3 + i}\n" for i in range(9)
)
MOONCAKE = "".join(
    f'{{"timestamp": {200 * i}, "input_length": {600 + i}, "output_length": {2 + i}, '
    f'"hash_ids": [{i % 2}, {10 + i}]}}\n'
    for i in range(9)
)
CONVERSATION = (
    "workload={kind: conversation, num_conversations: 6, turns: 4, system_prompt_len: 40,"
    " user_len: {kind: uniform, min: 1, max: 60}, output_len: {kind: uniform, min: 1, max: 40},"
    " think_time_s: 0.01}"
)
ONE = ("deployment.pools.0.replicas=1", "deployment.pools.0.tensor_parallel_size=1")
FEW = {
    "synthetic": ("workload.num_requests=12", "load.warmup_requests=0"),
    "shared_prefix": ("workload.num_requests=12", "load.warmup_requests=0"),
    "conversation": ("workload.num_conversations=4", "load.warmup_requests=0"),
    "trace": ("load.warmup_requests=0",),
}


def few(name: str, folder: Path) -> list[str]:
    """Settings that make a shipped scenario small enough for one replica and a test."""
    traces = {"azure_trace": AZURE, "mooncake_trace": MOONCAKE}
    settings = []
    if name in traces:
        (folder / "trace").write_text(traces[name])
        settings = [f"workload.path={folder / 'trace'}"]
    workload = load_scenario(name, settings).scenario.workload
    return [*settings, *FEW[workload.kind], *ONE]


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_scenario_runs(name: str, tmp_path: Path) -> None:
    """Every request ends as in the simulation, with the tokens that follow its text, on record."""
    settings = few(name, tmp_path)
    played = play(name, *settings, step_ns=lambda plan: 5 * MS)
    simulated = prepare_simulation(load_scenario(name, settings), "none").run().summary
    assert simulated is not None
    for key in ("completed", "rejected", "aborted", "total_input_tokens", "total_output_tokens"):
        assert played.summary[key] == simulated[key], key
    assert played.summary["completed"] > 0
    assert check_answers(played.runner) >= played.summary["total_output_tokens"]
    assert replay_played(played) == len(played.runner.plans)
    assert played.summary["mean_itl_ms"] >= 4


LOADS = {
    "open": ("load={kind: poisson, request_rate: 50}",),
    "capped": ("load={kind: poisson, request_rate: 500, max_concurrency: 3}",),
    "closed": ("load={kind: closed_loop, max_concurrency: 4}",),
    "at once, aborts": (
        "load={kind: all_at_once}",
        "aborts={fraction: 0.4, after_s: {kind: uniform, min: 0, max: 0.1}}",
    ),
    "early ends": ("workload.max_tokens=60", "load={kind: all_at_once}"),
    "few pages": (
        "load={kind: all_at_once}",
        "deployment.pools.0.num_pages=80",
        "workload.prompt_len={kind: uniform, min: 1, max: 300}",
        "workload.output_len={kind: uniform, min: 100, max: 200}",
        "scheduler.schedule_conservativeness=0.01",
    ),
    "one plan in flight": ("deployment.pools.0.max_plans_in_flight=1",),
    "chunks of 32": (
        "deployment.pools=[{max_num_batched_tokens: 32, max_running_requests: 8, page_size: 1}]",
    ),
}


@pytest.mark.parametrize("load", LOADS)
def test_every_load_is_served(load: str) -> None:
    """Whatever the load, every request ends once, with its own text, and the journal replays."""
    played = play("quickstart", *SMALL, *LOADS[load])
    requests = played.tables["requests"]
    assert sorted(requests["request_id"].tolist()) == list(range(30))
    workload = played.ready.workload
    full = np.isin(requests["finish_reason"], (FinishReason.STOP, FinishReason.LENGTH))
    wanted = np.minimum(workload.output_tokens, workload.max_tokens)[requests["request_id"]]
    assert (requests["output_tokens"][full] == wanted[full]).all()
    aborted = requests["finish_reason"] == FinishReason.ABORT
    assert (full | aborted).all()
    assert aborted.any() == (load == "at once, aborts")
    assert (requests["retractions"].sum() > 0) == (load == "few pages")
    assert (requests["finish_reason"] == FinishReason.STOP).any() == (load == "early ends")
    check_answers(played.runner)
    assert replay_played(played) == len(played.runner.plans)


def test_caps_hold_and_are_told() -> None:
    """With a cap of three, four requests never are in the engine, and clients' waits are told."""
    played = play("quickstart", *SMALL, *LOADS["capped"])
    requests = played.tables["requests"]
    for arrival in requests["arrival_ns"]:
        present = (requests["arrival_ns"] <= arrival) & (requests["finish_ns"] > arrival)
        assert present.sum() <= 3
    assert played.summary["mean_client_wait_ms"] > 0


def test_requests_arrive_when_the_workload_says() -> None:
    """Arrivals are those of the workload to the ns, even those that come during a long step."""
    played = play("quickstart", *SMALL, step_ns=lambda plan: 300 * MS)
    requests = played.tables["requests"]
    due = played.ready.workload.arrival_ns[requests["request_id"]]
    assert (requests["arrival_ns"] == due).all()
    assert (requests["admitted_ns"] >= requests["arrival_ns"]).all()
    assert played.summary["mean_ttft_ms"] > 300


def test_arrivals_are_taken_in_while_a_step_runs() -> None:
    """The scheduler hears of a request within a poll of its arrival, not at the end of a step."""
    played = play("quickstart", *SMALL, step_ns=lambda plan: 300 * MS)
    life = played.tables["lifecycle"]
    heard = life["t_ns"][life["event"] == 0]
    late = heard - played.ready.workload.arrival_ns[life["request_id"][life["event"] == 0]]
    assert late.min() >= 0
    assert late.max() <= 2 * MS


def test_waiting_for_clients_costs_no_polling() -> None:
    """While nothing is there to do the driver sleeps: few turns in seconds of idleness."""
    ready = prepared("quickstart", *SMALL[1:], "workload.num_requests=3", "load.request_rate=0.01")
    sleeps: list[int] = []
    sleep = ready.clock.sleep
    ready.clock.sleep = lambda duration_ns: (sleeps.append(duration_ns), sleep(duration_ns))[1]
    ended = ready.run()
    assert ended.summary is not None
    seconds = ended.summary["idle_percent"] / 100 * ended.summary["duration_s"]
    assert seconds > 10
    idle = [duration for duration in sleeps if duration > MS]
    assert sum(idle) > seconds * 0.9e9
    assert len(idle) < 25 * ready.clock() / 1e9


def test_a_long_step_is_not_polled_all_the_time() -> None:
    """Waiting for a step of ten seconds takes far fewer polls than its milliseconds."""
    ready = prepared(
        "quickstart", "load.warmup_requests=0", "workload.num_requests=1", "workload.output_len=1",
        step_ns=lambda plan: 10_000 * MS, tick_ns=1000,
    )  # fmt: skip
    sleeps: list[int] = []
    sleep = ready.clock.sleep
    ready.clock.sleep = lambda duration_ns: (sleeps.append(duration_ns), sleep(duration_ns))[1]
    ready.run()
    assert len(sleeps) < 10_000 * 3.5
    assert max(sleeps) <= 50 * MS


# Prompts


def test_conversations_hit_what_the_engine_generated() -> None:
    """A turn's prompt holds the engine's own answers, and hits as much as in the simulation."""
    settings = ("load={kind: poisson, request_rate: 5}", CONVERSATION)
    played = play("quickstart", *settings)
    workload, runner = played.ready.workload, played.runner
    followed = 0
    for request_id, parent in enumerate(workload.parent.tolist()):
        if parent >= 0:
            before, now = runner.requests[parent].tokens, runner.requests[request_id].tokens
            assert (now.ids(0, len(before)) == before.ids(0, len(before))).all()
            followed += 1
    assert followed == 18
    check_answers(runner)
    simulation = prepare_simulation(load_scenario("quickstart", settings), "none")
    segments: list[Segment] = []
    simulation.run([segments.append])
    hits = [
        np.sort(np.rec.fromarrays([table["request_id"], table["cached_tokens"]]))
        for table in (played.tables["requests"], segments[-1]["requests"])
    ]
    later = np.flatnonzero(workload.parent >= 0)
    assert hits[0]["f1"][later].tolist() == hits[1]["f1"][later].tolist()
    assert hits[0]["f1"][later].min() > 0
    assert replay_played(played) == len(runner.plans)


def test_prompts_that_share_no_text_share_no_token() -> None:
    """Without segments no prompt begins as another; the same seed gives the same ids."""
    ready = prepared("quickstart", *SMALL)
    size = ready.runner.spec.vocab_size
    first, again, other = (RealPrompts(ready.workload, size, seed) for seed in (0, 0, 1))
    texts = [first(i).ids(0, int(ready.workload.prompt_tokens[i])) for i in range(30)]
    assert len({int(text[0]) for text in texts}) == 30
    order = range(29, -1, -1)  # the order of sending does not matter
    for i in order:
        assert (again(i).ids(0, len(texts[i])) == texts[i]).all()
    assert any((other(i).ids(0, len(texts[i])) != texts[i]).any() for i in order)
    assert play("quickstart", *SMALL).summary["cached_tokens"] == 0


# Failures


def test_failed_steps_are_computed_again() -> None:
    """After steps that fail everybody gets the undisturbed answer; the result says what failed."""
    faults = Faults(fails={3, 40, 41, 90}, unlaunchable={60})
    played = play("quickstart", *SMALL, faults=faults)
    assert played.summary["completed"] == 30
    assert played.summary["retractions"] > 0
    check_answers(played.runner)
    assert played.ended.errors == 0
    assert played.ended.faults == (
        "4 steps failed, what they had to do was computed again: out of memory in the step",
        "1 step failed, what they had to do was computed again: out of memory before the step",
    )
    assert replay_played(played) == played.summary["steps"] + 5


def test_a_request_whose_steps_always_fail_ends_alone() -> None:
    """Three failures end a request with an error; those that come later are served."""
    played = play("quickstart", *SMALL, faults=Faults(fails=set(range(5, 12))))
    assert played.summary["errors"] == played.ended.errors > 0
    assert played.summary["completed"] == 30 - played.ended.errors
    assert "ended with an error: their steps failed" in played.ended.faults[-1]
    assert replay_played(played) > 0


def test_logits_that_are_no_numbers_end_one_request() -> None:
    """A row of -1 ends its request with an error and nobody else's."""
    played = play("quickstart", *SMALL, faults=Faults(not_numbers={3, 7}))
    requests = played.tables["requests"]
    broken = requests["request_id"][requests["finish_reason"] == FinishReason.ERROR]
    assert sorted(broken.tolist()) == [3, 7]
    assert played.summary["completed"] == 28
    assert played.ended.faults == (
        "2 requests ended with an error: the model gave logits that are no numbers",
    )
    assert replay_played(played) == len(played.runner.plans)


@pytest.mark.parametrize("at_launch", [False, True])
def test_a_dead_device_ends_the_run_and_keeps_it(at_launch: bool) -> None:
    """When the device is lost, requests end with an error and all that had happened is kept."""
    faults = Faults(dies_at=100, dies_at_launch=at_launch)
    played = play("quickstart", *SMALL, "load.request_rate=200", faults=faults)
    ended, summary = played.ended, played.summary
    assert isinstance(ended.failure, ExecutorDiedError)
    assert ended.stopped_early is not None
    assert "the device fell off the bus" in ended.stopped_early
    assert summary["completed"] > 0
    assert summary["errors"] == ended.errors > 0
    assert len(played.tables["requests"]["request_id"]) == 30
    assert summary["unfinished"] == 0
    assert summary["steps"] in (99, 100)
    assert replay_played(played) >= 100


def test_a_defect_ends_the_run_and_keeps_it() -> None:
    """An exception that nobody expects is in the result, with what had been recorded before."""
    defect = ValueError("what is this?")
    played = play("quickstart", *SMALL, faults=Faults(raises={30: defect}))
    assert played.ended.failure is defect
    assert played.summary["steps"] == 30
    assert len(played.tables["requests"]["request_id"]) == 30
    assert replay_played(played) >= 30


def test_a_stop_keeps_what_there_is() -> None:
    """A run that is asked to stop leaves the rows of unfinished and of unsent requests."""
    beats = iter(range(1000))
    played = play("quickstart", *SMALL, should_stop=lambda: next(beats) == 10)
    assert played.ended.stopped_early == "interrupted at 0.5 s"
    assert played.ended.failure is None
    summary = played.summary
    assert summary["completed"] > 0
    assert summary["not_sent"] > 0
    assert summary["completed"] + summary["unfinished"] + summary["not_sent"] == 30


def test_segments_come_soon_to_those_who_watch() -> None:
    """Live segments come many times a second, and hold what a record holds."""
    whole, live = [], []
    prepared("quickstart", *SMALL).run([whole.append])
    prepared("quickstart", *SMALL).run([live.append], live=True)
    assert len(whole) == 1
    joined = np.concatenate([s["steps"]["step"] for s in live if "steps" in s])
    assert (joined == whole[0]["steps"]["step"]).all()


# What is refused, and what is told


def refusals(*overrides: str, options: EngineOptions = DUMMY) -> list[str]:
    with pytest.raises(ScenarioErrors) as caught:
        prepared("quickstart", *overrides, options=options)
    return [str(error) for error in caught.value.errors]


def test_a_card_has_no_weights() -> None:
    """A scenario that names a card says that it takes --model or --load-format dummy."""
    (text,) = refusals(options=EngineOptions())
    assert "S209" in text
    assert "quickstart.yaml:" in text
    assert "--model FOLDER" in text
    assert "--model demo-dense" in text
    assert "--load-format dummy" in text


def test_the_shape_of_a_model_has_no_weights() -> None:
    """So has a scenario that names a config file in no model's folder."""
    with pytest.raises(ScenarioErrors, match="S209.*tiny_model.json") as caught:
        prepared("engine_on_cpu", options=EngineOptions())
    assert "--load-format dummy runs the shape" in str(caught.value)


def test_a_scenario_has_one_model_however_it_is_run(tmp_path: Path) -> None:
    """The header names the model of the scenario as the header of a simulation does."""
    shape = files("scenarios") / "tiny_model.json"
    (tmp_path / "config.json").write_bytes(shape.read_bytes())
    for model in (f"{{path: {tmp_path / 'config.json'}}}", "{name: qwen3-0.6b}"):
        loaded = load_scenario("quickstart", [f"model={model}", "workload.prompt_len.max=1000"])
        ready = prepared("quickstart", f"model={model}", "workload.prompt_len.max=1000")
        assert ready.header.model == prepare_simulation(loaded, "none").header.model


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["deployment.pools.0.replicas=2"], "--set deployment.pools.0.replicas=1"),
        (["deployment.pools.0.tensor_parallel_size=2"], "tensor_parallel_size=1"),
        (["deployment.pools=[{}, {}]"], "2 pools"),
        (["model.weight_dtype=fp8"], "--dtype bf16|fp16|fp32"),
        (["model.kv_dtype=fp8"], "--set model.kv_dtype=null"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_with_a_fix(overrides: list[str], says: str) -> None:
    """Replicas, parallelism and number formats that there are not are errors at their line."""
    texts = refusals(*overrides)
    assert len(texts) == 1
    assert says in texts[0]


def test_everything_wrong_is_told_at_once() -> None:
    """All refusals come together."""
    wrong = ("deployment.pools.0.replicas=2", "model.kv_dtype=fp8")
    assert len(refusals(*wrong, options=EngineOptions())) == 3


LONG = {
    "synthetic": ["workload.prompt_len={kind: uniform, min: 100000, max: 200000}"],
    "fixed": ["workload.prompt_len=200000"],
    "shared prefix": [
        """workload={
          kind: shared_prefix, num_requests: 9, num_groups: 2, system_prompt_len: 100000,
          question_len: {kind: lognormal, mean: 1, std_dev: 1, max: 100000}, output_len: 50}"""
    ],
    "conversation": [
        """workload={
          kind: conversation, num_conversations: 9, turns: 5, user_len: 20000,
          output_len: {kind: uniform, min: 1, max: 20000}, think_time_s: 1, max_tokens: 9000}"""
    ],
}


@pytest.mark.parametrize("kind", LONG)
def test_a_workload_beyond_the_context_says_which_settings_fit(kind: str) -> None:
    """The error names `--set` settings, and with these the scenario runs."""
    (text,) = refusals(*LONG[kind], "load.warmup_requests=0")
    assert "S205" in text
    workload = load_scenario(
        "quickstart", [*LONG[kind], "load.warmup_requests=0"]
    ).scenario.workload
    settings = settings_that_fit(workload, 131072)
    assert settings
    for setting in settings:
        assert f"--set {setting}" in text
    ready = prepared("quickstart", *LONG[kind], "load.warmup_requests=0", *settings)
    total = ready.workload.prompt_tokens + ready.workload.max_tokens
    assert 60_000 < total.max() <= 131072


def test_the_header_says_what_ran() -> None:
    """Kind, device, pages and the runner's facts are in the header, substitutions in its notes."""
    header = prepared("quickstart", *SMALL, "deployment.pools.0.num_pages=777").header
    assert (header.kind, header.gpu, header.cost_model) == ("engine", "fake device", COST_MODEL)
    assert header.replicas[0].num_pages == 777
    assert header.engine["kernels"] == {"attention": "none"}
    assert header.engine["load_format"] == "dummy"
    assert header.notes == (
        "the scenario names GPU h200; this ran on fake device",
        "the weights are random (--load-format dummy)",
    )


def test_another_model_than_the_scenarios_is_noted() -> None:
    """`--model` and `--dtype` against the scenario are notes."""
    options = EngineOptions(model="Qwen3-0.6B", load_format="dummy", dtype="fp32")
    header = prepared("quickstart", *SMALL, "model.weight_dtype=bf16", options=options).header
    assert header.model == "Qwen3-0.6B"
    assert "the scenario names model Llama-3.1-8B; this ran Qwen3-0.6B" in header.notes
    assert "the scenario asks for bf16 weights; this ran in fp32" in header.notes


def test_the_runner_is_closed_when_the_workload_cannot_be_built(tmp_path: Path) -> None:
    """A fault that shows only after the model was loaded gives the device back."""
    made = []

    def build(config, clock, say):
        from fake_executor import FakeRunner

        made.append(FakeRunner(config, clock, num_pages=4))
        return made[0]

    from workbench.running.engine_run import prepare

    with pytest.raises(ScenarioErrors, match="4 pages"):
        prepare(load_scenario("quickstart", SMALL), "items", DUMMY, build=build)
    assert made[0].closed


def test_the_engine_names_the_package_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the error says what to install."""
    import sys

    from engine.runtime.executor import EngineError
    from engine.runtime.runner_config import RunnerConfig

    monkeypatch.delitem(sys.modules, "engine.runtime.build", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match=r"needs torch.*pip install"):
        build_runner(RunnerConfig(model="x"), lambda: 0, lambda _: None)
