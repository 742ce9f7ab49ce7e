"""The service's log, on stderr: text on a terminal, else one JSON object a line, unless a format is set. No secrets."""

import errno
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from steadyhand.redact import Redactor

_READER_GONE = frozenset({errno.EPIPE, errno.EIO})
"""The errors of a stream after the end of its reader, and after the end of its terminal."""
LogFormat = Literal["auto", "text", "json"]


class _RedactingRenderer:
    """A renderer that redacts its lines; with `is_json` they stay valid JSON."""

    def __init__(self, renderer: Any, redactor: Redactor, *, is_json: bool) -> None:
        self._renderer = renderer
        self._redactor = redactor
        self._is_json = is_json

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        line: str = self._renderer(logger, name, event)
        if self._is_json:
            return self._redactor.line(line.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        return self._redactor.text(line)


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


class _StreamLogger(structlog.PrintLogger):
    """Prints lines to a stream. A stream that fails, such as one on a full disk, takes nothing else with it."""

    def msg(self, message: str) -> None:
        """Print a line, if the stream takes it."""
        try:
            super().msg(message)
        except OSError as error:
            if error.errno in _READER_GONE:
                discard_output(self._file)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


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
    level: str, redactor: Redactor, stream: TextIO | None = None, log_format: LogFormat = "auto"
) -> None:
    """Send the log to stderr, or to `stream`, from `level` on, in a format."""
    stream = stream or sys.stderr
    is_text = stream.isatty() if log_format == "auto" else log_format == "text"
    # The console's own tracebacks show local variables, such as a caller's key and prompt.
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    renderer = console if is_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([_replace_control_characters] if is_text else [structlog.processors.format_exc_info]),
            _RedactingRenderer(renderer, redactor, is_json=not is_text),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _StreamLogger(stream),
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _StdlibHandler)] + [
        _StdlibHandler(logging.WARNING)
    ]
