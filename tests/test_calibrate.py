"""`workbench calibrate`: from an engine to a profile, and from a profile to predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import invoke
from made_up_engine import CONFIG, GRAPHS, MadeUpEngine, MadeUpStep, calibrated, true_ns

from engine.core.plan import StepPlan
from engine.runtime.runner_config import RunnerConfig
from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import StepFeatures, StepShape
from simulator.power_state import PowerFit, PowerState, lengthened
from simulator.profile import ProfileError
from simulator.profile_file import encode_profile, read_profile
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.calibration import calibrate as calibration
from workbench.calibration.calibrate import Calibration, calibrate
from workbench.record.errors import RunRecordError
from workbench.record.run_record import RunReader
from workbench.running.profile_match import identity_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    done, engine = calibrated(tmp_path_factory.mktemp("profiles"))
    assert engine.noisy
    assert engine.closed
    return done


def test_a_profile_predicts_what_was_measured(written: Calibration) -> None:
    """Within a percent, also between the measured shapes, and it says so itself."""
    assert written.complete
    assert written.path.name == "nvidia-h200-llama-3.1-8b-bf16-tp1.json"
    model = CalibratedCostModel(read_profile(written.path))
    rng = np.random.default_rng(0)
    for _ in range(300):
        batch, prompt = int(rng.integers(1, 17)), int(rng.integers(1, 400))
        context = batch * int(rng.integers(20, 8000))
        graph = next(size for size in GRAPHS if size >= batch)
        decode = StepShape(decode_requests=batch, decode_tokens=batch, decode_context=context,
                           decode_max_context=context // batch, sampled_tokens=batch,
                           graph_batch=graph)  # fmt: skip
        prefix = int(rng.integers(0, 4000))
        prefill = StepShape(prefill_tokens=prompt, prefill_requests=1, prefill_context=prefix,
                            prefill_pairs=prompt * prefix + prompt * (prompt + 1) // 2,
                            prefill_max_context=prompt + prefix, sampled_tokens=1)  # fmt: skip
        for shape in (decode, prefill):
            assert model.step_cost(shape)[0] == pytest.approx(true_ns(shape), rel=0.02)
    for residual in written.profile.fit.residuals:
        assert residual.median_percent < 1
        assert residual.p99_percent < 5


def test_a_profile_says_what_it_is_of(written: Calibration) -> None:
    """Engine, model, versions, pages, and every sample with its spread."""
    profile = written.profile
    assert profile.identity.gpu == "NVIDIA H200"
    assert (profile.identity.model, profile.identity.dtype) == ("Llama-3.1-8B", "bf16")
    assert profile.identity.versions == {"torch": "2"}
    assert profile.engine.num_pages == MadeUpEngine.num_pages
    assert profile.engine.graph_batch_sizes == GRAPHS
    assert len(profile.samples) == profile.conditions["designed_steps"]
    prompts = [shape[0] > 0 for shape in profile.samples.shapes]
    assert {*zip(prompts, profile.samples.repeats, strict=True)} == {(False, 4), (True, 5)}
    shares = np.array(profile.samples.spread_ns) / np.array(profile.samples.gpu_ns)
    assert 0.001 < np.median(shares) < 0.01
    assert len(profile.host_samples.host_ns) > 50


def test_what_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured steps are kept, a torn last line is not; nothing is left of it at the end."""
    count, append = [0], calibration.Partial.append

    def interrupted(self: Any, *rest: Any) -> None:
        count[0] += 1
        if count[0] > 30:
            raise KeyboardInterrupt
        append(self, *rest)

    monkeypatch.setattr(calibration.Partial, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path)
    (partial,) = tmp_path.iterdir()
    with partial.open("a", encoding="utf-8") as file:
        file.write("[[1,2,3")
    assert len(partial.read_text(encoding="utf-8").splitlines()) == 32
    monkeypatch.setattr(calibration.Partial, "append", append)
    done, _ = calibrated(tmp_path)
    assert done.complete
    assert [path.name for path in tmp_path.iterdir()] == [done.path.name]


