"""Reads a Hugging Face `config.json`: the styles of transformers 4 and 5, and nested text models.

What differs between the styles: `torch_dtype` became `dtype`; `rope_theta` and `rope_scaling`
became `rope_parameters`; Qwen3-MoE's `num_experts` is saved as `num_local_experts`; multimodal
models keep the language model under `text_config`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from engine.core.bounded_file import read_bounded
from engine.core.dtypes import did_you_mean

_MISSING: Final = object()

_DTYPES: Final[dict[str, str]] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
}

# Keys that transformers writes beside a nested text_config and that speak for it.
_INHERITED: Final = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config")


class ModelConfigError(ValueError):
    """A config.json that cannot be read as a supported model. The message names file and key."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding.

    Attributes:
        kind: "default", "linear", "dynamic", "yarn" or "llama3".
        theta: base of the frequencies.
        factor: context extension, 1 for "default".
        original_max_position: context length before extension; None if the config does not say and
            the kind does not need it.
        low_freq_factor, high_freq_factor: "llama3": wavelengths longer than original_max_position
            / low are divided by the factor, those shorter than original_max_position / high kept.
        beta_fast, beta_slow: "yarn": frequencies that turn more often than beta_fast within
            original_max_position are kept, those that turn less often than beta_slow divided.
        truncate: "yarn": the bounds of that ramp are rounded outwards to whole frequencies.
        attention_factor: what cosine and sine are multiplied with; other than 1 only for "yarn".
    """

    kind: str
    theta: float
    factor: float
    original_max_position: int | None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


class HfConfig:
    """One config.json with typed access; every error names the file and the key."""

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self.values = values
        self.source = source

    def error(self, message: str) -> ModelConfigError:
        """An error that starts with the file's name."""
        return ModelConfigError(f"{self.source}: {message}")

    def _get(self, names: tuple[str, ...]) -> tuple[str, object]:
        found = [(name, self.values[name]) for name in names if self.values.get(name) is not None]
        if len({repr(value) for _, value in found}) > 1:
            raise self.error(
                " and ".join(f"`{name}` = {value!r}" for name, value in found)
                + " contradict each other"
            )
        return found[0] if found else (names[0], _MISSING)

    def integer(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """The first of `names` that is present, an int of at least `minimum`."""
        name, value = self._get(names)
        if value is _MISSING:
            if default is None:
                others = "".join(f" (or `{other}`)" for other in names[1:])
                raise self.error(f"missing key `{name}`{others}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(f"`{name}` must be an integer >= {minimum}, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        name, value = self._get((name,))
        if value is _MISSING:
            if default is None:
                raise self.error(f"missing key `{name}`")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(f"`{name}` must be a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"`{name}` must be true or false, got {value!r}")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers; an absent key is an empty list."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(f"`{name}` must be a list of integers, got {value!r}")
        return tuple(value)

    def section(self, name: str) -> HfConfig | None:
        """A nested object, or None if the key is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(f"`{name}` must be an object, got {value!r}")
        return HfConfig(value, f"{self.source} [{name}]")

    def dtype(self) -> str:
        """Short name of the dtype that unquantized weights and activations have."""
        name, value = self._get(("dtype", "torch_dtype"))
        if value is _MISSING:
            raise self.error("missing key `dtype` (or `torch_dtype`)")
        short = _DTYPES.get(str(value).removeprefix("torch."))
        if short is None:
            raise self.error(f"`{name}` = {value!r} is not one of {', '.join(_DTYPES)}")
        return short

    def weight_dtype(self) -> str:
        """Short name of the dtype in which the checkpoint holds the linear layers."""
        quantization = self.section("quantization_config")
        if quantization is None:
            return self.dtype()
        method = quantization.values.get("quant_method")
        if method != "fp8":
            raise quantization.error(
                f"`quant_method` = {method!r} is not supported; allowed: 'fp8'"
            )
        return "fp8"

    def architecture(self, families: Mapping[str, str], model_types: Mapping[str, str]) -> str:
        """The family of the model, by its `architectures` entry or else by its `model_type`.

        Args:
            families: class name -> family.
            model_types: model_type -> family.
        """
        named = self.values.get("architectures")
        name = str(named[0]) if isinstance(named, list) and named else ""
        model_type = str(self.values.get("model_type", ""))
        family = families.get(name) or (model_types.get(model_type) if not name else None)
        if family is None:
            asked = name or model_type
            if not asked:
                raise self.error("missing key `architectures` (or `model_type`)")
            allowed = tuple(families if name else model_types)
            raise self.error(
                f"unsupported architecture {asked!r}{did_you_mean(asked, allowed)}\n"
                f"supported: {', '.join(allowed)}"
            )
        return family

    def rope(self, default_theta: float = 10_000.0) -> RopeSpec:
        """Rotary embedding from `rope_parameters` or from `rope_theta` and `rope_scaling`."""
        parameters = (
            self.section("rope_parameters")
            or self.section("rope_scaling")
            or HfConfig({}, self.source)
        )
        kind = str(parameters.values.get("rope_type") or parameters.values.get("type") or "default")
        if kind not in ("default", "linear", "dynamic", "yarn", "llama3"):
            raise parameters.error(f"rope type {kind!r} is not supported")
        parameters.reject_partial_or_varying_rope(self)
        theta = parameters.number("rope_theta", self.number("rope_theta", default_theta))
        factor = 1.0 if kind == "default" else parameters.number("factor")
        original = parameters.integer("original_max_position_embeddings", default=0, minimum=0)
        if not original and kind in ("yarn", "llama3"):
            original = self.integer("max_position_embeddings")
        spec = RopeSpec(kind, theta, factor, original or None)
        if kind == "llama3":
            return parameters.llama3_rope(spec)
        return parameters.yarn_rope(spec) if kind == "yarn" else spec

    def reject_partial_or_varying_rope(self, model: HfConfig) -> None:
        """Raise if only a part of a head is rotated, or layers differ; self is the rope section."""
        for config in (self, model):
            part = config.number("partial_rotary_factor", 1.0)
            if part != 1.0:
                raise config.error(f"`partial_rotary_factor` = {part} is not supported")
        nested = [name for name, value in self.values.items() if isinstance(value, Mapping)]
        if nested:
            raise self.error(f"a rope per kind of layer ({', '.join(nested)}) is not supported")

    def llama3_rope(self, spec: RopeSpec) -> RopeSpec:
        """`spec` with the bounds of Llama 3's ramp, from the rope section."""
        low = self.number("low_freq_factor", spec.low_freq_factor)
        high = self.number("high_freq_factor", spec.high_freq_factor)
        if low >= high:
            raise self.error(f"`low_freq_factor` = {low} must be below `high_freq_factor` = {high}")
        return replace(spec, low_freq_factor=low, high_freq_factor=high)

    def yarn_rope(self, spec: RopeSpec) -> RopeSpec:
        """`spec` with YaRN's ramp and attention factor (arXiv:2309.00071, section 3.4)."""
        fast = self.number("beta_fast", spec.beta_fast)
        slow = self.number("beta_slow", spec.beta_slow)
        if slow >= fast:
            raise self.error(f"`beta_slow` = {slow} must be below `beta_fast` = {fast}")
        attention_factor = _yarn_scale(spec.factor, 1.0)
        if self.values.get("mscale") and self.values.get("mscale_all_dim"):
            attention_factor = _yarn_scale(spec.factor, self.number("mscale", 1.0))
            attention_factor /= _yarn_scale(spec.factor, self.number("mscale_all_dim", 1.0))
        return replace(
            spec,
            beta_fast=fast,
            beta_slow=slow,
            truncate=self.flag("truncate", default=True),
            attention_factor=self.number("attention_factor", attention_factor),
        )

    def max_model_len(self, rope: RopeSpec) -> int:
        """Longest context in tokens, scaled where the rope type extends the written length.

        For "llama3" `max_position_embeddings` already is the extended length; for "yarn" it may be
        either, so the original length counts where it is given.
        """
        written = self.integer("max_position_embeddings")
        if rope.kind in ("default", "llama3"):
            return written
        if rope.kind == "yarn" and rope.original_max_position is not None:
            return round(rope.original_max_position * rope.factor)
        return round(written * rope.factor)

    def reject_sliding_window(self) -> None:
        """Raise if any layer attends to a window shorter than the context."""
        window = self.values.get("sliding_window")
        layer_types = self.values.get("layer_types")
        if isinstance(layer_types, list):
            others = sorted({str(kind) for kind in layer_types} - {"full_attention"})
            if others:
                raise self.error(f"`layer_types` with {', '.join(others)} is not supported")
        elif (
            isinstance(window, int)
            and self.flag("use_sliding_window", default=True)
            and window < self.integer("max_position_embeddings")
        ):
            raise self.error(f"`sliding_window` = {window} is not supported")


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def text_model(config: HfConfig) -> tuple[HfConfig, tuple[str, ...]]:
    """The language model of a config, and notes on what of the config is left out."""
    text = config.section("text_config")
    if text is None:
        return config, ()
    inherited = {name: config.values[name] for name in _INHERITED if name in config.values}
    towers = [name for name in config.values if name in ("vision_config", "audio_config")]
    notes = tuple(f"weights under `{name}` are not counted" for name in towers)
    return HfConfig({**inherited, **text.values}, text.source), notes


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON file that holds an object. Raises ModelConfigError that names the file."""
    try:
        values = json.loads(read_bounded(path).decode())
    except OSError as error:
        raise ModelConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelConfigError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
