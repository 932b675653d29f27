"""`workbench profile` on a machine without a GPU: what works there, and what is said instead."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from command_line import invoke
from gap_stories import left_here
from profile_traces import graph_steps

from engine.core.model_spec import load_model_spec
from workbench.cli import profile_tools
from workbench.profile import doctor, nsight
from workbench.profile.counted_work import counted_work
from workbench.profile.gap_text import verdict
from workbench.profile.latest_gaps import MEASURED_HERE
from workbench.profile.step_text import parse_step, shape_of
from workbench.profile.traced_model import spec_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, on a machine that has none of Nsight's tools."""
    monkeypatch.chdir(tmp_path)
    for module in (profile_tools, doctor, nsight):
        monkeypatch.setattr(module, "find_tool", lambda name: None, raising=False)
    return tmp_path


def test_a_step_of_the_cpus_engine_has_a_timeline() -> None:
    """By the ranges of its ops; what only a GPU has is said to be missing."""
    result = invoke("profile", "timeline", "--step", "mixed:1x16+2x32", "--device", "cpu",
                    "--steps", "2", "--quiet")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for part in ("mixed:1x16+2x32", "2 steps", "attention_prefill", "gate_up", "lm_head", "no GPU"):
        assert part in result.stdout
    ranges = result.stdout.partition("\nrange ")[2].partition("\n\n")[0].splitlines()[1:]
    shares = [float(share) for line in ranges for share in re.findall(r"([\d.]+)%", line)]
    assert sum(shares) == pytest.approx(100, abs=0.5)  # nothing of a step is left out
    assert result.stderr == ""
    again = invoke("profile", "import", "profile/timeline.json.gz")
    assert again.stdout == result.stdout
    found = json.loads(Path("profile/timeline.json").read_text())
    assert (found["schema"], found["device"]) == ("profile_timeline/v1", "cpu")


