"""What calibration learns by serving: hosts beside all kinds of steps, steps after idle times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_executor import MS, FakeClock

from engine.core.config import SchedulerConfig
from engine.core.plan import StepPlan
from engine.runtime.executor import StepOutput
from simulator.fitting.host import FEWEST_HOST
from workbench.calibration.served_times import BATCHES, Service

LAUNCH_NS, RESULT_NS, STEP_NS, TOKEN_NS = 300_000, 120_000, 5 * MS, 20_000
CONFIG = SchedulerConfig(
    num_pages=20_000, max_model_len=4096, page_size=16, max_num_batched_tokens=2048,
    max_running_requests=256, cuda_graph_batch_sizes=(1, 64, 256),
)  # fmt: skip


class Device:
    """Steps of 5 ms and more, launched in 0.3 ms, the host knows 0.12 ms after their end."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.free_ns, self.launched_ns = clock, 0, -1
        self.prompts: list[int] = []

    def launch(self, plan: StepPlan) -> Step:
        if self.clock.now <= self.launched_ns:
            self.free_ns = 0  # a new run
        self.launched_ns = self.clock.now
        self.prompts += [len(item.request.tokens) for item in plan.prefills]
        self.clock.now += LAUNCH_NS
        start = max(self.clock.now, self.free_ns)
        taken_ns = STEP_NS + TOKEN_NS * plan.prefill_tokens
        self.free_ns = start + taken_ns
        return Step(self, start, taken_ns, len(plan.sampling_requests()))


class Step:
    """One of them."""

    def __init__(self, device: Device, start_ns: int, taken_ns: int, rows: int) -> None:
        self._device, self._rows = device, rows
        self._start_ns, self._taken_ns = start_ns, taken_ns

    def is_done(self) -> bool:
        return self._device.clock.now >= self._start_ns + self._taken_ns

    def result(self) -> StepOutput:
        self._device.clock.now = max(
            self._device.clock.now, self._start_ns + self._taken_ns + RESULT_NS
        )
        return StepOutput(
            np.full(self._rows, 7, np.int32), None, None, self._start_ns, self._taken_ns
        )


def service(config: SchedulerConfig = CONFIG, tick_ns: int = 1000) -> Service:
    clock = FakeClock(tick_ns)
    return Service(Device(clock), config, clock, vocab_size=1000)


@pytest.mark.parametrize("most", [256, 16])
def test_hosts_are_seen_beside_all_kinds_of_steps(most: int) -> None:
    """Few requests and many, steps with prompts and without, prompts among those that decode."""
    host = service(replace(CONFIG, max_running_requests=most)).host_samples()
    requests, prompts = np.array(host.requests), np.array(host.prefill_requests)
    for batch in (batch for batch in BATCHES if batch <= most):
        near = (requests > 0.8 * batch) & (requests <= batch)
        assert (near & (prompts == 0)).sum() >= 3, batch
    assert ((prompts > 0) & (prompts < requests)).sum() > 10
    alone = (prompts == requests) & (prompts == 1)
    assert np.ptp(np.array(host.prefill_tokens)[alone]) > 100


def test_what_a_host_takes_and_when_it_knows_are_told_apart() -> None:
    """Launching is its own time; that a result comes late is not."""
    host = service().host_samples()
    assert set(host.host_ns) == {LAUNCH_NS}
    assert np.median(host.result_ns) == pytest.approx(RESULT_NS, abs=2000)


def test_each_idle_time_has_first_steps() -> None:
    """All of them are short prompts, alone, after about as much idling as was meant."""
    wake = service().wake_samples()
    idle = np.array(wake.idle_ns) / MS
    assert (idle > 0).all()
    for meant in (0.5, 2, 10, 50, 250):
        assert ((idle > 0.7 * meant) & (idle < 1.3 * meant + 0.2)).sum() >= 14
    assert {shape[:2] for shape in wake.shapes} == {(24, 1), (60, 1), (180, 1)}
    assert set(wake.lead_ns) == {LAUNCH_NS}
    assert set(wake.gpu_ns) == {STEP_NS + TOKEN_NS * n for n in (24, 60, 180)}


@pytest.mark.parametrize("within_s", [0.5, 2.0, 5.0])
def test_serving_takes_no_longer_than_it_may(within_s: float) -> None:
    """What is not done is given up, in equal parts; few prompts still follow each idle time."""
    made = service(replace(CONFIG, max_running_requests=16), tick_ns=20_000)
    host = made.host_samples(within_s)
    assert {1, 4, 16} <= set(host.requests)
    assert len(host) < len(made.host_samples())
    wake = made.wake_samples(within_s)
    idle = np.array(wake.idle_ns) / MS
    counts = [((idle > 0.7 * ms) & (idle < 1.3 * ms + 0.2)).sum() for ms in (0.5, 2, 10, 50, 250)]
    assert min(counts) >= 3
    taken_ns = sum(wake.idle_ns) + sum(wake.lead_ns) + sum(wake.gpu_ns)
    assert taken_ns <= 1e9 * max(within_s, 1.5)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_batched_tokens": 16, "max_running_requests": 16},
        {"max_num_batched_tokens": 100, "max_running_requests": 16},
        {"max_model_len": 16},
        {"max_model_len": 64},
        {"num_pages": 1},
        {"num_pages": 3},
        {"num_pages": 9},
        {"max_running_requests": 1},
    ],
    ids=str,
)
def test_small_engines_are_measured_too(limits: dict[str, int]) -> None:
    """What they could never serve, or not in one step, is not asked of them; all idle times are."""
    made = service(replace(CONFIG, **limits), tick_ns=20_000)
    host, wake = made.host_samples(), made.wake_samples()
    assert len(host) >= FEWEST_HOST
    idle = np.array(wake.idle_ns) / MS
    assert all(((idle > 0.7 * ms) & (idle < 1.3 * ms + 0.2)).sum() >= 3 for ms in (0.5, 2, 10, 250))
    assert all(shape[1] == 1 for shape in wake.shapes)


def test_an_engine_of_few_pages_is_not_asked_for_many_requests() -> None:
    """Hundreds that wait for each other's pages take minutes, and steps have no more of them."""
    host = service(replace(CONFIG, num_pages=60), tick_ns=20_000).host_samples()
    assert len(host) < 1000
    assert max(host.requests) >= 4
