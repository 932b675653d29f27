"""A scenario's deployment with everything resolved: shapes, memory, scheduler settings, costs.

What physics forbids is an error of the scenario, with the arithmetic, like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.core.config import SchedulerConfig
from engine.core.hardware_spec import HardwareSpec, UnsupportedGpuDtypeError, load_hardware_spec
from engine.core.hf_config import ModelConfigError
from engine.core.memory_plan import MemoryPlan, MemoryPlanError, plan_kv_pages
from engine.core.model_spec import ModelSpec, TensorParallelError, load_model_spec
from simulator.cost_model import CostModel
from simulator.profile import CPU, Profile, ProfileError
from simulator.roofline import RooflineCostModel
from simulator.router import RouterConfig
from simulator.world import ReplicaConfig
from workbench.record.header import ReplicaFacts
from workbench.running.capacity import Capacity
from workbench.running.profile_match import (
    OtherProfileError,
    Wanted,
    find_shipped,
    holds_pages_of,
    nearest_shipped,
)
from workbench.running.profile_remarks import remarks
from workbench.running.step_times import Measured, find_kernels, measured_cost_model, read_measured
from workbench.scenario.errors import ScenarioError, ScenarioErrors
from workbench.scenario.schema import Pool, Scenario
from workbench.scenario.serving import WHO_WRITES_PROFILES
from workbench.scenario.source import LoadedScenario


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of the deployment.

    Attributes:
        config: how it schedules and what its steps cost.
        facts: the same for the header of the run.
        memory: where the memory of each of its GPUs goes.
        host_is_device: a CPU computes while it launches, so it plans after each step, whatever the
            scenario says.
    """

    config: ReplicaConfig
    facts: ReplicaFacts
    memory: MemoryPlan
    host_is_device: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """Replicas behind a router, all of one model on one kind of GPU.

    Attributes:
        profile: the file that says how long steps take, a profile or kernel tables; None: the
            analytic cost model does.
        cost_model_notes: what restricts what that file says.
    """

    model: ModelSpec
    gpu: HardwareSpec
    replicas: tuple[Replica, ...]
    router: RouterConfig
    profile: Path | None
    cost_model_notes: tuple[str, ...] = ()

    @property
    def capacity(self) -> Capacity:
        """How long a request may be that every replica can serve."""
        return Capacity(
            self.model.name,
            self.model.max_model_len,
            tuple(replica.facts for replica in self.replicas),
            min(replica.config.scheduler.prefill_budget for replica in self.replicas),
        )

    @property
    def cost_model_name(self) -> str:
        """Who says how long steps take."""
        return self.replicas[0].config.cost_model.name


def resolve_deployment(loaded: LoadedScenario) -> Deployment:
    """The deployment of a scenario.

    Raises:
        ScenarioErrors: a model that cannot be read, does not divide over its GPUs or does not fit
            them, for every pool that has this fault; a profile that is none, or of something else.
    """
    scenario = loaded.scenario
    try:
        model = load_model_spec(scenario.model.name or str(scenario.model.path))
    except ModelConfigError as error:
        message, _, supported = str(error).partition("\n")
        wrong = loaded.error(("model", "path"), "S203", message, supported)
        raise ScenarioErrors([wrong]) from None
    gpu = load_hardware_spec(scenario.hardware.gpu)
    profile_path, profile = _profile(loaded, model, gpu)
    replicas: list[Replica] = []
    errors: list[ScenarioError] = []
    for index, pool in enumerate(scenario.deployment.pools):
        path = ("deployment", "pools", index)
        try:
            replicas += [_replica(scenario, model, gpu, pool, profile)] * pool.replicas
        except _NoRoomError as error:
            help_ = error.help(index)
            errors.append(loaded.error((*path, "num_pages"), "S201", str(error), help_))
        except MemoryPlanError as error:
            summary, _, arithmetic = str(error).partition("\n")
            errors.append(loaded.error(("hardware", "gpu"), "S201", summary, arithmetic))
        except TensorParallelError as error:
            errors.append(loaded.error((*path, "tensor_parallel_size"), "S202", str(error)))
        except UnsupportedGpuDtypeError as error:
            errors.append(loaded.error(("model", "weight_dtype"), "S204", str(error)))
        except OtherProfileError as error:
            errors.append(loaded.error(("hardware", "profile"), "S211", str(error), error.help))
    if errors:
        raise ScenarioErrors(errors)
    notes = () if profile is None else remarks(profile)
    return Deployment(model, gpu, tuple(replicas), router_config(scenario), profile_path, notes)


