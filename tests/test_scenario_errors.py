"""Every class of error about a scenario file stands at its place and says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_texts import BASE, changed, error_of, errors_of, underlined, write

from workbench.running.deployment import resolve_deployment
from workbench.scenario.errors import (
    CODES,
    MAX_SHOWN,
    ScenarioError,
    ScenarioErrors,
    Source,
    Span,
    closest,
)
from workbench.scenario.source import load_scenario


def test_an_error_looks_like_a_compiler_error(tmp_path: Path, monkeypatch) -> None:
    """A misspelt key is printed with its line, a caret under it, and the right spelling."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, changed("burstiness", "burstyness"))
    expected = """\
error[S101]: unknown key `burstyness`
  --> bad.yaml:12:3
 12|   burstyness: 0.5
   |   ^^^^^^^^^^
   = help: did you mean `burstiness`?"""
    assert str(error_of("bad.yaml")) == expected


# (what is replaced, by what, code, line, column, underlined, in the message, in the help)
MISTAKES = [
    ("name: base", "nme: base", "S101", 2, 1, "nme", "unknown key `nme`", "did you mean `name`?"),
    ("gpu: h200", "gpu: h200, tp: 2", "S101", 4, 23, "tp", "`tp`", "pools.0.tensor_parallel_size"),
    ("  burst", "  page_size: 1\n  burst", "S101", 12, 3, "page_size", "page_size", "ls.0.page"),
    ("  burst", "  time_scale: 1\n  burst", "S101", 12, 3, "time_scale", "key", "of kind `trace`"),
    ("  burst", "  qqq: 1\n  burst", "S101", 12, 3, "qqq", "key `qqq`", "allowed here: `kind`"),
    ("kind: gamma", "kind: poisson", "S101", 12, 3, "burstiness", "key", "of kind `gamma`"),
    ("  request_rate: 10\n", "", "S102", 9, 1, "load", "missing key `request_rate`", "per second"),
    ("  kind: gamma\n", "", "S102", 9, 1, "load", "missing key `kind` in `load`", "`closed_loop`"),
    ("{name: Llama-3.1-8B}", "{}", "S102", 3, 1, "model", "needs `name` or `path`", "card"),
    ("schema: workbench/scenario/v1\n", "", "S102", 1, 1, "name", "missing key `schema`", "v1"),
    ("rate: 10", "rate: fast", "S103", 11, 17, "fast", "must be a number, not the text", "second"),
    ("rate: 10", "rate: true", "S103", 11, 17, "true", "must be a number, not `true`", "second"),
    ("rate: 10", "rate:", "S103", 11, 3, "request_rate", "a number, not empty", "second"),
    ("name: base", "name: 7", "S103", 2, 7, "7", "must be text, not the number `7`", "folder"),
    ("name: base", "seed: 1.5\nname: x", "S103", 2, 7, "1.5", "whole number", "randomness"),
    ("{gpu: h200}", "h200", "S103", 4, 11, "h200", "must be a mapping", "serves"),
    ("prompt_len: 512", "prompt_len: long", "S103", 7, 15, "long", "must be a mapping", "prompt"),
    ("kind: gamma", "kind: 3", "S103", 10, 9, "3", "`kind`", "allowed: `poisson`"),
    ("kind: gamma", "kind: gama", "S104", 10, 9, "gama", "unknown kind `gama`", "mean `gamma`?"),
    ("kind: gamma", "kind: zzz", "S104", 10, 9, "zzz", "unknown kind `zzz`", "`closed_loop`"),
    ("lognormal", "longnormal", "S104", 8, 22, "longnormal", "kind", "did you mean `lognormal`?"),
    ("Llama-3.1-8B", "lama-3.1-8b", "S104", 3, 15, "lama-3.1-8b", "model", "mean `Llama-3.1-8B`?"),
    ("h200", "h20", "S104", 4, 17, "h20", "unknown GPU `h20`", "did you mean `h200`?"),
    ("8B}", "8B, kv_dtype: int4}", "S104", 3, 39, "int4", "kv_dtype", "did you mean `int8`?"),
    ("len: 512", "len: 512\n  max_tokens: all", "S104", 8, 15, "all", "`output_len` or a", ""),
    ("rate: 10", "rate: -1", "S105", 11, 17, "-1", "must be above 0, not `-1`", "per second"),
    ("rate: 10", "rate: .inf", "S105", 11, 17, ".inf", "must be a finite number", "per second"),
    ("len: 512", "len: 0", "S105", 7, 15, "0", "`value` must be at least 1", ""),
    ("max: 400", "min: 500, max: 400", "S105", 8, 72, "400", "`max` (400) is below", "at least"),
    ("name: base", "name: a b", "S105", 2, 7, "a b", "cannot be `a b`", "letters, digits"),
    ("  burst", "  measure_until_s: 0\n  burst", "S105", 12, 20, "0", "window is empty", "above"),
    ("  burst", "  warmup_requests: 1000\n  burst", "S105", 12, 20, "1000", "none of 1000", ""),
    ("name: base", "name: base\nname: b", "S106", 3, 1, "name", "duplicate key", "first at 2:1"),
    ("gpu: h200", "gpu: h200, gpu: l4", "S106", 4, 23, "gpu", "duplicate key", "first at 4:12"),
    ("rate: 10", "rate: [10", "S107", 12, 13, ":", "not valid YAML", ""),
    ("name: base", "name: a: b", "S107", 2, 8, ":", "mapping values", 'in "quotes"'),
    ("  kind: gamma", "\tkind: gamma", "S107", 10, 1, " ", "not valid YAML", "not with tabs"),
    ("name: base", "name: *x", "S107", 2, 7, "*", "undefined alias", "in quotes"),
    ("name: base", "name: !!int x", "S107", 2, 7, "!!int x", "`x` is not a number", ""),
    ("name: base", "name: a\n---\nb: 1", "S107", 3, 1, "-", "single document", "second `---`"),
    ("name: base", "name: \x01", "S107", 2, 7, "\N{REPLACEMENT CHARACTER}", "U+0001", ""),
    ("name: base", "name: !x y", "S108", 2, 7, "!x y", "YAML tag `!x`", ""),
    ("name: base", "name: b\n? [1]\n: 2", "S108", 3, 3, "[1]", "a key must be plain text", ""),
    ("scenario/v1", "scenario/v9", "S109", 1, 9, "workbench/scenario/v9", "format", "scenario/v1"),
    ("h200}", "h200, profile: p}", "S114", 4, 32, "p", "p` does not exist", "writes one"),
    ("name: base", "name: b\nfaults: [{}]", "S110", 3, 1, "faults", "not supported yet", "out"),
    ("name: base", "name: b\nspeculative: {}", "S110", 3, 1, "speculative", "supported yet", ""),
    ("8B}", "8B, path: c.json}", "S111", 3, 35, "c.json", "both `name` and `path`", "one of"),
    ("  kind: gamma\n  request_rate: 10\n  burstiness: 0.5", "  kind: trace", "S111", 10, 9,
     "trace", "needs the timestamps of a trace; the workload is `synthetic`", "load.kind"),
    ("name: Llama-3.1-8B", "path: no.json", "S114", 3, 15, "no.json", "no.json` does not", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "column", "marked", "message", "help_"), MISTAKES
)
def test_each_mistake_has_its_place_and_advice(
    tmp_path: Path, old: str, new: str, code: str, line: int, column: int, marked: str,
    message: str, help_: str,
) -> None:  # fmt: skip
    """One mistake in a good file gives one error, underlined in place, with code and advice."""
    error = error_of(write(tmp_path, changed(old, new)))
    assert (error.code, error.line, error.column) == (code, line, column), str(error)
    assert underlined(error) == marked
    assert message in error.message
    assert help_ in error.help
    assert f"bad.yaml:{line}:{column}" in str(error)


