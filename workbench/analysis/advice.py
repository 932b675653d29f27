"""Plain sentences on what to change, each backed by what the run shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.core.enums import AdmissionBlock
from engine.core.events import Columns
from workbench.analysis.causes import (
    DECODE_OWN,
    HOST,
    PIPELINE,
    PREFILL_OTHERS,
    PREFILL_OWN,
    QUEUE_AGAIN,
    RECOMPUTE,
    STEP_IN_FLIGHT,
    queue_cause,
)
from workbench.analysis.run_facts import pool_of, replica_values, scheduler_setting
from workbench.analysis.source import Bool, Int64, int64
from workbench.record.header import RunHeader

DOMINANT: Final = 0.2
RETRACTIONS_MATTER: Final = 0.05
# A step this many times as long as one without prefill is made of prefill: the fixed part, which
# a larger budget would spread over more tokens, is at most a quarter of it.
PREFILL_BOUND: Final = 4


@dataclass(frozen=True, slots=True)
class Evidence:
    """What advice may rest on.

    Attributes:
        header, steps: of the run.
        requests: the requests that count.
        ttft_ns, after_ns: total of each cause over them, up to the first token and after it.
        eager_launch_share: of the GPU time of decode-only steps, what launches outside CUDA Graphs
            take (0 to 1).
    """

    header: RunHeader
    steps: Columns
    requests: Columns
    ttft_ns: Mapping[str, int]
    after_ns: Mapping[str, int]
    eager_launch_share: float = 0.0

    def blocked(self, reason: AdmissionBlock) -> Bool:
        """bool[steps], where the head of the queue was held back for `reason`."""
        blocked: Bool = self.steps["block_reason"] == reason
        return blocked

    def blocked_values(self, reason: AdmissionBlock, name: str) -> str:
        """A setting of the replicas where that happened, for people."""
        replicas = np.unique(self.steps["replica"][self.blocked(reason)]).tolist()
        return replica_values(self.header, name, replicas)

    def evictable_share(self, reason: AdmissionBlock) -> float:
        """Mean share of KV pages that were free or only cached when that happened."""
        rows = np.flatnonzero(self.blocked(reason))
        pages = np.array([replica.num_pages for replica in self.header.replicas])
        spare = int64(self.steps, "free_pages")[rows] + int64(self.steps, "cached_pages")[rows]
        return float((spare / pages[self.steps["replica"][rows]]).mean()) if len(rows) else 0.0

    def retractions(self) -> int:
        """How often requests were sent back."""
        return int(self.requests["retractions"].sum())


def advise(evidence: Evidence) -> tuple[str, ...]:
    """One sentence for each cause that dominates and has a remedy, the most time first."""
    found: list[tuple[int, str]] = []
    for causes, what, rules in (
        (evidence.ttft_ns, "the TTFT", _TTFT_RULES),
        (evidence.after_ns, "the time after the first token", _DECODE_RULES),
    ):
        total = sum(causes.values())
        for group, rule in rules.items():
            ns = sum(causes.get(cause, 0) for cause in group)
            text = rule(evidence) if ns and ns >= DOMINANT * total else None
            if text is not None:
                found.append((ns, f"{ns / total:.0%} of {what} is {text}"))
    found.extend(_retractions(evidence))
    found.sort(key=lambda entry: -entry[0])
    return tuple(text for _, text in found)


def _running_limit(evidence: Evidence) -> str:
    reason = AdmissionBlock.RUNNING_LIMIT
    spare = evidence.evictable_share(reason)
    limit = evidence.blocked_values(reason, "max_running_requests")
    cause = f"queueing because max_running_requests={limit} was reached"
    if spare >= 0.1:
        return (
            f"{cause}: raise it ({spare:.0%} of the KV pages were free meanwhile; larger batches "
            "lengthen TPOT) or add a replica"
        )
    return f"{cause} with only {spare:.0%} of the KV pages free: add a replica"


def _kv_pages(evidence: Evidence) -> str:
    pages = evidence.blocked_values(AdmissionBlock.KV_PAGES, "num_pages")
    return (
        f"queueing for KV pages (num_pages={pages}): give the KV cache more memory "
        "(memory_fraction, a smaller kv_dtype, a larger tensor_parallel_size) or add a replica"
    )


def _kv_reserved(evidence: Evidence) -> str:
    cause = "queueing because KV pages were kept for running requests"
    if scheduler_setting(evidence.header, "admission") == "reserve":
        return f"{cause}: `admission: estimate` keeps less than prompt + max_tokens of each"
    now = scheduler_setting(evidence.header, "schedule_conservativeness")
    if evidence.retractions() == 0 and now is not None:
        return (
            f"{cause}: nothing was retracted, so a schedule_conservativeness below {now} "
            "would admit them earlier"
        )
    return f"{cause}: more KV memory or a replica more would admit them earlier"


def _token_budget(evidence: Evidence) -> str:
    reason = AdmissionBlock.TOKEN_BUDGET
    budget = evidence.blocked_values(reason, "max_num_batched_tokens")
    rows = np.flatnonzero(evidence.blocked(reason))
    decode = int(evidence.steps["decode_tokens"][rows].sum())
    prefill = int(evidence.steps["prefill_tokens"][rows].sum())
    prefill_share = prefill / max(prefill + decode, 1)
    cause = (
        f"queueing because max_num_batched_tokens={budget} was spent "
        f"({prefill_share:.0%} on prefill)"
    )
    cause = f"{cause}: prompts come in faster than they are prefilled"
    full, without = (_mean_ms(evidence.steps, rows), _mean_decode_ms(evidence.steps))
    if without is not None and full >= PREFILL_BOUND * without:
        return (
            f"{cause}; add a replica or a faster GPU (a larger budget would only make its steps, "
            f"{full:,.1f} ms against {without:,.1f} ms without prefill, longer still)"
        )
    return f"{cause}; raise it or add a replica"


def _mean_ms(steps: Columns, rows: Int64 | Bool) -> float:
    return float(steps["gpu_ns"][rows].mean()) / 1e6


def _mean_decode_ms(steps: Columns) -> float | None:
    """Mean GPU time of the steps without prefill; None without one."""
    without = steps["prefill_tokens"] == 0
    return _mean_ms(steps, without) if without.any() else None


def _prefill_limit(evidence: Evidence) -> str:
    limit = scheduler_setting(evidence.header, "max_prefill_tokens")
    named = "max_prefill_tokens" if limit is None else f"max_prefill_tokens={limit}"
    return f"queueing because {named} of a step were spent: raise it, or add a replica"


def _retraction(evidence: Evidence) -> str:
    return (
        "queueing while running requests were retracted: "
        f"{evidence.retractions():,} retractions; more KV memory or a replica more avoids them"
    )


def _long_steps(evidence: Evidence) -> str | None:
    steps = evidence.steps
    with_prefill, short_ms = steps["prefill_tokens"] > 0, _mean_decode_ms(steps)
    if not with_prefill.any() or short_ms is None:
        return None
    long_ms = _mean_ms(steps, with_prefill)
    if long_ms < 2 * short_ms:
        return None
    return (
        f"waiting for steps already under way, {long_ms:,.1f} ms on average with prefill and "
        f"{short_ms:,.1f} ms without: a smaller max_prefill_tokens makes them shorter"
    )


def _own_prefill(evidence: Evidence) -> str:
    prompt = int64(evidence.requests, "prompt_tokens")
    cached = int64(evidence.requests, "cached_tokens").sum() / max(int(prompt.sum()), 1)
    return (
        f"the requests' own prefill (on average {prompt.mean():,.0f} prompt tokens, {cached:.0%} "
        "from the prefix cache): a faster GPU or a larger tensor_parallel_size shortens it"
    )


def _others_prefill(_: Evidence) -> str:
    return "prefill of others in the same steps: prompts come together; a replica more spreads them"


def _host(evidence: Evidence) -> str | None:
    replicas = range(len(evidence.header.replicas))
    if all(pool_of(evidence.header, i).get("max_plans_in_flight") == 1 for i in replicas):
        return "host work that the GPU waits for: max_plans_in_flight=2 would overlap the two"
    decode_only = (evidence.steps["decode_tokens"] > 0) & (evidence.steps["prefill_tokens"] == 0)
    eager = evidence.steps["graph_batch"][decode_only] == 0
    if len(eager) and eager.mean() >= DOMINANT:
        return (
            f"host work that the GPU waits for, and {eager.mean():.0%} of the decode steps ran "
            "without a CUDA Graph: extend cuda_graph_batch_sizes"
        )
    return None


def _decode_interference(evidence: Evidence) -> str:
    if scheduler_setting(evidence.header, "mode") == "prefill_first":
        return "prefill of other requests: `mode: mixed` would keep decoding meanwhile"
    limit = scheduler_setting(evidence.header, "max_prefill_tokens")
    now = "" if limit is None else f" (now {limit})"
    return f"prefill of other requests: a smaller max_prefill_tokens{now} shortens each pause"


def _decode_pace(evidence: Evidence) -> str:
    decoding = int64(evidence.steps, "decode_requests")
    batch = decoding[decoding > 0].mean()
    if evidence.eager_launch_share >= DOMINANT:
        return (
            f"decoding (mean batch {batch:,.1f}) whose steps spend "
            f"{evidence.eager_launch_share:.0%} of their time on launching kernels without a CUDA "
            "Graph: extend cuda_graph_batch_sizes"
        )
    return (
        f"decoding at the GPU's own pace (mean batch {batch:,.1f}): fewer weight and KV bytes per "
        "token (smaller dtypes, a larger tensor_parallel_size) would speed it up"
    )


def _retractions(evidence: Evidence) -> list[tuple[int, str]]:
    phases = (evidence.ttft_ns, evidence.after_ns)
    total = sum(sum(causes.values()) for causes in phases)
    ns = sum(causes.get(cause, 0) for causes in phases for cause in (QUEUE_AGAIN, RECOMPUTE))
    if not ns or ns < RETRACTIONS_MATTER * total:
        return []
    now = scheduler_setting(evidence.header, "schedule_conservativeness")
    remedy = "more KV memory or a replica more"
    if scheduler_setting(evidence.header, "admission") == "estimate" and now is not None:
        remedy = f"a schedule_conservativeness above {now}, or {remedy},"
    tokens = int(evidence.requests["recomputed_tokens"].sum())
    price = f"{evidence.retractions():,} retractions ({tokens:,} tokens computed again)"
    text = f"{ns / total:.0%} of the E2E latency is the price of {price}: {remedy} would avoid them"
    return [(ns, text)]


_Rule = Callable[[Evidence], str | None]
# Causes that share a remedy -> what to say once they dominate together.
_TTFT_RULES: Final[dict[tuple[str, ...], _Rule]] = {
    (queue_cause(AdmissionBlock.RUNNING_LIMIT),): _running_limit,
    (queue_cause(AdmissionBlock.KV_PAGES),): _kv_pages,
    (queue_cause(AdmissionBlock.KV_RESERVED),): _kv_reserved,
    (queue_cause(AdmissionBlock.TOKEN_BUDGET),): _token_budget,
    (queue_cause(AdmissionBlock.PREFILL_LIMIT),): _prefill_limit,
    (queue_cause(AdmissionBlock.RETRACTION),): _retraction,
    (STEP_IN_FLIGHT, PIPELINE): _long_steps,
    (PREFILL_OWN,): _own_prefill,
    (PREFILL_OTHERS,): _others_prefill,
    (HOST,): _host,
}
_DECODE_RULES: Final[dict[tuple[str, ...], _Rule]] = {
    (PREFILL_OTHERS,): _decode_interference,
    (DECODE_OWN,): _decode_pace,
    (HOST,): _host,
}
