"""`workbench run` with the real model runner on a CPU: nothing is faked, and everything is tiny."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_runs import replay_record
from typer.testing import CliRunner, Result

from workbench.cli import app
from workbench.record.run_record import RunReader

TINY = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 97,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "float32",
    "tie_word_embeddings": False, "attention_bias": False, "eos_token_id": 1,
}  # fmt: skip
FLAGS = [
    "--model", "tiny", "--load-format", "dummy", "--device", "cpu",
    "--set", "load={kind: all_at_once}",
    "--set", "workload.prompt_len={kind: uniform, min: 1, max: 40}",
    "--set", "workload.output_len={kind: uniform, min: 1, max: 8}",
]  # fmt: skip
CONVERSATION = """workload={
  kind: conversation, num_conversations: 3, turns: 3, user_len: 20, output_len: 6,
  think_time_s: 0.01}"""


@pytest.fixture(autouse=True)
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a directory that holds nothing but the config of a tiny model."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text(json.dumps(TINY))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", "quickstart", *FLAGS, *arguments])


def test_a_tiny_model_serves_a_scenario() -> None:
    """Every request gets as many tokens as the scenario says; header and journal tell the rest."""
    result = run("--num-prompts", "8", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["completed"], summary["failed"]) == (8, 0)
    assert (summary["kind"], summary["gpu"]) == ("engine", "cpu")
    assert 0 < summary["gpu_busy_percent"] <= 100
    record = RunReader(Path("runs/quickstart-1"))
    assert record.header.engine["kernels"]["decode_attention"] == "torch"
    steps = record.table("steps")
    assert (steps["plan_ns"] <= steps["start_ns"]).all()
    assert (steps["start_ns"] + steps["gpu_ns"] <= steps["end_ns"]).all()
    assert replay_record(record) == len(steps["step"])


def test_conversations_hit_the_cache_with_real_answers() -> None:
    """Later turns reuse the KV of earlier ones, the engine's own answers included."""
    pages = ["--set", "deployment.pools.0.page_size=1"]
    result = run("--set", CONVERSATION, "--set", "load.warmup_requests=0", *pages)
    assert result.exit_code == 0, result.stderr
    record = RunReader(Path("runs/quickstart-1"))
    requests = record.table("requests")
    later = requests["parent"] >= 0
    assert later.sum() == 6
    parents = dict(zip(requests["request_id"], requests["prompt_tokens"], strict=True))
    for row in later.nonzero()[0]:
        # The last token's KV is never written.
        known = parents[requests["parent"][row]] + 6 - 1
        assert requests["cached_tokens"][row] == known
    assert replay_record(record) == len(record.table("steps")["step"])


def test_a_device_that_is_not_there_is_one_line() -> None:
    """An unknown device ends with code 1 and its name, and leaves no record."""
    result = run("--num-prompts", "4", "--device", "abacus")
    assert result.exit_code == 1
    assert "abacus" in result.stderr
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr
    assert not Path("runs").exists()


def test_a_killed_run_keeps_what_it_measured(tmp_path: Path) -> None:
    """SIGKILL leaves a record of all but the last seconds, which `explain` reads."""
    patch = "import workbench.running.execution as e; e.KEPT_EVERY_S = 0.1\n"
    patch += "import workbench.cli.recording as r; r.KEPT_EVERY_S = 0.1\n"
    patch += "from workbench.cli import main; main()"
    flags = ["engine_on_cpu", "--load-format", "dummy", "--device", "cpu", "--quiet"]
    flags += ["--set", "workload.num_requests=5000", "--set", "load.request_rate=10"]
    run = subprocess.Popen(
        [sys.executable, "-c", patch, "run", *flags], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    record = tmp_path / "runs" / "engine_on_cpu-1"
    deadline = time.monotonic() + 120
    try:
        while not (kept := ended_requests(record)) and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    assert 0 < kept <= ended_requests(record)
    result = CliRunner().invoke(app, ["explain", str(record)])
    assert result.exit_code == 0
    assert "still running, or killed" in result.stdout
    assert "0 of 0 requests" not in result.stdout


def ended_requests(record: Path) -> int:
    """How many requests have ended in what a run has written so far."""
    if not list((record / "events").glob("*.npz")):
        return 0
    return len(RunReader(record).table("requests")["request_id"])
