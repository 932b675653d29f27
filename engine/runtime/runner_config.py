"""What a model runner is made from, frozen and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LoadFormat = Literal["auto", "dummy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """One replica of a model on one device.

    Attributes:
        model: a folder in the Hugging Face layout, `org/name` in the local Hugging Face cache, or,
            with dummy weights, also a model card's name.
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
        kernels: op name -> implementation, where the default is not wanted.
    """

    model: str
    load_format: LoadFormat = "auto"
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    page_size: int = 16
    num_pages: int | None = None
    memory_fraction: float = 0.9
    max_num_batched_tokens: int = 8192
    max_running_requests: int = 256
    max_model_len: int | None = None
    cuda_graph_batch_sizes: tuple[int, ...] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one = ("page_size", "max_num_batched_tokens", "max_running_requests")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_pages", "max_model_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be in (0, 1], got {self.memory_fraction:g}")
        if self.load_format not in ("auto", "dummy"):
            raise ValueError(f"load_format must be auto or dummy, got {self.load_format!r}")
        if self.dtype not in (None, "bf16", "fp16", "fp32"):
            raise ValueError(f"dtype must be bf16, fp16 or fp32, got {self.dtype!r}")
