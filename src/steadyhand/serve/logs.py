"""The service's log, on stderr: text on a terminal, else one JSON object a line, unless a format is set. No secrets."""

import asyncio
import atexit
import errno
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from steadyhand.clock import utc_now
from steadyhand.events import format_rfc3339
from steadyhand.log_context import current_log_fields
from steadyhand.redact import Redactor

_READER_GONE = frozenset({errno.EPIPE, errno.EIO})
"""The errors of a stream after the end of its reader, and after the end of its terminal."""
LogFormat = Literal["auto", "text", "json"]
OnLine = Callable[[str], None]
"""Gets the level of each line that is printed, on the thread that logs it."""


_encode = json.JSONEncoder(default=repr).encode


class _JsonRenderer:
    """Renders a log entry as a line of JSON without secrets. One step, since a line is written for each request."""

    def __init__(self, redactor: Redactor, on_line: OnLine) -> None:
        self._redactor = redactor
        self._on_line = on_line

    def __call__(self, logger: Any, level: str, entry: MutableMapping[str, Any]) -> str:
        self._on_line(level)
        _add_fields(entry)
        entry["level"] = level
        entry["timestamp"] = format_rfc3339(utc_now())
        if "exc_info" in entry:
            entry = structlog.processors.format_exc_info(logger, level, entry)
        line = _encode(entry).encode("utf-8", "surrogatepass")
        return self._redactor.line(line).decode("utf-8", "replace")


class _TextRenderer:
    """Renders a log entry as a line for a terminal, without secrets."""

    def __init__(self, redactor: Redactor, on_line: OnLine, *, colors: bool) -> None:
        self._redactor = redactor
        self._on_line = on_line
        # The console's own tracebacks show local variables, such as a caller's key and prompt.
        self._console = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, logger: Any, level: str, entry: MutableMapping[str, Any]) -> str:
        self._on_line(level)
        _add_fields(entry)
        return self._redactor.text(self._console(logger, level, entry))


def _add_fields(entry: MutableMapping[str, Any]) -> None:
    """Add the fields of the current request or job that the entry does not have itself."""
    for name, value in current_log_fields().items():
        entry.setdefault(name, value)


def _replace_control_characters(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace what a terminal would interpret: a path or a name may come from a hostile caller."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key != "exception":
            event[key] = "".join(
                each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in value
            )
    return event


class _StreamLogger:
    """Prints lines to a stream. A stream that fails, such as one on a full disk, takes nothing else with it.

    The lines of one step of an event loop go out together at its end: a system call for each would let another thread
    take the interpreter, and requests would wait for it. A warning goes out at once.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._held: list[str] = []

    def hold(self, line: str) -> None:
        """Print a line at the end of this step, or at once without an event loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.emit(line)
            return
        with self._lock:
            is_first = not self._held
            self._held.append(line)
        if is_first:
            loop.call_soon(self.emit)

    def emit(self, *lines: str) -> None:
        """Print the lines that are held, and then these."""
        with self._lock:
            lines, self._held = (*self._held, *lines), []
            if lines:
                self._write("\n".join((*lines, "")))

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if error.errno in _READER_GONE:
                discard_output(self._stream)

    log = debug = info = hold
    warn = warning = fatal = failure = err = error = critical = exception = emit


def discard_output(stream: TextIO) -> None:
    """Let a stream whose reader or terminal is gone write to the null device: what it still holds must not fail."""
    null_fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_fd, stream.fileno())
    os.close(null_fd)


class _StdlibHandler(logging.Handler):
    """Routes the log records of libraries, such as errors of the server, to the service's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; the service's log formats its traceback."""
        values: Mapping[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        log = structlog.get_logger(record.name)
        try:
            log.log(record.levelno, record.getMessage(), logger=record.name, **values)
        except Exception:  # noqa: BLE001  # a log that fails takes nothing else with it
            self.handleError(record)


def configure_logging(
    level: str,
    redactor: Redactor,
    stream: TextIO | None = None,
    log_format: LogFormat = "auto",
    *,
    on_line: OnLine = lambda _level: None,
) -> None:
    """Send the log to stderr, or to `stream`, from `level` on, in a format."""
    stream = stream or sys.stderr
    is_text = stream.isatty() if log_format == "auto" else log_format == "text"
    steps: list[Any] = [_JsonRenderer(redactor, on_line)]
    if is_text:
        steps = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _replace_control_characters,
            _TextRenderer(redactor, on_line, colors=stream.isatty()),
        ]
    logger = _StreamLogger(stream)
    atexit.register(logger.emit)
    structlog.configure(
        processors=steps,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: logger,
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _StdlibHandler)] + [
        _StdlibHandler(logging.WARNING)
    ]
