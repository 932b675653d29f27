"""A scenario's deployment: what memory holds, what the schedulers get, what physics forbids."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest
from scenario_texts import underlined

from workbench.running.deployment import resolve_deployment
from workbench.running.simulate import prepare
from workbench.scenario.errors import ScenarioError, ScenarioErrors
from workbench.scenario.source import LoadedScenario, load_scenario

TRACE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9,90,11
2023-11-16 18:17:04.1,90,12
"""
CONVERSATION = (
    "{kind: conversation, turns: {kind: uniform, min: 1, max: 3}, first_prompt_len: 40,"
    " user_len: 11, output_len: {kind: uniform, min: 1, max: 40}, max_tokens: 30}"
)


@pytest.fixture(autouse=True)
def trace_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs where a trace lies, of 90 + 11 and of 90 + 12 tokens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.csv").write_text(TRACE)


def loaded(*overrides: str) -> LoadedScenario:
    return load_scenario("quickstart", overrides)


def fault(*overrides: str) -> ScenarioError:
    """The one error of a set-up."""
    with pytest.raises(ScenarioErrors) as caught:
        prepare(loaded(*overrides), "none")
    (error,) = caught.value.errors
    return error


def refusal(*overrides: str) -> tuple[str, str]:
    """Code and text of the one error of a set-up."""
    error = fault(*overrides)
    return error.code, str(error)


def test_pages_are_those_that_memory_holds() -> None:
    """Without `num_pages` a replica has as many as its memory plan, for any page size."""
    for page_size in (1, 16, 64):
        (replica,) = resolve_deployment(
            loaded(f"deployment.pools=[{{page_size: {page_size}}}]")
        ).replicas
        assert replica.facts.num_pages == replica.memory.num_pages > 0
        assert replica.config.scheduler.num_pages == replica.facts.num_pages
        assert replica.config.scheduler.page_size == page_size


def test_pages_may_be_fewer_than_memory_holds() -> None:
    """`num_pages` is taken as given when it fits, and bounds the longest request."""
    deployment = resolve_deployment(loaded("deployment.pools=[{num_pages: 100}]"))
    assert deployment.replicas[0].facts.num_pages == 100
    assert deployment.capacity.max_context_tokens == 1601  # the last token's KV is never written


def test_context_length_bounds_the_longest_request() -> None:
    """With memory to spare the model's context length is the limit."""
    deployment = resolve_deployment(loaded())
    assert deployment.capacity.max_context_tokens == deployment.model.max_model_len


def test_replicas_come_in_the_order_of_the_pools() -> None:
    """Each pool gives its replicas, numbered in the order of the file."""
    pools = "[{replicas: 2}, {replicas: 1, tensor_parallel_size: 2}]"
    facts = [r.facts for r in resolve_deployment(loaded(f"deployment.pools={pools}")).replicas]
    assert [fact.tensor_parallel_size for fact in facts] == [1, 1, 2]
    assert facts[2].num_pages > 2 * facts[0].num_pages  # weights halve, memory doubles


def test_every_scheduler_key_reaches_the_scheduler() -> None:
    """What `scheduler` and a pool say is what the core is told."""
    config = resolve_deployment(
        loaded(
            "scheduler={policy: priority, mode: prefill_first, chunked_prefill: false,"
            " max_prefill_tokens: 700, admission: reserve, schedule_conservativeness: 0.5,"
            " prefix_cache: {enabled: true, eviction: lfu}}",
            "deployment.pools=[{max_num_batched_tokens: 6000, max_running_requests: 50,"
            " max_plans_in_flight: 3, cuda_graph_batch_sizes: [1, 9]}]",
        )
    ).replicas[0].config.scheduler  # fmt: skip
    told = {name: getattr(config, name) for name in config.__slots__}
    assert told.items() >= {
        "policy": "priority", "mode": "prefill_first", "chunked_prefill": False,
        "max_prefill_tokens": 700, "admission": "reserve", "schedule_conservativeness": 0.5,
        "prefix_cache": True, "eviction": "lfu", "max_num_batched_tokens": 6000,
        "max_running_requests": 50, "max_plans_in_flight": 3, "cuda_graph_batch_sizes": (1, 9),
    }.items()  # fmt: skip


