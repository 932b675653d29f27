"""Exchange between GPUs: measured, kept beside kernel tables, and part of composed models."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import invoke
from made_kernels import H200, made_kernels
from measured_steps import decode, prefill

from engine.core.model_spec import load_model_spec
from simulator.composition.composed import ComposedCostModel
from simulator.composition.exchange_curves import (
    AnalyticExchange,
    LongerExchange,
    MeasuredExchange,
    NoExchange,
    knows,
)
from simulator.composition.kernel_exchange import (
    SCHEMA,
    ExchangeSeries,
    ExchangeTables,
    encode_exchange,
    likeliest,
    read_exchange,
)
from simulator.composition.kernel_file import encode_kernel_file, read_kernel_file
from simulator.profile import ProfileError
from workbench.calibration.kernels import refit_kernels

BARE = made_kernels(("Llama-3.1-8B",))
LLAMA = load_model_spec("Llama-3.1-8B")
START_NS, BYTES_PER_NS = 12_000.0, 150.0


def made_exchange(gpu: str = "NVIDIA H200", gpus: tuple[int, ...] = (2,)) -> ExchangeTables:
    """Links that take so long to start, and for each byte."""
    sizes = tuple(1 << power for power in range(12, 27))
    series = [
        ExchangeSeries(
            op=op,
            gpus=count,
            bytes=sizes,
            ns=tuple(START_NS + size / BYTES_PER_NS for size in sizes),
            spread_ns=(0.0,) * len(sizes),
        )
        for op in ("all_reduce", "all_gather")
        for count in gpus
    ]
    return ExchangeTables(schema=SCHEMA, gpu=gpu, engine_version="0", series=tuple(series))


def composed(exchange: ExchangeTables | None, gpus: int = 2) -> ComposedCostModel:
    tables = msgspec.structs.replace(BARE, exchange=exchange)
    return ComposedCostModel(tables, LLAMA, H200, tensor_parallel_size=gpus)


def test_sums_and_gathers_are_read_off():
    """Two sums a layer and one of the embedding, of rows of the hidden size; a gather of logits."""
    rows = np.array([1.0, 64.0, 100_000.0])
    found = MeasuredExchange(made_exchange(), LLAMA, 2)
    sums = 65 * (START_NS + np.maximum(2 * 4096 * rows, 4096) / BYTES_PER_NS)
    assert found.sums(rows) == pytest.approx(sums)
    assert found.logits(rows) == pytest.approx(START_NS + 2 * 128_256 * rows / BYTES_PER_NS)
    assert NoExchange().sums(rows).tolist() == NoExchange().logits(rows).tolist() == [0.0] * 3


def test_measured_exchange_takes_the_place_of_the_analytic_models():
    """A step on two GPUs differs by what exchange differs, and by nothing else."""
    rows = np.array([64.0])
    measured, analytic = (
        MeasuredExchange(made_exchange(), LLAMA, 2),
        AnalyticExchange(LLAMA, H200, 2),
    )
    more = [each.sums(rows)[0] + each.logits(rows)[0] for each in (measured, analytic)]
    steps = [composed(each).step_cost(decode(64, 500, 64))[0] for each in (made_exchange(), None)]
    assert steps[0] - steps[1] == pytest.approx(more[0] - more[1], abs=3)


def test_the_name_tells_whose_exchange_it_is():
    """Another GPU's is named and stays an extrapolation; this GPU's is none."""
    own, other = composed(made_exchange()), composed(made_exchange("NVIDIA H100 80GB HBM3"))
    step = decode(8, 500, 8)
    assert own.name.endswith("of NVIDIA H200, exchange of NVIDIA H200, error not known")
    assert not own.step_cost(step)[2]
    assert "exchange of NVIDIA H100 80GB HBM3, error not known" in other.name
    assert other.step_cost(step)[2]
    assert other.step_cost(step)[0] == own.step_cost(step)[0]
    four = composed(made_exchange(), gpus=4)
    assert "exchange analytic but no faster than of 2 NVIDIA H200" in four.name
    assert "exchange analytic, error" in composed(None, gpus=4).name
    assert four.step_cost(step)[2]
    assert "exchange" not in composed(made_exchange(), gpus=1).name
    assert knows(made_exchange(gpus=(2, 4)), 4)
    assert not knows(None, 2)


def test_more_gpus_share_the_work():
    """Long prompts take less on two GPUs than on one, short decode steps less than half as much."""
    one, two = composed(None, gpus=1), composed(made_exchange())
    assert two.step_cost(prefill(8192))[0] < 0.75 * one.step_cost(prefill(8192))[0]
    assert two.step_cost(decode(1, 500, 1))[0] > 0.5 * one.step_cost(decode(1, 500, 1))[0]


def test_more_gpus_exchange_nothing_faster_than_fewer_were_seen_to():
    """Where four were not measured, what two took is the least, and what is computed if longer."""
    rows = np.array([1.0, 64.0, 8192.0])
    two, four = MeasuredExchange(made_exchange(), LLAMA, 2), AnalyticExchange(LLAMA, H200, 4)
    both = LongerExchange(four, two)
    for name in ("sums", "logits"):
        found, slow, fast = (getattr(each, name)(rows) for each in (both, two, four))
        assert found.tolist() == np.maximum(slow, fast).tolist()
        assert slow[0] > fast[0]
    times = [composed(made_exchange(), gpus).step_cost(decode(1, 64, 1))[0] for gpus in (2, 4)]
    fewer_bytes = composed(None, 2).step_cost(decode(1, 64, 1))[0]
    assert times[1] > times[0] - fewer_bytes / 2


def test_what_is_written_is_read_again(tmp_path: Path):
    """A file of exchange, and kernel tables with it, are what they were."""
    path = tmp_path / "exchange-made.json"
    path.write_bytes(encode_exchange(made_exchange()))
    assert read_exchange(path) == made_exchange()
    tables = msgspec.structs.replace(BARE, exchange=made_exchange())
    path.write_bytes(encode_kernel_file(tables))
    assert read_kernel_file(path) == tables


def changed(**changes: object) -> str:
    """Why exchange whose first series was changed is refused."""
    whole = made_exchange()
    first = msgspec.structs.replace(whole.series[0], **changes)
    with pytest.raises(ProfileError) as caught:
        encode_exchange(msgspec.structs.replace(whole, series=(first, *whole.series[1:])))
    return str(caught.value)


def test_series_that_contradict_themselves_are_refused(tmp_path: Path):
    """The complaint names the series, or the file, and what is wrong with it."""
    where = "exchange of NVIDIA H200: the series of all_reduce on 2 GPUs"
    assert changed(ns=(1.0,)) == f"{where} has columns of different lengths"
    one = {"bytes": (8,), "ns": (1.0,), "spread_ns": (0.0,)}
    assert changed(**one) == f"{where} has fewer than two points, hence no slope"
    two = {"bytes": (8, 8), "ns": (1.0, 1.0), "spread_ns": (0.0, 0.0)}
    assert changed(**two) == f"{where} has bytes that do not ascend"
    assert changed(op="all_gather").endswith("all_gather on 2 GPUs is there twice")
    assert "no such op; ops: all_reduce, all_gather" in changed(op="send")
    path = tmp_path / "exchange-x.json"
    for text, complaint in (("{", "holds no exchange between GPUs"),
                            (encode_exchange(made_exchange()).decode().replace("/v1", "/v0"),
                             "it is 'exchange/v0', this version reads")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ProfileError, match=complaint) as caught:
            read_exchange(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ProfileError, match="No such file"):
        read_exchange(tmp_path / "none.json")


def test_tables_take_the_exchange_that_lies_beside_them(tmp_path: Path):
    """That of the same GPU if there is one, and they keep it when it is gone."""
    path = tmp_path / "kernels-nvidia-h200.json"
    path.write_bytes(encode_kernel_file(BARE))
    assert refit_kernels(path).kernels.exchange is None
    other, own = made_exchange("A GPU"), made_exchange()
    files = [tmp_path / f"exchange-{name}.json" for name in ("a", "b")]
    files[0].write_bytes(encode_exchange(other))
    assert refit_kernels(path).kernels.exchange == other
    files[1].write_bytes(encode_exchange(own))
    assert refit_kernels(path).kernels.exchange == own
    for file in files:
        file.unlink()
    assert refit_kernels(path).kernels.exchange == own
    assert likeliest([], "NVIDIA H200") is None


def test_the_skew_of_experts_can_be_assumed_anew(tmp_path: Path):
    """--refit --expert-skew writes it into tables; a profile has none."""
    path = tmp_path / "kernels-nvidia-h200.json"
    path.write_bytes(encode_kernel_file(BARE))
    assert BARE.composition.expert_skew == 0.25
    result = invoke("calibrate", "--refit", str(path), "--expert-skew", "0.75")
    assert result.exit_code == 0, result.output
    assert refit_kernels(path).kernels.composition.expert_skew == 0.75
    for arguments, complaint in (
        (["--expert-skew", "1"], "--all-reduce, --missing and --expert-skew are of kernel"),
        (["--all-reduce"], "--all-reduce, --missing and --expert-skew are of kernel"),
        (["--refit", "no.json", "--expert-skew", "1"], "is of kernel tables, and no.json is"),
    ):
        result = invoke("calibrate", *arguments)
        assert result.exit_code == 2
        assert complaint in result.stderr


def test_processes_of_a_cpu_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same code over gloo: sums are right, every case is timed, and the file can be read."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    result = invoke("calibrate", "--kernels", "--all-reduce", "--cpu")
    assert result.exit_code == 0, result.output
    tables = read_exchange(tmp_path / "profiles" / "exchange-cpu.json")
    assert {(each.op, each.gpus) for each in tables.series} == {
        ("all_reduce", 2), ("all_gather", 2)
    }  # fmt: skip
    assert all(len(each.bytes) == 3 for each in tables.series)
    assert set(tables.versions) == {"torch"}


def test_a_process_that_fails_is_heard():
    """What it said last is in the error, and nobody waits for the others."""
    exchange = pytest.importorskip("engine.profiling.exchange")
    from engine.runtime.executor import EngineError

    wrong = [exchange.ExchangeCase("all_reduce", 2, -4)]
    with pytest.raises(EngineError, match=r"(?s)failed on GPU \d:.*negative"):
        exchange.measure_exchange(2, wrong, on_cpu=True, limit_s=60)
    with pytest.raises(EngineError, match="there are 1 GPUs, not 2"):
        exchange.measure_exchange(1, wrong, on_cpu=True)


def test_groups_are_those_that_the_machine_can_make():
    """Two and four of four GPUs, each op at each size."""
    exchange = pytest.importorskip("engine.profiling.exchange")
    cases = exchange.design_exchange(4)
    assert {case.gpus for case in cases} == {2, 4}
    assert {case.size for case in cases} == {4096 << step for step in range(15)}
    assert len(cases) == len(set(cases)) == 60
