"""Distributions that a scenario may name: token lengths, turn counts and durations.

A length may be given as a plain number, which stands for `{kind: fixed, value: number}`.
Every distribution tells its `bounds`, so that set-ups that cannot work are found before they run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.demo import recorded_behaviour
from workbench.scenario.base import WHOLE, Problem, ScenarioModel, Seconds, Tokens, refusal


def _check_order(low: float, high: float) -> None:
    if high < low:
        message = f"`max` ({high:g}) is below `min` ({low:g})"
        raise refusal(Problem(("max",), "S105", message, "`max` must be at least `min`"))


class FixedLength(ScenarioModel):
    """Always the same length."""

    kind: Literal["fixed"]
    value: Tokens
    """The length."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest possible value."""
        return self.value, self.value


class UniformLength(ScenarioModel):
    """Every whole number from min to max is equally likely."""

    kind: Literal["uniform"]
    min: Tokens
    """Smallest length."""
    max: Tokens
    """Largest length, included."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest possible value."""
        return self.min, self.max

    @model_validator(mode="after")
    def _ordered(self) -> UniformLength:
        _check_order(self.min, self.max)
        return self


class LognormalLength(ScenarioModel):
    """Lognormal, rounded to whole numbers and clipped to [min, max]."""

    kind: Literal["lognormal"]
    mean: Annotated[float, Field(gt=0, le=1e7)]
    """Mean of the distribution itself (not of its logarithm), before clipping."""
    std_dev: Annotated[float, Field(ge=0, le=1e7)]
    """Standard deviation of the distribution itself, before clipping."""
    min: Tokens = 1
    """Smaller values become this."""
    max: Tokens
    """Larger values become this."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest possible value."""
        return self.min, self.max

    @model_validator(mode="after")
    def _ordered(self) -> LognormalLength:
        _check_order(self.min, self.max)
        return self


class ZipfLength(ScenarioModel):
    """A bounded power law: the probability of n is proportional to n ** -alpha, min <= n <= max."""

    kind: Literal["zipf"]
    alpha: Annotated[float, Field(ge=0, le=100)]
    """Exponent: 0 is uniform, larger favours short lengths."""
    min: Annotated[int, Field(ge=1, le=10_000_000), WHOLE] = 1
    """Smallest length."""
    max: Tokens
    """Largest length, included."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest possible value."""
        return self.min, self.max

    @model_validator(mode="after")
    def _ordered(self) -> ZipfLength:
        _check_order(self.min, self.max)
        return self


class RecordedLength(ScenarioModel):
    """Drawn from lengths of texts that a demo model wrote, at temperature 1 (demo_models.md)."""

    kind: Literal["recorded"]
    model: Literal["demo-dense"]
    """Whose lengths."""

    @property
    def values(self) -> tuple[int, ...]:
        """All that were recorded, in tokens."""
        recorded = recorded_behaviour("output_lengths")[self.model]
        return tuple(recorded["output_tokens"])

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest possible value."""
        return min(self.values), max(self.values)


class FixedDuration(ScenarioModel):
    """Always the same time."""

    kind: Literal["fixed"]
    value: Seconds
    """Seconds."""


class UniformDuration(ScenarioModel):
    """Any time from min to max is equally likely."""

    kind: Literal["uniform"]
    min: Seconds
    """Shortest time in seconds."""
    max: Seconds
    """Longest time in seconds."""

    @model_validator(mode="after")
    def _ordered(self) -> UniformDuration:
        _check_order(self.min, self.max)
        return self


class LognormalDuration(ScenarioModel):
    """Lognormal, clipped to [min, max]."""

    kind: Literal["lognormal"]
    mean: Annotated[float, Field(gt=0, le=1e9)]
    """Mean of the distribution itself in seconds, before clipping."""
    std_dev: Seconds
    """Standard deviation of the distribution itself in seconds, before clipping."""
    min: Seconds = 0.0
    """Shorter times become this, in seconds."""
    max: Seconds
    """Longer times become this, in seconds."""

    @model_validator(mode="after")
    def _ordered(self) -> LognormalDuration:
        _check_order(self.min, self.max)
        return self


def _fixed_if_number(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "fixed", "value": value}
    return value


_AnyLength = Annotated[
    FixedLength | UniformLength | LognormalLength | ZipfLength | RecordedLength,
    Field(discriminator="kind"),
]
_AnyDuration = Annotated[
    FixedDuration | UniformDuration | LognormalDuration, Field(discriminator="kind")
]

LengthOrNone = Annotated[
    _AnyLength, BeforeValidator(_fixed_if_number, json_schema_input_type=Tokens | _AnyLength)
]
"""A length that may be 0: there may be no such text at all."""


def _at_least_one(
    length: FixedLength | UniformLength | LognormalLength | ZipfLength | RecordedLength,
) -> FixedLength | UniformLength | LognormalLength | ZipfLength | RecordedLength:
    if length.bounds[0] < 1:
        key = "value" if isinstance(length, FixedLength) else "min"
        raise refusal(Problem((key,), "S105", f"`{key}` must be at least 1, not 0"))
    return length


Length = Annotated[LengthOrNone, AfterValidator(_at_least_one)]
"""A length of at least 1."""

Duration = Annotated[
    _AnyDuration, BeforeValidator(_fixed_if_number, json_schema_input_type=Seconds | _AnyDuration)
]
"""A time in seconds."""
