"""Profiles as files: what is written is read again, and what is broken is refused by name."""

from __future__ import annotations

import json

import msgspec
import pytest
from measured_steps import (
    CPU_ENGINE,
    cpu_shapes,
    gpu_shapes,
    profile_of,
    samples_of,
)

from simulator.profile import SCHEMA, ProfileError
from simulator.profile_file import encode_profile, read_profile

PROFILE = msgspec.structs.replace(
    profile_of(samples_of(gpu_shapes())), conditions={"sm_clock_mhz": [1980, 1965]}
)


def broken(tmp_path, change) -> str:
    """The complaint about a profile that `change` has altered as JSON."""
    path = tmp_path / "broken.json"
    profile = json.loads(encode_profile(PROFILE))
    change(profile)
    path.write_text(json.dumps(profile))
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    "profile", [PROFILE, profile_of(samples_of(cpu_shapes(), CPU_ENGINE), CPU_ENGINE)],
    ids=["gpu", "cpu"],
)  # fmt: skip
def test_a_profile_is_read_as_it_was_written(tmp_path, profile):
    """Every field survives, floats to the last bit."""
    path = tmp_path / "profile.json"
    path.write_bytes(encode_profile(profile))
    again = read_profile(path)
    assert again == profile
    assert encode_profile(again) == path.read_bytes()


def test_a_profile_is_text_with_a_line_end(tmp_path):
    """Versions of a profile can be compared line by line."""
    text = encode_profile(PROFILE).decode()
    assert text.startswith('{\n "schema": "profile/v5",\n "name": "h200-tiny-test",\n')
    assert text.endswith("}\n")


def test_samples_are_columns():
    """The shapes of samples are given as features, in their order."""
    features = PROFILE.samples.features()
    assert len(features) == len(PROFILE.samples) == len(PROFILE.samples.gpu_ns)
    assert features.graph_batch[7] == PROFILE.samples.shapes[7][10]


