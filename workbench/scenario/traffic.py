"""The demand side of a scenario: what is asked (`workload`) and when (`load`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workbench.scenario.base import (
    WHOLE,
    Count,
    CountOrNone,
    Fraction,
    NumRequests,
    Problem,
    Rate,
    ScenarioModel,
    Seconds,
    refusal,
)
from workbench.scenario.lengths import Duration, FixedDuration, FixedLength, Length, LengthOrNone


def _check_max_tokens(value: Any) -> Any:
    limit = int(value) if isinstance(value, float) and value.is_integer() else value
    if limit == "output_len" or (type(limit) is int and 1 <= limit <= 10_000_000):
        return limit
    message = "`max_tokens` must be `output_len` or a whole number of tokens, at least 1"
    raise refusal(Problem((), "S104", message))


MaxTokens = Annotated[
    Literal["output_len"] | Annotated[int, Field(ge=1, le=10_000_000)],
    BeforeValidator(_check_max_tokens),
]


class _Requests(ScenarioModel):
    max_tokens: MaxTokens = "output_len"
    """The client's limit on output, which is all that the scheduler knows beforehand. `output_len`:
    exactly the output length, as a benchmark that ignores EOS asks. A number: the model stops by
    itself before it, or is cut off there."""
    high_priority_fraction: Fraction = 0.0
    """Share of the requests (of the conversations, for conversations) that have priority 1; the
    rest have 0. It matters under `scheduler.policy: priority`."""
    num_tenants: Count = 1
    """Requests (conversations) belong to one of so many tenants, drawn at random. Tenants never
    share cached prefixes, even of the same text."""


class SyntheticWorkload(_Requests):
    """Independent requests that share no text."""

    kind: Literal["synthetic"]
    num_requests: NumRequests = 1000
    """How many requests are sent."""
    prompt_len: Length
    """Tokens of the prompt."""
    output_len: Length
    """Tokens that the model generates before it stops by itself."""


class SharedPrefixWorkload(_Requests):
    """Requests in groups; all of a group start with the same system prompt."""

    kind: Literal["shared_prefix"]
    num_requests: NumRequests = 1000
    """How many requests are sent."""
    num_groups: Count = 16
    """How many different system prompts there are."""
    system_prompt_len: Length
    """Tokens of a group's system prompt, drawn once per group."""
    question_len: Length
    """Tokens that follow the system prompt and are a request's own."""
    output_len: Length
    """Tokens that the model generates before it stops by itself."""
    group_skew: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Zipf exponent of the groups' popularity: 0 is uniform; at 1, the r-th most popular group gets
    a share proportional to 1/r."""


class ConversationWorkload(_Requests):
    """Conversations; the prompt of a turn is everything said before plus the user's new text.

    A turn is sent when the answer to the last one is complete and the user has thought.
    """

    kind: Literal["conversation"]
    num_conversations: Count = 200
    """How many conversations are started. `load` paces their first turns."""
    turns: Length = FixedLength(kind="fixed", value=4)
    """User messages per conversation."""
    system_prompt_len: LengthOrNone = FixedLength(kind="fixed", value=0)
    """Tokens of the system prompt that all conversations share, drawn once (0: none)."""
    first_prompt_len: Length | None = None
    """Tokens of the user's first message; if absent, as `user_len`."""
    user_len: Length
    """Tokens of each further message of the user."""
    output_len: Length
    """Tokens of each answer."""
    think_time_s: Duration = FixedDuration(kind="fixed", value=5.0)
    """Seconds from the end of an answer to the user's next message."""


class TraceWorkload(_Requests):
    """Requests of a recorded trace file."""

    kind: Literal["trace"]
    path: Annotated[str, Field(min_length=1)]
    """The trace file; a relative path starts at the scenario file's folder, or, in `--set`, at the
    current one."""
    format: Literal["auto", "mooncake", "azure", "burstgpt"] = "auto"
    """mooncake: JSON lines with `hash_ids` of prompt blocks, which become shared text. azure,
    burstgpt: CSV with lengths only. auto: told by the first line."""
    block_size: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] = 512
    """Prompt tokens that one entry of a mooncake trace's `hash_ids` stands for."""
    limit: Count | None = None
    """Use only this many rows from the start of the trace."""


Workload = Annotated[
    SyntheticWorkload | SharedPrefixWorkload | ConversationWorkload | TraceWorkload,
    Field(discriminator="kind"),
]


