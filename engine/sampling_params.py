"""What a request asks of the sampler: how to choose tokens, how many, and when to stop."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

GREEDY_BELOW = 1e-5  # a lower temperature means: take the most probable token
MAX_LOGPROBS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The sampling parameters of one request, under the names vLLM gave them.

    The order of the filters is vLLM's (its V1 sampler): temperature, min_p, top_k, top_p.

    Attributes:
        max_tokens: the most tokens to generate, at least 1.
        temperature: logits are divided by it; 0 (or less than 1e-5) chooses greedily.
        top_k: only the k most probable tokens; 0 or -1 is off. Ties with the k-th stay in.
        top_p: only the fewest most probable tokens whose probabilities reach it; in (0, 1].
        min_p: only tokens at least this probable, as a share of the best token's; in [0, 1].
        seed: the same seed gives the same text; None: the engine draws one.
        n: how many texts to generate for one prompt, at least 1.
        logprobs: None: no log-probabilities; 0: the sampled token's; k: also those of the k most
            probable tokens, at most 32. They are the model's own, before temperature and filters.
        stop: a string, or several, that end the text; kept as a tuple.
        stop_token_ids: token ids that end the text; kept as a tuple.
        ignore_eos: go on after the model's end-of-sequence token.
        min_tokens: neither an end-of-sequence token nor one of `stop_token_ids` before so many
            tokens; at most `max_tokens`.

    Raises:
        TypeError: a value is of another type.
        ValueError: a value is out of its range; the message names field, value and range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: str | list[str] | tuple[str, ...] = ()
    stop_token_ids: list[int] | tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        object.__setattr__(self, "stop", self._checked_stop())
        object.__setattr__(self, "stop_token_ids", self._checked_stop_token_ids())
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens may be excluded from the draw."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    def _check_numbers(self) -> None:
        _check_int("max_tokens", self.max_tokens, "at least 1", 1)
        _check_real("temperature", self.temperature, "0 (greedy) or a finite positive number")
        _check_int("top_k", self.top_k, "0 or -1 (off), or at least 1", -1)
        _check_real("top_p", self.top_p, "in (0, 1]", 1.0)
        _check("top_p", self.top_p, "in (0, 1]", self.top_p > 0)
        _check_real("min_p", self.min_p, "in [0, 1]", 1.0)
        _check_int("n", self.n, "at least 1", 1)
        upper = f"in [0, max_tokens = {self.max_tokens}]"
        _check_int("min_tokens", self.min_tokens, upper, 0, self.max_tokens)
        if self.logprobs is not None:
            allowed = f"None or in [0, {MAX_LOGPROBS}]"
            _check_int("logprobs", self.logprobs, allowed, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _check_int("seed", self.seed, "None or in [-2^63, 2^63 - 1]", -(2**63), 2**63 - 1)

    def _checked_stop(self) -> tuple[str, ...]:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(s, str) for s in stop):
            raise TypeError(f"stop must be a string or a list of strings, not {self.stop!r}")
        _check("stop", self.stop, "strings that are not empty", all(stop))
        return tuple(stop)

    def _checked_stop_token_ids(self) -> tuple[int, ...]:
        ids = self.stop_token_ids
        if not isinstance(ids, list | tuple):
            raise TypeError(f"stop_token_ids must be a list of token ids, not {ids!r}")
        for token_id in ids:
            _check_int("stop_token_ids", token_id, "token ids of at least 0", 0)
        return tuple(ids)


def _check(field: str, value: Any, allowed: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{field} must be {allowed}, not {value!r}")


def _check_int(field: str, value: Any, allowed: str, low: int, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field} must be an integer, not {value!r}")
    _check(field, value, allowed, low <= value <= high)


def _check_real(field: str, value: Any, allowed: str, high: float = sys.float_info.max) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{field} must be a number, not {value!r}")
    _check(field, value, allowed, 0.0 <= value <= high)
