"""Bugs to plant in copies of the sources, and how long the fuzzer takes to find each of them.

    workbench fuzz --mutants         (or: python tests/fuzz_mutants.py [NAME ...] [--cases DIR])

A mutant is a patch of one place of one file. Most re-plant a bug that another engine really had;
`origin` names it. A mutant that survives its ten seconds on one core is a hole in the fuzzer.
With --cases the run that found a bug is made small and kept: on the sources as they are it passes,
which makes it a regression test (`tests/fuzz_regressions`).
"""

# ruff: noqa: E501 - patches are quoted as they stand

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_S = 10.0
SEED = 1
CORE = "engine/core/"


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, the one place that reads `old` reads `new` instead."""

    name: str
    origin: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "evict-ignores-a-lock", "radix caches in general", CORE + "radix_tree.py",
        "            if node.locks or node.children or node.parent is None:\n",
        "            if node.locks > 1 or node.children or node.parent is None:\n",
    ),
    Mutant(
        "freed-by-two-paths", "sglang-jax #982", CORE + "kv_memory.py",
        "            self._deferred.append(_Deferred(until_plan, private, request.node))\n",
        "            self._deferred.append(_Deferred(until_plan, private, request.node))\n"
        "            self.pool.free(private[:1])\n",
    ),
    Mutant(
        "duplicates-freed-under-the-table", "mini-sglang PR #142", CORE + "kv_memory.py",
        "        if not cache.continues(node, ids):\n            self._insert(cache, request, ids)\n",
        "        self.pool.free(self._insert(cache, request, ids))\n",
    ),
    Mutant(
        "abort-frees-pages-in-flight", "mini-sglang PR #111", CORE + "request_book.py",
        "        until = request.last_plan_id if busy else None\n",
        "        until = request.last_plan_id if busy and request.retractions else None\n",
    ),
    Mutant(
        "hit-not-taken-off-the-prompt", "nano-vllm PR #211", CORE + "kv_memory.py",
        "        request.scheduled_tokens = request.committed_tokens = request.cached_depth\n",
        "        request.committed_tokens = request.cached_depth\n",
    ),
    Mutant(
        "published-before-it-is-written", "nano-vllm #208", CORE + "planner.py",
        "        request.last_plan_id = plan.plan_id\n        if samples:\n",
        "        request.last_plan_id = plan.plan_id\n        if samples:\n"
        "            self._kv.publish(request, request.scheduled_tokens)\n",
    ),
    Mutant(
        "evictable-counted-twice", "sglang #35270", CORE + "radix_tree.py",
        "        self.evictable_pages -= count\n        if self._listener is not None:\n",
        "        if self._listener is not None:\n",
    ),
    Mutant(
        "page-rounded-up", "sglang #38840", CORE + "radix_tree.py",
        "        return same // self.page_size * self._page_bytes\n",
        "        return (same + self.page_size // 2) // self.page_size * self._page_bytes\n",
    ),
    Mutant(
        "retracts-under-a-step-in-flight", "sglang #14972", CORE + "planner.py",
        "            if self._in_flight:\n                return False\n"
        "            if not self._memory.retract_one(now):\n                return True\n"
        "        if not batch.members:\n",
        "            if not self._memory.retract_one(now):\n                return True\n"
        "        if not batch.members:\n",
    ),
    Mutant(
        "oldest-is-retracted", "sglang PR #19881", CORE + "memory_policy.py",
        "            (request for request in running if request is not keep),\n",
        "            (request for request in running if request is not keep or len(running) > 2),\n",
    ),
    Mutant(
        "spends-more-than-the-budget", "sglang PR #30743", CORE + "planner.py",
        "        count = min(request.prefill_left, budget)\n",
        "        count = min(request.prefill_left, max(budget, 2))\n",
    ),
    Mutant(
        "head-waits-for-nobody", "vllm #45388, sglang PR #36458", CORE + "memory_policy.py",
        "        if not book.running:\n            return AdmissionBlock.NONE\n",
        "",
    ),
    Mutant(
        "token-after-the-end", "sglang #34149", CORE + "results.py",
        "            if request.epoch == epoch and isinstance(request.tokens, TokenBuffer):\n",
        "            if isinstance(request.tokens, TokenBuffer):\n",
    ),
    Mutant(
        "preempted-but-still-in-the-step", "vllm #23347", CORE + "planner.py",
        "            if request.request_id not in self._book.verifying:\n                continue\n"
        "            self._kv.grow(request, need)\n",
        "            self._kv.grow(request, need)\n",
    ),
    Mutant(
        "can-never-fit-but-queues", "vllm #39734", CORE + "memory_policy.py",
        "        if self._book.pages_promised(request) > config.num_pages:\n",
        "        if self._book.pages_promised(request) > config.num_pages + 1:\n",
    ),
    Mutant(
        "placeholders-survive-preemption", "vllm PR #46066", CORE + "request_book.py",
        "        request.pending_outputs = 0\n        request.move_to(RequestStatus.WAITING)\n",
        "        request.move_to(RequestStatus.WAITING)\n",
    ),
    Mutant(
        "freed-while-a-peer-writes", "sglang #24527", CORE + "page_pool.py",
        "        if self._lease_counts:\n            counts = self._lease_counts\n",
        "        if len(self._lease_counts) > 3:\n            counts = self._lease_counts\n",
    ),
    Mutant(
        "one-flag-for-two-transfers", "vllm #46240", CORE + "page_pool.py",
        "            if left:\n                self._lease_counts[page] = left\n                continue\n",
        "",
    ),
    Mutant(
        "a-lost-transfer-holds-for-ever", "vllm #46283", CORE + "transfers.py",
        "        return [t.transfer_id for t in self.pending.values() if t.deadline_ns <= now]\n",
        "        return []\n",
    ),
    Mutant(
        "rejected-slots-stay", "sglang PR #31616", CORE + "results.py",
        "            if rejected:\n                self._kv.shrink(\n",
        "            if rejected > 1:\n                self._kv.shrink(\n",
    ),
    Mutant(
        "tenants-share-a-tree", "caches without a salt", CORE + "kv_memory.py",
        "        return self.cache.match(request.tokens.ids(0, most), request.tenant)\n",
        "        return self.cache.match(request.tokens.ids(0, most))\n",
    ),
    Mutant(
        "split-forgets-the-locks", "radix caches in general", CORE + "radix_tree.py",
        "        upper.locks, upper.hits, upper.last_access = node.locks, node.hits, node.last_access\n",
        "        upper.hits, upper.last_access = node.hits, node.last_access\n",
    ),
    Mutant(
        "needs-every-page-never-enters", "sglang PR #36458", CORE + "memory_policy.py",
        "        if now_pages > available:\n",
        "        if now_pages >= available:\n",
    ),
    Mutant(
        "evicts-out-of-order", "radix caches in general", CORE + "radix_tree.py",
        "            if last_access != node.last_access or (self._lfu and hits != node.hits):\n",
        "            if last_access < node.last_access - 9:\n",
    ),
    Mutant(
        "no-number-stays-shared", "this project", CORE + "request_book.py",
        "                self._kv.withdraw(request)\n",
        "",
    ),
    Mutant(
        "trusted-before-its-token", "this project", CORE + "results.py",
        "            if not item.samples:\n                continue\n            self._book",
        "            self._kv.prove(request)\n"
        "            if not item.samples:\n                continue\n            self._book",
    ),
)  # fmt: skip


def copy_sources(target: Path) -> None:
    """The packages that the fuzzer needs, without anything compiled."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("engine", "simulator", "workbench"):
        shutil.copytree(ROOT / package, target / package, ignore=ignore)


