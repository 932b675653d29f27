"""The file of a hardware profile, and what keeps one from being used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from simulator.cost_model import StepShape
from simulator.measured_file import encode_checked, read_measured_bytes
from simulator.power_state import PowerFit
from simulator.profile import (
    OLDER,
    SCHEMA,
    DecodeTable,
    Fit,
    HostFit,
    Profile,
    ProfileError,
    SharedFit,
)
from simulator.samples import samples_problem
from simulator.waking import WakeFit

_NO_FIT: Final = Fit(
    decode=(),
    mixed=None,
    host=HostFit(step_ns=0.0, request_ns=0.0, prefill_request_ns=0.0, prefill_token_ns=0.0),
    limits={},
    residuals=(),
)
# Kind of schema -> what it is, and what to give instead.
_NO_PROFILES: Final = {
    "kernels": (
        "holds kernel tables, of no model in particular, and is no profile: give one of a model, "
        "which `workbench calibrate --model` writes"
    ),
    "exchange": (
        "holds what GPUs exchange, and nothing of a model's steps: give a profile, or the kernel "
        "tables beside it, which take it up when `workbench calibrate --kernels` writes them or "
        "--refit does"
    ),
}
_SLOWEST: Final = 9.0  # no GPU lowers its clocks to less than a tenth


class _Header(msgspec.Struct):
    """What is read first: complaints about the fields of another schema would mislead."""

    schema: str


def read_profile(path: Path, *, to_refit: bool = False) -> Profile:
    """The profile in a file.

    Args:
        path: of the file.
        to_refit: only its samples are wanted, so an older one will do, and its fit is left out.

    Raises:
        ProfileError: it is not there, is no profile, or one of another version.
    """
    return _decode(read_measured_bytes(path), str(path), to_refit=to_refit)


def encode_profile(profile: Profile) -> bytes:
    """A profile as JSON, indented.

    Raises:
        ProfileError: it could not be read again.
    """
    return encode_checked(profile, lambda data: _decode(data, profile.name))


def _decode(data: bytes, name: str, *, to_refit: bool = False) -> Profile:
    """The profile in `data`, complained of by `name`."""
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema != SCHEMA and not (to_refit and schema in OLDER):
            raise ProfileError(f"{name} {_other_schema(schema, name)}")
        if to_refit:
            content = msgspec.json.decode(data, type=dict[str, Any])
            profile = msgspec.convert({**content, "fit": msgspec.to_builtins(_NO_FIT)}, Profile)
        else:
            profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{name} is not a profile: {error}") from None
    problem = samples_problem(
        profile.samples,
        profile.host_samples,
        profile.power_samples,
        profile.wake_samples,
        profile.hot_samples,
    )
    problem = problem or (None if to_refit else _problem(profile))
    if problem:
        raise ProfileError(f"{name}: {problem}")
    return profile


def _other_schema(schema: str, name: str) -> str:
    """What a file of another schema is instead of a profile, and what to do."""
    kind = schema.rpartition("/v")[0]
    if kind in _NO_PROFILES:
        return _NO_PROFILES[kind]
    return f"is {schema!r}, this version reads {SCHEMA!r}: {_way_out(schema, name)}"


def _way_out(schema: str, name: str) -> str:
    """What to do with a profile of another version."""
    if schema in OLDER:
        return f"`workbench calibrate --refit {name}` fits it anew"
    kind, _, number = schema.rpartition("/v")
    own_kind, _, own_number = SCHEMA.rpartition("/v")
    if kind == own_kind and number.isdecimal() and int(number) > int(own_number):
        return "a newer version wrote it; use that one, or `workbench calibrate` again"
    return "`workbench calibrate` measures anew"


def _problem(profile: Profile) -> str | None:
    """What makes predictions of a profile meaningless, if anything does."""
    fit = profile.fit
    if not fit.decode and fit.mixed is None:
        return "it predicts nothing"
    for name, sizes in (
        ("its graph batch sizes", profile.engine.graph_batch_sizes),
        ("its graph tokens", profile.engine.graph_tokens),
        ("the graph batches of its decode tables", [t.graph_batch for t in fit.decode]),
    ):
        if np.any(np.diff(sizes) <= 0):
            return f"{name} do not ascend"
    for table in fit.decode:
        if problem := _decode_problem(table):
            return problem
    if fit.mixed is not None:
        problem = _table_problem(fit.mixed.tokens, fit.mixed.ns)
        if problem:
            return f"the table of tokens {problem}"
        problem = _table_problem(fit.mixed.decode_context, fit.mixed.decode_context_ns)
        if problem:
            return f"the table of decode_context {problem}"
    if problem := _shared_problem(fit.shared):
        return f"the table of shared context {problem}"
    if problem := _clocks_problem(fit.power, profile.engine.graph_tokens):
        return f"the table of slowdowns {problem}"
    if fit.wake is not None and (problem := _wake_problem(fit.wake)):
        return f"the table of idle times {problem}"
    unknown = sorted(set(fit.limits) - set(StepShape._fields))
    if unknown:
        return f"it limits {unknown[0]!r}, which is no feature of a step"
    return None


def _shared_problem(fit: SharedFit) -> str | None:
    if problem := _table_problem(fit.shared, fit.saved):
        return problem
    if len(fit.requests) != len(fit.times):
        return f"has {len(fit.requests)} numbers of requests and {len(fit.times)} values"
    if np.any(np.diff(fit.requests) <= 0):
        return "has numbers of requests that do not ascend"
    if fit.shared[0] or fit.saved[0]:
        return "does not begin with nothing"
    most = max(fit.times, default=1.0)
    steepest = most * (fit.saved[-1] - fit.saved[-2]) > fit.shared[-1] - fit.shared[-2]
    if steepest or any(
        most * saved > shared for shared, saved in zip(fit.shared, fit.saved, strict=True)
    ):
        return "saves more than there is"
    return None


def _decode_problem(table: DecodeTable) -> str | None:
    if problem := _table_problem(table.context, table.ns):
        return f"the table of graph batch {table.graph_batch} {problem}"
    if table.idle_row_ns * table.graph_batch > table.ns[0]:
        return f"the rows of graph batch {table.graph_batch} take more than all of it"
    return None


def _clocks_problem(fit: PowerFit | None, graph_tokens: tuple[int, ...]) -> str | None:
    if fit is None:
        return None
    if fit.graph_tokens not in ((), graph_tokens):
        return "pads steps otherwise than its engine"
    return power_problem(fit)


def power_problem(fit: PowerFit) -> str | None:
    """What makes a table of slowdowns meaningless, if anything does."""
    if len(fit.load) != len(fit.slowdown) or not fit.load:
        return f"has {len(fit.load)} loads and {len(fit.slowdown)} values"
    if np.any(np.diff(fit.load) <= 0):
        return "does not ascend"
    if np.any(np.diff(fit.slowdown) < 0):
        return "has values that descend"
    if fit.slowdown[-1] > _SLOWEST:
        return f"says that steps take {1 + fit.slowdown[-1]:.0f} times as long"
    if len(fit.prompt_tokens) != len(fit.prompt_times):
        return f"has {len(fit.prompt_tokens)} numbers of tokens and {len(fit.prompt_times)} values"
    if np.any(np.diff(fit.prompt_tokens) <= 0) or np.any(np.diff(fit.graph_tokens) <= 0):
        return "has numbers of tokens that do not ascend"
    most = max(*fit.prompt_times, fit.few_times, fit.pair_times)
    if most > _SLOWEST:
        return f"says that steps follow the clocks {most:.0f} times as much"
    return None


def _wake_problem(fit: WakeFit) -> str | None:
    if not fit.idle_ns or len({len(fit.idle_ns), len(fit.gpu_ns), len(fit.lead_ns)}) > 1:
        return "has columns of different lengths, or is empty"
    if np.any(np.diff(fit.idle_ns) <= 0):
        return "does not ascend"
    return "has times that descend" if np.any(np.diff(fit.gpu_ns) < 0) else None


def _table_problem(at: tuple[int, ...], ns: tuple[float, ...]) -> str | None:
    if len(at) != len(ns):
        return f"has {len(at)} places and {len(ns)} times"
    if len(at) < 2:
        return "has fewer than two places, hence no slope"
    if np.any(np.diff(at) <= 0):
        return "does not ascend"
    if np.any(np.diff(ns) < 0):
        return "has times that descend"
    return None