class _Load(ScenarioModel):
    max_concurrency: Count | None = None
    """Most requests of this client in flight; further ones wait at the client until one ends."""
    warmup_requests: CountOrNone = 0
    """The first requests by arrival, as many as this, are served but left out of the metrics."""
    measure_from_s: Seconds = 0.0
    """Requests that arrive before this time are left out of the metrics."""
    measure_until_s: Seconds | None = None
    """Requests that arrive from this time on are left out of the metrics."""

    @model_validator(mode="after")
    def _window(self) -> _Load:
        until = self.measure_until_s
        if until is not None and until <= self.measure_from_s:
            message = f"the measurement window is empty: it ends at {until:g} s, before it starts"
            help_ = f"`measure_until_s` must be above `measure_from_s` ({self.measure_from_s:g} s)"
            raise refusal(Problem(("measure_until_s",), "S105", message, help_))
        return self


class PoissonLoad(_Load):
    """Open loop: independent arrivals at a mean rate."""

    kind: Literal["poisson"]
    request_rate: Rate
    """Requests per second (conversations per second, for conversations)."""


class GammaLoad(_Load):
    """Open loop: gamma-distributed gaps, from bursty to regular."""

    kind: Literal["gamma"]
    request_rate: Rate
    """Requests per second (conversations per second, for conversations)."""
    burstiness: Annotated[float, Field(gt=0, le=1e6)]
    """Shape of the gamma distribution of the gaps: 1 is Poisson, below 1 burstier, above 1 more
    regular. Their coefficient of variation is burstiness ** -0.5."""


class ConstantLoad(_Load):
    """Open loop: arrivals at equal distances."""

    kind: Literal["constant"]
    request_rate: Rate
    """Requests per second (conversations per second, for conversations)."""


class AllAtOnceLoad(_Load):
    """Everything is sent at time 0: the offline case."""

    kind: Literal["all_at_once"]


class RampLoad(_Load):
    """Open loop: Poisson arrivals whose rate changes linearly with time from the first to the last.

    n requests take 2 n / (start_request_rate + end_request_rate) seconds.
    """

    kind: Literal["ramp"]
    start_request_rate: Annotated[float, Field(ge=0, le=1e6)]
    """Requests per second at time 0."""
    end_request_rate: Annotated[float, Field(ge=0, le=1e6)]
    """Requests per second when the last request is sent."""

    @model_validator(mode="after")
    def _moves(self) -> RampLoad:
        if self.start_request_rate + self.end_request_rate == 0:
            message = "a ramp from 0 to 0 requests per second sends nothing"
            raise refusal(Problem(("end_request_rate",), "S105", message))
        return self


class ClosedLoopLoad(_Load):
    """Closed loop: clients that each send their next request when the last has ended."""

    kind: Literal["closed_loop"]
    max_concurrency: Count
    """Clients, hence requests in flight."""


class TraceLoad(_Load):
    """Open loop: the timestamps of the workload's trace."""

    kind: Literal["trace"]
    time_scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor on the trace's times: 0.5 sends twice as fast."""


Load = Annotated[
    PoissonLoad | GammaLoad | ConstantLoad | AllAtOnceLoad | RampLoad | ClosedLoopLoad | TraceLoad,
    Field(discriminator="kind"),
]


class Aborts(ScenarioModel):
    """Clients that give up."""

    fraction: Fraction
    """Share of the requests whose client gives up, if they are not finished by then."""
    after_s: Duration
    """Seconds from sending to giving up."""


def traffic_problems(workload: Workload, load: Load) -> list[Problem]:
    """What is wrong with a workload and a load together, paths from the scenario's root."""
    problems: list[Problem] = []
    if isinstance(load, TraceLoad) and not isinstance(workload, TraceWorkload):
        message = f"load `trace` needs the timestamps of a trace; the workload is `{workload.kind}`"
        help_ = "choose another `load.kind`, or `workload.kind: trace`"
        problems.append(Problem(("load", "kind"), "S111", message, help_))
    total = getattr(workload, "num_requests", None)
    if total is not None and load.warmup_requests >= total:
        message = f"{load.warmup_requests} warm-up requests leave none of {total} to measure"
        help_ = "lower it, for example --set load.warmup_requests=0"
        problems.append(Problem(("load", "warmup_requests"), "S105", message, help_))
    return problems
