"""What the simulator predicts of a load: as it is, or with all steps a little longer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from simulator.cost_model import CostModel, Int64, StepCosts, StepFeatures, StepShape, whole_ns
from simulator.power_state import PowerFit
from simulator.waking import WakeFit
from workbench.fidelity.loads import Load
from workbench.fidelity.suite import Suite
from workbench.running.simulate import Simulation, prepare


class Longer:
    """A cost model of which every step takes a factor longer, for the GPU and for the host.

    Args:
        model: whose steps.
        factor: on all times.
    """

    def __init__(self, model: CostModel, factor: float) -> None:
        self._model, self._factor = model, factor

    @property
    def name(self) -> str:
        """Whose steps, and how much longer."""
        return f"{self._model.name}, times {self._factor:g}"

    @property
    def power(self) -> PowerFit | None:
        return self._model.power

    @property
    def wake(self) -> WakeFit | None:
        return self._model.wake

    def step_costs(self, features: StepFeatures) -> StepCosts:
        costs = self._model.step_costs(features)
        gpu_ns, host_ns = self._longer(costs.gpu_ns), self._longer(costs.host_ns)
        extra = {f"{self._factor:g} times": gpu_ns - costs.gpu_ns}
        return StepCosts(gpu_ns, host_ns, {**costs.terms, **extra}, costs.extrapolated)

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        gpu_ns, host_ns, extrapolated = self._model.step_cost(shape)
        return self._one(gpu_ns), self._one(host_ns), extrapolated

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        gpu_ns, host_ns, extrapolated = self._model.decode_run(shape, num_steps)
        return [self._one(ns) for ns in gpu_ns], self._one(host_ns), extrapolated

    def _one(self, ns: int) -> int:
        return int(ns * self._factor + 0.5)

    def _longer(self, ns: Int64) -> Int64:
        return whole_ns(ns * self._factor)


@dataclass(frozen=True, slots=True)
class Predictor:
    """One cost model's view of the loads of a suite.

    Attributes:
        suite: of which the loads are.
        profile: a profile's file, or "analytic".
    """

    suite: Suite
    profile: str

    def ready(self, load: Load, factor: float = 1.0) -> Simulation:
        """The simulation of a load, with all steps `factor` times as long.

        Raises:
            ScenarioErrors: the profile is of something else.
        """
        simulation = prepare(self.suite.loaded(load, self.profile), "none")
        if factor == 1.0:
            return simulation
        deployment = simulation.deployment
        replicas = tuple(
            replace(
                each, config=replace(each.config, cost_model=Longer(each.config.cost_model, factor))
            )
            for each in deployment.replicas
        )
        return replace(simulation, deployment=replace(deployment, replicas=replicas))

    def summary(self, load: Load, factor: float = 1.0) -> dict[str, Any]:
        """The summary of `ready`."""
        summary = self.ready(load, factor).run().summary
        if summary is None:
            raise AssertionError("a simulation that nobody stops has a summary")
        return dict(summary)

    def cost_model(self, load: Load) -> CostModel:
        """What says how long the steps of a load take."""
        return self.ready(load).deployment.replicas[0].config.cost_model
