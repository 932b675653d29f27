"""A run in a child process: `workbench simulate` or `run`, its frames read as they come.

The child writes frames into a pipe. A thread reads and decodes them, so that the interface only
takes what is ready. The thread waits while more than a few frames are ready, the pipe fills, and
the child waits in turn: a reader that is behind costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shlex
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from engine.core.events import Segment
from workbench.record.errors import RunRecordError
from workbench.record.stream import (
    RECORDED_IN,
    HeaderFrame,
    MarkFrame,
    SegmentFrame,
    SummaryFrame,
    read_frames,
)

STDERR_LINES: Final = 40  # that are kept for the report of a crash
_READY_FRAMES: Final = 64
_GRACE_S: Final = 5.0  # from the wish to stop until the child is made to
_PROGRAM: Final = ("-m", "workbench")

Taken = HeaderFrame | Segment | MarkFrame | SummaryFrame  # a frame, its arrays made


@dataclass(frozen=True, slots=True)
class RunCommand:
    """A run as a command line: `workbench ARGUMENTS`.

    Attributes:
        arguments: subcommand and options, without those that only the interface needs.
    """

    arguments: tuple[str, ...]

    def shown(self) -> str:
        """What a person would type."""
        return shlex.join(("workbench", *self.arguments))

    def for_child(self) -> tuple[str, ...]:
        """The program and its arguments that give frames."""
        return (sys.executable, *_PROGRAM, *self.arguments, "--emit", "-")


@dataclass(frozen=True, slots=True)
class Crash:
    """How a child failed.

    Attributes:
        message: what happened, in a sentence.
        stderr: its last lines.
        exit_code: of the process; negative: killed by that signal.
    """

    message: str
    stderr: tuple[str, ...]
    exit_code: int

    def text(self) -> str:
        """All of it, to be copied."""
        return "\n".join((self.message, *self.stderr))


@dataclass(slots=True)
class _Ready:
    """Frames that wait to be taken; the reader waits while there are many."""

    frames: queue.Queue[Taken] = field(default_factory=lambda: queue.Queue(_READY_FRAMES))
    error: RunRecordError | None = None
    closed: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class ChildRun:
    """One run in a child process.

    Call `start` once, `take` as often as there is time, `cancel` to end it early; the partial run
    is kept by the child. `wait` gives how it failed, if it did.

    Attributes:
        command: what runs.
        summary: the last frame, once it has come.
        record: the directory in which the run is recorded, as soon as that is known.
    """

    def __init__(self, command: RunCommand, cwd: Path | None = None) -> None:
        self.command = command
        self.summary: SummaryFrame | None = None
        self.record: Path | None = None
        self._cwd = cwd
        self._ready = _Ready()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[Crash | None] | None = None
        self._cancelled = False

    @property
    def running(self) -> bool:
        """Whether the process lives or frames of it have not been taken yet."""
        if self._process is None:
            return False
        return self._process.returncode is None or not self._drained

    @property
    def cancelled(self) -> bool:
        """Whether somebody wanted it to end early."""
        return self._cancelled

    @property
    def backlog(self) -> int:
        """Frames that are ready and not taken."""
        return self._ready.frames.qsize()

    @property
    def _drained(self) -> bool:
        return self._ready.done.is_set() and self._ready.frames.empty()

    async def start(self) -> None:
        """Start the process and its reader. Raises OSError if it cannot be started."""
        read_end, write_end = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.for_child(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.PIPE,
                cwd=self._cwd,
                start_new_session=True,  # keys and hang-ups of the terminal are not for it
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        reader = threading.Thread(target=self._read, args=(read_end,), daemon=True)
        reader.start()
        self._ended = asyncio.create_task(self._watch(self._process))

    def take(self) -> Iterator[Taken]:
        """The frames that are ready now; stop taking whenever time is up."""
        while True:
            try:
                frame = self._ready.frames.get_nowait()
            except queue.Empty:
                return
            if isinstance(frame, SummaryFrame):
                self.summary = frame
            elif isinstance(frame, MarkFrame) and frame.code == RECORDED_IN:
                self.record = (self._cwd or Path()) / frame.text
            yield frame

    def cancel(self) -> None:
        """Ask the process to end and to keep what there is; a second time, at once."""
        if self._process is None or self._process.returncode is not None:
            return
        self._cancelled = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    async def wait(self) -> Crash | None:
        """Wait for the end of the process; how it failed, or None if it ended well or was ended."""
        assert self._ended is not None, "start first"  # noqa: S101
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """End the process, if need be by force, and forget what it still says."""
        self._ready.closed = True
        for _ in self.take():
            pass
        if self._process is None or self._ended is None:
            return
        self.cancel()
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), _GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._ended

    def _read(self, read_end: int) -> None:
        """Decode frames until the pipe ends; runs in a thread of its own."""
        ready = self._ready
        try:
            with os.fdopen(read_end, "rb") as pipe:
                self._hand_over(pipe)
        except RunRecordError as error:
            ready.error = error
        finally:
            ready.done.set()

    def _hand_over(self, pipe: BinaryIO) -> None:
        for frame in read_frames(pipe):
            taken = frame.segment() if isinstance(frame, SegmentFrame) else frame
            while not self._ready.closed:
                with contextlib.suppress(queue.Full):
                    self._ready.frames.put(taken, timeout=0.1)
                    break

    async def _watch(self, process: asyncio.subprocess.Process) -> Crash | None:
        assert process.stderr is not None  # noqa: S101 - asked for above
        async for line in process.stderr:
            self._stderr.append(line.decode(errors="replace").rstrip())
        code = await process.wait()
        await asyncio.to_thread(self._ready.done.wait, _GRACE_S)
        return self._judge(code)

    def _judge(self, code: int) -> Crash | None:
        if self._cancelled or (code == 0 and self._ready.error is None):
            return None
        if code < 0:
            message = f"the run was killed by {_signal_name(-code)}"
        elif code:
            message = f"the run failed with exit code {code}"
        else:
            message = str(self._ready.error)
        return Crash(message, tuple(self._stderr), code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