def test_a_model_that_does_not_fit_shows_the_sum() -> None:
    """Weights larger than the memory are an error with the arithmetic."""
    code, text = refusal("model.name=Llama-3.1-70B", "hardware.gpu=l4")
    assert code == "S201"
    assert "GiB" in text
    assert "weights" in text


def test_more_pages_than_fit_show_the_sum() -> None:
    """`num_pages` above what the memory holds is an error that says how many fit."""
    held = resolve_deployment(loaded()).replicas[0].memory.num_pages
    code, text = refusal(f"deployment.pools=[{{num_pages: {held + 1}}}]")
    assert code == "S201"
    assert f"{held:,}" in text
    resolve_deployment(loaded(f"deployment.pools=[{{num_pages: {held}}}]"))


def test_heads_that_do_not_divide_are_an_error() -> None:
    """A tensor_parallel_size that the heads do not divide by is named at its key."""
    code, text = refusal("deployment.pools=[{tensor_parallel_size: 3}]")
    assert code == "S202"
    assert "tensor_parallel_size = 3" in text


def test_unreadable_config_is_an_error(tmp_path: Path) -> None:
    """A `model.path` that is no config of a model is named with its fault."""
    config = tmp_path / "config.json"
    config.write_text("{}")
    code, text = refusal(f"model={{path: {config}}}")
    assert code == "S203"
    assert "config.json" in text


def test_an_architecture_that_is_not_known_lists_those_that_are(tmp_path: Path) -> None:
    """The list stands on a line of its own; nothing of the message is shown as unprintable."""
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mamba"}')
    _, text = refusal(f"model={{path: {config}}}")
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert "help: supported: llama, " in text


def test_dtype_that_the_gpu_lacks_is_an_error() -> None:
    """Weights in a dtype that the GPU does not compute in are refused."""
    code, text = refusal("model.weight_dtype=fp8", "hardware.gpu=a100")
    assert code == "S204"
    assert "fp8" in text


def test_every_pool_reports_its_own_fault() -> None:
    """All faulty pools are reported at once."""
    with pytest.raises(ScenarioErrors) as caught:
        resolve_deployment(
            loaded("deployment.pools=[{tensor_parallel_size: 3}, {num_pages: 100000000}]")
        )
    assert {error.code for error in caught.value.errors} == {"S201", "S202"}


@pytest.mark.parametrize(
    ("workload", "arithmetic", "longest", "blamed"),
    [
        (
            "{kind: synthetic, prompt_len: {kind: uniform, min: 1, max: 150}, output_len: 12}",
            "150 (prompt_len) + 12 (output_len)", 162, "prompt_len",
        ),
        (
            "{kind: synthetic, prompt_len: 60, output_len: 12, max_tokens: 102}",
            "60 (prompt_len) + 102 (max_tokens)", 162, "102",
        ),
        (
            "{kind: shared_prefix, system_prompt_len: 100, question_len: 50, output_len: 12}",
            "100 (system_prompt_len) + 50 (question_len) + 12 (output_len)", 162,
            "100",
        ),
        (
            CONVERSATION,
            "40 (first_prompt_len) + 2 * 11 (user_len) + 2 * 30 (output_len) + 30 (max_tokens)",
            152, "output_len",
        ),
    ],
)  # fmt: skip
def test_requests_that_can_never_fit_show_the_sum(
    workload: str, arithmetic: str, longest: int, blamed: str
) -> None:
    """Largest lengths that exceed the KV pool by a token are refused with both sums."""
    settings = (f"workload={workload}", "load={kind: poisson, request_rate: 1}")
    fits = "deployment.pools=[{{page_size: 1, num_pages: {}}}]"
    error = fault(*settings, fits.format(longest - 2))
    text = str(error)
    assert error.code == "S205"
    assert f"{arithmetic} = {longest} tokens" in text
    assert f"{longest - 2} pages * 1 tokens = {longest - 2} tokens" in text
    assert underlined(error) == blamed
    requests = prepare(loaded(*settings, fits.format(longest - 1)), "none").workload
    assert int((requests.prompt_tokens + requests.max_tokens).max()) <= longest