POOL_MISTAKES = [
    ("role: decode", "S110", "role `decode` is not supported yet"),
    ("role: prefill", "S110", "role `prefill` is not supported yet"),
    ("role: mixd", "S104", "unknown role `mixd`"),
    ("expert_parallel_size: 2", "S110", "expert parallelism is not supported yet"),
    ("max_plans_in_flight: 5", "S105", "must be at most 4"),
    ("max_num_batched_tokens: 100", "S105", "cannot decode 256 running requests"),
    ("cuda_graph_batch_sizes: [4, 2]", "S105", "must increase strictly"),
    ("cuda_graph_batch_sizes: [a]", "S103", "entry 0 of `cuda_graph_batch_sizes` must be a whole"),
    ("replicas: 2.5", "S103", "must be a whole number"),
    ("num_blocks: 2", "S101", "unknown key"),
]


@pytest.mark.parametrize(("line", "code", "message"), POOL_MISTAKES)
def test_mistakes_in_a_list_entry_stand_in_that_entry(
    tmp_path: Path, line: str, code: str, message: str
) -> None:
    """A mistake in the second pool is reported once, on the second pool's line."""
    text = BASE + f"deployment:\n  pools:\n    - replicas: 1\n    - {line}\n"
    error = error_of(write(tmp_path, text))
    assert (error.code, error.line) == (code, 16)
    assert message in error.message


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Several mistakes, of syntax-free kinds, are all reported, sorted by line."""
    text = changed("gpu: h200", "gpu: h20, gpus: 2").replace("512", "-1").replace("gamma", "gama")
    errors = errors_of(write(tmp_path, text + "name: again\nslo: {}\n"))
    found = [(error.code, error.line) for error in errors]
    assert found == [
        ("S104", 4), ("S101", 4), ("S105", 7), ("S104", 10), ("S106", 13), ("S102", 14),
    ]  # fmt: skip


def test_errors_of_the_chosen_kind_only(tmp_path: Path) -> None:
    """Inside a known kind, only that kind's errors appear, in no words of the validator."""
    text = changed("  burstiness: 0.5\n", "  burstiness: no\n  max_concurrency: 0\n")
    errors = errors_of(write(tmp_path, text))
    assert [(error.code, error.line) for error in errors] == [("S103", 12), ("S105", 13)]
    printed = "\n".join(map(str, errors))
    assert not any(
        word in printed for word in ("Load", "Input should", "pydantic", "discriminator")
    )