def router_config(scenario: Scenario) -> RouterConfig:
    """What a scenario tells the router."""
    wish = scenario.deployment.router
    return RouterConfig(wish.policy, wish.imbalance_threshold)


class _NoRoomError(Exception):
    """More pages are asked for than the memory holds, or than the engine of a profile had."""

    def __init__(
        self, num_pages: int, most: int, memory: MemoryPlan, counted: Profile | None
    ) -> None:
        super().__init__(f"{num_pages:,} pages do not fit, {most:,} do")
        self._most, self._memory, self._counted = most, memory, counted

    def help(self, pool: int) -> str:
        """Where the limit comes from, and what to set for the pool of this number."""
        if self._counted is None:
            return "\n".join(self._memory.lines())
        return (
            f"profile {self._counted.name} is of an engine that had {self._most:,} pages:\n"
            f"`--set deployment.pools.{pool}.num_pages={self._most}` simulates as many"
        )


def _profile(
    loaded: LoadedScenario, model: ModelSpec, gpu: HardwareSpec
) -> tuple[Path, Measured] | tuple[None, None]:
    """The file that a scenario names, or else the shipped one that fits all its pools."""
    hardware = loaded.scenario.hardware
    try:
        if hardware.profile is None:
            help_ = "`hardware.profile: analytic` does without"
            path = _shipped(loaded.scenario, model, gpu)
        else:
            help_ = WHO_WRITES_PROFILES
            path = hardware.profile_path
        return (path, _measured(path)) if path else (None, None)
    except ProfileError as error:
        known = "`workbench calibrate" in str(error)  # of another version; it says what to do
        wrong = loaded.error(("hardware", "profile"), "S211", str(error), "" if known else help_)
        raise ScenarioErrors([wrong]) from None


def _measured(path: Path) -> Measured:
    """What is in a file, if it knows all kinds of steps that a scenario has.

    Raises:
        ProfileError: it does not, or as `read_measured`.
    """
    measured = read_measured(path)
    if isinstance(measured, Profile) and measured.fit.mixed is None:
        raise ProfileError(
            f"{path} is of decode steps alone, without any with prompts, which every scenario has: "
            "the same `workbench calibrate` again measures them, too"
        )
    return measured


def _shipped(scenario: Scenario, model: ModelSpec, gpu: HardwareSpec) -> Path | None:
    """The profile of the very model, or else kernels to compose it of, or else None."""
    pools = scenario.deployment.pools
    if len({pool.page_size for pool in pools}) > 1:
        return None  # whatever was measured is of one
    wanted = _wanted(scenario, model, gpu, pools[0])
    one_size = len({pool.tensor_parallel_size for pool in pools}) == 1
    return (find_shipped(wanted) if one_size else None) or find_kernels(wanted)


def profile_notes(loaded: LoadedScenario, deployment: Deployment) -> tuple[str, ...]:
    """Why a scenario that names no profile has analytic step times though one of its model ships.

    Raises:
        ProfileError: a shipped file is no profile.
    """
    scenario = loaded.scenario
    if scenario.hardware.profile is not None or deployment.profile is not None:
        return ()
    pool = scenario.deployment.pools[0]
    near = nearest_shipped(_wanted(scenario, deployment.model, deployment.gpu, pool))
    if near is None:
        return ()
    name, wrong = near
    why = f"is of {'; of '.join(wrong)}" if wrong else "does not fit all pools"
    because = f"step times are analytic, because the profile {name} {why}"
    return (f"{because}: compare with runs that say hardware.profile=analytic",)


