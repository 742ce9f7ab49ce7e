"""The service's log: its formats, without secrets and control characters."""

import asyncio
import io
import json
import logging
import os
from pathlib import Path

import pytest
import structlog

from steadyhand.log_context import log_fields
from steadyhand.redact import Redactor
from steadyhand.serve.logs import LogFormat, configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        (io.StringIO, "auto", True),
        (Terminal, "auto", False),
        (io.StringIO, "text", False),
        (Terminal, "json", True),
    ],
)
def test_the_format_is_the_one_that_is_set(
    stream: type[io.StringIO], log_format: LogFormat, *, is_json: bool
) -> None:
    out = stream()
    configure_logging("info", Redactor(["a-secret-value"]), out, log_format)
    structlog.get_logger("x").info("an.event", note="a-secret-value")
    structlog.get_logger("x").debug("below")
    (line,) = out.getvalue().splitlines()
    assert line.startswith("{") is is_json
    assert "an.event" in line
    assert "a-secret-value" not in line
    assert ("\x1b" in line) is (isinstance(out, Terminal) and not is_json)


def test_a_hostile_name_puts_no_control_character_into_a_log_of_text() -> None:
    out = io.StringIO()
    configure_logging("info", Redactor([]), out, "text")
    structlog.get_logger("x").info("request", path="/\x1b[2J\x9b1A\r\nfake", key="a\u202eb")
    assert not set("\x1b\x9b\r\u202e") & set(out.getvalue())
    assert len(out.getvalue().splitlines()) == 1
    try:
        int("a fault")
    except ValueError:
        logging.getLogger("y").exception("kept")
    assert "Traceback" in out.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_has_the_fields_of_its_task_but_for_those_of_its_own_and_its_level_is_counted(
    log_format: LogFormat,
) -> None:
    out, levels = io.StringIO(), list[str]()
    configure_logging("info", Redactor([]), out, log_format, on_line=levels.append)
    log = structlog.get_logger("x")
    with log_fields({"job": "j_1", "key": "k_1"}):
        with log_fields({"key": "k_2"}):
            log.warning("first", job="j_2")
        log.error("second")
        log.debug("below")
    log.info("third")
    first, second, third = out.getvalue().splitlines()
    assert "j_2" in first
    assert "k_2" in first
    assert "j_1" not in first
    assert "j_1" in second
    assert "k_1" in second
    assert "j_1" not in third
    assert levels == ["warning", "error", "info"]


class Writes(io.StringIO):
    """A stream that counts what is written to it."""

    count = 0

    def write(self, text: str) -> int:
        self.count += 1
        return super().write(text)


def test_the_lines_of_one_step_go_out_together_and_a_warning_at_once() -> None:
    out = Writes()
    configure_logging("info", Redactor([]), out, "json")
    log = structlog.get_logger("x")

    def events() -> list[str]:
        return [json.loads(line)["event"] for line in out.getvalue().splitlines()]

    async def steps() -> None:
        log.info("first")
        log.info("second")
        assert events() == []
        await asyncio.sleep(0)
        assert (events(), out.count) == (["first", "second"], 1)
        log.info("third")
        log.warning("fourth")
        assert (events()[2:], out.count) == (["third", "fourth"], 2)
        log.info("last")

    asyncio.run(steps())
    assert events()[4:] == ["last"]


@pytest.mark.parametrize("fault", ["full disk", "no reader"])
def test_a_stream_that_fails_takes_nothing_else_with_it(fault: str) -> None:
    reader, writer = os.pipe()
    if fault == "full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer)
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        configure_logging("info", Redactor(), stream)
        log = structlog.get_logger("x")
        for _ in range(3):
            log.info("an.event")
        if fault == "no reader":
            assert Path(f"/proc/self/fd/{stream.fileno()}").readlink() == Path(os.devnull)
        else:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else its end would fail
