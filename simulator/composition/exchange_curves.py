"""Exchange between GPUs as functions of bytes: as measured, or by the analytic model."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engine.core.dtypes import dtype_bytes
from engine.core.hardware_spec import HardwareSpec
from engine.core.model_spec import ModelSpec
from simulator.composition.kernel_curves import Float64, linear, monotone
from simulator.composition.kernel_exchange import OPS, ExchangeTables
from simulator.roofline_coefficients import roofline_coefficients


class Exchange(Protocol):
    """What the GPUs of one replica exchange in a step."""

    def sums(self, rows: Float64) -> Float64:
        """All sums of a step with so many rows, in ns: float64[n]."""
        ...

    def logits(self, rows: Float64) -> Float64:
        """The gather of so many rows of logits, in ns: float64[n]."""
        ...


class NoExchange:
    """One GPU has nobody to exchange anything with."""

    def sums(self, rows: Float64) -> Float64:
        """Nothing."""
        return np.zeros(len(rows))

    def logits(self, rows: Float64) -> Float64:
        """Nothing."""
        return np.zeros(len(rows))


class AnalyticExchange:
    """What the analytic model says.

    Args:
        model: what runs.
        gpu: on what.
        gpus: how many.
    """

    def __init__(self, model: ModelSpec, gpu: HardwareSpec, gpus: int) -> None:
        self._of = roofline_coefficients(model, gpu, gpus, model.dtype, model.dtype)

    def sums(self, rows: Float64) -> Float64:
        """Latency, and bytes over the link."""
        return self._of.all_reduce_ns + self._of.all_reduce_row_ns * rows

    def logits(self, rows: Float64) -> Float64:
        """Latency, and bytes over the link."""
        return self._of.gather_ns + self._of.gather_row_ns * rows


class MeasuredExchange:
    """What was measured of so many GPUs.

    Two sums a layer (after attention and after the MLP) and one of the embedding, each of a row of
    the hidden size for every token; the gather is of whole rows of logits. Both are in the model's
    own number format. No kernel is assumed to run beside them.

    Args:
        tables: they know so many GPUs (`knows`).
        model: what runs.
        gpus: how many.
    """

    def __init__(self, tables: ExchangeTables, model: ModelSpec, gpus: int) -> None:
        self._curves = {
            each.op: (np.array(each.bytes, np.float64), monotone(np.array(each.ns)))
            for each in tables.series
            if each.gpus == gpus
        }
        width = dtype_bytes(model.dtype)
        self._sums = 2 * model.num_layers + 1
        self._row_bytes, self._logit_bytes = width * model.hidden_size, width * model.vocab_size

    def sums(self, rows: Float64) -> Float64:
        """Read off by bytes."""
        return self._sums * linear(self._row_bytes * rows, *self._curves["all_reduce"])

    def logits(self, rows: Float64) -> Float64:
        """Read off by bytes."""
        return linear(self._logit_bytes * rows, *self._curves["all_gather"])


class LongerExchange:
    """Whichever of two takes longer: more GPUs exchange nothing faster than fewer were seen to.

    Args:
        one: exchange.
        other: exchange.
    """

    def __init__(self, one: Exchange, other: Exchange) -> None:
        self._one, self._other = one, other

    def sums(self, rows: Float64) -> Float64:
        """The longer one's."""
        return np.maximum(self._one.sums(rows), self._other.sums(rows))

    def logits(self, rows: Float64) -> Float64:
        """The longer one's."""
        return np.maximum(self._one.logits(rows), self._other.logits(rows))


def most_below(tables: ExchangeTables, gpus: int) -> int | None:
    """The most GPUs, but fewer than these, between which exchange was measured; None: none were."""
    return max((count for count in range(2, gpus) if knows(tables, count)), default=None)


def knows(tables: ExchangeTables | None, gpus: int) -> bool:
    """Whether exchange between so many GPUs was measured."""
    if tables is None:
        return False
    return {each.op for each in tables.series if each.gpus == gpus} >= set(OPS)
