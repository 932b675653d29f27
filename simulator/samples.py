"""What was measured of an engine, as a hardware profile keeps it."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Final

import msgspec

from simulator.cost_model import StepFeatures, StepShape

# Checked when a profile is read or written: whole numbers that a float64 holds, finite costs.
_MOST: Final = 1 << 53
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]


class StepSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps, one entry each; what was measured of them is in columns beside.

    Attributes:
        shapes: `simulator.cost_model.StepShape` fields, in its order.
    """

    shapes: tuple[tuple[int, ...], ...]

    def features(self) -> StepFeatures:
        """The shapes as columns."""
        return StepFeatures.from_shapes([StepShape(*shape) for shape in self.shapes])

    def __len__(self) -> int:
        return len(self.shapes)


class Samples(StepSamples, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured steps, one entry a distinct shape; before each, the GPU's clocks could recover.

    Attributes:
        gpu_ns: median over the repetitions.
        spread_ns: median absolute deviation from it.
        repeats: how many were counted.
    """

    gpu_ns: tuple[Positive, ...]
    spread_ns: tuple[Count, ...]
    repeats: tuple[Positive, ...]


class HostSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of the host for steps, as measured while it served: one entry a step.

    Attributes:
        requests: of a step, those that prefill among them.
        prefill_requests, prefill_tokens: those, and their tokens.
        host_ns: CPU time.
        result_ns: from its end on the GPU until the host knew; empty: it was not measured.
    """

    requests: tuple[Count, ...]
    prefill_requests: tuple[Count, ...]
    prefill_tokens: tuple[Count, ...]
    host_ns: tuple[Count, ...]
    result_ns: tuple[Count, ...] = ()

    def __len__(self) -> int:
        return len(self.host_ns)


class PowerSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps that ran one right after the other, so that the GPU computed more and more.

    Attributes:
        tokens: of each step.
        gpu_ns: of each step.
    """

    tokens: tuple[Positive, ...]
    gpu_ns: tuple[Positive, ...]

    def __len__(self) -> int:
        return len(self.gpu_ns)


class HotSamples(StepSamples, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps that ran once after light ones and once right after prompts, one entry a shape.

    Attributes:
        cool_ns, hot_ns: what the step took the one time and the other.
        heat_ns: how long prompts ran before it, the other time.
    """

    cool_ns: tuple[Positive, ...]
    hot_ns: tuple[Positive, ...]
    heat_ns: tuple[Count, ...]


class WakeSamples(StepSamples, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First steps after idle times, one entry a step.

    Attributes:
        idle_ns: of the GPU, when the step was planned.
        lead_ns: from the plan to the GPU's first work; where no `HostSamples.result_ns` were
            measured, also from its last until the host knew.
        gpu_ns: of the step.
    """

    idle_ns: tuple[Count, ...]
    lead_ns: tuple[Count, ...]
    gpu_ns: tuple[Positive, ...]


def samples_problem(
    samples: Samples,
    host_samples: HostSamples,
    power_samples: PowerSamples | None = None,
    wake_samples: WakeSamples | None = None,
    hot_samples: HotSamples | None = None,
) -> str | None:
    """What keeps samples from being read as columns, if anything does."""
    if _are_uneven(samples):
        return "its samples are of different lengths"
    if power_samples is not None and _are_uneven(power_samples):
        return "its samples of the power limit are of different lengths"
    if _are_uneven(host_samples, but_for="" if host_samples.result_ns else "result_ns"):
        return "its samples of the host are of different lengths"
    if wake_samples is not None and _are_uneven(wake_samples):
        return "its samples of idle times are of different lengths"
    if hot_samples is not None and _are_uneven(hot_samples):
        return "its samples of hot steps are of different lengths"
    others = (each.shapes for each in (wake_samples, hot_samples) if each is not None)
    shapes = (*samples.shapes, *chain.from_iterable(others))
    if any(len(shape) != len(StepShape._fields) for shape in shapes):
        return f"a sample has not the {len(StepShape._fields)} features of a step"
    # The least of each feature is nothing of it, and of experts no knowledge.
    features = (pair for shape in shapes for pair in zip(StepShape(), shape, strict=True))
    if not all(least <= value <= _MOST for least, value in features):
        return "a sample has a feature that is below 0, or larger than a float64 holds"
    return None


def _are_uneven(columns: msgspec.Struct, but_for: str = "") -> bool:
    columns_of = msgspec.structs.asdict(columns)
    return len({len(column) for name, column in columns_of.items() if name != but_for}) > 1
