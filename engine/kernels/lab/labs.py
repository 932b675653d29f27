"""The code of every ladder in `rungs`."""

from __future__ import annotations

from collections.abc import Mapping

from engine.kernels.lab import attention_decode, attention_prefill, norm, softmax
from engine.kernels.lab.case import Lab

LABS: Mapping[str, Lab] = {
    "softmax": softmax.LAB,
    "rms_norm": norm.RMS_LAB,
    "layer_norm": norm.LAYER_LAB,
    "attention_prefill": attention_prefill.LAB,
    "attention_decode": attention_decode.LAB,
}