def test_a_misspelt_required_key_is_one_error(tmp_path: Path) -> None:
    """A misspelt key that is needed is not also reported as missing."""
    assert error_of(write(tmp_path, changed("  request_rate", "  requestrate"))).code == "S101"


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "S102", "the scenario is empty"),
        (b"# only a comment\n", "S102", "the scenario is empty"),
        (b"- a\n- b\n", "S103", "a mapping of keys to values, not a list"),
        (b"just text\n", "S103", "a mapping of keys to values, not a single value"),
        ("name: caf\xe9".encode("latin-1"), "S100", "not UTF-8 text: byte 0xe9 at 1:10"),
        (b"\xff\xfen\x00a\x00", "S100", "not UTF-8 text"),
        (b"\x7fELF\x00\x00", "S100", "not a text file: NUL character at offset 4"),
        (b"#" * (100 << 20), "S100", "larger than 1,048,576 bytes"),
    ],
    ids=["empty", "comment", "list", "text", "latin-1", "utf-16", "binary", "100 MB"],
)
def test_files_that_are_no_scenario(
    tmp_path: Path, content: bytes, code: str, message: str
) -> None:
    """A file that is no YAML mapping, or no text at all, gives one clear error."""
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    error = error_of(file)
    assert error.code == code
    assert message in error.message
    assert "bad.yaml" in str(error)


def test_the_largest_file_is_still_read(tmp_path: Path) -> None:
    """Exactly 1 MiB is accepted: the limit is no off-by-one."""
    from workbench.scenario.source import MAX_BYTES, load_scenario

    filler = "#" * (MAX_BYTES - len(BASE) - 1) + "\n"
    assert load_scenario(write(tmp_path, filler + BASE)).scenario.name == "base"
    assert error_of(write(tmp_path, "#" + filler + BASE)).code == "S100"