def test_steps_of_a_scenario_have_a_timeline() -> None:
    """Those that were asked for, of the engine while it serves."""
    result = invoke("profile", "timeline", "engine_on_cpu", "--load-format", "dummy", "--device",
                    "cpu", "--first", "3", "--steps", "2", "--quiet", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 2
    assert found["about"]["scenario"] == "engine_on_cpu"
    assert found["groups"]["attention"] > 0


def test_a_run_that_is_too_short_says_so() -> None:
    """With what to ask for instead."""
    result = invoke("profile", "timeline", "engine_on_cpu", "--load-format", "dummy", "--device",
                    "cpu", "--first", "100000", "--num-prompts", "2", "--quiet")  # fmt: skip
    assert result.exit_code == 1
    assert "the run ended before step 100000" in result.stderr


def test_a_step_that_does_not_fit_is_refused() -> None:
    """With what the engine has."""
    result = invoke("profile", "timeline", "--step", "decode:300x100000", "--device", "cpu",
                    "--model", "Qwen3-0.6B", "--layers", "1", "--quiet")  # fmt: skip
    assert result.exit_code == 1
    assert "cannot run decode:300x100000" in result.stderr


@pytest.mark.parametrize("tool", ["--nsys", "--ncu"])
def test_without_a_tool_its_command_is_told(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the result, with how its report comes back; nothing else happens."""
    monkeypatch.setattr("workbench.profile.nsight.find_tool", lambda _: None)
    asked = ("profile", "timeline", "--step", "decode:1x8", "--model", "Qwen3-0.6B",
             "--load-format", "dummy", tool)  # fmt: skip
    result = invoke(*asked)
    assert result.exit_code == 0
    commands = result.stdout.splitlines()
    assert shlex.split(commands[0])[1] == tool[2:]  # after NVTX's setting
    report = {"--nsys": "step.sqlite", "--ncu": "ncu.csv"}[tool]
    back = f"workbench profile import profile/{report} --model Qwen3-0.6B --step decode:1x8"
    assert commands[-1] == back
    assert result.stderr.startswith(f"{tool[2:]} (Nsight ")
    assert "is not installed here" in result.stderr
    result = invoke(*asked, "--json")
    assert json.loads(result.stdout)["commands"] == commands
    assert not Path("profile").exists()


def test_with_a_tool_its_commands_stay_beside_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They run, stderr has them, and what stdout has can be read as JSON."""
    monkeypatch.setattr("workbench.profile.nsight.find_tool", lambda name: f"/opt/{name}")
    monkeypatch.setattr("workbench.profile.nsight.known_metrics", lambda _: None)

    def run_tool(command: object, _: float) -> None:
        assert "/opt/ncu" in str(command) or "ncu" in str(command)
        counters = Path(__file__).parent / "fixtures" / "ncu_details_h200.csv"
        Path("profile/ncu.csv").write_bytes(counters.read_bytes())

    monkeypatch.setattr("workbench.profile.nsight.run_tool", run_tool)
    result = invoke("profile", "timeline", "--step", "decode:1x8", "--model", "Qwen3-0.6B",
                    "--load-format", "dummy", "--ncu", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["kernels"]) == 2
    assert "$ workbench profile import profile/ncu.csv" in result.stderr


def test_a_tool_off_the_path_is_run_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """nsys as ncu: what runs is what was found."""
    monkeypatch.setattr("workbench.profile.nsight.find_tool", lambda name: f"/opt/{name}")
    ran: list[str] = []

    def run_tool(command: nsight.Command, _: float) -> None:
        ran.append(command.words[0])

    monkeypatch.setattr("workbench.profile.nsight.run_tool", run_tool)
    result = invoke("profile", "timeline", "--step", "decode:1x8", "--nsys")
    assert ran == ["/opt/nsys", "/opt/nsys"]
    assert "$ WORKBENCH_NVTX=1 /opt/nsys profile " in result.stderr
    assert f" {sys.executable} -m workbench profile step " in result.stderr


@pytest.mark.parametrize("name", ["up.CSV", "log.txt"])
def test_counters_of_any_name_are_imported(elsewhere: Path, name: str) -> None:
    """With the class that they are of; a trace has none to choose."""
    counters = elsewhere / name
    counters.write_bytes((Path(__file__).parent / "fixtures" / "ncu_qkv_h200.csv").read_bytes())
    result = invoke("profile", "import", str(counters), "--only", "qkv")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^qkv +2 ", result.stdout, re.MULTILINE)
    trace = elsewhere / "trace.json"
    trace.write_text(json.dumps({"traceEvents": graph_steps()}))
    result = invoke("profile", "import", str(trace), "--only", "qkv")
    assert result.exit_code == 2
    assert "--only goes with --ncu or its CSV" in result.stderr


def test_counters_are_compared_with_what_ran() -> None:
    """With as many layers, and with the class alone that was asked for; nothing is guessed."""
    counters = str(Path(__file__).parent / "fixtures" / "ncu_qkv_h200.csv")
    ran = ("--model", "Llama-3.1-8B", "--step", "decode:32x1024")
    whole, two = (
        invoke("profile", "import", counters, *ran, *more) for more in ((), ("--layers", "2"))
    )
    assert whole.exit_code == two.exit_code == 0
    assert re.search(r"^qkv +2 .* 100\.66 +1\.05$", two.stdout, re.MULTILINE), "as an H200 read it"
    assert re.search(r"^qkv +2 .* 1,610\.61 +0\.07  <-$", whole.stdout, re.MULTILINE)
    as_json = json.loads(invoke("profile", "import", counters, *ran, "--json").stdout)
    assert as_json["counted"]["qkv"]["num_bytes"] == pytest.approx(1610.61e6, rel=1e-5)
    only = invoke("profile", "import", counters, *ran, "--only", "qkv")
    assert "DRAM/counted" in only.stdout
    assert only.stdout != whole.stdout
    for wrong, said in (
        (("--layers", "2"), "--layers goes with --model"),
        (("--model", "Nope"), "--model Nope: "),
        ((*ran, "--layers", "99"), "the model has 32 layers"),
        ((*ran, "--only", "nothing"), "is one of"),
    ):
        result = invoke("profile", "import", counters, *wrong)
        assert result.exit_code == 2
        assert said in result.stderr


def test_a_roofline_can_be_predicted() -> None:
    """For any GPU that is known, with pictures; of a model's first layers, too."""
    result = invoke("profile", "roofline", "--step", "decode:32x1024", "--model", "Llama-3.1-8B",
                    "--gpu", "h200")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "gate_up is memory-bound" in result.stdout
    whole = json.loads(Path("profile/roofline.json").read_text())
    assert Path("profile/roofline.svg").read_text().startswith("<?xml")
    assert Path("profile/roofline.png").read_bytes().startswith(b"\x89PNG")
    result = invoke("profile", "roofline", "--step", "decode:32x1024", "--model", "Llama-3.1-8B",
                    "--gpu", "h200", "--layers", "2", "--json")  # fmt: skip
    part = {point["kind"]: point for point in json.loads(result.stdout)["points"]}
    for point in whole["points"]:
        if point["kind"] in ("qkv", "attention_decode"):
            assert 16 * part[point["kind"]]["num_bytes"] == pytest.approx(point["num_bytes"])


def test_what_is_said_of_a_trace_is_what_is_counted_and_told() -> None:
    """Model, layers, dtype and step of the command line replace those of the trace."""
    trace = {"traceEvents": graph_steps(), "workbench": {
        "model": "Llama-3.1-8B", "layers": 2, "step": "decode:32x1024", "dtype": "bfloat16",
        "features": list(shape_of(parse_step("decode:32x1024"))),
    }}  # fmt: skip
    Path("t.json").write_text(json.dumps(trace))
    said = ("--model", "Qwen3-0.6B", "--step", "decode:1x64")
    plain, other, wide = (
        json.loads(invoke("profile", "import", "t.json", *more, "--json").stdout)
        for more in ((), said, ("--dtype", "fp32"))
    )
    told = invoke("profile", "import", "t.json", *said).stdout.splitlines()[0]
    assert told == "decode:1x64: Qwen3-0.6B"
    moved = [
        {one["kind"]: one["rate"] and one["rate"]["tb_s"] for one in found["classes"]}
        for found in (plain, other, wide)
    ]
    for kind in ("qkv", "attention_decode"):
        assert moved[2][kind] == pytest.approx(2 * moved[0][kind])
    spec = load_model_spec("Qwen3-0.6B")
    work = counted_work(spec, shape_of(parse_step("decode:1x64")))
    us = {one["kind"]: one["us"] for one in other["classes"]}
    for kind in ("qkv", "attention_decode"):
        assert moved[1][kind] == pytest.approx(work[kind].num_bytes / us[kind] / 1e6)


def test_a_prediction_follows_dtype_and_graphs_and_says_what_does_not_fit() -> None:
    """The KV cache is of the dtype that is asked for, too; without graphs nothing is padded."""
    asked = ("profile", "roofline", "--step", "decode:33x1024", "--model", "Llama-3.1-8B", "--gpu")
    plain, wide, eager = (
        {
            point["kind"]: point
            for point in json.loads(invoke(*asked, "h200", "--json", *more).stdout)["points"]
        }
        for more in ((), ("--dtype", "fp32"), ("--eager",))
    )
    for kind in ("qkv", "attention_decode"):
        assert wide[kind]["num_bytes"] == 2 * plain[kind]["num_bytes"]
    assert eager["qkv"]["flops"] * 40 == plain["qkv"]["flops"] * 33
    assert "does not fit" not in invoke(*asked, "l4").stderr
    large = invoke("profile", "roofline", "--step", "decode:33x1024", "--model", "Llama-3.1-70B",
                   "--gpu", "l4")  # fmt: skip
    assert "note: this does not fit: 141.1 GB of weights and 11.1 GB of KV" in large.stderr
    assert invoke(*asked, "h200", "--quiet").stderr == ""


def test_a_roofline_is_not_measured_on_a_cpu() -> None:
    """What can be had there is said."""
    result = invoke("profile", "roofline", "--step", "decode:2x16", "--device", "cpu", "--quiet")
    assert result.exit_code == 1
    assert "--gpu h200 predicts" in result.stderr
    assert not Path("profile").exists()  # refused before an engine was built and traced


def test_gaps_need_a_gpu_or_a_file(elsewhere: Path) -> None:
    """Of what was measured elsewhere."""
    result = invoke("profile", "gaps")
    assert result.exit_code == 1
    assert "gaps between kernels need a GPU" in result.stderr
    stories = left_here(elsewhere)
    result = invoke("profile", "gaps", "--from", str(MEASURED_HERE), "--output", "here")
    assert result.exit_code == 0, result.stderr
    for story in stories:
        assert verdict(story) in result.stdout
    assert {path.name for path in Path("here").iterdir()} == {"gaps.svg", "gaps.png"}


def test_a_step_or_a_gpu_that_is_none_is_wrong_usage() -> None:
    """Exit code 2, as for any other word that means nothing; a scenario only where one can be."""
    assert "name of a scenario" in invoke("profile", "timeline").stderr
    assert "name of a scenario" not in invoke("profile", "roofline").stderr
    for arguments in (
        ("timeline", "--step", "decode:4xx"),
        ("roofline", "--step", "decode:1x1", "--model", "Qwen3-0.6B", "--gpu", "h2000"),
    ):
        assert invoke("profile", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("timeline",), "which step?"),
        (("timeline", "--step", "decode"), "is no step"),
        (("timeline", "quickstart", "--step", "decode:1x1"), "not both"),
        (("roofline", "--step", "decode:1x1", "--gpu", "h200"), "which model?"),
        (("roofline", "--step", "decode:1x1", "--gpu", "h2000", "--model", "Qwen3-0.6B"), "h200"),
        (("gaps", "--model", "dit-s"), "--workload"),
        (("timeline", "--step", "decode:1x1", "--only", "qkv"), "goes with --ncu"),
        (("timeline", "--step", "decode:1x1", "--ncu", "--only", "none"), "is one of"),
        (("timeline", "--step", "decode:1x1", "--layers", "2", "--model", "none"), "model card"),
        (("import", "none.json"), "none.json"),
        (("timeline", "quickstart", "--eager"), "a scenario, or a --step"),
        (("timeline", "--step", "decode:1x1", "--first", "7"), "are of a scenario"),
        (("timeline", "--step", "decode:1x1", "--set", "seed=1"), "are of a scenario"),
        (("timeline", "--step", "decode:1x1", "--num-prompts", "9"), "are of a scenario"),
        (("timeline", "--step", "decode:1x1", "--nsys", "--ncu"), "--nsys or --ncu"),
        (("timeline", "--step", "decode:1x1", "--layers", "2"), "--layers goes with --model"),
        (("timeline", "--step", "decode:1x1", "--ncu", "--only", "activation"), "is one of"),
        (("roofline", "--step", "decode:1x1", "--gpu", "h200", "--ncu"), "--gpu predicts"),
        (("roofline", "--step", "decode:1x1", "--gpu", "h200", "--steps", "3"), "--gpu predicts"),
        (("roofline", "--step", "decode:1x1", "--gpu", "h200", "--device", "cpu"), "predicts"),
        (("gaps", "--workload", "decode", "--batch", "32"), "go with --model"),
        (("gaps", "--from", "none.json", "--workload", "decode"), "nothing is left to choose"),
        (("import", "none.csv", "--step", "bad"), "'bad' is no step"),
        (("import", "none.csv", "--eager"), "--eager goes with --step"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: tuple[str, ...], said: str) -> None:
    """In a line, without a traceback."""
    result = invoke("profile", *arguments)
    assert result.exit_code == (1 if arguments == ("import", "none.json") else 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("roofline", "--gpu", "h200", "--step", "decode:1x8", "--layers", "37"), "has 36 layers"),
        (("roofline", "--step", "decode:1x8", "--layers", "37"), "has 36 layers"),
        (("timeline", "--step", "decode:1x8", "--layers", "37"), "take 1 to 36"),
        (("roofline", "--gpu", "h200", "--step", "decode:8x100000"), "takes at most 40,960"),
        (("roofline", "--gpu", "h200", "--step", "prefill:1x50000"), "request of 50,000 tokens"),
    ],
)
def test_what_the_model_has_not_is_refused(arguments: tuple[str, ...], said: str) -> None:
    """More layers or longer requests than it has are a wrong command line, and nothing runs."""
    result = invoke("profile", *arguments, "--model", "Qwen3-8B")
    assert result.exit_code == 2, result.stdout
    assert said in result.stderr
    assert "defect" not in result.stderr
    assert not Path("profile").exists()


