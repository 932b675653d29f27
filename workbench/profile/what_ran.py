"""What somebody says of the step that a trace or a report was recorded of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.cost_model import StepShape
from workbench.profile.step_text import parse_step, shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatRan:
    """As far as it is said; what is not said, a trace may know.

    Attributes:
        model: a card, or a folder or file with a config.
        layers: of it that ran; None: all.
        dtype: of activations, weights and KV cache; None: the model's own.
        step: that ran, as `parse_step` reads it.
        eager: whether it ran kernel by kernel.
    """

    model: str | None = None
    layers: int | None = None
    dtype: str | None = None
    step: str | None = None
    eager: bool = False

    def shape(self) -> StepShape | None:
        """The features of the step. Raises StepTextError: it is none."""
        if self.step is None:
            return None
        return shape_of(parse_step(self.step), () if self.eager else None)

    def about(self) -> dict[str, Any]:
        """What a trace would say of it. Raises StepTextError: the step is none."""
        found: dict[str, Any] = {}
        if self.model is not None:
            found |= {"model": self.model, "layers": self.layers}
        if self.dtype is not None:
            found["dtype"] = self.dtype
        shape = self.shape()
        if shape is not None:
            found |= {"step": self.step, "features": list(shape)}
        return found
