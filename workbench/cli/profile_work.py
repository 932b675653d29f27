"""What the commands of `workbench profile` do: measure, analyse, print and write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.core.hardware_spec import HardwareSpec
    from engine.core.model_spec import ModelSpec
    from workbench.profile.gap_story import Subject
    from workbench.profile.recording import StepRequest
    from workbench.profile.roofline import Roofline
    from workbench.profile.timeline import Timeline
    from workbench.profile.trace import Trace
    from workbench.profile.what_ran import WhatRan
    from workbench.scenario.source import LoadedScenario

_BATCH, _CONTEXT = 8, 1024  # of the gaps of a model, if nothing else is said
_RUN_DTYPES = Literal["bf16", "fp16", "fp32"]


def analysed(trace: Trace, ran: WhatRan | None = None) -> Timeline:
    """The analysis of a trace, with counts where it is known what ran.

    Args:
        trace: recorded.
        ran: what is said of it, instead of what it says itself.
    """
    from workbench.profile.ceilings import measured_ceilings
    from workbench.profile.timeline import analyse
    from workbench.profile.traced_model import shape_of_trace, spec_of

    about = {**trace.about, **({} if ran is None else ran.about())}
    ceilings = measured_ceilings(about.get("ceilings"))
    return analyse(replace(trace, about=about), spec_of(about), shape_of_trace(about), ceilings)


def time_step(
    request: StepRequest, output: Path, kernels: int, *, as_json: bool, quiet: bool
) -> None:
    """`workbench profile timeline --step`."""
    from workbench.cli.progress import ProgressLine
    from workbench.profile.recording import record_step

    path = _in(output, "timeline.json.gz")
    with ProgressLine(enabled=not quiet) as line:
        record_step(request, path, line.say)
    _show_timeline(path, kernels, as_json=as_json, quiet=quiet)


def time_run(
    scenario: str,
    overrides: list[str],
    num_prompts: int | None,
    model: str | None,
    load_format: Literal["auto", "dummy"],
    device: str | None,
    dtype: _RUN_DTYPES | None,
    first: int,
    steps: int,
    output: Path,
    kernels: int,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """`workbench profile timeline SCENARIO`."""
    from workbench.cli.demo_load import load_for_demo
    from workbench.cli.overrides import load_with_flags
    from workbench.cli.progress import ProgressLine
    from workbench.profile.recording import record_run
    from workbench.running.engine_setup import EngineOptions

    def load(added: Sequence[str]) -> LoadedScenario:
        return load_with_flags(scenario, [*added, *overrides], None, num_prompts, [], None)

    options = EngineOptions(model=model, load_format=load_format, device=device, dtype=dtype)
    given = [*overrides, *([] if num_prompts is None else ["workload="])]
    loaded, changes = load_for_demo(load, options, given)
    if changes and not quiet:
        _tell(f"note: so that a demo model can serve it: {' '.join(changes)}")
    path = _in(output, "timeline.json.gz")
    with ProgressLine(enabled=not quiet) as line:
        record_run(loaded, options, path, first=first, steps=steps, say=line.say)
    _show_timeline(path, kernels, as_json=as_json, quiet=quiet)


def _show_timeline(path: Path, kernels: int, *, as_json: bool, quiet: bool) -> None:
    from workbench.profile.timeline_text import timeline_text
    from workbench.profile.trace import read_trace

    found = analysed(read_trace(path))
    _write_json(path.with_name("timeline.json"), found.to_json())
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    typer.echo(timeline_text(found, kernels))
    if not quiet:
        _tell(f"{path} opens in https://ui.perfetto.dev or chrome://tracing")


def measure_roofline(
    request: StepRequest, output: Path, *, with_ncu: bool, as_json: bool, quiet: bool
) -> None:
    """`workbench profile roofline`."""
    from workbench.cli.profile_tools import counters_of
    from workbench.cli.progress import ProgressLine
    from workbench.profile.ceilings import measured_ceilings
    from workbench.profile.recording import record_step
    from workbench.profile.roofline import measured_roofline, with_counters
    from workbench.profile.trace import read_trace
    from workbench.profile.traced_model import shape_of_trace, spec_of

    _refuse_cpu(request.device)
    path = _in(output, "timeline.json.gz")
    with ProgressLine(enabled=not quiet) as line:
        record_step(request, path, line.say)
    trace = read_trace(path)
    found = analysed(trace)
    spec, shape = spec_of(trace.about), shape_of_trace(trace.about)
    ceilings = measured_ceilings(trace.about.get("ceilings"))
    if spec is None or shape is None or ceilings is None:
        raise AssertionError("our own trace lacks model, step or ceilings")
    roof = measured_roofline(found, spec, shape, ceilings)
    if with_ncu:
        kernels = counters_of(request, output)
        if kernels is not None:
            roof = with_counters(roof, kernels)
    _show_roofline(roof, output, as_json=as_json, quiet=quiet)


def _refuse_cpu(device: str | None) -> None:
    from engine.runtime.executor import EngineError
    from workbench.running.engine_packages import import_engine

    if import_engine("engine.runtime.build").find_device(device).type == "cpu":
        raise EngineError(
            "a roofline is measured on a GPU, and this engine runs on the CPU; "
            "--gpu h200 predicts the step there, and `timeline` shows where the CPU's time goes"
        )


def predict_roofline(
    request: StepRequest, gpu: str, output: Path, *, as_json: bool, quiet: bool
) -> None:
    """`workbench profile roofline --gpu`."""
    from engine.core.hardware_spec import (
        UnknownGpuError,
        UnsupportedGpuDtypeError,
        load_hardware_spec,
    )
    from engine.core.model_spec import load_model_spec
    from workbench.cli.failures import UsageError
    from workbench.profile.ceilings import assumed_ceilings
    from workbench.profile.predicted import StepPredictor, plain_dtype
    from workbench.profile.roofline import place
    from workbench.profile.step_text import shape_of
    from workbench.profile.traced_model import served_in, shortened

    if request.model is None:
        raise UsageError("which model? --model Llama-3.1-8B, or any other model card")
    try:
        spec, hardware = load_model_spec(request.model), load_hardware_spec(gpu)
    except UnknownGpuError as error:
        raise UsageError(f"--gpu: {error}") from None
    if request.layers is not None:
        spec = shortened(spec, request.layers)
    if request.dtype is not None:
        spec = served_in(spec, request.dtype)
    shape = shape_of(request.design, () if request.eager else None)
    longest = max(shape.prefill_max_context, shape.decode_max_context)
    if longest > spec.max_model_len:
        raise UsageError(
            f"{request.text} has a request of {longest:,} tokens, and {request.model} takes at "
            f"most {spec.max_model_len:,}"
        )
    weights = spec.weight_dtype
    try:
        ceilings = assumed_ceilings(hardware, weights, plain_dtype(spec, weights))
    except UnsupportedGpuDtypeError as error:
        raise UsageError(f"--gpu: {error}") from None
    if not quiet:
        _tell_if_too_large(request, spec, hardware)
    step = StepPredictor(spec, hardware).predict(shape)
    title = f"{request.model}, {request.text}, {hardware.title}, predicted"
    roof = place(title, step.times_us, step.gpu_us, step.work, ceilings)
    _show_roofline(roof, output, as_json=as_json, quiet=quiet)


def _tell_if_too_large(request: StepRequest, spec: ModelSpec, gpu: HardwareSpec) -> None:
    """A roofline of what no such GPU could hold is a roofline all the same."""
    design = request.design
    context = sum(design.decodes) + sum(each.tokens + each.context for each in design.chunks)
    weights, kv = spec.weight_bytes(), context * spec.kv_bytes_per_token(spec.dtype)
    if weights + kv > gpu.memory_bytes:
        _tell(
            f"note: this does not fit: {weights / 1e9:,.1f} GB of weights and {kv / 1e9:,.1f} GB "
            f"of KV, and the GPU has {gpu.memory_bytes / 1e9:,.1f} GB"
        )


def _show_roofline(roof: Roofline, output: Path, *, as_json: bool, quiet: bool) -> None:
    from workbench.profile.pictures import draw_roofline
    from workbench.profile.roofline_text import roofline_text

    path = _in(output, "roofline.json")
    _write_json(path, roof.to_json())
    for suffix in (".svg", ".png"):
        draw_roofline(roof, path.with_suffix(suffix))
    if as_json:
        typer.echo(json.dumps(roof.to_json(), indent=1))
        return
    typer.echo(roofline_text(roof))
    if not quiet:
        _tell(f"pictures: {path.with_suffix('.svg')}, {path.with_suffix('.png')}")


def show_gaps(
    workload: Literal["decode", "denoise", "all"],
    model: str | None,
    batch: int | None,
    context: int | None,
    from_file: Path | None,
    output: Path,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """`workbench profile gaps`."""
    from workbench.cli.progress import ProgressLine
    from workbench.profile.gap_story import (
        SUBJECTS,
        Subject,
        measure_story,
        read_stories,
        stories_to_json,
    )
    from workbench.profile.gap_text import stories_text
    from workbench.profile.pictures import draw_gaps
    from workbench.record.provenance import source_commit

    if from_file is not None:
        stories = read_stories(from_file)
    else:
        subjects: list[Subject] = [
            subject for subject in SUBJECTS if workload in ("all", subject.kind)
        ]
        if model is not None:
            subjects = [Subject(workload, model, batch or _BATCH, context or _CONTEXT)]
        stories = []
        with ProgressLine(enabled=not quiet) as line:
            for subject in subjects:
                line.say(f"{subject.model}: cold, eager and as a graph")
                stories.append(measure_story(subject))
    path = _in(output, "gaps.json")
    if from_file is None:
        _write_json(path, stories_to_json(stories, source_commit()))
    for suffix in (".svg", ".png"):
        draw_gaps(stories, path.with_suffix(suffix))
    if as_json:
        typer.echo(json.dumps(stories_to_json(stories, source_commit()), indent=1))
        return
    typer.echo(stories_text(stories))
    if not quiet:
        _tell(f"pictures: {path.with_suffix('.svg')}, {path.with_suffix('.png')}")


def _in(folder: Path, name: str) -> Path:
    """A file in a folder, which is made if it is not there."""
    from workbench.record.result_folder import make_folder

    make_folder(folder)
    return folder / name


def _write_json(path: Path, data: dict[str, Any]) -> None:
    from workbench.record.atomic_file import write_atomic

    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def _tell(text: str) -> None:
    typer.echo(text, err=True)
