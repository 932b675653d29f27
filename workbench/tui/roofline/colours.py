"""The colour of each range of a step, the same in every chart of profiles."""

from __future__ import annotations

from typing import Final

from engine.profiling.op_classes import ATTENTION, COMMUNICATION, MLP, MOE, NORM, REST, SAMPLING

COLOUR_OF: Final = {
    ATTENTION: "data-decode",
    MLP: "data-prefill",
    MOE: "data-hit",
    NORM: "data-queue",
    SAMPLING: "data-step",
    COMMUNICATION: "data-bad",
    REST: "data-transfer",
}