def plant(mutant: Mutant, target: Path) -> str:
    """Patch the copy; returns the text that the file had.

    Raises:
        ValueError: the place is not there exactly once.
    """
    path = target / mutant.file
    text = path.read_text(encoding="utf-8")
    places = text.count(mutant.old)
    if places != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {places} such places, not one")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return text


_CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from workbench.fuzz.campaign import BLOCK_RUNS, Tally, run_block
from workbench.fuzz.machines import FAULTS
import engine
assert engine.__file__.startswith(sys.argv[1]), engine.__file__
started = time.process_time()
tally, first = Tally(), int(sys.argv[2])
while not tally.failures and time.process_time() - started < float(sys.argv[3]):
    tally.add(run_block(first, BLOCK_RUNS, FAULTS, ()))
    first += BLOCK_RUNS
took_s = time.process_time() - started
if tally.failures and sys.argv[4]:
    from pathlib import Path
    from workbench.fuzz.campaign import find_again
    from workbench.fuzz.case_file import write_case
    from workbench.fuzz.shrink import shrink
    name, seed, _ = tally.failures[0]
    begun = time.process_time()
    failure = find_again(name, seed, FAULTS)
    small = shrink(failure, lambda: time.process_time() - begun > 10)
    write_case(Path(sys.argv[4]), small, None)
print(json.dumps([took_s, sum(tally.runs.values()), tally.failures]))
"""


def hunt(
    target: Path, seed: int = SEED, seconds: float = MOST_S, case: Path | None = None
) -> tuple[float, int, str | None]:
    """Fuzz the copy; (seconds of CPU, runs, what was found or None). `case`: where to keep it."""
    environment = os.environ | {"PYTHONPATH": str(target), "WORKBENCH_NATIVE": "0"}
    ended = subprocess.run(
        [sys.executable, "-B", "-c", _CHILD, str(target), str(seed), str(seconds), str(case or "")],
        cwd=target, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    took_s, runs, failures = json.loads(ended.stdout)
    return took_s, runs, failures[0][2] if failures else None


def main(names: list[str], cases: Path | None = None) -> int:
    """Print a line per mutant and the score; 1 if one survives."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    killed: list[float] = []
    with tempfile.TemporaryDirectory(prefix="workbench-mutants-") as scratch:
        target = Path(scratch).resolve()
        copy_sources(target)
        took_s, runs, found = hunt(target, seconds=2.0)
        if found is not None:
            print(f"the sources as they are break a law: {found}")
            return 1
        print(f"{'mutant':34}{'seconds':>8}{'runs':>7}  origin")
        for mutant in chosen:
            before = plant(mutant, target)
            case = cases / f"{mutant.name}.ops.json" if cases else None
            took_s, runs, found = hunt(target, case=case)
            (target / mutant.file).write_text(before, encoding="utf-8")
            if found is not None:
                killed.append(took_s)
            verdict = f"{took_s:8.2f}" if found is not None else "survives"
            what = (found or "").split("\n")[0][:60]
            print(f"{mutant.name:34}{verdict}{runs:7}  {mutant.origin}: {what}", flush=True)
    middle = sorted(killed)[len(killed) // 2] if killed else 0.0
    print(f"{len(killed)} of {len(chosen)} killed, median {middle:.2f} s of CPU")
    return int(len(killed) < len(chosen))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    kept = None
    if "--cases" in arguments:
        at = arguments.index("--cases")
        kept = Path(arguments[at + 1]).resolve()
        kept.mkdir(parents=True, exist_ok=True)
        del arguments[at : at + 2]
    sys.exit(main(arguments, kept))
