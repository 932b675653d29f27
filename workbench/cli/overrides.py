"""Flags that stand for a key of the scenario, as the `KEY=VALUE` overrides of `--set`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from workbench.cli.failures import UsageError

if TYPE_CHECKING:
    from workbench.scenario.source import LoadedScenario

# What `--num-prompts` sets, by the kind of the workload.
NUM_PROMPTS_KEYS: Final = {
    "synthetic": "workload.num_requests",
    "shared_prefix": "workload.num_requests",
    "trace": "workload.limit",
}
_GOODPUT_METRICS: Final = ("ttft", "tpot", "e2el")


def load_with_flags(
    scenario: str,
    overrides: Sequence[str],
    seed: int | None,
    num_prompts: int | None,
    goodput: Sequence[str],
    percentiles: str | None,
) -> LoadedScenario:
    """Load a scenario with its overrides, flags last.

    Raises:
        UsageError: a flag makes no sense.
        ScenarioErrors: the scenario does not, or an override.
    """
    from workbench.scenario.source import load_scenario

    changes = [*overrides, *goodput_overrides(goodput)]
    if seed is not None:
        changes.append(f"seed={seed}")
    if percentiles is not None:
        changes.append(percentiles_override(percentiles))
    loaded = load_scenario(scenario, changes)
    if num_prompts is None:
        return loaded
    changes.append(num_prompts_override(loaded.scenario.workload.kind, num_prompts))
    return load_scenario(scenario, changes)


def check_run_name(name: str) -> None:
    """Refuse a name that a scenario could not have either.

    Raises:
        UsageError: it is one.
    """
    from workbench.scenario.schema import NAME_LENGTH, NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name) or len(name) > NAME_LENGTH:
        raise UsageError(
            f"--name: '{name}' cannot name a run's folder; it takes letters, digits, `.`, `_` and "
            f"`-`, a letter or digit first, {NAME_LENGTH} at most"
        )


def num_prompts_override(workload_kind: str, num_prompts: int) -> str:
    """The override that makes a workload of this kind send `num_prompts` requests.

    Raises:
        UsageError: the kind has no such number.
    """
    key = NUM_PROMPTS_KEYS.get(workload_kind)
    if key is None:
        raise UsageError(
            f"--num-prompts does not apply to a workload of kind {workload_kind}: its requests"
            " follow from other keys, for example --set workload.num_conversations=50"
        )
    return f"{key}={num_prompts}"


def goodput_overrides(limits: Sequence[str]) -> list[str]:
    """`["ttft:200 tpot:50"]` as overrides of `slo`; limits are in ms, as in `vllm bench serve`.

    Raises:
        UsageError: a limit is not METRIC:MILLISECONDS.
    """
    return [_goodput_override(limit) for text in limits for limit in text.split()]


def _goodput_override(limit: str) -> str:
    metric, colon, value = limit.partition(":")
    if metric not in _GOODPUT_METRICS or not colon or not _is_number(value):
        raise UsageError(
            f"--goodput: '{limit}' is not METRIC:MILLISECONDS with METRIC one of "
            f'{", ".join(_GOODPUT_METRICS)}; for example --goodput "ttft:200 tpot:50"'
        )
    return f"slo.{metric}_ms={value}"


def percentiles_override(text: str) -> str:
    """`"50,99,99.9"` as an override of `report.percentiles`.

    Raises:
        UsageError: it is no list of numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_is_number, parts)):
        raise UsageError(
            f"--metric-percentiles: '{text}' is no list of numbers; for example 50,90,99,99.9"
        )
    return f"report.percentiles=[{', '.join(parts)}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
