"""The loads on which simulations are compared with the engine; calibration never saw them.

On an H200 with Llama-3.1-8B a run of each takes 12 to 40 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from workbench.fidelity.errors import FidelityError

AT_ONCE: Final = "load={kind: all_at_once}"
TRACE: Final = "{trace}"  # stands in a workload for the path of the trace window
TRACE_ROWS: Final = 400  # of that window


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Attributes:
        name: of its row and, with other characters, of its files.
        workload: what is asked, as `--set` takes it.
        arrivals: when, as `--set` takes it; `{rate}` stands for requests a second, `{scale}` for
            the factor on a trace's times, such that the rate is `share` of the capacity.
        share: of the requests a second that are done when all of the workload come at once.
        more: further settings.
    """

    name: str
    workload: str
    arrivals: str = AT_ONCE
    share: float = 0.0
    more: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name as part of the name of a file."""
        return self.name.replace(" ", "_").replace("%", "percent")

    @property
    def is_of_trace(self) -> bool:
        """Whether it needs a trace file."""
        return TRACE in self.workload


_CHAT: Final = """workload={kind: synthetic, num_requests: 1000,
    prompt_len: {kind: lognormal, mean: 300, std_dev: 200, max: 2048},
    output_len: {kind: lognormal, mean: 80, std_dev: 60, max: 512}}"""
_CONVERSATIONS: Final = """workload={kind: conversation, num_conversations: 300,
    turns: {kind: uniform, min: 2, max: 6}, system_prompt_len: 1000,
    user_len: {kind: lognormal, mean: 120, std_dev: 120, max: 1024},
    output_len: {kind: lognormal, mean: 80, std_dev: 60, max: 512},
    think_time_s: {kind: uniform, min: 0, max: 2}}"""
_LONG_PROMPTS: Final = """workload={kind: synthetic, num_requests: 40,
    prompt_len: {kind: uniform, min: 4000, max: 24000},
    output_len: {kind: uniform, min: 20, max: 200}}"""
_LONG_ANSWERS: Final = """workload={kind: synthetic, num_requests: 200,
    prompt_len: {kind: uniform, min: 100, max: 500},
    output_len: {kind: uniform, min: 300, max: 900}}"""
_POISSON: Final = "load={kind: poisson, request_rate: {rate}}"
_BURSTS: Final = "load={kind: gamma, request_rate: {rate}, burstiness: 0.25}"
_IMPATIENT: Final = "aborts={fraction: 0.2, after_s: {kind: uniform, min: 0.05, max: 1}}"
_FEW_PAGES: Final = (
    "deployment.pools.0.num_pages=2500",
    "scheduler.schedule_conservativeness=0.3",
)

GPU_LOADS: Final = (
    Load("offline", _CHAT),
    Load("poisson 30 %", _CHAT, _POISSON, 0.3),
    Load("poisson 60 %", _CHAT, _POISSON, 0.6),
    Load("poisson 90 %", _CHAT, _POISSON, 0.9),
    Load("bursts", _CHAT, _BURSTS, 0.6),
    Load("conversations", _CONVERSATIONS),
    Load("long prompts", _LONG_PROMPTS, "load={kind: closed_loop, max_concurrency: 4}"),
    Load("few pages", _LONG_ANSWERS, "load={kind: closed_loop, max_concurrency: 100}",
         more=_FEW_PAGES),
    Load("impatient clients", _CHAT, _POISSON, 0.6, more=(_IMPATIENT,)),
    Load("azure code window", f"workload={{kind: trace, path: {TRACE}}}",
         "load={kind: trace, time_scale: {scale}}", 0.6),
)  # fmt: skip

_SHORT: Final = """workload={kind: shared_prefix, num_requests: 24, num_groups: 4,
    system_prompt_len: 64, question_len: {kind: lognormal, mean: 32, std_dev: 16, max: 128},
    output_len: {kind: lognormal, mean: 24, std_dev: 12, max: 64}}"""
_HASTY: Final = "aborts={fraction: 0.4, after_s: {kind: uniform, min: 0.01, max: 0.1}}"
CPU_LOADS: Final = (
    Load("offline", _SHORT),
    Load("poisson 50 %", _SHORT, _POISSON, 0.5),
    Load("two at a time", _SHORT, "load={kind: closed_loop, max_concurrency: 2}"),
    Load("impatient clients", _SHORT, _POISSON, 0.5, more=(_HASTY,)),
)


def chosen(loads: Sequence[Load], names: str | None) -> tuple[Load, ...]:
    """The loads that are named, in their own order; all of them without names.

    Args:
        loads: to choose from.
        names: separated by commas, as in the table or as in the names of files.

    Raises:
        FidelityError: there is no such load.
    """
    if names is None:
        return tuple(loads)
    wanted = {name.strip().casefold() for name in names.split(",") if name.strip()}
    found = tuple(load for load in loads if wanted & {load.name.casefold(), load.stem.casefold()})
    known = {name.casefold() for load in loads for name in (load.name, load.stem)}
    if not found or wanted - known:
        wrong = ", ".join(sorted(wanted - known)) or "nothing"
        raise FidelityError(
            f"--loads names {wrong}; there are {', '.join(load.name for load in loads)}"
        )
    return found
