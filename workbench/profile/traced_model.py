"""What a trace says of the model and the step that it was recorded of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from engine.core.dtypes import QUANTIZED_DTYPES
from engine.core.model_spec import ModelSpec, load_model_spec
from engine.demo import demo_model_folder
from simulator.cost_model import StepShape

TINY: Final = "tiny_model.json"
"""The file, in the scenarios, of the model that runs where none is named."""
TORCH_DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""What torch calls a dtype -> what it is called here."""


class LayersError(ValueError):
    """A model has not as many layers as were asked for; says how many."""


def spec_of(about: Mapping[str, Any]) -> ModelSpec | None:
    """The shape of the model that a trace was recorded of; None: it does not say, or is gone."""
    model = about.get("model")
    if not isinstance(model, str):
        return None
    layers, dtype = about.get("layers"), about.get("dtype")
    known = files("scenarios") / TINY if model == TINY else demo_model_folder(model)
    try:
        spec = load_model_spec(str(known or model))
        if isinstance(dtype, str):
            spec = served_in(spec, TORCH_DTYPES.get(dtype, dtype))
        return spec if layers is None else shortened(spec, int(layers))
    except (ValueError, TypeError, OSError):
        return None


def model_title(about: Mapping[str, Any]) -> str:
    """The name of the model of a trace, and what of it ran; "" if the trace does not say."""
    name = str(about.get("model") or "")
    if Path(name).is_dir():
        name = Path(name).name
    layers = about.get("layers")
    known = [f"{layers} of its layers"] if layers else []
    if about.get("load_format") == "dummy":
        known.append("random weights")
    return f"{name} ({', '.join(known)})" if name and known else name


def shape_of_trace(about: Mapping[str, Any]) -> StepShape | None:
    """The features of the step that a trace was recorded of; None: its steps differ."""
    features = about.get("features")
    return None if features is None else StepShape(*features)


def served_in(spec: ModelSpec, dtype: str) -> ModelSpec:
    """The same model with activations, KV cache and weights in a dtype, but for quantized ones."""
    quantized = spec.weight_dtype in QUANTIZED_DTYPES
    return replace(spec, dtype=dtype, weight_dtype=spec.weight_dtype if quantized else dtype)


def shortened(spec: ModelSpec, layers: int) -> ModelSpec:
    """The same model with its first layers only.

    Raises:
        LayersError: it has not so many.
    """
    if not 1 <= layers <= spec.num_layers:
        raise LayersError(
            f"--layers {layers}: the model has {spec.num_layers} layers; take 1 to "
            f"{spec.num_layers}, or leave it out for all"
        )
    moe = spec.moe
    if moe is not None:
        moe = replace(moe, layers=tuple(layer for layer in moe.layers if layer < layers))
    return replace(spec, num_layers=layers, moe=moe)