def test_measurements_of_another_engine_are_not_taken_over(tmp_path: Path) -> None:
    """The message says which file is in the way."""
    engine = MadeUpEngine(CONFIG)
    identity = identity_of(engine.facts(), engine.spec)
    other = calibration.Partial(
        tmp_path / "nvidia-h200-llama-3.1-8b-bf16-tp1.partial.jsonl",
        identity_of({**engine.facts(), "page_size": 64}, engine.spec),
    )
    assert identity.page_size == 16
    other.append((1,) * 11, [5])
    with pytest.raises(ProfileError, match=r"partial\.jsonl holds measurements of another engine"):
        calibrated(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the engine starts: measuring for minutes and keeping nothing helps nobody."""
    monkeypatch.setattr("workbench.record.result_folder.os.access", lambda *_: False)
    engine = MadeUpEngine(CONFIG)
    monkeypatch.setattr(engine, "launch", None)
    build: Any = lambda *_: engine  # noqa: E731
    with pytest.raises(RunRecordError, match=r"cannot write to .*: permission denied; choose a"):
        calibrate(CONFIG, tmp_path, 5.0, build=build)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunRecordError, match=r"cannot create .*file: file exists"):
        calibrate(CONFIG, tmp_path / "file", 5.0, build=build)


def test_an_interruption_says_that_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a profile as of what fidelity measures; both go on."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    profile = calibrated(tmp_path)[0].path
    monkeypatch.setattr(calibration, "calibrate", interrupted)
    monkeypatch.setattr("workbench.fidelity.suite.open_suite", interrupted)
    for command in (("calibrate", "--cpu"), ("fidelity", str(profile), "--load-format", "dummy")):
        result = invoke(*command, "--output-dir", str(tmp_path / "out"))
        assert result.exit_code == 130
        assert "what was measured is kept, and the same command goes on" in result.stderr


def test_a_profile_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """The name is told, and which argument it was."""
    file = str(tmp_path / "none.json")
    result = invoke("fidelity", file, "--cpu")
    assert result.exit_code == 2
    assert f"'PROFILE': file '{file}' does not exist" in result.stderr.replace("\n", "")


def test_too_little_time_is_said(tmp_path: Path) -> None:
    """With nothing measured there is no profile, and what to do about it."""
    with pytest.raises(ProfileError, match="the same command goes on"):
        calibrated(tmp_path, minutes=0.0)
    assert not list(tmp_path.glob("*.json"))


def test_a_simulation_uses_the_profile(written: Calibration, tmp_path: Path) -> None:
    """Its step times, its pages, its name in the summary and the record, which can be read back."""
    small = ["--set", "deployment.pools.0.max_num_batched_tokens=512",
             "--set", "deployment.pools.0.max_running_requests=16"]  # fmt: skip
    run = tmp_path / "runs"
    result = invoke(
        "simulate", "quickstart", "--num-prompts", "150", "--runs-dir", str(run), "--name", "p",
        "--set", f"hardware.profile={written.path}", *small,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"Step times: {written.profile.name}" in result.output
    (folder,) = run.iterdir()
    reader = RunReader(folder)
    assert reader.header.cost_model == written.profile.name
    assert reader.header.replicas[0].num_pages == MadeUpEngine.num_pages
    assert "hardware.profile" in reader.header.inputs
    (model,) = rebuild_cost_models(reader).values()
    assert model.name == written.profile.name
    # With another share of the memory the engine would have other pages: then ours are estimated.
    invoke(
        "simulate", "quickstart", "--num-prompts", "150", "--runs-dir", str(run), "--name", "q",
        "--set", f"hardware.profile={written.path}", *small,
        "--set", "hardware.memory_fraction=0.5",
    )  # fmt: skip
    assert RunReader(run / "q-1").header.replicas[0].num_pages != MadeUpEngine.num_pages


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("model.name=Qwen3-0.6B", "is of model Llama-3.1-8B, not Qwen3-0.6B"),
        ("hardware.gpu=h100", "is of NVIDIA H200, not h100"),
        ("model.weight_dtype=fp8", "bf16 weights and bf16 KV, not fp8 and bf16"),
        ("deployment.pools.0.tensor_parallel_size=2", "is of 1 GPUs, not 2"),
    ],
)
def test_a_profile_of_something_else_is_refused(
    written: Calibration, setting: str, text: str
) -> None:
    """At its place in the scenario, with everything that differs, before any number."""
    result = invoke(
        "simulate", "quickstart", "--no-record", "--set", f"hardware.profile={written.path}",
        "--set", setting,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "error[S211]" in result.stderr
    assert text in result.stderr
    assert "calibrate this one" in result.stderr


def test_another_model_of_the_same_name_is_told_apart(written: Calibration, tmp_path: Path) -> None:
    """Its facts are others, so the refusal names their digests: a name would say nothing."""
    text = written.path.read_text(encoding="utf-8")
    other = tmp_path / "other.json"
    own = written.profile.identity.model_digest
    other.write_text(text.replace(own, "0" * len(own)), encoding="utf-8")
    result = invoke("simulate", "quickstart", "--no-record", "--set", f"hardware.profile={other}")
    assert result.exit_code == 2
    zeros = "0" * len(own)
    assert f"is of model Llama-3.1-8B ({zeros}), not Llama-3.1-8B ({own})" in result.stderr


def test_what_is_no_profile_is_refused_in_a_scenario(tmp_path: Path) -> None:
    """A file that is none, one that is not there."""
    file = tmp_path / "p.json"
    file.write_text("{}", encoding="utf-8")
    for name, code in ((file, "S211"), (tmp_path / "q.json", "S114")):
        result = invoke("simulate", "quickstart", "--set", f"hardware.profile={name}")
        assert result.exit_code == 2
        assert code in result.stderr
        assert str(name) in result.stderr


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Llama-3.1-8B", "Llama-3.1-8B"),
        ("/models/tiny_model.json", "tiny_model"),
        ("/models/Qwen3-0.6B/config.json", "Qwen3-0.6B"),
        ("/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de/config.json", "Qwen3-0.6B"),
    ],
)
def test_a_profile_has_its_models_name(model: str, name: str) -> None:
    """Also where the model goes by the path of a config.json, as all checkpoints do."""
    engine = MadeUpEngine(CONFIG)
    assert identity_of(engine.facts(), replace(engine.spec, name=model)).model == name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "which model? --model, or --cpu for a tiny one"),
        (("--cpu", "--model", "Llama-3.1-8B"), "--cpu calibrates a tiny model"),
        (("--refit", "p.json", "--cpu"), "--refit measures nothing"),
        (("--model", "Llama-3.1-8B", "--tp", "2"), "the engine runs on one GPU, --tp is 2"),
        (("--cpu", "--dtype", "fp16"), "--cpu calibrates in fp32, --dtype is fp16: leave it out"),
        (("--cpu", "--minutes", "nan"), "Invalid value for '--minutes'"),
        (("--cpu", "--minutes", "inf"), "less than or equal to 600"),
        (("--kernels", "--minutes", "1e12"), "less than or equal to 600"),
        (("--cpu", "--minutes", "0.02"), "greater than or equal to 0.1"),
    ],
)
def test_wrong_use_is_refused(arguments: tuple[str, ...], text: str) -> None:
    """Before anything is loaded, with exit code 2."""
    result = invoke("calibrate", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_profile_is_fitted_anew(written: Calibration, tmp_path: Path) -> None:
    """To the samples that it holds: what an older version made of them is replaced."""
    path = tmp_path / "p.json"
    fit = msgspec.structs.replace(written.profile.fit, decode=(), limits={})
    old = msgspec.structs.replace(written.profile, fit=fit)
    path.write_bytes(encode_profile(old))
    result = invoke("calibrate", "--refit", str(path))
    assert result.exit_code == 0, result.output
    assert read_profile(path) == written.profile
    path.write_text("{}", encoding="utf-8")
    result = invoke("calibrate", "--refit", str(path))
    assert result.exit_code != 0
    assert f"{path} is not a profile" in result.stderr


def test_a_calibration_cut_short_does_not_replace_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on beside it, until it is whole itself."""
    whole, _ = calibrated(tmp_path)
    before, measure = whole.path.read_bytes(), calibration.measure_steps

    def some(executor: Any, maker: Any, designs: Any, done: Any, **rest: Any) -> bool:
        measure(executor, maker, designs[:90], done, **rest)
        return False

    monkeypatch.setattr(calibration, "measure_steps", some)
    short, _ = calibrated(tmp_path)
    assert not short.complete
    assert not short.kept
    assert len(short.profile.samples) < len(whole.profile.samples)
    assert whole.path.read_bytes() == before
    monkeypatch.setattr(calibration, "measure_steps", measure)
    again, _ = calibrated(tmp_path)
    assert again.complete
    assert len(again.profile.conditions["sittings"]) == 2
    assert again.profile.conditions["sittings"][0]["ceilings"] == {"copy_tb_s": 4.0}
    assert len(again.profile.samples) == len(whole.profile.samples)


def test_a_longer_part_replaces_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has half a minute more gets a better profile, though it is not whole yet."""
    measure, most = calibration.measure_steps, [60]

    def some(executor: Any, maker: Any, designs: Any, done: Any, **rest: Any) -> bool:
        measure(executor, maker, designs[: most[0]], done, **rest)
        return False

    monkeypatch.setattr(calibration, "measure_steps", some)
    first, _ = calibrated(tmp_path)
    most[0] = 90
    second, _ = calibrated(tmp_path)
    assert first.kept
    assert second.kept
    assert len(first.profile.samples) == 60
    assert len(read_profile(second.path).samples) == 90
    (tmp_path / "nvidia-h200-llama-3.1-8b-bf16-tp1.partial.jsonl").unlink()
    most[0] = 60
    third, _ = calibrated(tmp_path)  # begun anew: it has seen less
    assert not third.kept
    assert len(read_profile(third.path).samples) == 90


@pytest.mark.parametrize("text", ["", '{"schema": "prof'])
def test_a_partial_file_without_a_head_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    """The disk was full, or the power gone."""
    partial = tmp_path / "nvidia-h200-llama-3.1-8b-bf16-tp1.partial.jsonl"
    partial.write_text(text, encoding="utf-8")
    done, _ = calibrated(tmp_path)
    assert done.complete


def test_a_damaged_partial_file_is_named(tmp_path: Path) -> None:
    """With what to do about it."""
    engine = MadeUpEngine(CONFIG)
    name = "nvidia-h200-llama-3.1-8b-bf16-tp1.partial.jsonl"
    partial = calibration.Partial(tmp_path / name, identity_of(engine.facts(), engine.spec))
    partial.append((1,) * 11, [5])
    with partial.path.open("a", encoding="utf-8") as file:
        file.write("garbage\n")
    with pytest.raises(ProfileError, match=rf"{name} is damaged .*delete it"):
        calibrated(tmp_path)


@pytest.mark.parametrize(
    ("shape", "times"),
    [
        (12, "[NaN]"),
        (12, '["long"]'),
        (12, "[0]"),
        (12, "[7, -7]"),
        (12, "[7.5]"),
        (12, "[]"),
        (12, "7"),
        (11, "[7]"),
        (13, "[7]"),
    ],
)
def test_no_step_that_no_profile_could_hold_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: int, times: str
) -> None:
    """It is found before anything is measured, with its line."""
    engine = MadeUpEngine(CONFIG)
    name = "nvidia-h200-llama-3.1-8b-bf16-tp1.partial.jsonl"
    partial = calibration.Partial(tmp_path / name, identity_of(engine.facts(), engine.spec))
    partial.append((1,) * 12, [5])
    with partial.path.open("a", encoding="utf-8") as file:
        file.write(f"[{[1] * shape}, {times}]\n")
    monkeypatch.setattr(MadeUpEngine, "launch", None)
    with pytest.raises(ProfileError, match=rf"{name} is damaged \(line 3: .*\): delete it"):
        calibrated(tmp_path)


HOT = PowerFit(
    token_ns=20_000.0, load=(0.25, 0.65), slowdown=(0.0, 0.15), memory_share=0.3, light_busy=0.05
)  # fmt: skip
WIDE = replace(CONFIG, max_running_requests=64, max_num_batched_tokens=2048)


class HotEngine(MadeUpEngine):
    """One whose clocks get lower while it computes; its steps start when the last has ended."""

    def __init__(self, config: RunnerConfig) -> None:
        super().__init__(config)
        self.now_ns, self.state = 10**9, PowerState(HOT)

    def launch(self, plan: StepPlan) -> MadeUpStep:
        step = MadeUpStep(plan, 1 + 0.002 * self._rng.standard_normal())
        tokens = plan.prefill_tokens + plan.decode_tokens
        step._ns = self.state.lengthen(step._ns, tokens, self.now_ns, plan.decode_tokens)
        self.now_ns += step._ns
        return step


def test_what_clocks_do_is_told_apart_from_what_steps_cost(tmp_path: Path) -> None:
    """The fit has steps as they are with cool clocks, and how much longer they get."""
    engine = HotEngine(WIDE)
    build: Any = lambda *_: engine  # noqa: E731
    profile = calibrate(WIDE, tmp_path, 5.0, build=build).profile
    prompt = StepShape(prefill_tokens=700, prefill_requests=1, prefill_pairs=700 * 701 // 2,
                       prefill_max_context=700, sampled_tokens=1)  # fmt: skip
    decode = StepShape(decode_requests=8, decode_tokens=8, decode_context=4000,
                       decode_max_context=800, sampled_tokens=8, graph_batch=8)  # fmt: skip
    served = [decode] * 50 + ([prompt] + [decode] * 4) * 30 + [prompt] * 30 + [decode] * 50
    tokens = np.array([shape.prefill_tokens + shape.decode_tokens for shape in served])
    decodes = np.array([shape.decode_tokens for shape in served])
    model = CalibratedCostModel(profile)
    found = lengthened(model.power, gpu_ns(model, served), tokens, decodes)
    cool = np.array([true_ns(shape) for shape in served])
    true = lengthened(HOT, cool, tokens, decodes)
    assert np.max(true / cool) > 1.09
    assert np.max(np.abs(found / true - 1)) < 0.03
    hot = profile.hot_samples
    assert hot is not None
    longer = np.array(hot.hot_ns) / np.array(hot.cool_ns) - 1
    prompts = hot.features().prefill_tokens
    assert len(hot) > 30
    assert np.all(longer[prompts == 512] > 0.06)  # the other time it heats itself
    assert np.median(longer[prompts == 0]) < 0.9 * np.median(longer[prompts == 512])
    assert min(hot.heat_ns) > 90_000_000
    told = {residual.region: residual for residual in profile.fit.residuals}["lower clocks"]
    assert 10 < told.count < len(hot), "whole prompts are what is fitted to"
    assert told.p90_percent < 3
    assert profile.fit.power is not None
    assert np.allclose(profile.fit.power.prompt_times, 1.0, atol=0.25), "all kernels are alike"


def gpu_ns(model: CalibratedCostModel, shapes: list[StepShape]) -> Any:
    return model.step_costs(StepFeatures.from_shapes(shapes)).gpu_ns
