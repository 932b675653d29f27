"""The warm-up story of a workload: its first call, its eager steps and its graphed steps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.bounded_file import read_bounded
from engine.runtime.executor import EngineError
from workbench.profile.first_call import FirstCall, first_call
from workbench.profile.gaps import Gap, occupation
from workbench.profile.trace import Trace, TraceFileError, read_trace
from workbench.profile.wrong_file import WRONG, checked, in_words

SCHEMA: Final = "profile_gaps/v1"
EAGER, GRAPH = "eager", "graph"
_LANE_UNITS: Final = 3  # that a picture shows
_LIMIT_S: Final = 300.0
_ALL: Final = 1 + 1e-6  # a whole share, but for rounding


@dataclass(frozen=True, slots=True)
class Steady:
    """A workload that is warm, launched in one way.

    Attributes:
        unit_ms: of one unit, without the profiler.
        busy_share: of the time under the profiler, in which the GPU did anything.
        gaps, idle_us: of one unit.
        kernels: of one unit.
        histogram: (bin, gaps a unit, us a unit).
        longest: gaps.
        lane: (start, end) us of busy time in the middle of the recording, from 0 on.
        lane_us: length of that.
    """

    unit_ms: float
    busy_share: float
    gaps: float
    idle_us: float
    kernels: float
    histogram: tuple[tuple[str, float, float], ...]
    longest: tuple[Gap, ...]
    lane: tuple[tuple[float, float], ...]
    lane_us: float


@dataclass(frozen=True, slots=True)
class GapStory:
    """One workload.

    Attributes:
        what, unit: in words.
        gpu, torch: where it ran.
        cold: its first call.
        capture: the first call that captures a graph.
        eager, graph: when it is warm.
    """

    what: str
    unit: str
    gpu: str
    torch: str
    cold: FirstCall
    capture: FirstCall
    eager: Steady
    graph: Steady

    @property
    def gain(self) -> float:
        """How much faster a unit is as a graph: 2 is twice as fast."""
        return self.eager.unit_ms / self.graph.unit_ms

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GapStory:
        """The story of what `asdict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        what, unit, gpu, torch = _texts(data, "what", "unit", "gpu", "torch")
        cold, capture = _first_from(data["cold"]), _first_from(data["capture"])
        eager, graph = _steady_from(data[EAGER]), _steady_from(data[GRAPH])
        if [row[0] for row in eager.histogram] != [row[0] for row in graph.histogram]:
            raise ValueError("the `histogram` of `eager` and that of `graph` differ in their bins")
        return cls(what, unit, gpu, torch, cold, capture, eager, graph)


def _texts(data: Mapping[str, Any], *names: str) -> list[str]:
    found = [data[name] for name in names]
    for name, text in zip(names, found, strict=True):
        if not isinstance(text, str):
            raise TypeError(f"{name} is no text")
    return found


def _first_from(data: Mapping[str, Any]) -> FirstCall:
    causes = tuple(
        (str(cause), checked("causes", ms), int(checked("causes", count)))
        for cause, ms, count in data["causes"]
    )
    return FirstCall(checked("wall_ms", data["wall_ms"]), causes)


def _steady_from(data: Mapping[str, Any]) -> Steady:
    histogram = tuple(
        (str(name), checked("histogram", count), checked("histogram", us))
        for name, count, us in data["histogram"]
    )
    lane_us = checked("lane_us", data["lane_us"])
    return Steady(
        unit_ms=checked("unit_ms", data["unit_ms"], positive=True),
        busy_share=checked("busy_share", data["busy_share"], most=_ALL),
        gaps=checked("gaps", data["gaps"]),
        idle_us=checked("idle_us", data["idle_us"]),
        kernels=checked("kernels", data["kernels"]),
        histogram=histogram,
        longest=tuple(_gap_from(gap) for gap in data["longest"]),
        lane=tuple(_span_from(span, lane_us) for span in data["lane"]),
        lane_us=lane_us,
    )


def _gap_from(data: Mapping[str, Any]) -> Gap:
    start_us, duration_us = (checked(name, data[name]) for name in ("start_us", "duration_us"))
    return Gap(start_us, duration_us, *_texts(data, "before", "after", "cause"))


def _span_from(data: Sequence[Any], lane_us: float) -> tuple[float, float]:
    start, end = data
    end = checked("lane", end, most=lane_us)
    return checked("lane", start, most=end), end


@dataclass(frozen=True, slots=True)
class Subject:
    """A workload to measure.

    Attributes:
        kind: "decode" or "denoise".
        model: a model card, or a diffusion transformer.
        batch: requests, or images.
        context: KV tokens of each request.
    """

    kind: str
    model: str
    batch: int
    context: int = 1024


# Of each kind one whose launches take longer than its kernels, and one whose do not.
SUBJECTS: Final = (
    Subject("decode", "Qwen3-0.6B", 8),
    Subject("decode", "Llama-3.1-8B", 32),
    Subject("denoise", "dit-s", 4),
    Subject("denoise", "dit-xl", 32),
)


def measure_story(subject: Subject) -> GapStory:
    """Measure a workload in a process of its own, with no kernel compiled before.

    Raises:
        EngineError: there is no GPU, or the process failed.
    """
    if importlib.util.find_spec("torch") is None:
        raise EngineError("gaps between kernels need a GPU and torch, which is not installed here")
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise EngineError(
            f"gaps between kernels need a GPU: torch {torch.__version__} sees none here; "
            "`workbench profile gaps --from RESULT.json` shows what was measured elsewhere"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        command = (
            sys.executable, "-m", "engine.profiling.phases", subject.kind, str(folder),
            "--model", subject.model, "--batch", str(subject.batch),
            "--context", str(subject.context),
        )  # fmt: skip
        environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run(  # noqa: S603 - our own program
            command, env=environment, check=False, capture_output=True, text=True,
            timeout=_LIMIT_S,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-4:]
            raise EngineError(f"measuring {subject.model} failed:\n" + "\n".join(last))
        return story_of(folder)


def story_of(folder: Path) -> GapStory:
    """The story that `engine.profiling.phases` left in a folder."""
    found = json.loads((folder / "phases.json").read_text(encoding="utf-8"))
    phases = found["phases"]

    def first(name: str) -> FirstCall:
        phase = phases[name]
        trace = read_trace(folder / phase["trace"])
        return first_call(phase["wall_ms"], phase["causes_ms"], phase["counts"], trace)

    def steady(name: str) -> Steady:
        phase = phases[name]
        trace = read_trace(folder / phase["trace"])
        return steady_state(trace, phase["unit_ms"], phase["units"])

    return GapStory(
        found["what"], found["unit"], found["gpu"], found["torch"], first("cold"),
        first("capture"), steady(EAGER), steady(GRAPH),
    )  # fmt: skip


def steady_state(trace: Trace, unit_ms: float, units: int) -> Steady:
    """What a trace of some units says.

    Args:
        trace: of nothing else.
        unit_ms: of one, as measured without the profiler.
        units: how many.
    """
    spent = occupation(trace)
    lane, length = _lane(trace, spent.total_us / units * _LANE_UNITS)
    return Steady(
        unit_ms=unit_ms,
        busy_share=spent.busy_share,
        gaps=len(spent.gaps) / units,
        idle_us=spent.idle_us / units,
        kernels=len(trace.device) / units,
        histogram=tuple((name, count / units, us / units) for name, count, us in spent.histogram()),
        longest=tuple(spent.longest(4)),
        lane=lane,
        lane_us=length,
    )


def _lane(trace: Trace, length_us: float) -> tuple[tuple[tuple[float, float], ...], float]:
    """Busy spans of the middle of a trace; such with less than 50 ns between them are one."""
    if not trace.device:
        return (), 0.0
    last = max(work.end_us for work in trace.device)
    begin = (trace.device[0].start_us + last - length_us) / 2
    spans: list[list[float]] = []
    for work in trace.device:
        start, end = max(work.start_us - begin, 0.0), min(work.end_us - begin, length_us)
        if end <= start:
            continue
        if spans and start <= spans[-1][1] + 0.05:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    return tuple((round(start, 2), round(end, 2)) for start, end in spans), round(length_us, 2)


def stories_to_json(stories: Sequence[GapStory], commit: str | None) -> dict[str, Any]:
    """As JSON data."""
    return {"schema": SCHEMA, "commit": commit, "stories": [asdict(story) for story in stories]}


def read_stories(path: Path) -> list[GapStory]:
    """What `workbench profile gaps --output` wrote.

    Raises:
        TraceFileError: it is something else.
    """
    try:
        data = json.loads(read_bounded(path).decode())
        if data["schema"] != SCHEMA:
            raise TraceFileError(f"{path} is a {data['schema']}, not a {SCHEMA}")
        return [GapStory.from_json(story) for story in data["stories"]]
    except OSError as error:
        raise TraceFileError(f"cannot read {path}: {error.strerror or error}") from error
    except TraceFileError:
        raise
    except WRONG as error:
        raise TraceFileError(
            f"{path} is no result of `workbench profile gaps`: {in_words(error)}"
        ) from None
