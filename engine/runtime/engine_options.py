"""The keyword arguments of `LLM` and `AsyncLLM`, shared out to the parts of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any, Final, Self

from engine.core.config import SchedulerConfig
from engine.core.dtypes import did_you_mean
from engine.core.graph_sizes import default_graph_batch_sizes
from engine.runtime.runner_config import RunnerConfig

# As torch and vLLM call them.
_LONG_NAMES: Final = {"auto": None, "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

# What both parts must agree on; the runner's word counts.
_SHARED: Final = ("page_size", "max_num_batched_tokens", "max_running_requests")
# Fields of the two that no caller sets.
_NO_OPTIONS: Final = (
    "model", "cuda_graph_tokens", "num_speculative_tokens", "transfer_timeout_ns", "check_every",
)  # fmt: skip
_OF_RUNNER: Final = [f.name for f in fields(RunnerConfig) if f.name not in _NO_OPTIONS]
_OF_SCHEDULER: Final = [
    f.name for f in fields(SchedulerConfig) if f.name not in (*_OF_RUNNER, *_NO_OPTIONS)
]
OPTION_NAMES: Final = (*_OF_RUNNER, "enforce_eager", *_OF_SCHEDULER)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a caller of `LLM` or `AsyncLLM` asks for, by keyword; every option may be left out.

    An option is a field of one of the parts, which documents it and holds its default:

        `engine.runtime.runner_config.RunnerConfig`: load_format, device, dtype, seed, page_size,
            num_pages, memory_fraction, max_num_batched_tokens, max_running_requests,
            max_model_len, cuda_graph_batch_sizes, kernels.
        `engine.core.config.SchedulerConfig`: max_prefill_tokens, chunked_prefill, policy, mode,
            admission, schedule_conservativeness, prefix_cache, eviction, max_plans_in_flight.

    Besides:

        enforce_eager: captures nothing, which starts faster and runs slower.
        cuda_graph_batch_sizes: left out or None: those of `engine.core.graph_sizes`.
        dtype: may also be "auto" (None) or a long name, "bfloat16", "float16" or "float32".

    Attributes:
        runner: the model runner's part.
        scheduler: the scheduler's part, but for what is known when the model is loaded; see
            `scheduler_for`.
    """

    runner: RunnerConfig
    scheduler: SchedulerConfig

    @classmethod
    def parse(cls, model: str | PathLike[str], options: Mapping[str, Any]) -> Self:
        """Options as they were given by name.

        Args:
            model: see `RunnerConfig`.
            options: by name, out of `OPTION_NAMES`.

        Raises:
            TypeError: one of them does not exist.
            ValueError: they do not fit together.
        """
        for name in options:
            if name not in OPTION_NAMES:
                raise TypeError(f"unknown option {name!r}{did_you_mean(name, OPTION_NAMES)}")
        runner = _runner(str(model), options)
        shared = {name: getattr(runner, name) for name in _SHARED}
        own = {name: options[name] for name in _OF_SCHEDULER if name in options}
        return cls(
            runner=runner, scheduler=SchedulerConfig(num_pages=1, max_model_len=1, **shared, **own)
        )

    def scheduler_for(
        self, num_pages: int, max_model_len: int, graph_batch_sizes: tuple[int, ...]
    ) -> SchedulerConfig:
        """The scheduler's part, with what only the loaded runner knows."""
        return replace(
            self.scheduler,
            num_pages=num_pages,
            max_model_len=max_model_len,
            cuda_graph_batch_sizes=graph_batch_sizes,
        )


def _runner(model: str, options: Mapping[str, Any]) -> RunnerConfig:
    """The model runner's part, with what keywords may leave to the engine filled in."""
    own = {name: options[name] for name in _OF_RUNNER if name in options}
    if "dtype" in own:
        own["dtype"] = _LONG_NAMES.get(own["dtype"], own["dtype"])
    sizes = own.pop("cuda_graph_batch_sizes", None)
    config = RunnerConfig(model=model, **own)
    if options.get("enforce_eager"):
        sizes = ()
    elif sizes is None:
        sizes = default_graph_batch_sizes(config.max_running_requests)
    return replace(config, cuda_graph_batch_sizes=tuple(sizes))
