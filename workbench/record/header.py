"""The header of a run: every resolved fact without which two runs cannot be compared."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal

import msgspec

FORMAT_VERSION: Final = 2
DEFAULT_PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9)

Status = Literal["running", "complete", "interrupted", "failed"]
STATUS_TEXTS: Final[dict[Status, str]] = {
    "running": "still running, or killed",
    "complete": "complete",
    "interrupted": "interrupted",
    "failed": "failed",
}


class ReplicaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica was given; the index in `RunHeader.replicas` is its number in the tables.

    Attributes:
        num_pages: KV pages in its pool.
        page_size: tokens per page.
        max_num_batched_tokens: token budget of a step.
        max_running_requests: requests in the batch at most.
        tensor_parallel_size: GPUs of the replica.
        role: mixed, prefill or decode.
        max_model_len: longest prompt and output together, in tokens.
    """

    num_pages: int
    page_size: int
    max_num_batched_tokens: int
    max_running_requests: int
    tensor_parallel_size: int = 1
    role: str = "mixed"
    max_model_len: int | None = None


class LoadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How requests were offered: `kind` as in the scenario, `request_rate` in requests per s."""

    kind: str
    request_rate: float | None = None
    burstiness: float | None = None
    max_concurrency: int | None = None

    def wants_before_sending(self) -> bool:
        """Whether a request can be wanted before it is sent; a closed loop wants it only then."""
        return self.kind != "closed_loop"


class MeasureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests count.

    The first `warmup_requests` by arrival are left out, then those that arrive outside
    [window_start_s, window_end_s) seconds of the run.
    """

    warmup_requests: int = 0
    window_start_s: float | None = None
    window_end_s: float | None = None
    percentiles: tuple[float, ...] = DEFAULT_PERCENTILES


class SloFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The service-level objective of a request, in ms; None asks nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def given(self) -> bool:
        """Whether anything is asked at all."""
        return not (self.ttft_ms is None and self.tpot_ms is None and self.e2el_ms is None)


class InputFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the scenario names, as it was when the run read it.

    Attributes:
        path: absolute.
        sha256: of its content, in hex.
    """

    path: str
    sha256: str


class ForkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run left the one that it repeats, and what was changed there.

    Attributes:
        run: directory name of the run that was repeated.
        replica, step: the first step of that replica that was planned with the changes.
        t_ns: when.
        changes: dotted key of the scenario -> (before, after); empty if nothing was changed.
    """

    run: str
    replica: int
    step: int
    t_ns: int
    changes: dict[str, tuple[Any, Any]]


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a run, resolved before it starts; the last four fields are the record's own.

    Attributes:
        name: of the scenario.
        kind: who executed the plans.
        detail: name of `engine.core.events.Detail`, in lower case.
        seed: all randomness of the run derives from it.
        model, gpu: names.
        cost_model: who said how long steps take, e.g. "analytic, uncalibrated".
        replicas: one entry per replica, in the order of the tables' replica numbers.
        load, measure, slo: what `workbench.metrics.run_metrics` needs of the scenario.
        scenario: the whole resolved scenario; of a fork, with its changes. A simulation without a
            profile says `hardware.profile: analytic`, whoever chose that.
        scenario_sha256: `scenario_digest(scenario)`.
        commit: of the source tree, where it is one.
        version, python_version, numpy_version: of the workbench and what it ran on.
        inputs: dotted key of the scenario -> the file that it names, or that was chosen for it.
        forks: the changes on the way from the first run to this one, oldest first; () is no fork.
        notes: remarks about the workload, for people.
        cost_model_notes: what restricts what `cost_model` says, for people.
        engine: of an engine's run: what the runner that carried it out consists of.
        format: version of the record format.
        status: "running" until the record is finished.
        status_reason: why it was interrupted or failed.
        segments: number of segment files, once finished.
        rows: rows of each table, once finished.
    """

    name: str
    kind: Literal["simulation", "engine"]
    detail: Literal["none", "steps", "items", "pages"]
    seed: int
    model: str
    gpu: str
    cost_model: str
    replicas: tuple[ReplicaFacts, ...]
    load: LoadFacts
    measure: MeasureFacts = MeasureFacts()
    slo: SloFacts = SloFacts()
    scenario: dict[str, Any] = {}
    scenario_sha256: str = ""
    commit: str | None = None
    version: str = ""
    python_version: str = ""
    numpy_version: str = ""
    inputs: dict[str, InputFacts] = {}
    forks: tuple[ForkFacts, ...] = ()
    notes: tuple[str, ...] = ()
    cost_model_notes: tuple[str, ...] = ()
    engine: dict[str, Any] = {}
    format: int = FORMAT_VERSION
    status: Status = "running"
    status_reason: str | None = None
    segments: int | None = None
    rows: dict[str, int] | None = None

    def num_gpus(self) -> int:
        """GPUs of the whole deployment."""
        return sum(replica.tensor_parallel_size for replica in self.replicas)

    def how_it_ended(self) -> str:
        """A clause about the run, such as "the run failed: the disk is full"."""
        reason = self.status_reason or ""
        if self.status == "interrupted" and reason.startswith("interrupted"):
            return f"the run was {reason}"
        return f"the run {_CLAUSES[self.status]}" + (f": {reason}" if reason else "")


_CLAUSES: Final[dict[Status, str]] = {
    "running": "is still running, or was killed",
    "complete": "is complete",
    "interrupted": "was interrupted",
    "failed": "failed",
}


class _FormatOnly(msgspec.Struct):
    format: int


class HeaderError(ValueError):
    """A header cannot be understood; the message says why."""


def encode_header(header: RunHeader) -> bytes:
    """JSON, indented for people, keys in the order of `RunHeader`."""
    return msgspec.json.format(msgspec.json.encode(header), indent=2) + b"\n"


def decode_header(data: bytes) -> RunHeader:
    """Read a header; unknown fields are ignored, so that older readers follow small additions.

    Raises:
        HeaderError: not JSON, not a header, or of a newer format than this code knows.
    """
    try:
        version = msgspec.json.decode(data, type=_FormatOnly).format
        if version > FORMAT_VERSION:
            raise HeaderError(
                f"it has format {version} and this workbench reads up to {FORMAT_VERSION}; "
                "update the workbench"
            )
        return msgspec.json.decode(data, type=RunHeader)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise HeaderError(f"it is no run header ({error})") from error


def scenario_digest(scenario: dict[str, Any]) -> str:
    """SHA-256 of the resolved scenario as canonical JSON (sorted keys, no blanks)."""
    text = json.dumps(scenario, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
