"""Refuses workloads that a deployment can never serve, with the sums that say so."""

from __future__ import annotations

from workbench.deployment import Deployment
from workbench.prompt_bounds import LongestRequest, longest_request
from workbench.scenario_errors import ScenarioError, ScenarioErrors
from workbench.scenario_source import LoadedScenario
from workbench.workload import BuiltWorkload


def refuse_too_long(loaded: LoadedScenario, deployment: Deployment) -> None:
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
    most = deployment.max_context_tokens
    cuts = scenario.too_long == "truncate" and longest.max_tokens < most
    errors = []
    if longest.tokens > most and not cuts:
        errors.append(_too_long(loaded, deployment, longest))
    if not scenario.scheduler.chunked_prefill:
        prompt_tokens = min(longest.prompt_tokens, most - 1) if cuts else longest.prompt_tokens
        errors += _too_long_for_a_step(loaded, deployment, prompt_tokens)
    if errors:
        raise ScenarioErrors(errors)


def refuse_hopeless(loaded: LoadedScenario, deployment: Deployment, built: BuiltWorkload) -> None:
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
        f"max_tokens), the deployment holds {deployment.max_context_tokens:,}"
    )
    raise ScenarioErrors([loaded.error(("workload",), "S205", message, _limits(deployment))])


def _too_long(
    loaded: LoadedScenario, deployment: Deployment, longest: LongestRequest
) -> ScenarioError:
    message = (
        f"requests of up to {longest.tokens:,} tokens can never be served, at most "
        f"{deployment.max_context_tokens:,} can"
    )
    help_ = (
        f"{longest.arithmetic} = {longest.tokens:,} tokens\n{_limits(deployment)}\n"
        "lower the largest lengths, or cut prompts with `too_long: truncate`"
    )
    return loaded.error(longest.path, "S205", message, help_)


def _too_long_for_a_step(
    loaded: LoadedScenario, deployment: Deployment, prompt_tokens: int
) -> list[ScenarioError]:
    budget = min(replica.config.scheduler.prefill_budget for replica in deployment.replicas)
    if prompt_tokens <= budget:
        return []
    message = (
        f"without chunked prefill a step must hold a whole prompt: up to {prompt_tokens:,} tokens, "
        f"and its budget is {budget:,}"
    )
    help_ = "raise `max_num_batched_tokens` (and `max_prefill_tokens`), or chunk prompts"
    return [loaded.error(("scheduler", "chunked_prefill"), "S206", message, help_)]


def _limits(deployment: Deployment) -> str:
    """What bounds prompt and output together, one line per bound."""
    pools = [
        f"KV cache: {facts.num_pages:,} pages * {facts.page_size} tokens = "
        f"{facts.num_pages * facts.page_size:,} tokens; the last token needs none"
        for facts in dict.fromkeys(replica.facts for replica in deployment.replicas)
    ]
    context = (
        f"context length of {deployment.model.name}: {deployment.model.max_model_len:,} tokens"
    )
    return "\n".join([context, *pools])