def test_missing_files_and_names_suggest_what_exists(tmp_path: Path) -> None:
    """A file that is not there is compared with its folder, a name with the shipped ones."""
    write(tmp_path, BASE, "chat.yaml")
    near = error_of(tmp_path / "chta.yaml")
    assert near.code == "S100"
    assert near.help == "did you mean `chat.yaml`?"
    assert "`quickstart` is a shipped scenario" in error_of(tmp_path / "quickstart.yaml").help
    name = error_of("quikstart")
    assert name.code == "S113"
    assert name.help.startswith("did you mean `quickstart`?\nshipped: ")
    assert error_of("zzz").code == "S113"


def test_a_folder_instead_of_a_file_points_at_the_config_in_it(tmp_path: Path) -> None:
    """A model's folder is told as such, with its config.json, and never suggested itself."""
    scenario = write(tmp_path, changed("name: Llama-3.1-8B", "path: llama"))
    (tmp_path / "llama").mkdir()
    empty = error_of(scenario)
    assert (empty.code, empty.help) == ("S114", "")
    assert empty.message.endswith("llama` is a folder, not a file")
    config = tmp_path / "llama" / "config.json"
    config.write_text("{}")
    assert error_of(scenario).help == f"did you mean `{config}`?"


def test_a_missing_profile_is_never_said_to_be_half_of_one(tmp_path: Path) -> None:
    """What a calibration has written so far is no profile; another profile may be meant."""
    scenario = write(tmp_path, changed("gpu: h200", "gpu: h200, profile: cpu-tiny.json"))
    (tmp_path / "cpu-tiny.partial.jsonl").touch()
    assert error_of(scenario).help == "`workbench calibrate` writes one"
    (tmp_path / "cpu-tiny-1.json").touch()
    assert error_of(scenario).help == "did you mean `cpu-tiny-1.json`?"


def test_an_older_profile_is_told_one_way_out(tmp_path: Path) -> None:
    """To fit it anew, not to measure again."""
    scenario = write(tmp_path, changed("gpu: h200", "gpu: h200, profile: old.json"))
    (tmp_path / "old.json").write_text('{"schema": "profile/v4"}')
    with pytest.raises(ScenarioErrors) as caught:
        resolve_deployment(load_scenario(str(scenario)))
    (error,) = caught.value.errors
    assert "`workbench calibrate --refit" in error.message
    assert error.help == ""


def test_what_is_there_but_no_file_is_not_called_missing(tmp_path: Path) -> None:
    """A device is no regular file; "does not exist" would be untrue."""
    scenario = write(tmp_path, changed("name: Llama-3.1-8B", "path: /dev/null"))
    assert error_of(scenario).message == "`/dev/null` is no regular file"


