"""What the serving loop asks of whatever carries out its plans: a GPU, a CPU, or a fake in tests.

    executor.launch(plan) -> RunningStep     queue the step and return at once
    step.is_done()                           never blocks
    step.result() -> StepOutput              blocks until the results are on the host

Steps run in the order of their launch. A step reads the tokens that earlier steps sampled from
wherever the executor keeps them, so a step may be launched before the one that feeds it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.core.plan import StepPlan


class EngineError(RuntimeError):
    """Something of the engine failed; the message is for the person who runs it."""


class StepFailedError(EngineError):
    """One step could not be carried out (out of memory, say); the executor can go on."""


class ExecutorDiedError(EngineError):
    """The device is lost: nothing can be launched any more."""


class TopLogprobs(NamedTuple):
    """The most likely tokens of each row.

    Attributes:
        token_ids: int32[rows, k], most likely first.
        logprobs: float32[rows, k].
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step brought to the host.

    Attributes:
        token_ids: int32[rows], one per `StepPlan.sampling_requests()` entry; -1 where the logits
            were not numbers.
        logprobs: float32[rows] log-probabilities of these tokens, or None if no request asked.
        top_logprobs: the most likely tokens of each row, or None if no request asked.
        start_ns: when the device began, on the clock that the executor was given.
        gpu_ns: how long it worked.
        in_launch: it worked inside `launch`, in the thread that called it: a CPU.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    top_logprobs: TopLogprobs | None
    start_ns: int
    gpu_ns: int
    in_launch: bool = False


class RunningStep(Protocol):
    """A step that was launched."""

    def is_done(self) -> bool:
        """Whether `result` would return without waiting."""
        ...

    def result(self) -> StepOutput:
        """Wait for the step; call it once.

        Raises:
            StepFailedError: it failed, and later steps may succeed.
            ExecutorDiedError: nothing will succeed any more.
        """
        ...


class Executor(Protocol):
    """Carries out plans in order."""

    def launch(self, plan: StepPlan) -> RunningStep:
        """Queue a step. Reads what it needs of the plan and its requests before it returns.

        Raises:
            StepFailedError: it could not be queued, and later steps may be.
            ExecutorDiedError: nothing can be queued any more.
        """
        ...
