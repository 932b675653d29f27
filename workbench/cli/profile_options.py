"""Options that the commands of `workbench profile` share, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from workbench.profile.recording import StepRequest
    from workbench.profile.what_ran import WhatRan

StepOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:NxTOKENS",
        help="decode:32x1024, prefill:1x2048, or mixed:1x512+32x1024.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="CARD|FOLDER|ORG/NAME",
        help="Default: the scenario's; for a step a tiny one with random weights.",
    ),
]
StepModelOption = Annotated[
    str | None,
    typer.Option(metavar="CARD|FOLDER|ORG/NAME", help="Default: a tiny one with random weights."),
]
LoadOption = Annotated[
    Literal["auto", "dummy"],
    typer.Option(help="auto reads the checkpoint; dummy makes random weights."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cuda, cuda:1 or cpu; default: a GPU if there is one."),
]
DtypeOption = Annotated[
    Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="Default: the model's own.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Steps to record.")]
EagerOption = Annotated[
    bool, typer.Option("--eager", help="Kernel by kernel, where a CUDA Graph would be replayed.")
]
LayersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Only so many layers of a model card, which take less time."),
]
OutputOption = Annotated[Path, typer.Option(file_okay=False, help="Folder of what is written.")]
OnlyOption = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="With --ncu: only kernels of a class, such as qkv."),
]
KernelsOption = Annotated[int, typer.Option(min=1, help="Kernels to list.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
FOLDER: Final = Path("profile")


def step_request(
    step: str | None,
    model: str | None,
    load_format: Literal["auto", "dummy"],
    device: str | None,
    dtype: Literal["bf16", "fp16", "fp32"] | None,
    steps: int | None,
    *,
    eager: bool,
    layers: int | None,
    needs_weights: bool = True,
    or_else: str = "",
) -> StepRequest:
    """What the options of a step ask for; `needs_weights` where it will run, not be predicted.

    `or_else` says what could be given instead of a step.

    Raises:
        UsageError: no step is named, it is none, or the model has no weights or fewer layers.
    """
    from workbench.cli.failures import UsageError
    from workbench.cli.model_names import check_model_name
    from workbench.profile.recording import StepRequest
    from workbench.profile.step_text import StepTextError, parse_step

    if step is None:
        raise UsageError(f"which step? --step decode:32x1024{or_else}")
    try:
        design = parse_step(step)
    except StepTextError as error:
        raise UsageError(f"--step: {error}") from None
    if model is not None and layers is None and needs_weights:  # else it is a card
        check_model_name(model, load_format)
    _check_layers(model, layers, needs_card=needs_weights)
    return StepRequest(
        text=step,
        design=design,
        model=model,
        load_format=load_format,
        device=device,
        dtype=dtype,
        steps=steps,
        eager=eager,
        layers=layers,
    )


def _check_layers(model: str | None, layers: int | None, *, needs_card: bool = False) -> None:
    """Refuse more layers than a model has; a model that is not to be found is told later."""
    from engine.core.model_spec import load_model_spec, model_card_names
    from workbench.cli.failures import UsageError
    from workbench.profile.traced_model import LayersError, shortened

    if layers is None:
        return
    if model is None:
        raise UsageError("--layers goes with --model: how many of its layers run")
    if needs_card and model.casefold() not in {name.casefold() for name in model_card_names()}:
        cards = ", ".join(model_card_names())
        raise UsageError(f"--layers needs a model card, and {model} is none: {cards}")
    try:
        spec = load_model_spec(model)
    except (ValueError, OSError):
        return
    try:
        shortened(spec, layers)
    except LayersError as error:
        raise UsageError(str(error)) from None


def check_what_ran(ran: WhatRan) -> None:
    """Refuse a model of which nothing is known, layers of none, and what is no step.

    Raises:
        UsageError: what is wrong.
    """
    from engine.core.model_spec import load_model_spec
    from engine.demo import demo_model_folder
    from workbench.cli.failures import UsageError
    from workbench.profile.step_text import StepTextError
    from workbench.profile.traced_model import TINY

    model = ran.model
    if ran.step is None and ran.eager:
        raise UsageError("--eager goes with --step: how it ran")
    if model is not None and model != TINY:
        try:
            load_model_spec(str(demo_model_folder(model) or model))
        except (ValueError, OSError) as error:
            raise UsageError(f"--model {model}: {error}") from None
    _check_layers(model, ran.layers)
    try:
        ran.shape()
    except StepTextError as error:
        raise UsageError(f"--step: {error}") from None


def check_class(only: str | None, *, with_ncu: bool) -> None:
    """Refuse a class that no range of a step is named after, or that nobody asks for."""
    from engine.profiling.op_classes import NAMED
    from workbench.cli.failures import UsageError

    if only is not None and (only not in NAMED or not with_ncu):
        raise UsageError(f"--only goes with --ncu or its CSV, and is one of {', '.join(NAMED)}")
