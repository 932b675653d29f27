"""What a model runner is made from, frozen and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from engine.core.defaults import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_RUNNING_REQUESTS,
    MEMORY_FRACTION,
    PAGE_SIZE,
)

LoadFormat = Literal["auto", "dummy"]
SMALL_MODEL: Final = 100_000_000  # parameters; threads that share less work wait for each other


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """One replica of a model on one device.

    Attributes:
        model: what `engine.models.model_folder.find_model` takes: a folder in the Hugging Face
            layout, a demo model, `org/name` in the local Hugging Face cache, or, with dummy
            weights, also a model card or a file with a config.
        load_format: "auto" reads the checkpoint; "dummy" makes random weights on the device.
        device: "cuda", "cuda:1", "cpu"; None: a GPU if there is one.
        dtype: "bf16", "fp16", "fp32"; None: the model's own on a GPU, fp32 on a CPU.
        seed: of dummy weights.
        page_size: tokens per KV page.
        num_pages: KV pages; None: what fits into the memory that is measured free.
        memory_fraction: share of the device's memory that the engine may use.
        max_num_batched_tokens: most tokens of a step.
        max_running_requests: most requests in a step.
        max_model_len: longest prompt plus output; None: the model's own.
        cuda_graph_batch_sizes: decode batches that are captured; () runs everything eagerly.
        cuda_graph_tokens: numbers of tokens for which steps with prefill are captured; None: where
            launches would take longer than the GPU, if decode batches are captured, else none.
        kernels: op name -> implementation, where the default is not wanted.
    """

    model: str
    load_format: LoadFormat = "auto"
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    page_size: int = PAGE_SIZE
    num_pages: int | None = None
    memory_fraction: float = MEMORY_FRACTION
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    max_running_requests: int = MAX_RUNNING_REQUESTS
    max_model_len: int | None = None
    cuda_graph_batch_sizes: tuple[int, ...] = ()
    cuda_graph_tokens: tuple[int, ...] | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph_tokens(self) -> tuple[int, ...]:
        """`cuda_graph_tokens`, once resolved; none is larger than a step may be."""
        sizes = self.cuda_graph_tokens or ()
        return tuple(size for size in sizes if size <= self.max_num_batched_tokens)

    def __post_init__(self) -> None:
        for name in ("page_size", "max_num_batched_tokens", "max_running_requests"):
            _check_count(name, getattr(self, name))
        for name in ("num_pages", "max_model_len"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be in (0, 1], got {self.memory_fraction:g}")
        if self.load_format not in ("auto", "dummy"):
            raise ValueError(f"load_format must be auto or dummy, got {self.load_format!r}")
        for name in ("cuda_graph_batch_sizes", "cuda_graph_tokens"):
            sizes = getattr(self, name) or ()
            if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < 1):
                raise ValueError(f"{name} must be ascending and positive, got {sizes}")
        if self.dtype not in (None, "bf16", "fp16", "fp32"):
            raise ValueError(f"dtype must be bf16, fp16 or fp32, got {self.dtype!r}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
