"""Writes the tables of docs/kernel_lab.md, and its picture, from the results that ship.

    python benchmarks/kernel_lab_page.py [--results lab.json]

The page says `<!-- ladder softmax -->` where a table begins and `<!-- end -->` where it ends; the
results are those that `workbench kernels bench all --output lab.json` writes, and with `--results`
they first take the place of the shipped ones.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.kernels.lab.results import (
    SHIPPED,
    LabResults,
    SizeResult,
    read_results,
    shipped_results,
    to_json,
)
from engine.kernels.lab.rungs import LADDERS, Ladder
from workbench.kernel_lab_text import UNITS, provenance, rate_text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "kernel_lab.md"
PICTURE = ROOT / "docs" / "kernel_lab_h200.png"
NATIVE = ROOT / "benchmarks" / "results" / "native_h200.json"
PROMPTS = (2048, 8192)  # tokens
KEYS, WARPS = 48, 4  # how the rung cuda-tensor is cut (engine/kernels/lab/attention_prefill.py)
PORTABLE = "(128, 64, 8, 3)"  # how the engine's portable kernel is cut
COLOURS = ("#56B4E9", "#0072B2", "#013A63")


def ladder_markdown(ladder: Ladder, results: LabResults | None) -> str:
    """A row per rung, a column per size: time, rate and share of the ceiling.

    Without results: what each rung changes.
    """
    if results is None:
        rows = [["rung", "written in", "what it changes"], ["---"] * 3]
        rows += [[_name(ladder, r.name), r.language, r.changed] for r in ladder.rungs]
        return "\n".join(map(_row, rows)) + "\n"
    sizes, ceiling = results.ladders[ladder.op], _ceiling(ladder, results)
    heads = ["rung", "written in", *(f"{size.label}" for size in sizes), "error"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for rung in ladder.rungs:
        cells = [_cell(ladder, size, rung.name, ceiling) for size in sizes]
        errors = [r.relative_error for s in sizes if (r := s.rung(rung.name)) and r.relative_error]
        lines.append(
            _row(
                [
                    _name(ladder, rung.name),
                    rung.language,
                    *cells,
                    f"{max(errors):.1e}" if errors else "",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _name(ladder: Ladder, name: str) -> str:
    return f"**{name}** (serves)" if name == ladder.engine else name


def _ceiling(ladder: Ladder, results: LabResults) -> float:
    found = results.ceiling(ladder.ceiling)
    if found is None:
        raise ValueError("results of a CPU, which has no ceilings, cannot ship")
    return found


def _cell(ladder: Ladder, size: SizeResult, name: str, ceiling: float) -> str:
    rung = size.rung(name)
    rate = size.rate(rung, ladder.ceiling) if rung else None
    if rung is None or rate is None or rung.median_us is None:
        return rung.note if rung else ""
    share = f"{100 * rate / ceiling:.1f} %"
    text = f"{rung.median_us:,.0f} us, {rate_text(rate)} {UNITS[ladder.ceiling]}, {share}"
    return text if rung.is_steady else f"{text} (unsteady)"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def gil_markdown(native: dict[str, Any]) -> str:
    """Threads with the lock released and kept."""
    heads = ["lock", "threads", "calls/s", "speed-up", "late, median ms", "late, most ms"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    lines += [
        _row([
            "released" if row["released"] else "kept", str(row["threads"]),
            f"{row['calls_per_s']:.0f}", f"{row['speedup']:.2f}", f"{row['late_median_ms']:.2f}",
            f"{row['late_most_ms']:.1f}",
        ])
        for row in native["gil"]["scaling"]
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def attention_markdown() -> str:
    """Rungs of a prompt's attention from three measurements, made on H200s on different days."""
    tiles = _json("kernel_lab_tiles_h200.json")
    engine = _json("kernels_attention_h200.json")
    library = _json("ceilings_h200.json")
    flops = {n: 4 * 32 * 128 * n * (n + 1) // 2 for n in PROMPTS}
    times: list[tuple[str, str, dict[int, float]]] = [
        ("cuda-tensor", _source(tiles), {
            row["tokens"]: row["median_us"] for row in tiles["attention_prefill"]
            if (row["keys"], row["warps"]) == (KEYS, WARPS)
        }),
        ("triton", _source(engine), _engine_times(engine, PORTABLE)),
        ("gluon", _source(engine), _engine_times(engine, "hopper")),
    ]  # fmt: skip
    times += [
        (name, _source(library), {
            row["tokens"]: row["us"] for row in library["attention"] if row["backend"] == backend
        })
        for name, backend in (("library-flash", "FLASH_ATTENTION"), ("library", "CUDNN_ATTENTION"))
    ]  # fmt: skip
    rows = [["rung", *(f"tokens {n:,}" for n in PROMPTS), "measured"], ["---"] * 4]
    for name, source, found in times:
        cells = [f"{found[n]:,.0f} us, {flops[n] / found[n] / 1e6:.0f} TFLOP/s" for n in PROMPTS]
        rows.append([_name(LADDERS["attention_prefill"], name), *cells, source])
    return "\n".join(map(_row, rows)) + "\n"


def decode_markdown() -> str:
    """Rungs of decode attention from two measurements."""
    tiles, engine = _json("kernel_lab_tiles_h200.json"), _json("kernels_attention_h200.json")
    splits = {True: 1, False: 99}  # of a context, as the rung chooses on 132 SMs: by batch > 1
    rows = [["rung", "batch", "context", "time", "KV read", "measured"], ["---"] * 6]
    rows += [
        _decode_row("cuda-tensor", row, row["median_us"], _source(tiles))
        for row in tiles["attention_decode"]
        if row["splits"] == splits[row["batch"] > 1]
    ]
    rows += [
        _decode_row("**triton** (serves)", row, row["tried"][0]["us"], _source(engine))
        for row in engine["decode"]
        if (row["model"], row["batch"], row["context"]) == ("8B", 64, 1088)
    ]
    return "\n".join(map(_row, rows)) + "\n"


def _decode_row(name: str, row: dict[str, Any], us: float, source: str) -> list[str]:
    kv_bytes = 2 * 2 * 8 * 128 * row["batch"] * row["context"]
    shape = [str(row["batch"]), f"{row['context']:,}"]
    return [name, *shape, f"{us:,.0f} us", f"{kv_bytes / us / 1e3:,.0f} GB/s", source]


def _engine_times(engine: dict[str, Any], shape: str) -> dict[int, float]:
    points = {f"1x{n}": n for n in PROMPTS}
    return {
        points[row["point"]]: tried["us"]
        for row in engine["prefill"] if row["model"] == "8B" and row["point"] in points
        for tried in row["tried"] if tried["shape"] == shape
    }  # fmt: skip


def _source(measured: dict[str, Any]) -> str:
    day = measured.get("date_utc") or measured["time_utc"][:10]
    return f"{day}, commit {measured['commit'][:7]}"


def _json(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((NATIVE.parent / name).read_text(encoding="utf-8"))
    return read


def tiles_markdown() -> str:
    """How the rung cuda-tensor depends on its tiles."""
    tiles = _json("kernel_lab_tiles_h200.json")["attention_prefill"]
    cuts = sorted({(row["warps"], row["keys"]) for row in tiles})
    rows = [["warps of a block", "keys of a tile", *(f"tokens {n:,}" for n in PROMPTS)]]
    rows.append(["---"] * 4)
    for warps, keys in cuts:
        found = {r["tokens"]: r for r in tiles if (r["warps"], r["keys"]) == (warps, keys)}
        cells = [f"{found[n]['tflop_s']:.0f} TFLOP/s" for n in PROMPTS]
        rows.append([str(warps), str(keys), *cells])
    return "\n".join(map(_row, rows)) + "\n"


def cache_markdown(native: dict[str, Any]) -> str:
    """Both prefix caches on the calls of a chat service, as often as they were measured."""
    heads = ["CPU us a request", "measured so often"]
    kinds = {"Python": "python_us", "C++": "native_us"}
    lines = [_row(["", *heads]), _row(["---"] * 3)]
    for name, key in kinds.items():
        figures = [speed[key] for speed in native["cache_speed"]]
        text = " to ".join(f"{value:.1f}" for value in sorted({min(figures), max(figures)}))
        lines.append(_row([name, text, str(len(figures))]))
    return "\n".join(lines) + "\n"


def native_ops_markdown() -> str:
    """What a call adds to a graph of them, and in brackets what the host takes to launch it."""
    rows = _json("native_ops_h200.json")["rows"]
    names = list(dict.fromkeys(row["by"] for row in rows))
    lines = [["op", "tokens", *names], ["---"] * (2 + len(names))]
    for op, tokens in dict.fromkeys((row["op"], row["tokens"]) for row in rows):
        found = {r["by"]: r for r in rows if (r["op"], r["tokens"]) == (op, tokens)}
        cells = [f"{found[n]['chained_us']:.1f} us ({found[n]['host_us']:.0f})" for n in names]
        lines.append([op, f"{tokens:,}", *cells])
    return "\n".join(map(_row, lines)) + "\n"


def parts(results: LabResults | None, native: dict[str, Any]) -> dict[str, str]:
    """All generated parts of the page by the name that its comments give them."""
    made = {f"ladder {op}": ladder_markdown(ladder, results) for op, ladder in LADDERS.items()}
    return {
        **made, "measured on": measured_on(results), "attention": attention_markdown(),
        "decode": decode_markdown(), "tiles": tiles_markdown(), "cache": cache_markdown(native),
        "native ops": native_ops_markdown(),
        "gil": gil_markdown(native),
    }  # fmt: skip


def measured_on(results: LabResults | None) -> str:
    """Where the ladders were measured, with the picture; or that they were not yet."""
    if results is None:
        return (
            "**The ladders as a whole have not been timed yet**: their tables say what each rung "
            "changes. Every rung was checked against float64 on an H200, and two measurements are "
            "below.\n"
        )
    ceilings = results.ceilings
    return (
        f"![Share of the ceiling that each rung reaches]({PICTURE.name})\n\n"
        f"Measured on {provenance(results)}. Ceilings of that GPU, measured just before: a copy "
        f"moves {ceilings['copy_tb_s']:.2f} TB/s, a bfloat16 product of 8192³ reaches "
        f"{ceilings['product_tflop_s']:.0f} TFLOP/s.\n"
    )


def filled_in(page: str, made: dict[str, str]) -> str:
    """The page with every generated part renewed.

    Raises:
        ValueError: the page has no place for one, or for one that does not exist.
    """
    found = re.findall(r"<!-- (?!end)(.+?) -->\n", page)
    if sorted(found) != sorted(made):
        raise ValueError(f"the page has places for {found}, the results for {list(made)}")
    for name, text in made.items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, text=text: f"{match[1]}{text}{match[2]}",
            page,
            flags=re.DOTALL,
        )
    return page


def draw(results: LabResults, to: Path) -> None:
    """Shares of the ceiling, a panel per op, a bar per rung and size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(11, 9.6), layout="constrained")
    for axis, ladder in zip(axes.flat, LADDERS.values(), strict=False):
        _draw_ladder(axis, ladder, results)
    _draw_words(axes.flat[-1], results)
    figure.savefig(to, dpi=110)
    plt.close(figure)


def _draw_ladder(axis: Any, ladder: Ladder, results: LabResults) -> None:
    ceiling, sizes = _ceiling(ladder, results), results.ladders[ladder.op]
    height = 0.8 / len(sizes)
    for index, size in enumerate(sizes):
        for place, rung in enumerate(ladder.rungs):
            found = size.rung(rung.name)
            rate = size.rate(found, ladder.ceiling) if found else None
            if rate is None:
                continue
            at = place - 0.4 + height * (index + 0.5)
            share = 100 * rate / ceiling
            label = size.label if place == 0 else None
            axis.barh(at, share, height * 0.92, color=COLOURS[index], label=label)
            axis.text(share + 1, at, f"{share:.3g}", va="center", fontsize=7, color="#444444")
    names = [r.name + (" *" if r.name == ladder.engine else "") for r in ladder.rungs]
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 118)
    axis.axvline(100, color="#999999", linewidth=0.8, linestyle="--")
    what = "copy" if ladder.ceiling == "bandwidth" else "product"
    unit = f"{rate_text(ceiling)} {UNITS[ladder.ceiling]} of a {what}"
    axis.set_title(f"{ladder.op}: % of {unit}", fontsize=10, loc="left")
    axis.legend(fontsize=7, loc="upper right", frameon=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)


def _draw_words(axis: Any, results: LabResults) -> None:
    axis.axis("off")
    versions = results.versions
    text = (
        f"{results.gpu}\ntorch {versions['torch']}, triton {versions['triton']}\n"
        f"CUDA {versions['cuda']}, driver {versions['driver']}\n"
        f"commit {results.commit[:12]}\n{results.time_utc}\n\n"
        "Least bytes or operations of each op over the\nmedian time of single calls, with nothing "
        "of the\ninputs in the L2 cache, as a share of what this\nGPU was measured to reach.\n\n"
        "* serves requests"
    )
    axis.text(0.04, 0.95, text, va="top", fontsize=9.5, linespacing=1.5)


def main() -> None:
    """Renew the page and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="results that are to ship from now on")
    arguments = parser.parse_args()
    if arguments.results:
        SHIPPED.write_text(to_json(read_results(arguments.results)), encoding="utf-8")
    results = shipped_results()
    native = json.loads(NATIVE.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled_in(page, parts(results, native)), encoding="utf-8")
    if results is not None:
        draw(results, PICTURE)


if __name__ == "__main__":
    main()
