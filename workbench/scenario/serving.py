"""The supply side of a scenario: the model, the hardware, their deployment and the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.core.defaults import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_RUNNING_REQUESTS,
    MEMORY_FRACTION,
    PAGE_SIZE,
)
from engine.core.graph_sizes import default_graph_batch_sizes
from workbench.scenario.base import (
    WHOLE,
    Count,
    CountOrNone,
    Problem,
    ScenarioModel,
    refusal,
    unsupported,
)
from workbench.scenario.errors import did_you_mean, listed


def _check_known(name: str, known: Sequence[str], what: str, otherwise: str = "") -> str:
    folded = {option.casefold(): option for option in known}
    if name.casefold() in folded:
        return folded[name.casefold()]
    guess = did_you_mean(name, known)
    help_ = "\n".join(filter(None, [guess, f"known: {listed(known)}", otherwise]))
    raise refusal(Problem((), "S104", f"unknown {what} `{name}`", help_))


def _check_model_name(name: str) -> str:
    from engine.core.model_spec import model_card_names

    otherwise = "any other: by `model.path`, its Hugging Face config.json"
    return _check_known(name, model_card_names(), "model", otherwise)


def _check_gpu_name(name: str) -> str:
    from engine.core.hardware_spec import gpu_names

    return _check_known(name, gpu_names(), "GPU")


Dtype = Literal["bf16", "fp16", "fp32", "fp8", "int8"]

# Instead of a profile's path: the analytic cost model. `./analytic` is a file of this name.
ANALYTIC: Final = "analytic"
WHO_WRITES_PROFILES: Final = "`workbench calibrate` writes one"


class Model(ScenarioModel):
    """Which model is served, and in which number formats. Exactly one of `name` and `path`."""

    name: Annotated[str, AfterValidator(_check_model_name)] | None = None
    """A shipped model card, in any case."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """A Hugging Face `config.json`; a relative path starts at the scenario file's folder, or, in
    `--set`, at the current one."""
    weight_dtype: Dtype | None = None
    """Number format of the linear layers; if absent, the checkpoint's own."""
    kv_dtype: Dtype | None = None
    """Number format of the KV cache; if absent, that of the model's activations."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if self.name is None and self.path is None:
            help_ = "`name`: a shipped card, or `path`: a Hugging Face config.json"
            raise refusal(Problem((), "S102", "`model` needs `name` or `path`", help_))
        if self.name is not None and self.path is not None:
            message = "`model` has both `name` and `path`"
            raise refusal(Problem(("path",), "S111", message, "keep one of them"))
        return self


class Hardware(ScenarioModel):
    """The GPUs of the deployment, all of one kind."""

    gpu: Annotated[str, AfterValidator(_check_gpu_name)]
    """Name of the GPU, in any case."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = MEMORY_FRACTION
    """Share of the GPU's memory that weights, working memory and KV cache may use together."""
    profile: Annotated[str, Field(min_length=1)] | None = None
    """What `workbench calibrate` wrote, of this model on this GPU: steps cost what it has measured.
    A relative path starts as that of `model.path`. `analytic`: the analytic cost model. If absent:
    the shipped profile that fits all pools, or else shipped kernel tables of the GPU, of which
    steps of other models are composed, or else the analytic cost model."""

    @property
    def profile_path(self) -> Path | None:
        """The profile's file, if one is named."""
        return Path(self.profile) if self.profile not in (None, ANALYTIC) else None


class Router(ScenarioModel):
    """Which replica a request is sent to."""

    policy: Literal["round_robin", "least_loaded", "cache_aware"] = "round_robin"
    """round_robin: in turn. least_loaded: fewest requests in the replica. cache_aware: the longest
    cached prefix, unless that replica is too far ahead of the least loaded one."""
    imbalance_threshold: CountOrNone = 32
    """cache_aware: the requests by which a replica may be ahead of the least loaded one."""


def _default_graphs(data: dict[str, Any]) -> tuple[int, ...]:
    return default_graph_batch_sizes(data["max_running_requests"])


