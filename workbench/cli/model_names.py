"""What `--model` may name, and what was probably meant by a name that is none."""

from __future__ import annotations

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
    from engine.demo import DEMO_MODELS
    from engine.models import model_folder
    from workbench.scenario.errors import did_you_mean, listed, quoted

    if name is None:
        return
    demos = f"a demo model ({', '.join(DEMO_MODELS)})"
    if not name.strip():
        raise UsageError(f"--model is empty: give {demos}, {_WHAT}")
    try:
        model_folder.find_model(name, load_format)
    except model_folder.NoWeightsError:
        dummies = "\n--load-format dummy runs it with random weights" if has_dummies else ""
        raise UsageError(
            f"--model: {quoted(name)} is a model card, which has no weights to run\n"
            f"give {demos}, {_WHAT}{dummies}"
        ) from None
    except model_folder.UnknownNameError as error:
        hint = did_you_mean(name, error.known)
        raise UsageError(
            f"--model: no model is called {quoted(name)}{f': {hint}' if hint else ''}\n"
            f"demo models: {listed(DEMO_MODELS)}; or {_WHAT}"
        ) from None
    except model_folder.ModelNotFoundError:
        return  # a path or an org/name, of which the engine says what is wrong