def test_a_folder_or_an_impossible_name_is_no_scenario(tmp_path: Path) -> None:
    """What cannot be opened is a scenario error, not a traceback."""
    assert "Is a directory" in error_of(tmp_path).message
    assert error_of("a\0b.yaml").code == "S100"
    assert "`workbench scenarios` lists" in error_of(tmp_path).help
    assert error_of(tmp_path / ("x" * 5000 + ".yaml")).code == "S100"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100,000 values once aliases"),
        ("a: &a [*a]\n", "nested more than 50 levels deep"),
        ("a: &a {b: *a}\n", "nested more than 50 levels deep"),
        ("a: " + "[" * 300 + "]" * 300, "nested more than 50 levels deep"),
        ("[" * 100_000, "nested more than 50 levels deep"),
    ],
    ids=["bomb", "list cycle", "mapping cycle", "deep", "very deep"],
)
def test_yaml_that_explodes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Alias bombs, cycles and absurd nesting end with an error, soon."""
    errors = errors_of(write(tmp_path, text))
    assert message in next(error.message for error in errors if error.code == "S108")


def test_aliases_within_reason_are_allowed(tmp_path: Path) -> None:
    """An anchor may be used again, and an error in it is shown once, where it is written."""
    from workbench.scenario.source import load_scenario

    text = changed("prompt_len: 512", "prompt_len: &len {kind: uniform, min: 1, max: 9}")
    text = text.replace("output_len: {kind: lognormal, mean: 100, std_dev: 50, max: 400}",
                        "output_len: *len")  # fmt: skip
    workload = load_scenario(write(tmp_path, text)).scenario.workload
    assert workload.prompt_len == workload.output_len
    assert error_of(write(tmp_path, text.replace("min: 1", "mn: 1"))).line == 7


def test_carets_stand_under_the_text_whatever_comes_before_it() -> None:
    """Tabs, wide and combining characters before the mark take the cells that a terminal gives."""
    for before, cells in [("\t", 1), ("漢字", 4), ("e\N{COMBINING ACUTE ACCENT}", 1)]:
        source = Source("x", before + "key")
        span = Span(source, len(before), len(before) + 3)
        caret = str(ScenarioError("S101", "m", "", span)).splitlines()[-1]
        assert caret == "   | " + " " * cells + "^^^"


def test_long_lines_are_cut_around_the_mark() -> None:
    """A mark far into a long line stays visible, and the line stays short."""
    source = Source("x", "a" * 5000 + "KEY" + "b" * 5000)
    error = ScenarioError("S101", "m", "", Span(source, 5000, 5003))
    assert underlined(error) == "KEY"
    assert max(map(len, str(error).splitlines())) < 120
    assert error.column == 5001


def test_nothing_from_the_file_controls_the_terminal(tmp_path: Path) -> None:
    """Escape sequences in keys and values never reach the terminal."""
    errors = errors_of(write(tmp_path, BASE + '"\\e[31mred\\a": 1\n"a\\nb": 2\n'))
    printed = str(ScenarioErrors(errors))
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert len(errors) == 2


def test_only_the_first_errors_are_printed(tmp_path: Path) -> None:
    """A file of mistakes prints a screenful and counts the rest; none is dropped."""
    errors = errors_of(write(tmp_path, BASE + "".join(f"k{i}: 1\n" for i in range(100))))
    assert len(errors) == 100
    printed = str(ScenarioErrors(errors))
    assert printed.count("error[") == MAX_SHOWN
    assert printed.endswith(f"... and {100 - MAX_SHOWN} more errors")


def test_line_endings_and_byte_order_marks_do_not_shift_places(tmp_path: Path) -> None:
    """CRLF files and files with a BOM have errors at the same places."""
    bad = changed("burstiness", "burstyness")
    for text in (bad.replace("\n", "\r\n"), "\ufeff" + bad):
        file = tmp_path / "bad.yaml"
        file.write_bytes(text.encode())
        error = error_of(file)
        assert (error.line, error.column, underlined(error)) == (12, 3, "burstyness")


def test_every_code_is_in_the_list() -> None:
    """The mistakes of this file use all codes of the list but those of other inputs."""
    used = {code for _, _, code, *_ in MISTAKES}
    assert set(CODES) - used == {"S100", "S112", "S113"}
    assert used <= set(CODES)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Max-Concurrency", "max_concurrency"),
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("request_rat", "request_rate"),
        ("zzzz", None),
        ("", None),
        ("llama", "Llama-3.1-8B"),
    ],
)
def test_closest(word: str, expected: str | None) -> None:
    """Case, separators and small slips are forgiven; anything else gives no suggestion."""
    assert closest(word, ["max_concurrency", "Llama-3.1-8B", "request_rate"]) == expected


def test_the_beginning_of_one_name_is_nearer_than_another_name() -> None:
    """Whoever leaves out the end means that one."""
    models = ["Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-8B"]
    assert closest("Qwen3-30B", models) == "Qwen3-30B-A3B"
    assert closest("Qwen3", models) == "Qwen3-8B"  # the most like it