def _wanted(scenario: Scenario, model: ModelSpec, gpu: HardwareSpec, pool: Pool) -> Wanted:
    dtypes = _dtypes(scenario, model)
    return Wanted(model, gpu, pool.tensor_parallel_size, dtypes, pool.page_size)


def _dtypes(scenario: Scenario, model: ModelSpec) -> tuple[str, str]:
    """Number formats of the weights and of the KV cache."""
    wish = scenario.model
    return wish.weight_dtype or model.weight_dtype, wish.kv_dtype or model.dtype


def _replica(
    scenario: Scenario, model: ModelSpec, gpu: HardwareSpec, pool: Pool, profile: Measured | None
) -> Replica:
    memory = memory_of(scenario, model, gpu, pool)
    costs = _costs(scenario, model, gpu, pool, profile)
    counted, share = None, scenario.hardware.memory_fraction
    if isinstance(profile, Profile) and holds_pages_of(profile, pool, share):
        counted = profile  # its engine has counted them, we only estimate
    most = memory.num_pages if counted is None else counted.engine.num_pages
    num_pages = pool.num_pages or most
    if num_pages > most:
        raise _NoRoomError(num_pages, most, memory, counted)
    facts = replica_facts(pool, num_pages, model.max_model_len)
    on_cpu = profile is not None and profile.identity.gpu == CPU
    scheduler = scheduler_config(
        scenario,
        pool,
        num_pages=num_pages,
        max_model_len=model.max_model_len,
        host_is_device=on_cpu,
    )
    return Replica(ReplicaConfig(scheduler, costs), facts, memory, on_cpu)


def replica_facts(pool: Pool, num_pages: int, max_model_len: int) -> ReplicaFacts:
    """What the header of a run says of a replica."""
    return ReplicaFacts(
        num_pages=num_pages,
        page_size=pool.page_size,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        max_running_requests=pool.max_running_requests,
        tensor_parallel_size=pool.tensor_parallel_size,
        role=pool.role,
        max_model_len=max_model_len,
    )


def memory_of(scenario: Scenario, model: ModelSpec, gpu: HardwareSpec, pool: Pool) -> MemoryPlan:
    """Where the memory of a GPU of a pool goes. Raises as `plan_kv_pages`."""
    return plan_kv_pages(
        model,
        gpu,
        page_size=pool.page_size,
        tensor_parallel_size=pool.tensor_parallel_size,
        weight_dtype=scenario.model.weight_dtype,
        kv_dtype=scenario.model.kv_dtype,
        memory_fraction=scenario.hardware.memory_fraction,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        max_running_requests=pool.max_running_requests,
    )


def scheduler_config(
    scenario: Scenario,
    pool: Pool,
    *,
    num_pages: int,
    max_model_len: int,
    host_is_device: bool = False,
) -> SchedulerConfig:
    """What a scenario tells the schedulers of a pool; `host_is_device` as in `Replica`."""
    wish = scenario.scheduler
    return SchedulerConfig(
        num_pages=num_pages,
        max_model_len=max_model_len,
        page_size=pool.page_size,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        max_running_requests=pool.max_running_requests,
        max_prefill_tokens=wish.max_prefill_tokens,
        chunked_prefill=wish.chunked_prefill,
        policy=wish.policy,
        mode=wish.mode,
        admission=wish.admission,
        schedule_conservativeness=wish.schedule_conservativeness,
        prefix_cache=wish.prefix_cache.enabled,
        eviction=wish.prefix_cache.eviction,
        max_plans_in_flight=1 if host_is_device else pool.max_plans_in_flight,
        cuda_graph_batch_sizes=pool.cuda_graph_batch_sizes,
    )


def _costs(
    scenario: Scenario, model: ModelSpec, gpu: HardwareSpec, pool: Pool, profile: Measured | None
) -> CostModel:
    if profile is not None:
        return measured_cost_model(profile, _wanted(scenario, model, gpu, pool))
    return RooflineCostModel(
        model,
        gpu,
        tensor_parallel_size=pool.tensor_parallel_size,
        weight_dtype=scenario.model.weight_dtype,
        kv_dtype=scenario.model.kv_dtype,
    )
