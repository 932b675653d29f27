"""Which replica gets a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.core.request import Request
from simulator.replica import Replica

RouterPolicy = Literal["round_robin", "least_loaded", "cache_aware"]


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """How requests are spread.

    Attributes:
        policy: `round_robin` in turn; `least_loaded` to the fewest live requests; `cache_aware` to
            the longest cached prefix, unless the load is out of balance.
        imbalance_threshold: cache_aware falls back to least_loaded while the busiest replica has
            more than this many live requests more than the idlest.
    """

    policy: RouterPolicy = "round_robin"
    imbalance_threshold: int = 32


class Router:
    """Chooses a replica per request. Ties go to the lowest index."""

    def __init__(self, config: RouterConfig, replicas: Sequence[Replica]) -> None:
        self.config = config
        self._replicas = replicas
        self._turn = 0

    def choose(self, request: Request) -> Replica:
        """The replica that a new request goes to."""
        replicas = self._replicas
        if len(replicas) == 1:
            return replicas[0]
        if self.config.policy == "round_robin":
            replica = replicas[self._turn % len(replicas)]
            self._turn += 1
            return replica
        idlest = min(replicas, key=lambda r: r.live_requests)
        if self.config.policy == "least_loaded":
            return idlest
        busiest = max(r.live_requests for r in replicas)
        if busiest - idlest.live_requests > self.config.imbalance_threshold:
            return idlest
        if request.tokens is None:
            return idlest
        ids = request.tokens.ids(0, request.known_tokens - 1)
        cached = [r.scheduler.kv.cached_tokens(ids, request.tenant) for r in replicas]
        return max(replicas, key=lambda r: (cached[r.index], -r.live_requests, -r.index))

    def sent_elsewhere(self, index: int) -> int:
        """How many of the next requests will surely not go to replica `index`."""
        count = len(self._replicas)
        if count == 1 or self.config.policy != "round_robin":
            return 0
        return (index - self._turn) % count
