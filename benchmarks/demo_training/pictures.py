"""Pictures of how the demo models were trained, and of what speculation and mixtures do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

_COLOURS: Final = {
    "demo-dense": "#1f5fa8", "demo-draft": "#7a7a7a", "demo-moe": "#c2571a",
    "moe-none": "#a03a8c", "moe-bias": "#2e8b57",
}  # fmt: skip
_BALANCES: Final = {"moe-none": "nothing", "demo-moe": "auxiliary loss", "moe-bias": "moving bias"}
_TOKENS_PER_STEP: Final = 32 * 2048


def draw_all(results: dict[str, Any], folder: Path) -> None:
    """Write all pictures as PNG."""
    plt.rcParams.update({
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 11, "axes.titlelocation": "left",
    })  # fmt: skip
    _draw_loss(results, folder / "demo_loss.png")
    _draw_acceptance(results["acceptance"], folder / "demo_acceptance.png")
    _draw_experts(results["expert_load"], folder / "demo_experts.png")


def _draw_loss(results: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
    for name, log in results["training"]["models"].items():
        rows = np.array(log["held_out_bits_per_byte"])
        last = rows[-1, 1]
        label = f"{name} {last:.3f}"
        millions = rows[:-1, 0] * _TOKENS_PER_STEP / 1e6
        axes.plot(millions, rows[:-1, 1], color=_COLOURS[name], label=label, linewidth=1.6)
        axes.plot(rows[-1, 0] * _TOKENS_PER_STEP / 1e6, last, "o", color=_COLOURS[name], ms=4)
    for name, bits in results["compressors_bits_per_byte"].items():
        axes.axhline(bits, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(326, bits, f"{name} {bits:.2f}", va="center", fontsize=9, color="#555555")
    axes.set(
        xlim=(0, 322), ylim=(0.6, 2.1), xlabel="tokens trained on, millions",
        title="Held-out bits per byte: lines on 64 windows of the text, dots on all of it",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 0.62))
    _save(figure, path)


def _draw_acceptance(acceptance: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.5), layout="constrained")
    colours = {"temperature 0": "#1f5fa8", "temperature 1": "#c2571a"}
    for place, (name, measured) in enumerate(acceptance.items()):
        positions = np.arange(1, measured["proposed"] + 1)
        shift = (place - 0.5) * 0.38
        label = f"{name}: {measured['tokens_per_round']:.2f} tokens a round"
        _bars(left, positions + shift, measured["share_at"], colours[name], label)
        shares = np.array(measured["rounds_by_tokens"]) / measured["rounds"]
        _bars(right, np.arange(1, len(shares) + 1) + shift, shares, colours[name], name)
    left.set(
        title="Share of rounds that accept a position", xlabel="position of the proposal",
        ylim=(0, 1), xticks=range(1, 5),
    )  # fmt: skip
    right.set(
        title="Share of rounds by tokens gained", xlabel="tokens", ylim=(0, 1), xticks=range(1, 6)
    )
    left.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _bars(axes: Axes, x: Any, heights: Any, colour: str, label: str) -> None:
    bars = axes.bar(x, heights, 0.36, color=colour, label=label)
    axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)


def _draw_experts(loads: dict[str, Any], path: Path) -> None:
    figure, all_axes = plt.subplots(
        2, 3, figsize=(10.4, 5.0), layout="constrained", height_ratios=(1.5, 1)
    )
    image = None
    for column, (name, balance) in enumerate(_BALANCES.items()):
        layers = loads[name]["layers"]
        counts = np.array([layer["counts"] for layer in layers], float)
        relative = counts / counts.mean(1, keepdims=True)
        above, below = all_axes[:, column]
        image = above.imshow(relative, cmap="PuOr_r", vmin=0, vmax=2, aspect="auto")
        for layer, expert in np.argwhere(relative > 2):
            above.text(
                expert, layer, f"{relative[layer, expert]:.1f}", ha="center", va="center",
                fontsize=7.5, color="white",
            )  # fmt: skip
        above.set(title=f"balanced by {balance}", xlabel="expert", yticks=range(len(layers)))
        _peaks(below, layers)
    all_axes[0, 0].set_ylabel("layer")
    all_axes[1, 0].set_ylabel("busiest expert,\ntimes the mean")
    all_axes[1, 2].legend(frameon=False, fontsize=8.5, loc="upper left")
    if image is not None:
        bar = figure.colorbar(image, ax=all_axes[0, :], extend="max", pad=0.01)
        bar.set_label("tokens, times the mean", fontsize=9)
    _save(figure, path)


def _peaks(axes: Axes, layers: list[dict[str, Any]]) -> None:
    """The busiest expert of each layer: over all tokens, and in steps of 128."""
    at = np.arange(len(layers))
    whole = [layer["max_over_mean"] for layer in layers]
    middle = [layer["step_max_over_mean_p50"] for layer in layers]
    high = [layer["step_max_over_mean_p90"] for layer in layers]
    axes.bar(at - 0.2, whole, 0.36, color="#555555", label="over 65,536 tokens")
    rest = np.subtract(high, middle)
    axes.bar(at + 0.2, middle, 0.36, color="#c2571a", label="in steps of 128, median; p90")
    axes.errorbar(at + 0.2, middle, [0 * rest, rest], fmt="none", ecolor="#333333", capsize=2)
    axes.set(ylim=(0, 8), xticks=at, xlabel="layer")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
