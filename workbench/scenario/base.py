"""What all models of the scenario file share: strictness, number types, refusals with a place.

A refusal is a problem that pydantic's own constraints cannot express. It carries a code, help and
the path of the key to blame, which `workbench.scenario.diagnosis` turns into a line and a caret.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

REFUSAL = "scenario_refusal"  # the pydantic error type of `refusal`

Path = tuple[str | int, ...]


class ScenarioModel(BaseModel):
    """Unknown keys are errors, values are not coerced, and nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Problem(NamedTuple):
    """One thing wrong with a scenario. `path` is relative to the model that reports it."""

    path: Path
    code: str
    message: str
    help: str = ""


def refusal(*problems: Problem) -> PydanticCustomError:
    """The error to raise inside a validator; it may report several problems at once."""
    text = "; ".join(problem.message for problem in problems)
    return PydanticCustomError(REFUSAL, "{text}", {"text": text, "problems": problems})


def refuse(problems: list[Problem]) -> None:
    """Raise one refusal for all problems, if there are any."""
    if problems:
        raise refusal(*problems)


def unsupported(what: str, instead: str) -> PydanticCustomError:
    """The refusal of something the schema has a place for and the program cannot do."""
    return refusal(Problem((), "S110", f"{what} is not supported yet", instead))


def _whole(value: Any) -> Any:
    """Let `1e5` pass for 100000, which strict validation would refuse for being a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=1, le=1_000_000_000), WHOLE]
NumRequests = Annotated[int, Field(ge=1, le=10_000_000), WHOLE]  # about 2.6 kB of memory each
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000_000), WHOLE]
Tokens = Annotated[int, Field(ge=0, le=10_000_000), WHOLE]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
