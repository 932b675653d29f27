"""What is wrong with a draft, each at its line, with what would help; else that all is well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.lines_pane import LinesPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.scenarios.draft import Assessment

if TYPE_CHECKING:
    from workbench.scenario.errors import ScenarioError


@dataclass(frozen=True, slots=True)
class _Line:
    glyph: str
    colour: str
    text: str
    error: ScenarioError | None = None


class ProblemPane(LinesPane[_Line]):
    """One or more lines per problem; Enter jumps to its line in the text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "jump_there", "Jump to it", id="problem.jump",
                tooltip="Jump to the line of this problem in the YAML"),
    ]  # fmt: skip

    @dataclass
    class Jump(Message):
        """A problem was chosen."""

        error: ScenarioError

    def show(self, found: Assessment | None, remarks: tuple[str, ...] = ()) -> None:
        """Show what an assessment found."""
        glyphs = ("i", *" " * len(remarks))
        self._lines = [
            _Line(glyph, "data-other", text) for glyph, text in zip(glyphs, remarks, strict=False)
        ]
        if found is not None:
            self._lines = [*_lines_of(found), *self._lines]
        self.top = 0
        self.cursor = next((i for i, line in enumerate(self._lines) if line.error), -1)
        self.sync()

    def selectable(self, row: int) -> bool:
        return self._lines[row].error is not None

    def action_jump_there(self) -> None:
        """Jump."""
        if self.line is not None and self.line.error is not None:
            self.post_message(self.Jump(self.line.error))

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        line = self._lines[row]
        here = row == self.cursor and self.has_focus
        ink = palette.ink(bg="panel") if here else palette.ink()
        if here:
            canvas.fill(0, y, width, 1, " ", ink)
        if line.glyph in "✗i✓!":
            glyph_ink = palette.ink(line.colour, "panel" if here else None, bold=True)
            canvas.text(1, y, line.glyph, glyph_ink)
        text_ink = palette.ink(None if line.error else "data-other", "panel" if here else None)
        canvas.text(3, y, line.text, text_ink, width)


def _lines_of(found: Assessment) -> list[_Line]:
    lines: list[_Line] = []
    for error in found.errors:
        place = f"line {error.line}: " if error.line is not None else ""
        if error.span is not None and error.span.source.is_override:
            place = f"{error.span.source.text.partition('=')[0]}: "
        lines.append(_Line("✗", "data-bad", f"{place}{error.message}", error))
        lines += [_Line(" ", "data-other", f"  {text}") for text in error.help.splitlines()]
    if found.trouble is not None:
        first, *more = found.trouble.splitlines()
        lines.append(_Line("✗", "data-bad", first))
        lines += [_Line(" ", "data-other", f"  {text}") for text in more]
    lines += [_Line("!", "data-warning", note) for note in found.notes]
    if found.ready and not lines:
        changed = "with your changes, " if found.draft.changed else ""
        lines.append(_Line("✓", "data-good", f"{changed}ready to run"))
    return lines
