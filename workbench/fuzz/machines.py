"""All machines, and which of them a seed stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from workbench.fuzz import cache_machine, cluster_machine, scheduler_machine, world_machine
from workbench.fuzz.draws import draw
from workbench.fuzz.machine import Machine

MACHINES: Final[Mapping[str, Machine]] = {
    module.MACHINE.name: module.MACHINE
    for module in (cache_machine, scheduler_machine, cluster_machine, world_machine)
}
FAULTS: Final = frozenset().union(*(machine.faults for machine in MACHINES.values()))
_SHARES: Final = {"cache": 8, "scheduler": 4, "cluster": 1, "world": 1}  # of seeds


def machine_of(seed: int, names: Sequence[str] = ()) -> Machine:
    """The machine that a seed runs, among those named (none named: all)."""
    wheel = [name for name in names or tuple(MACHINES) for _ in range(_SHARES[name])]
    return MACHINES[wheel[draw(seed, 0) % len(wheel)]]
