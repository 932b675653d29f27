"""An executor whose steps are done later than when they are launched, as a GPU's are.

On a CPU a step is done when `launch` returns, so two plans are never in flight. Behind this wrapper
they are: the step has been computed, but nobody is told before they have asked often enough.
"""

from __future__ import annotations

from random import Random

from engine.core.plan import StepPlan
from engine.runtime.executor import Executor, RunningStep, StepOutput


class LateExecutor:
    """Wraps an executor.

    Args:
        executor: does the work.
        denials: how often a step denies that it is done.
        coin: in place of that, 0 to 3 times at random.

    Attributes:
        most_in_flight: steps that were launched and not taken, at most.
    """

    def __init__(self, executor: Executor, denials: int = 1, coin: Random | None = None) -> None:
        self.most_in_flight = 0
        self.in_flight = 0
        self._executor = executor
        self._denials, self._coin = denials, coin

    def launch(self, plan: StepPlan) -> RunningStep:
        denials = self._denials if self._coin is None else self._coin.randint(0, 3)
        step = LateStep(self, self._executor.launch(plan), denials)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return step


class LateStep:
    """A step that says so many times that it is not done."""

    def __init__(self, owner: LateExecutor, step: RunningStep, denials: int) -> None:
        self._owner, self._step, self._denials = owner, step, denials

    def is_done(self) -> bool:
        self._denials -= 1
        return self._denials < 0 and self._step.is_done()

    def result(self) -> StepOutput:
        self._owner.in_flight -= 1
        return self._step.result()
