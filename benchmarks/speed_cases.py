"""The cases of `simulate_speed.py`: what is asked of which deployment, and the goal of each.

All in-process cases serve Llama-3.1-8B with the settings that a scenario has by default (pages of
16 tokens, 8192 tokens and 256 requests a step, prefix cache, two plans in flight), unless a case
says otherwise. Requests arrive as a Poisson process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine.core.config import SchedulerConfig
from engine.core.graph_sizes import default_graph_batch_sizes
from engine.core.hardware_spec import load_hardware_spec
from engine.core.memory_plan import plan_kv_pages
from engine.core.model_spec import load_model_spec
from engine.core.workload import Workload
from simulator.roofline import RooflineCostModel
from simulator.router import RouterConfig, RouterPolicy
from simulator.world import ReplicaConfig
from workbench.workload.arrivals import poisson_arrivals
from workbench.workload.lengths import Distribution, Fixed, Lognormal
from workbench.workload.prompts import Requests, shared_prefix_requests, synthetic_requests
from workbench.workload.random_streams import Stream, generator

SEED: Final = 1
MODEL: Final = "Llama-3.1-8B"
PAGE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Experiment:
    """A workload on a deployment."""

    workload: Workload
    replicas: list[ReplicaConfig]
    router: RouterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the benchmark.

    Attributes:
        about: the load in words.
        goal: requests per minute of CPU that the run alone should reach, or None.
        goal_s: seconds of CPU that the whole process should stay under, or None.
        build: makes it, for cases that run in this process.
        scenario: arguments of `workbench simulate` with {folder} for the traces' folder, for cases
            that run the command.
    """

    about: str
    goal: int | None = None
    goal_s: float | None = None
    build: Callable[[], Experiment] | None = None
    scenario: tuple[str, ...] = ()


def replica(gpu_name: str = "h200", step_tokens: int = 8192, requests: int = 256) -> ReplicaConfig:
    """A replica whose KV memory follows from the GPU's."""
    model, gpu = load_model_spec(MODEL), load_hardware_spec(gpu_name)
    memory = plan_kv_pages(
        model,
        gpu,
        page_size=PAGE_SIZE,
        max_num_batched_tokens=step_tokens,
        max_running_requests=requests,
    )
    scheduler = SchedulerConfig(
        num_pages=memory.num_pages,
        max_model_len=model.max_model_len,
        page_size=PAGE_SIZE,
        max_num_batched_tokens=step_tokens,
        max_running_requests=requests,
        cuda_graph_batch_sizes=default_graph_batch_sizes(requests),
    )
    return ReplicaConfig(scheduler, RooflineCostModel(model, gpu))


def experiment(
    requests: Requests,
    rate: float,
    one: ReplicaConfig,
    count: int = 1,
    policy: RouterPolicy = "round_robin",
) -> Experiment:
    """Requests at a mean rate per second, on `count` replicas like `one`."""
    workload = Workload.from_lengths(
        poisson_arrivals(generator(SEED, Stream.ARRIVALS), len(requests), rate),
        requests.prompt_tokens,
        requests.output_tokens,
        segments=requests.segments,
    )
    return Experiment(workload, [one] * count, RouterConfig(policy))


def plain(count: int, rate: float, prompt: Distribution, output: Distribution) -> Experiment:
    """Requests that share no text, on one H200."""
    requests = synthetic_requests(SEED, num_requests=count, prompt_len=prompt, output_len=output)
    return experiment(requests, rate, replica())


def shared(rate: float, count: int, policy: RouterPolicy) -> Experiment:
    """100 k questions to 64 system prompts, on `count` H200s."""
    requests = shared_prefix_requests(
        SEED,
        num_requests=100_000,
        num_groups=64,
        system_prompt_len=Fixed(512),
        question_len=Lognormal(128, 64),
        output_len=Fixed(200),
        vocab_size=load_model_spec(MODEL).vocab_size,
    )
    return experiment(requests, rate, replica(), count, policy)


def hour(count: int) -> Experiment:
    """An hour of chat in the style of a production trace, on `count` A100s."""
    requests = synthetic_requests(
        SEED,
        num_requests=19_366,
        prompt_len=Lognormal(1155, 1100, max=14_000),
        output_len=Lognormal(211, 163, max=1000),
    )
    return experiment(requests, 19_366 / 3600, replica("a100", 512, 128), count)


CHAT: Final = 1_500_000
SHARED: Final = 500_000
SHARED_TEXT: Final = "64 groups, 512 + lognormal(128, 64) in, 200 out"
HOUR_TEXT: Final = (
    "19,366 requests in an hour, lognormal(1155, 1100) in, (211, 163) out, A100, chunk 512"
)
CASES: Final[dict[str, Case]] = {
    "chat": Case(
        about="600 in, 200 out, 30 req/s, 100 k requests",
        goal=CHAT,
        build=lambda: plain(100_000, 30, Fixed(600), Fixed(200)),
    ),
    "chat-10": Case(
        about="600 in, 200 out, 10 req/s, 100 k requests",
        build=lambda: plain(100_000, 10, Fixed(600), Fixed(200)),
    ),
    "reasoning": Case(
        about="300 in, 2000 out, 4 req/s, 20 k requests",
        build=lambda: plain(20_000, 4, Fixed(300), Fixed(2000)),
    ),
    "short": Case(
        about="200 in, 20 out, 100 req/s, 100 k requests",
        build=lambda: plain(100_000, 100, Fixed(200), Fixed(20)),
    ),
    "shared-prefix": Case(
        about=f"{SHARED_TEXT}, 30 req/s, 100 k requests",
        goal=SHARED,
        build=lambda: shared(30, 1, "round_robin"),
    ),
    "replicas-8": Case(
        about=f"{SHARED_TEXT}, 240 req/s, 100 k requests, 8 replicas, cache-aware router",
        build=lambda: shared(240, 8, "cache_aware"),
    ),
    "hour-1": Case(about=f"{HOUR_TEXT}, 1 replica", goal_s=5, build=lambda: hour(1)),
    "hour-4": Case(about=f"{HOUR_TEXT}, 4 replicas", goal_s=8, build=lambda: hour(4)),
    "azure": Case(
        about="Azure code trace, 8,819 requests, `workbench simulate azure_trace`",
        goal_s=3,
        scenario=("azure_trace", "--set", "workload.path={folder}/azure_llm_2023_code.csv"),
    ),
    "mooncake": Case(
        about="Mooncake synthetic trace, 3,993 requests, `workbench simulate mooncake_trace`",
        goal_s=10,
        scenario=("mooncake_trace", "--set", "workload.path={folder}/mooncake_synthetic.jsonl"),
    ),
    "mooncake-1": Case(
        about="the same on one replica",
        goal_s=10,
        scenario=(
            "mooncake_trace",
            "--set",
            "workload.path={folder}/mooncake_synthetic.jsonl",
            "--set",
            "deployment.pools.0.replicas=1",
        ),
    ),
}