@pytest.mark.parametrize("layers", [36, "many", 37])
def test_a_trace_of_layers_that_no_model_has_is_read(elsewhere: Path, layers: object) -> None:
    """Without counts of bytes and FLOPs; one that says what is possible is counted."""
    trace = elsewhere / "trace.json"
    about = {"model": "Qwen3-8B", "layers": layers}
    trace.write_text(json.dumps({"traceEvents": graph_steps(), "workbench": about}))
    result = invoke("profile", "import", str(trace))
    assert result.exit_code == 0, result.stderr
    assert (spec_of(about) is None) == (layers != 36)


def test_libraries_of_a_gpu_are_told_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that torch requires, by either way of naming their packages."""
    known = {"nvidia-cublas": "13.1", "nvidia-cudnn-cu13": "9.1"}

    def version(name: str) -> str:
        if name not in known:
            raise doctor.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor._libraries(None, gpu=True) == (
        "products of many rows by cuBLAS 13.1; also cuDNN 9.1"
    )
    known.clear()
    assert doctor._libraries(None, gpu=True) == "products of many rows by cuBLAS of torch"


def test_the_doctor_says_what_is_missing() -> None:
    """And what works: the CPU's ranges. Nothing fails."""
    result = invoke("profile", "doctor")
    assert result.exit_code == 0, result.stderr
    for part in ("✗ GPU", "✗ nsys", "✗ ncu", "✓ torch.profiler", "· kernels", "· libraries"):
        assert part in result.stdout
    found = json.loads(invoke("profile", "doctor", "--json").stdout)
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    assert states["ncu"] == "missing"
