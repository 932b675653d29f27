"""Gap stories as text: before and after, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from workbench.profile.first_call import FirstCall
from workbench.profile.gap_story import GapStory, Steady

_LANE: Final = 76  # cells
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_BAR: Final = 30


def stories_text(stories: Sequence[GapStory]) -> str:
    """All stories, one after the other."""
    return "\n\n".join("\n".join(_story(story)) for story in stories)


def _story(story: GapStory) -> Iterator[str]:
    yield f"{story.what} ({story.gpu}, torch {story.torch})"
    yield ""
    yield from first_call_lines("first call", story.cold)
    yield ""
    yield from first_call_lines("first call as a graph", story.capture)
    yield ""
    yield from steady_lines(story)
    yield ""
    yield from lane_lines(story, _LANE)
    yield ""
    yield verdict(story)


def verdict(story: GapStory) -> str:
    """Whether the graph helps, in a sentence."""
    idle = 1 - story.eager.busy_share
    if story.gain > 1.1:
        why = f"the GPU waited for launches {idle:.0%} of the time"
        return f"a graph makes a {story.unit} {story.gain:.2f} times as fast: {why}"
    why = f"launches keep ahead of the kernels, eagerly too (idle {idle:.1%})"
    return f"a graph gains {story.gain - 1:+.1%} a {story.unit}: {why}"


def first_call_lines(title: str, call: FirstCall) -> Iterator[str]:
    """A first call by cause."""
    yield f"{title}: {call.wall_ms:,.1f} ms"
    most = max((ms for _, ms, _ in call.causes), default=0.0) or 1.0
    for cause, ms, count in call.causes:
        times = f"{count:,} x" if count else ""
        yield f"  {cause:<34}{times:>8}{ms:>11,.1f} ms  {'█' * round(_BAR * ms / most)}".rstrip()


def steady_lines(story: GapStory) -> Iterator[str]:
    """Both steady states as columns."""
    yield f"{'warm, a ' + story.unit:<26}{'eager':>14}{'CUDA Graph':>14}"
    for name, of in _FIGURES:
        yield f"{name:<26}{of(story.eager):>14}{of(story.graph):>14}"
    for (name, count, us), (_, after, after_us) in zip(
        story.eager.histogram, story.graph.histogram, strict=True
    ):
        before = f"{count:,.1f} ({us:,.0f})"
        yield f"{'  gaps ' + name + ' (us)':<26}{before:>14}{f'{after:,.1f} ({after_us:,.0f})':>14}"


_FIGURES: Final[tuple[tuple[str, Callable[[Steady], str]], ...]] = (
    ("ms", lambda steady: f"{steady.unit_ms:,.3f}"),
    ("kernels", lambda steady: f"{steady.kernels:,.0f}"),
    ("GPU busy", lambda steady: f"{steady.busy_share:.1%}"),
    ("gaps", lambda steady: f"{steady.gaps:,.1f}"),
    ("idle us", lambda steady: f"{steady.idle_us:,.1f}"),
)


def lane_lines(story: GapStory, width: int) -> Iterator[str]:
    """Both lanes over the same time: how full a cell is says how busy the GPU was."""
    length = max(story.eager.lane_us, story.graph.lane_us)
    for name, steady in (("eager", story.eager), ("graph", story.graph)):
        shares = lane_shares(steady, length, width)
        cells = "".join(" " if share < 0 else _EIGHTHS[round(8 * share)] for share in shares)
        yield f"{name} |{cells}|"
    yield f"      0{f'{length:,.0f} us':>{width}}"


def lane_shares(steady: Steady, length_us: float, width: int) -> list[float]:
    """Busy share, 0 to 1, of each of `width` equal parts of a time; -1 after the lane's end."""
    cell = length_us / width if length_us else 1.0
    busy = [0.0] * width
    for start, end in steady.lane:
        at = start
        while at < end:
            place = int(at / cell)
            if (place + 1) * cell <= at:  # rounded down at the edge of a cell
                place += 1
            until = min(end, (place + 1) * cell)
            busy[min(place, width - 1)] += until - at
            at = until
    return [
        min(1.0, us / cell) if place * cell < steady.lane_us else -1.0
        for place, us in enumerate(busy)
    ]
