"""The longest request that a scenario may ask for, before any is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.scenario.base import Path
from workbench.scenario.schema import (
    ConversationWorkload,
    SharedPrefixWorkload,
    SyntheticWorkload,
    Workload,
)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some tokens of the longest request and the key that they come from."""

    key: str
    tokens: int
    times: int = 1

    @property
    def total(self) -> int:
        return self.tokens * self.times

    def __str__(self) -> str:
        times = f"{self.times} * " if self.times != 1 else ""
        return f"{times}{self.tokens:,} ({self.key})"


@dataclass(frozen=True, slots=True)
class LongestRequest:
    """The sum of a workload's largest lengths, in tokens.

    Attributes:
        prompt_tokens: of its prompt.
        max_tokens: of its output, as the scheduler must expect it.
        arithmetic: how both come about.
        path: the key of the scenario that contributes most.
        parts: what the sum consists of.
    """

    prompt_tokens: int
    max_tokens: int
    arithmetic: str
    path: Path
    parts: tuple[_Part, ...]

    @property
    def tokens(self) -> int:
        """Prompt and output together."""
        return self.prompt_tokens + self.max_tokens


def longest_request(workload: Workload) -> LongestRequest | None:
    """The longest request of a workload that is drawn; None for a trace, which says so itself."""
    match workload:
        case SyntheticWorkload():
            prompt = [_Part("prompt_len", workload.prompt_len.bounds[1])]
        case SharedPrefixWorkload():
            prompt = [
                _Part("system_prompt_len", workload.system_prompt_len.bounds[1]),
                _Part("question_len", workload.question_len.bounds[1]),
            ]
        case ConversationWorkload():
            prompt = _last_turn(workload)
        case _:
            return None
    limit = workload.max_tokens
    output = (
        _Part("output_len", workload.output_len.bounds[1])
        if limit == "output_len"
        else _Part("max_tokens", limit)
    )
    parts = tuple(part for part in (*prompt, output) if part.total)
    return LongestRequest(
        prompt_tokens=sum(part.total for part in prompt),
        max_tokens=output.total,
        arithmetic=" + ".join(map(str, parts)),
        path=("workload", max(parts, key=lambda part: part.total).key),
        parts=parts,
    )


def settings_that_fit(workload: Workload, most_tokens: int) -> list[str]:
    """`KEY=VALUE` settings, all lengths scaled down alike, with which the longest request fits.

    Empty if it fits as it is, or if no lengths would do.
    """
    longest = longest_request(workload)
    if longest is None or longest.tokens <= most_tokens:
        return []
    scaled = {part.key: part.tokens * most_tokens // longest.tokens for part in longest.parts}
    if not all(scaled.values()):
        return []
    return [_setting(workload, key, tokens) for key, tokens in scaled.items()]


def _setting(workload: Workload, key: str, tokens: int) -> str:
    """The setting that makes `tokens` the largest value of a length."""
    length = getattr(workload, key)
    if hasattr(length, "max") and length.bounds[0] <= tokens:
        return f"workload.{key}.max={tokens}"
    return f"workload.{key}={tokens}"


def _last_turn(workload: ConversationWorkload) -> list[_Part]:
    """The prompt of the last turn: everything said before, and the user's new text."""
    earlier = workload.turns.bounds[1] - 1
    first_key, first = "first_prompt_len", workload.first_prompt_len
    if first is None:
        first_key, first = "user_len", workload.user_len
    answer = workload.output_len.bounds[1]
    if workload.max_tokens != "output_len":
        answer = min(answer, workload.max_tokens)
    return [
        _Part("system_prompt_len", workload.system_prompt_len.bounds[1]),
        _Part(first_key, first.bounds[1]),
        _Part("user_len", workload.user_len.bounds[1], earlier),
        _Part("output_len", answer, earlier),
    ]
