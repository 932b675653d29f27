"""What the interface remembers from one start to the next: `state.json` in the user's folder.

A file that cannot be read is no reason not to start: the interface then begins afresh and says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from platformdirs import user_state_path

from engine.core.bounded_file import read_bounded
from workbench.record.atomic_file import write_atomic
from workbench.record.errors import RunRecordError
from workbench.tui.themes import DEFAULT_THEME

STATE_FILE_VARIABLE: Final = "WORKBENCH_TUI_STATE"


class SavedState(msgspec.Struct, kw_only=True):
    """Preferences and places; unknown keys of the file are dropped, wrong ones refused.

    Attributes:
        theme: name of the theme.
        scenario: what was selected in the list of scenarios.
        editor: whether scenarios show as YAML instead of as a form.
        detail: of runs that are started from the list.
        executor: what they run on, `simulate` or `run`.
        lock: how two runs are aligned: step, time or arrival.
        zoom: a column of the live screen holds 2**zoom steps.
        page_mode: how the map of KV pages is coloured.
        sort: columns of the list of requests by which it is sorted, `-` before a descending one.
        keys: id of a key binding -> keys, separated by commas.
    """

    theme: str = DEFAULT_THEME
    scenario: str = "quickstart"
    editor: bool = False
    detail: str = "pages"
    executor: str = "simulate"
    lock: Literal["step", "time", "arrival"] = "arrival"
    zoom: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    page_mode: str = "state"
    sort: str = "arrival"
    keys: dict[str, str] = {}  # msgspec copies empty containers


def state_path() -> Path:
    """Where the state is kept; the variable `WORKBENCH_TUI_STATE` names another file."""
    named = os.environ.get(STATE_FILE_VARIABLE)
    return Path(named) if named else user_state_path("llm-serving-workbench") / "state.json"


def load_state(path: Path) -> tuple[SavedState, str | None]:
    """The saved state, and why it could not be read, if so."""
    try:
        return msgspec.json.decode(read_bounded(path), type=SavedState), None
    except FileNotFoundError:
        return SavedState(), None
    except (OSError, msgspec.MsgspecError) as error:
        return SavedState(), f"{path} is ignored: {error}"


def save_state(path: Path, state: SavedState) -> str | None:
    """Save the state; why that failed, if it did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    except (OSError, RunRecordError) as error:
        return f"{path} cannot be written: {error}"
    return None