def test_the_core_agrees_about_the_longest_request() -> None:
    """The longest request that the bounds let through is served, and one token more is rejected."""
    pool = "deployment.pools=[{page_size: 1, num_pages: 100}]"
    trace = "workload={kind: trace, path: lengths.csv}"
    settings = (pool, "load={kind: all_at_once}", "workload.num_requests=1")
    lengths = ("workload.prompt_len=90", "workload.output_len=11")
    assert prepare(loaded(*settings, *lengths), "none").run().summary["completed"] == 1
    assert refusal(*settings, "workload.prompt_len=90", "workload.output_len=12")[0] == "S205"
    with_trace = prepare(loaded(trace, *settings[:2]), "none")
    assert with_trace.run().summary["rejected"] == 1
    assert with_trace.run().summary["completed"] == 1


def test_truncating_prompts_is_no_fault() -> None:
    """Under `too_long: truncate` long prompts are cut, as long as their outputs fit."""
    pool = "deployment.pools=[{num_pages: 10}]"
    long = (pool, "workload.prompt_len=9000", "too_long=truncate", "load={kind: all_at_once}")
    simulation = prepare(loaded(*long, "workload.output_len=60"), "none")
    assert set(simulation.workload.prompt_tokens) == {161 - 60}
    assert refusal(*long, "workload.output_len=161")[0] == "S205"


def test_a_prompt_must_fit_a_step_unless_it_is_chunked() -> None:
    """Without chunked prefill, prompts above a step's prefill budget are refused."""
    whole = ("scheduler.chunked_prefill=false", "deployment.pools=[{max_num_batched_tokens: 900}]")
    code, text = refusal(*whole, "workload.prompt_len=901")
    assert code == "S206"
    assert "900" in text
    prepare(loaded(*whole, "workload.prompt_len=900"), "none")
    code, _ = refusal(*whole, "workload.prompt_len=900", "scheduler.max_prefill_tokens=899")
    assert code == "S206"


def test_a_trace_that_can_never_be_served_is_an_error() -> None:
    """When not one row of a trace fits, the scenario is refused with the sizes."""
    trace = ("workload={kind: trace, path: lengths.csv}", "load={kind: all_at_once}")
    code, text = refusal(*trace, "deployment.pools=[{num_pages: 5}]")
    assert code == "S205"
    assert "5 pages * 16 tokens = 80 tokens" in text


def test_the_header_holds_what_makes_runs_incomparable(tmp_path: Path) -> None:
    """Resolved sizes, versions and the content of every named file are in the header."""
    config = tmp_path / "config.json"
    card = "engine/core/model_cards/Qwen3-0.6B.json"
    config.write_bytes((Path(__file__).parent.parent / card).read_bytes())
    trace = ("workload={kind: trace, path: lengths.csv}", f"model={{path: {config}}}")
    header = prepare(loaded(*trace, "load={kind: trace}"), "items").header
    assert header.replicas[0].max_model_len == 40960
    assert header.replicas[0].num_pages > 0
    assert header.numpy_version == np.__version__
    assert header.python_version == platform.python_version()
    assert header.scenario["deployment"]["pools"][0]["cuda_graph_batch_sizes"][:3] == [1, 2, 4]
    for key, path in (("workload.path", Path("lengths.csv")), ("model.path", config)):
        told = header.inputs[key]
        assert Path(told.path) == path.resolve()
        assert told.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
