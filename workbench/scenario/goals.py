"""What a scenario's results are held against: the SLO, and which percentiles are printed."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from workbench.scenario.base import Problem, ScenarioModel, refusal

# TTFT and TPOT limits in ms of the MLPerf Inference rules (Server and Interactive scenarios).
SLO_PRESETS: Final[dict[str, tuple[float, float]]] = {
    "llama2-70b": (2000.0, 200.0),
    "llama2-70b-interactive": (450.0, 40.0),
    "llama3.1-8b": (2000.0, 100.0),
    "llama3.1-8b-interactive": (500.0, 30.0),
    "llama3.1-405b": (6000.0, 175.0),
    "llama3.1-405b-interactive": (4500.0, 80.0),
    "deepseek-r1": (2000.0, 80.0),
    "deepseek-r1-interactive": (1500.0, 15.0),
    "gpt-oss-120b": (3000.0, 80.0),
    "gpt-oss-120b-interactive": (2000.0, 20.0),
}

Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


class Slo(ScenarioModel):
    """Latency limits; a request that keeps all that are given counts as goodput."""

    preset: (
        Literal[
            "llama2-70b",
            "llama2-70b-interactive",
            "llama3.1-8b",
            "llama3.1-8b-interactive",
            "llama3.1-405b",
            "llama3.1-405b-interactive",
            "deepseek-r1",
            "deepseek-r1-interactive",
            "gpt-oss-120b",
            "gpt-oss-120b-interactive",
        ]
        | None
    ) = None
    """TTFT and TPOT limits of a benchmark of MLPerf Inference."""
    ttft_ms: Milliseconds | None = None
    """Time to first token, in ms; goes before the preset's."""
    tpot_ms: Milliseconds | None = None
    """Time per output token after the first, in ms; goes before the preset's."""
    e2el_ms: Milliseconds | None = None
    """End-to-end latency, in ms."""

    @model_validator(mode="after")
    def _limits_something(self) -> Slo:
        if not self.limits_ms():
            help_ = "give `preset`, or one or more of `ttft_ms`, `tpot_ms`, `e2el_ms`"
            raise refusal(Problem((), "S102", "`slo` limits nothing", help_))
        return self

    def limits_ms(self) -> dict[str, float]:
        """The limits in force, in ms: `ttft`, `tpot` and `e2el`, as far as they are given."""
        ttft, tpot = SLO_PRESETS[self.preset] if self.preset else (None, None)
        limits = {
            "ttft": self.ttft_ms or ttft,
            "tpot": self.tpot_ms or tpot,
            "e2el": self.e2el_ms,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}


def _check_percentiles(percentiles: tuple[float, ...]) -> tuple[float, ...]:
    if any(second <= first for first, second in pairwise(percentiles)):
        raise refusal(Problem((), "S105", "`percentiles` must increase strictly"))
    return percentiles


class Report(ScenarioModel):
    """How results are printed."""

    percentiles: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=100)], ...],
        Field(strict=False, min_length=1, max_length=20),
        AfterValidator(_check_percentiles),
    ] = (50.0, 90.0, 95.0, 99.0, 99.9)
    """Percentiles of every latency."""
