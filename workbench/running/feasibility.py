"""Refuses workloads that a deployment can never serve, with the sums that say so."""

from __future__ import annotations

from workbench.running.capacity import Capacity
from workbench.scenario.errors import ScenarioError, ScenarioErrors
from workbench.scenario.source import LoadedScenario
from workbench.workload.prompt_bounds import LongestRequest, longest_request, settings_that_fit
from workbench.workload.workload import BuiltWorkload


def refuse_too_long(loaded: LoadedScenario, capacity: Capacity) -> None:
    """A workload that is drawn may not ask for a request that never fits.

    Prompts that `too_long: truncate` cuts are no fault. Traces are what they are: their rows follow
    `too_long`.

    Raises:
        ScenarioErrors: with the sums.
    """
    scenario = loaded.scenario
    longest = longest_request(scenario.workload)
    if longest is None:
        return
    most = capacity.max_context_tokens
    cuts = scenario.too_long == "truncate" and longest.max_tokens < most
    errors = []
    if longest.tokens > most and not cuts:
        errors.append(_too_long(loaded, capacity, longest))
    if not scenario.scheduler.chunked_prefill:
        prompt_tokens = min(longest.prompt_tokens, most - 1) if cuts else longest.prompt_tokens
        errors += _too_long_for_a_step(loaded, capacity, prompt_tokens)
    if errors:
        raise ScenarioErrors(errors)


def refuse_hopeless(loaded: LoadedScenario, capacity: Capacity, built: BuiltWorkload) -> None:
    """A trace of which not one request can ever be served is a mistake in the scenario.

    Raises:
        ScenarioErrors: with the sums.
    """
    requests = built.workload
    if built.too_long_requests < len(requests):
        return
    shortest = int((requests.prompt_tokens + requests.max_tokens).min())
    message = (
        f"no request can ever be served: the shortest needs {shortest:,} tokens (prompt and "
        f"max_tokens), the deployment holds {capacity.max_context_tokens:,}"
    )
    limits = "\n".join(capacity.lines())
    raise ScenarioErrors([loaded.error(("workload",), "S205", message, limits)])


def _too_long(loaded: LoadedScenario, capacity: Capacity, longest: LongestRequest) -> ScenarioError:
    message = (
        f"requests of up to {longest.tokens:,} tokens can never be served, at most "
        f"{capacity.max_context_tokens:,} can"
    )
    settings = settings_that_fit(loaded.scenario.workload, capacity.max_context_tokens)
    example = f", for example {' '.join(f'--set {text}' for text in settings)}" if settings else ""
    lines = (
        f"{longest.arithmetic} = {longest.tokens:,} tokens",
        *capacity.lines(),
        f"lower the largest lengths{example}",
        *_cutting(longest, capacity),
    )
    help_ = "\n".join(lines)
    return loaded.error(longest.path, "S205", message, help_)


def _cutting(longest: LongestRequest, capacity: Capacity) -> list[str]:
    """That prompts may be cut, where their outputs leave room for them."""
    if longest.max_tokens >= capacity.max_context_tokens:
        return []
    return ["or cut prompts with `too_long: truncate`"]


def _too_long_for_a_step(
    loaded: LoadedScenario, capacity: Capacity, prompt_tokens: int
) -> list[ScenarioError]:
    budget = capacity.prefill_budget
    if prompt_tokens <= budget:
        return []
    message = (
        f"without chunked prefill a step must hold a whole prompt: up to {prompt_tokens:,} tokens, "
        f"and its budget is {budget:,}"
    )
    help_ = "raise `max_num_batched_tokens` (and `max_prefill_tokens`), or chunk prompts"
    return [loaded.error(("scheduler", "chunked_prefill"), "S206", message, help_)]
