"""A scenario's deployment: what memory holds, what the schedulers get, what physics forbids."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.deployment import resolve_deployment
from workbench.scenario_errors import ScenarioErrors
from workbench.scenario_source import LoadedScenario, load_scenario
from workbench.simulate import prepare


def loaded(*overrides: str) -> LoadedScenario:
    return load_scenario("quickstart", overrides)


def refusal(*overrides: str) -> tuple[str, str]:
    """Code and text of the one error of a set-up."""
    with pytest.raises(ScenarioErrors) as caught:
        prepare(loaded(*overrides), "none")
    (error,) = caught.value.errors
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
    assert deployment.max_context_tokens == 1600


def test_context_length_bounds_the_longest_request() -> None:
    """With memory to spare the model's context length is the limit."""
    deployment = resolve_deployment(loaded())
    assert deployment.max_context_tokens == deployment.model.max_model_len


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


def test_a_workload_that_can_never_be_served_is_an_error() -> None:
    """When not one request fits, the scenario is refused with the sizes; one that fits will do."""
    pool = "deployment.pools=[{num_pages: 10}]"
    code, text = refusal(pool, "workload.prompt_len=160", "workload.output_len=1")
    assert code == "S205"
    assert "10 pages * 16 tokens = 160 tokens" in text
    prepare(loaded(pool, "workload.prompt_len=159", "workload.output_len=1"), "none")
