"""`hil decode`: SMMUv3 events in words."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

import typer

from harness.errors import HarnessError
from harness.smmu.decode import output
from harness.smmu.decode.closing import Closing
from harness.smmu.decode.forms import BadInputError, Form
from harness.smmu.decode.found import Damaged, Explained, Sighting, Unknown, known_fields
from harness.smmu.decode.meanings import meaning
from harness.smmu.decode.reader import Reading
from harness.smmu.decode.summary import Tally

_CHUNK = 1 << 18
#: In seconds: after so long without input everything that was read is shown.
_PAUSE = 0.2
#: How many lines are written at once.
_BATCH = 512

app = typer.Typer(add_completion=False)


@app.command()
def decode(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A kernel log in any wrapping, a dump of an event queue, or a file of a failed "
            "test; may be compressed. Default: standard input."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line instead of text.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary",
            help="Count events by type, SMMU, StreamID, SubstreamID and client, instead.",
        ),
    ] = False,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="What the input is: a kernel log, a dump in hexadecimal numbers, or raw memory of "
            "an event queue. Default: what it looks like.",
        ),
    ] = Form.AUTO,
) -> None:
    """Explain SMMUv3 events, and what drivers and QEMU print about an SMMU.

    It reads kernel logs (dmesg, journal, syslog, mails, web pages, …) and dumps of an event queue.
    The last line on standard error says what was found. The exit status is 1 if an event is
    damaged.

    Example: echo '0x0000210000000010 0x0000020800000000 0x1000 0x0' | hil decode
    """
    name = "standard input" if file is None or str(file) == "-" else str(file)
    if sys.stdout is None:
        raise HarnessError("standard output is closed", fix="let `hil decode` write somewhere")
    with _opened(file) as opened, _printer() as printer:
        ok = _Decoding(name, opened, form, printer, as_json=as_json, summary=summary).run()
    if not ok:
        raise typer.Exit(1)


class _Printer:
    """Writes lines to standard output in batches, and to standard error in order with them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        #: Lines that are not written yet.
        self.batch: list[str] = []

    def line(self, text: str) -> None:
        self.batch.append(text)
        if len(self.batch) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        if self.batch:
            self.batch.append("")
            self._out.write("\n".join(self.batch))
            self.batch.clear()
        self._out.flush()

    def error(self, text: str) -> None:
        self.flush()
        # Who has closed it does not want to read it.
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _printer() -> Iterator[_Printer]:
    """Yield a printer. After an error of standard output, nothing more is written there."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    printer = _Printer(sys.stdout)
    try:
        yield printer
        printer.flush()
    except OSError as problem:
        # Python would try to write the rest at its end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(problem, BrokenPipeError):  # as the shell says of SIGPIPE
            raise typer.Exit(141) from None
        raise


class _Decoding:
    """One call of the command."""

    def __init__(
        self,
        name: str,
        opened: BinaryIO,
        form: Form,
        printer: _Printer,
        *,
        as_json: bool,
        summary: bool,
    ) -> None:
        self._name = name
        self._reading = Reading(_chunks(opened, printer), form)
        self._printer = printer
        self._as_json = as_json
        self._tally = Tally() if summary else None
        self._account = Closing()

    def run(self) -> bool:
        """Print everything; return whether nothing was damaged."""
        failure: BadInputError | None = None
        try:
            self._print()
        except BadInputError as problem:
            failure = problem
        if self._tally is not None:
            for line in self._tally.json() if self._as_json else self._tally.text():
                self._printer.line(line)
        if failure is not None:
            self._printer.error(f"{self._name}: {failure}")
        for line in self._account.rest():
            self._printer.error(f"{self._name}: {line}")
        reading = self._reading
        closing = self._account.closing(reading.lines, raw=reading.raw)
        self._printer.error(f"{self._name}: {closing}")
        return failure is None and not self._account.failed

    def _print(self) -> None:
        account, printer, tally = self._account, self._printer, self._tally
        as_json = self._as_json
        event, explained, damaged = output.JSON if as_json else output.TEXT
        # What a type means is told below its first event.
        told: set[int] = set()
        batch = printer.batch
        for found in self._reading:
            if isinstance(found, Sighting):
                account.events += 1
                if tally is not None:
                    tally.add(found)
                    continue
                batch.append(event(found))
                if len(batch) >= _BATCH:
                    printer.flush()
                # The type, and the stage: what the meaning depends on.
                key = found.words[0] & 0xFF | found.words[1] & 1 << 39
                if not as_json and key not in told:
                    told.add(key)
                    stage2 = bool(found.record.s2)
                    printer.line(f"    {meaning(found.record.type, stage2=stage2)}")
            elif isinstance(found, Explained):
                account.messages += 1
                if tally is not None:
                    tally.add(found)
                else:
                    printer.line(explained(found))
            elif isinstance(found, Damaged):
                if tally is None and known_fields(found):
                    printer.line(damaged(found))
                self._error(account.damaged(found))
            elif isinstance(found, Unknown):
                self._error(account.not_understood(found))

    def _error(self, text: str | None) -> None:
        if text is not None:
            self._printer.error(f"{self._name}:{text}")


def _chunks(opened: BinaryIO, printer: _Printer) -> Iterator[bytes]:
    """Yield what is read as it comes, and an empty piece when nothing comes for a while: a log can
    be followed."""
    source = opened.fileno()
    while True:
        if not select.select([source], [], [], _PAUSE)[0]:
            yield b""
            printer.flush()
        chunk = os.read(source, _CHUNK)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _opened(file: Path | None) -> Iterator[BinaryIO]:
    """Yield the bytes of a file, or of standard input for `-` or no file."""
    if file is None or str(file) == "-":
        if sys.stdin is None:
            raise HarnessError(
                "standard input is closed", fix="name a file, or pipe the text to `hil decode`"
            )
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as problem:
        raise HarnessError(
            f"cannot read {file}: {problem.strerror}",
            fix="name a file that you can read, or pipe the text to `hil decode`",
        ) from None
    with opened:
        yield opened
