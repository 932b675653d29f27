"""`workbench chat`."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from workbench.cli.failures import UsageError
from workbench.cli.model_names import check_model_name

if TYPE_CHECKING:
    from engine.sampling_params import SamplingParams
    from workbench.chat_session import ChatSession

EPILOG = """\b
Examples:
  workbench chat
  workbench chat --model Qwen/Qwen3-0.6B --temperature 0
  echo 'def parse_date(text):' | workbench chat --quiet"""

_HELP: Final = """\
Type the beginning of a text; the model goes on with it. It sees the whole text;
when there is more than it can see it forgets the older part, and a line says so.
A line that ends with \\ goes on in the next line.
Ctrl-C stops the model, or drops what you were typing.
/new begins a new text, /help shows this, /quit or Ctrl-D ends."""
_STAYS: Final = "Nothing was sent. /quit or Ctrl-D ends."
_DEMO: Final = """\
The demo models complete Python code and its documentation; they answer no questions.
Try: def read_lines(path):"""
_INTERRUPTED: Final = 130
_COMMAND: Final = re.compile(r"/\w+(\s.*)?")  # a path has a second slash, a comment no letter
_COMMANDS: Final = ("/new", "/help", "/quit")
_UNDECODABLE: Final = re.compile("[\ud800-\udfff]")  # what bytes that are no text are read as


def run(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER|ORG/NAME",
            help="A demo model, the folder of a checkpoint, or one in the Hugging Face cache.",
        ),
    ] = "demo-dense",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Share of the probability to draw from.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same texts.")] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cuda, cuda:1 or cpu; default: a GPU if there is one."),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Number format; default: the model's own, fp32 on a CPU."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Write the model's text, and warnings.")
    ] = False,
) -> None:
    """Write a text in turns with a model.

    Its text streams; each turn says how fast it came and how much of the prompt was a prefix hit.
    Lines are read from a terminal or a pipe. The text goes to stdout, everything else to stderr.
    Ctrl-C on a terminal stops an answer or drops a line, and the chat goes on until Ctrl-D; reading
    from a pipe it ends with exit code 130.
    """
    from engine.demo import demo_model_folder
    from workbench.chat_session import open_session

    is_talking = not quiet and sys.stdin.isatty()
    check_model_name(model, has_dummies=False)
    params = _sampling_params(max_tokens, temperature, top_p, seed)
    with asyncio.Runner() as runner:
        if not quiet:
            typer.echo(f"loading {model}", err=True)
        session = open_session(model, params, device=device, dtype=dtype, tell=_warn)
        try:
            if is_talking:
                demo = _DEMO if demo_model_folder(model) else ""
                typer.echo(f"{_HELP}\n{demo}".rstrip(), err=True)
            _converse(runner, session, prompt="> " if is_talking else "", quiet=quiet)
        finally:
            runner.run(session.close())


def _sampling_params(
    max_tokens: int, temperature: float, top_p: float, seed: int | None
) -> SamplingParams:
    from engine.sampling_params import SamplingParams

    try:
        return SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
    except ValueError as error:
        field, _, rest = str(error).partition(" ")
        raise UsageError(f"--{field.replace('_', '-')} {rest}") from None


def _warn(text: str) -> None:
    typer.secho(f"[{text}]", err=True, fg="yellow")


def _converse(runner: asyncio.Runner, session: ChatSession, prompt: str, *, quiet: bool) -> None:
    for text in _texts(prompt):
        command = text.strip()
        if command == "/quit":
            return
        try:
            if command == "/new":
                session.forget()
            elif command == "/help":
                typer.echo(_HELP, err=True)
            elif _COMMAND.fullmatch(command):
                there_are = f"there are {', '.join(_COMMANDS)}, each alone on a line"
                _warn(f"unknown command {command}: {there_are}")
            elif text:
                _turn(runner, session, text, quiet=quiet)
        except KeyboardInterrupt:
            _end_unless_typed()


def _end_unless_typed() -> None:
    """After Ctrl-C, go on only where somebody may type a next text.

    Raises:
        typer.Exit: nobody will.
    """
    if not sys.stdin.isatty():
        raise typer.Exit(_INTERRUPTED) from None


def _texts(prompt: str) -> Iterator[str]:
    """What is typed until the end of the input; Ctrl-C drops a text that is not complete yet."""
    if prompt:
        import readline  # noqa: F401 - makes `input` edit lines and remember them
    read = _line_reader()
    while True:
        lines = []
        try:
            lines.append(read(prompt))
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(read("… " if prompt else ""))
        except EOFError:
            if prompt:
                typer.echo(err=True)
            if lines:
                yield "\n".join(lines)
            return
        except KeyboardInterrupt:
            typer.echo(err=True)
            _end_unless_typed()
            typer.echo(_STAYS, err=True)
            continue
        yield "\n".join(lines)


def _line_reader() -> Callable[[str], str]:
    """An `input` that replaces bytes that are no text, and says so the first time."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    has_told = False

    def read(prompt: str) -> str:
        nonlocal has_told
        line, replaced = _UNDECODABLE.subn("\N{REPLACEMENT CHARACTER}", input(prompt))
        if replaced and not has_told:
            has_told = True
            _warn(f"bytes that are no {sys.stdin.encoding} are read as \N{REPLACEMENT CHARACTER}")
        return line

    return read


def _turn(runner: asyncio.Runner, session: ChatSession, text: str, *, quiet: bool) -> None:
    from workbench.chat_session import TextTooLongError

    screen, was_read = _Screen(), True
    try:
        runner.run(screen.write(session, text))
    except TextTooLongError as error:
        was_read = False
        if not sys.stdin.isatty():  # the next lines would go on from a text that is missing
            raise
        _warn(str(error))
    finally:
        if was_read:
            screen.end_line()
        if was_read and session.last is not None and not quiet:
            typer.secho(session.last.line(), err=True, dim=True)


class _Screen:
    """Where the model's text goes."""

    def __init__(self) -> None:
        self._last = ""

    async def write(self, session: ChatSession, text: str) -> None:
        """Show a turn as it comes."""
        async for piece in session.turn(text):
            self._last = piece
            sys.stdout.write(piece)
            sys.stdout.flush()

    def end_line(self) -> None:
        """Let the next text begin on a line of its own."""
        if not self._last.endswith("\n"):
            typer.echo()