def test_a_missing_file_is_named(tmp_path):
    """A profile that is not there, or is a folder, is an error that names it."""
    for path, fault in ((tmp_path / "no.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ProfileError, match=fault) as caught:
            read_profile(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\x00\xff", b'{"schema": "\xff"}', b'{"name": "x"}'],
    ids=repr,
)
def test_what_is_no_profile_is_refused(tmp_path, content):
    """Any other content is no profile."""
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match="is not a profile") as caught:
        read_profile(path)
    assert str(caught.value).startswith(str(path))


def test_an_older_schema_asks_to_calibrate_again(tmp_path):
    """Whatever fields it has: the schema is what is complained of."""

    def older(profile):
        profile["schema"] = "profile/v0"
        profile["points"] = profile.pop("samples")

    assert broken(tmp_path, older) == (
        f" is 'profile/v0', this version reads {SCHEMA!r}: `workbench calibrate` measures anew"
    )
    assert "newer version" in broken(tmp_path, lambda profile: profile.update(schema="profile/v99"))


def test_other_measurements_are_called_what_they_are(tmp_path):
    """To measure anew would help nobody: another file is meant."""
    for schema, told in (
        (
            "kernels/v1",
            " holds kernel tables, of no model in particular, and is no profile: give one",
        ),
        (
            "exchange/v1",
            " holds what GPUs exchange, and nothing of a model's steps: give a profile, or",
        ),
    ):
        complaint = broken(tmp_path, lambda profile, schema=schema: profile.update(schema=schema))
        assert complaint.startswith(told)
        assert "measures anew" not in complaint


def test_an_older_profile_can_be_fitted_anew(tmp_path):
    """Its samples are as good as ever; its fit means something else, so it is not used."""
    path = tmp_path / "older.json"
    older = json.loads(encode_profile(PROFILE))
    older["schema"], older["fit"] = "profile/v4", {"clocks": "in another form"}
    path.write_text(json.dumps(older))
    with pytest.raises(ProfileError, match=rf"`workbench calibrate --refit {path}`"):
        read_profile(path)
    assert read_profile(path, to_refit=True).samples == PROFILE.samples
    older["samples"]["gpu_ns"].pop()
    path.write_text(json.dumps(older))
    with pytest.raises(ProfileError, match="its samples are of different lengths"):
        read_profile(path, to_refit=True)


def wake(**changes) -> dict:
    """A table of idle times as JSON."""
    return {"idle_ns": [1, 2], "gpu_ns": [1.0, 2.0], "lead_ns": [-1.0, 0.0]} | changes


def wake_samples(**changes) -> dict:
    """One sample of an idle time as JSON."""
    shape = [24, 1, 0, 300, 24, 0, 0, 0, 0, 0, 1, 0, -1]
    return {"shapes": [shape], "idle_ns": [9], "lead_ns": [5], "gpu_ns": [7]} | changes


def test_an_older_profile_knows_nothing_of_idle_times(tmp_path):
    """The fields that came later may lack, and then they say nothing."""
    path = tmp_path / "older.json"
    profile = json.loads(encode_profile(PROFILE))
    for place, name in ((profile, "wake_samples"), (profile["fit"], "wake")):
        place.pop(name)
    path.write_text(json.dumps(profile))
    assert (read_profile(path).fit.wake, read_profile(path).wake_samples) == (None, None)
    profile["fit"]["wake"], profile["wake_samples"] = wake(), wake_samples()
    path.write_text(json.dumps(profile))
    assert read_profile(path).fit.wake is not None


POWER = {
    "token_ns": 2e4, "load": [0.2, 0.6], "slowdown": [0.0, 0.1], "memory_share": 0.2,
    "light_busy": 0.1,
}  # fmt: skip
FAULTS = {
    "unknown field": (
        lambda p: p.update(colour="red"),
        " is not a profile: Object contains unknown field `colour`",
    ),
    "unknown inner field": (
        lambda p: p["fit"]["mixed"].update(jitter_ns=1.0),
        " is not a profile: Object contains unknown field `jitter_ns` - at `$.fit.mixed`",
    ),
    "missing": (
        lambda p: p["identity"].pop("gpu"),
        " is not a profile: Object missing required field `gpu` - at `$.identity`",
    ),
    "type": (
        lambda p: p["engine"].update(num_pages="many"),
        " is not a profile: Expected `int`, got `str` - at `$.engine.num_pages`",
    ),
    "negative cost": (
        lambda p: p["fit"]["mixed"].update(pair_ns=-0.5),
        " is not a profile: Expected `float` >= 0.0 - at `$.fit.mixed.pair_ns`",
    ),
    "no number": (
        lambda p: p["fit"]["host"].update(step_ns=None),
        " is not a profile: Expected `float`, got `null` - at `$.fit.host.step_ns`",
    ),
    "infinite": (
        lambda p: p["fit"]["host"].update(step_ns=float("inf")),
        " is not a profile: JSON is malformed",
    ),
    "no time": (
        lambda p: p["samples"]["gpu_ns"].__setitem__(3, 0),
        " is not a profile: Expected `int` >= 1 - at `$.samples.gpu_ns[3]`",
    ),
    "lengths": (
        lambda p: p["samples"]["spread_ns"].pop(),
        ": its samples are of different lengths",
    ),
    "host lengths": (
        lambda p: p["host_samples"]["requests"].pop(),
        ": its samples of the host are of different lengths",
    ),
    "shape": (
        lambda p: p["samples"]["shapes"][5].pop(),
        ": a sample has not the 13 features of a step",
    ),
    "nothing": (
        lambda p: p["fit"].update(decode=[], mixed=None),
        ": it predicts nothing",
    ),
    "places": (
        lambda p: p["fit"]["decode"][1]["context"].pop(),
        ": the table of graph batch 2 has 5 places and 6 times",
    ),
    "one place": (
        lambda p: p["fit"]["mixed"].update(tokens=[64], ns=[1.0]),
        ": the table of tokens has fewer than two places, hence no slope",
    ),
    "order": (
        lambda p: p["fit"]["mixed"]["tokens"].reverse(),
        ": the table of tokens does not ascend",
    ),
    "falling": (
        lambda p: p["fit"]["decode"][0]["ns"].reverse(),
        ": the table of graph batch 1 has times that descend",
    ),
    "idle rows": (
        lambda p: p["fit"]["decode"][3].update(idle_row_ns=1e9),
        ": the rows of graph batch 8 take more than all of it",
    ),
    "shared context": (
        lambda p: p["fit"]["shared"].update(shared=[0, 9], saved=[0, 8], requests=[1], times=[2]),
        ": the table of shared context saves more than there is",
    ),
    "shared from where": (
        lambda p: p["fit"]["shared"].update(shared=[5, 10], saved=[0, 5]),
        ": the table of shared context does not begin with nothing",
    ),
    "shared beyond": (
        lambda p: p["fit"]["shared"].update(shared=[0, 9, 10], saved=[0, 0, 10]),
        ": the table of shared context saves more than there is",
    ),
    "padding": (
        lambda p: p["fit"].update(power={**POWER, "graph_tokens": [7]}),
        ": the table of slowdowns pads steps otherwise than its engine",
    ),
    "shared lengths": (
        lambda p: p["fit"]["shared"].update(requests=[1, 8], times=[1.0]),
        ": the table of shared context has 2 numbers of requests and 1 values",
    ),
    "shared order": (
        lambda p: p["fit"]["shared"].update(requests=[8, 8], times=[1.0, 1.0]),
        ": the table of shared context has numbers of requests that do not ascend",
    ),
    "hot lengths": (
        lambda p: p.update(hot_samples={"shapes": [], "cool_ns": [5], "hot_ns": [], "heat_ns": []}),
        ": its samples of hot steps are of different lengths",
    ),
    "order of tables": (
        lambda p: p["fit"]["decode"].reverse(),
        ": the graph batches of its decode tables do not ascend",
    ),
    "two tables": (
        lambda p: p["fit"]["decode"].insert(0, p["fit"]["decode"][0]),
        ": the graph batches of its decode tables do not ascend",
    ),
    "graph tokens": (
        lambda p: p["engine"]["graph_tokens"].reverse(),
        ": its graph tokens do not ascend",
    ),
    "graph batches": (
        lambda p: p["engine"]["graph_batch_sizes"].append(4),
        ": its graph batch sizes do not ascend",
    ),
    "feature": (
        lambda p: p["samples"]["shapes"][5].__setitem__(0, -7),
        ": a sample has a feature that is below 0, or larger than a float64 holds",
    ),
    "huge feature": (
        lambda p: p["samples"]["shapes"][5].__setitem__(0, 2**70),
        ": a sample has a feature that is below 0, or larger than a float64 holds",
    ),
    "no pages": (
        lambda p: p["engine"].update(num_pages=0),
        " is not a profile: Expected `int` >= 1 - at `$.engine.num_pages`",
    ),
    "ages": (
        lambda p: p["fit"]["host"].update(step_ns=1e300),
        " is not a profile: Expected `float` <= 9007199254740992.0 - at `$.fit.host.step_ns`",
    ),
    "idle order": (
        lambda p: p["fit"].update(wake=wake(idle_ns=[2, 2])),
        ": the table of idle times does not ascend",
    ),
    "idle falling": (
        lambda p: p["fit"].update(wake=wake(gpu_ns=[2.0, 1.0])),
        ": the table of idle times has times that descend",
    ),
    "idle columns": (
        lambda p: p["fit"].update(wake=wake(lead_ns=[0.0])),
        ": the table of idle times has columns of different lengths, or is empty",
    ),
    "no idle times": (
        lambda p: p["fit"].update(wake=wake(idle_ns=[], gpu_ns=[], lead_ns=[])),
        ": the table of idle times has columns of different lengths, or is empty",
    ),
    "idle samples": (
        lambda p: p.update(wake_samples=wake_samples(lead_ns=[])),
        ": its samples of idle times are of different lengths",
    ),
    "idle shape": (
        lambda p: p.update(wake_samples=wake_samples(shapes=[[1, 1]])),
        ": a sample has not the 13 features of a step",
    ),
    "limit": (
        lambda p: p["fit"]["limits"].update(prefill_toknes=3),
        ": it limits 'prefill_toknes', which is no feature of a step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_profile_is_refused(tmp_path, fault):
    """The error names the file and says what is wrong where."""
    change, complaint = FAULTS[fault]
    assert broken(tmp_path, change).startswith(complaint)


def test_a_profile_that_could_not_be_read_is_not_written():
    """A calibration that went wrong is known before its file is."""
    for fit, fault in (
        (msgspec.structs.replace(PROFILE.fit, decode=(), mixed=None), "it predicts nothing"),
        (
            msgspec.structs.replace(
                PROFILE.fit, host=msgspec.structs.replace(PROFILE.fit.host, step_ns=float("nan"))
            ),
            "got `null` - at `$.fit.host.step_ns`",
        ),
    ):
        with pytest.raises(ProfileError) as caught:
            encode_profile(msgspec.structs.replace(PROFILE, fit=fit))
        assert str(caught.value).startswith("h200-tiny-test")
        assert str(caught.value).endswith(fault)