def _check_graphs(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(second <= first for first, second in pairwise(sizes)):
        raise refusal(Problem((), "S105", "`cuda_graph_batch_sizes` must increase strictly"))
    return sizes


def _only_mixed(role: str) -> str:
    if role != "mixed":
        raise unsupported(f"pool role `{role}`", "use `mixed`: it prefills and decodes")
    return role


def _no_expert_parallel(size: int) -> int:
    if size > 1:
        raise unsupported(
            "expert parallelism", "use `expert_parallel_size: 1`; tensor parallelism splits experts"
        )
    return size


class Pool(ScenarioModel):
    """Replicas of one kind."""

    role: Annotated[Literal["mixed", "prefill", "decode"], AfterValidator(_only_mixed)] = "mixed"
    """mixed: prefills and decodes. prefill, decode: not supported yet."""
    replicas: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    """How many copies of the model, each with its own GPUs, KV cache and scheduler."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    """GPUs that share each layer of a replica."""
    expert_parallel_size: Annotated[
        int, Field(ge=1, le=1024), WHOLE, AfterValidator(_no_expert_parallel)
    ] = 1
    """Above 1: not supported yet."""
    num_pages: Count | None = None
    """Pages of the KV cache of a replica; if absent, what its memory holds."""
    page_size: Annotated[int, Field(ge=1, le=1024), WHOLE] = PAGE_SIZE
    """Tokens per page of the KV cache."""
    max_num_batched_tokens: Count = MAX_NUM_BATCHED_TOKENS
    """Token budget of one step, prefill and decode together."""
    max_running_requests: Annotated[int, Field(ge=1, le=65_536), WHOLE] = MAX_RUNNING_REQUESTS
    """Most requests that are prefilled or decoded at a time."""
    max_plans_in_flight: Annotated[int, Field(ge=1, le=4), WHOLE] = 2
    """Steps planned before the first of them has ended: 1 runs host and GPU in turn, 2 overlaps."""
    cuda_graph_batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65_536)], ...], AfterValidator(_check_graphs)
    ] = Field(strict=False, default_factory=_default_graphs)
    """Decode batch sizes that are captured; smaller batches are padded up, larger ones launch
    kernel by kernel. If absent: 1, 2, 4, every 8 to 256, every 16 to `max_running_requests`."""

    @model_validator(mode="after")
    def _budget_covers_batch(self) -> Pool:
        if self.max_num_batched_tokens < self.max_running_requests:
            message = (
                f"a step of {self.max_num_batched_tokens} tokens cannot decode "
                f"{self.max_running_requests} running requests"
            )
            help_ = "`max_num_batched_tokens` must be at least `max_running_requests`"
            raise refusal(Problem(("max_num_batched_tokens",), "S105", message, help_))
        return self


class Deployment(ScenarioModel):
    """Where the requests go."""

    router: Router = Router()
    """How requests are spread over the replicas of all pools."""
    pools: Annotated[tuple[Pool, ...], Field(strict=False, min_length=1, max_length=64)] = (Pool(),)
    """The pools of replicas."""


class PrefixCache(ScenarioModel):
    """The radix cache of prompt prefixes."""

    enabled: bool = True
    """Whether the KV of past requests is kept for later ones that start alike."""
    eviction: Literal["lru", "lfu"] = "lru"
    """Which cached prefix goes first when pages run out: the least recently or least often used."""


class Scheduler(ScenarioModel):
    """How a replica decides what its next step does."""

    policy: Literal["fcfs", "lpm", "priority"] = "fcfs"
    """Order of the waiting queue: first come first served, longest cached prefix, or priority,
    which also preempts."""
    mode: Literal["mixed", "prefill_first"] = "mixed"
    """mixed: a step decodes all running requests and fills its budget with prefill. prefill_first:
    a step prefills if anything waits, and decoding waits meanwhile."""
    chunked_prefill: bool = True
    """Whether a prompt may be prefilled in pieces over several steps."""
    max_prefill_tokens: Count | None = None
    """Prefill tokens per step (the chunk size); if absent, the step's whole budget."""
    admission: Literal["estimate", "reserve"] = "estimate"
    """estimate: admit by the tokens that running requests are expected to need, and retract some
    when that was too little. reserve: admit only if prompt + max_tokens fit; never retracts."""
    schedule_conservativeness: Annotated[float, Field(gt=0, le=100)] = 1.0
    """estimate: factor on the expected need; larger admits later and retracts less."""
    prefix_cache: PrefixCache = PrefixCache()
    """Reuse of the KV of past requests."""

    @model_validator(mode="after")
    def _lpm_needs_prefixes(self) -> Scheduler:
        if self.policy == "lpm" and not self.prefix_cache.enabled:
            message = "policy `lpm` orders by cached prefixes, and the prefix cache is off"
            help_ = "use `policy: fcfs`, or `prefix_cache: {enabled: true}`"
            raise refusal(Problem(("policy",), "S111", message, help_))
        return self


class Speculative(ScenarioModel):
    """Not supported yet: speculative decoding."""

    method: Literal["draft", "ngram"]
    """Who proposes the tokens."""
    num_speculative_tokens: Count = 4
    """Tokens proposed per step and request."""


class Fault(ScenarioModel):
    """Not supported yet: something that breaks during the run."""

    kind: Literal["replica_crash"]
    """What breaks."""
    at_s: Annotated[float, Field(ge=0)]
    """When, in seconds."""
    down_s: Annotated[float, Field(ge=0)]
    """For how long, in seconds."""


def _no_speculation(value: Any) -> Any:
    if value is not None:
        raise unsupported("speculative decoding", "leave `speculative` out")
    return value


def _no_faults(value: Any) -> Any:
    if value not in ([], ()):
        raise unsupported("fault injection", "leave `faults` out")
    return ()


NoSpeculative = Annotated[Speculative | None, BeforeValidator(_no_speculation)]
NoFaults = Annotated[tuple[Fault, ...], BeforeValidator(_no_faults)]
