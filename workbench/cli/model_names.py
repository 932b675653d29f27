"""What `--model` may name, and what was probably meant by a name that is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from workbench.cli.failures import UsageError

_WHAT: Final = "the folder of a checkpoint, or org/name in the local Hugging Face cache"


def check_model_name(
    name: str | None, load_format: Literal["auto", "dummy"] = "auto", *, has_dummies: bool = True
) -> None:
    """Refuse a name that no model can have, before anything is loaded.

    Whether a folder or an org/name holds a model is for the engine to say.

    Args:
        name: as it was given; None: it was not.
        load_format: "dummy" takes model cards, too.
        has_dummies: whether the command has `--load-format`.

    Raises:
        UsageError: it is empty, a card without weights, or unknown.
    """
    from engine.core.model_spec import model_card_names
    from engine.demo import DEMO_MODELS, demo_model_folder
    from engine.models.model_folder import cached_models, hugging_face_cache
    from workbench.scenario_errors import did_you_mean, listed, quoted

    if name is None:
        return
    demos = f"a demo model ({', '.join(DEMO_MODELS)})"
    if not name.strip():
        raise UsageError(f"--model is empty: give {demos}, {_WHAT}")
    if "/" in name or Path(name).expanduser().exists() or demo_model_folder(name) is not None:
        return
    cards = model_card_names()
    is_card = name.casefold() in {card.casefold() for card in cards}
    if is_card and load_format == "dummy":
        return
    if is_card:
        dummies = "\n--load-format dummy runs it with random weights" if has_dummies else ""
        raise UsageError(
            f"--model: {quoted(name)} is a model card, which has no weights to run\n"
            f"give {demos}, {_WHAT}{dummies}"
        )
    known = [*DEMO_MODELS, *cached_models(hugging_face_cache(os.environ))]
    known += cards if load_format == "dummy" else ()
    hint = did_you_mean(name, known)
    raise UsageError(
        f"--model: no model is called {quoted(name)}{f': {hint}' if hint else ''}\n"
        f"demo models: {listed(DEMO_MODELS)}; or {_WHAT}"
    )
