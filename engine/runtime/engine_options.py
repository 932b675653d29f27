"""Everything that can be said about an engine, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, Final, Self

from engine.core.config import Admission, Mode, SchedulerConfig
from engine.core.dtypes import did_you_mean
from engine.core.radix_cache import Eviction
from engine.core.waiting_queue import Policy
from engine.runtime.runner_config import LoadFormat, RunnerConfig

# As torch and vLLM call them.
_LONG_NAMES: Final = {"auto": None, "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The keyword arguments of `LLM` and `AsyncLLM`.

    Attributes:
        model, load_format, device, dtype, seed, page_size, num_pages, memory_fraction,
            max_num_batched_tokens, max_running_requests, max_model_len, kernels: see
            `engine.runtime.runner_config.RunnerConfig`.
        cuda_graph_batch_sizes: decode batches that are captured; None: `default_graph_batch_sizes`.
        enforce_eager: capture nothing, which starts faster and runs slower.
        prefix_cache, eviction, max_prefill_tokens, chunked_prefill, policy, mode, admission,
            schedule_conservativeness, max_plans_in_flight: see
            `engine.core.config.SchedulerConfig`.
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
    kernels: Mapping[str, str] = field(default_factory=dict)
    cuda_graph_batch_sizes: tuple[int, ...] | None = None
    enforce_eager: bool = False
    prefix_cache: bool = True
    eviction: Eviction = "lru"
    max_prefill_tokens: int | None = None
    chunked_prefill: bool = True
    policy: Policy = "fcfs"
    mode: Mode = "mixed"
    admission: Admission = "estimate"
    schedule_conservativeness: float = 1.0
    max_plans_in_flight: int = 2

    @classmethod
    def parse(cls, model: str | PathLike[str], options: Mapping[str, Any]) -> Self:
        """Options as they were given by name.

        Raises:
            TypeError: one of them does not exist.
        """
        known = tuple(f.name for f in fields(cls) if f.name != "model")
        for name in options:
            if name not in known:
                raise TypeError(f"unknown option {name!r}{did_you_mean(name, known)}")
        return cls(model=str(model), **options)

    @property
    def graph_batch_sizes(self) -> tuple[int, ...]:
        """Decode batches that are captured."""
        if self.enforce_eager:
            return ()
        if self.cuda_graph_batch_sizes is None:
            return default_graph_batch_sizes(self.max_running_requests)
        return tuple(self.cuda_graph_batch_sizes)

    def runner(self) -> RunnerConfig:
        """The model runner's part."""
        return RunnerConfig(
            model=self.model,
            load_format=self.load_format,
            device=self.device,
            dtype=_LONG_NAMES.get(self.dtype or "auto", self.dtype),
            seed=self.seed,
            page_size=self.page_size,
            num_pages=self.num_pages,
            memory_fraction=self.memory_fraction,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_running_requests=self.max_running_requests,
            max_model_len=self.max_model_len,
            cuda_graph_batch_sizes=self.graph_batch_sizes,
            kernels=self.kernels,
        )

    def scheduler(
        self, num_pages: int, max_model_len: int, graph_batch_sizes: tuple[int, ...]
    ) -> SchedulerConfig:
        """The scheduler's part, with what only the runner knows."""
        return SchedulerConfig(
            num_pages=num_pages,
            max_model_len=max_model_len,
            page_size=self.page_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_running_requests=self.max_running_requests,
            max_prefill_tokens=self.max_prefill_tokens,
            chunked_prefill=self.chunked_prefill,
            policy=self.policy,
            mode=self.mode,
            admission=self.admission,
            schedule_conservativeness=self.schedule_conservativeness,
            prefix_cache=self.prefix_cache,
            eviction=self.eviction,
            max_plans_in_flight=self.max_plans_in_flight,
            cuda_graph_batch_sizes=graph_batch_sizes,
        )


def default_graph_batch_sizes(max_running_requests: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, then every 16 up to 1,024, as far as requests may run."""
    limit = min(max_running_requests, 1024)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 1025, 16)]
    return (*(size for size in sizes if size < limit), limit)
