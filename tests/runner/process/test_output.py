"""What an agent prints: lines, bounds, files."""

import errno
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.runner.process.output import (
    STDOUT_HEAD_BYTES,
    STDOUT_TAIL_BYTES,
    CappedFile,
    HeadTailBuffer,
    LineSplitter,
    OutputCapture,
    parse_message,
)


def _pieces(lines: LineSplitter, *chunks: bytes) -> list[tuple[bool, bytes]]:
    return [piece for chunk in chunks for piece in lines.feed(chunk)] + list(lines.finish())


def test_a_line_in_many_chunks_comes_out_whole() -> None:
    pieces = _pieces(LineSplitter(), b'{"a":', b"1", b"}\n{", b"}\n")
    assert pieces == [(True, b'{"a":1}\n'), (True, b"{}\n")]


def test_a_line_that_is_no_message_is_passed_on_as_it_comes() -> None:
    assert _pieces(LineSplitter(), b"wor", b"ds\n", b"{}") == [
        (False, b"wor"),
        (False, b"ds\n"),
        (True, b"{}"),
    ]


def test_a_line_beyond_the_limit_is_printed_and_the_next_one_is_whole_again() -> None:
    pieces = _pieces(LineSplitter(limit=8), b'{"aaa', b"aaaaaaa", b"aaa", b'"}\n{"b":1}\n')
    assert b"".join(data for whole, data in pieces if not whole) == b'{"aaaaaaaaaaaaa"}\n'
    assert [data for whole, data in pieces if whole] == [b'{"b":1}\n']


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_no_byte_is_lost_or_doubled_however_it_is_cut(chunks: list[bytes], limit: int) -> None:
    assert b"".join(data for _, data in _pieces(LineSplitter(limit), *chunks)) == b"".join(chunks)


@given(st.lists(st.binary(max_size=50)), st.integers(0, 40), st.integers(1, 40))
def test_what_is_kept_has_a_bound_and_says_what_is_not(chunks: list[bytes], head: int, tail: int) -> None:
    kept = HeadTailBuffer(head, tail, NO_REDACTION)
    for chunk in chunks:
        kept.append(chunk)
    whole = b"".join(chunks)
    text = kept.text()
    if len(whole) <= head + tail:
        assert text == whole.decode("utf-8", "replace")
    else:
        assert f"[{len(whole) - head - tail} bytes left out]\n" in text
        assert text.startswith(whole[:head].decode("utf-8", "replace"))
        assert text.endswith(whole[-tail:].decode("utf-8", "replace"))


def test_a_file_keeps_its_beginning_and_its_end_within_a_cap(tmp_path: Path) -> None:
    file = CappedFile(tmp_path / "out", head=100, segment=40)
    data = bytes(range(256)) * 4
    for at in range(0, len(data), 7):
        file.write(data[at : at + 7])
    file.close()
    assert (tmp_path / "out").read_bytes() == data[:100]
    parts = sorted((tmp_path / f"out.{n}").read_bytes() for n in (1, 2))
    assert sum(map(len, parts)) >= 40
    assert any(data.endswith(part) for part in parts)
    assert all(len(part) <= 40 for part in parts)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_output_is_the_printed_lines_and_the_whole_result(tmp_path: Path) -> None:
    spool = OutputCapture(tmp_path, NO_REDACTION)
    result = b'{"type":"result","result":"' + b"x" * 2_000_000 + b'"}\n'
    lines = list(spool.feed_stdout(b"first\x0bline\nlast"))
    assert lines == []
    spool.feed_stderr(b"oops \xff\n")
    output = spool.to_run_output(result)
    spool.close()
    assert output.output == ["first\x0bline\n", "last\n", result.decode()]
    assert output.stderr == "oops \N{REPLACEMENT CHARACTER}\n"
    assert json.loads("".join(output.output[-1:]))["type"] == "result"


def test_an_output_above_a_mebibyte_keeps_its_first_and_last_lines(tmp_path: Path) -> None:
    spool = OutputCapture(tmp_path, NO_REDACTION)
    data = b"".join(b"%09d\n" % number for number in range(200_000))
    assert list(spool.feed_stdout(data)) == []
    text = "".join(spool.to_run_output(None).output)
    spool.close()
    assert text.encode().startswith(data[:STDOUT_HEAD_BYTES])
    assert text.encode().endswith(data[-STDOUT_TAIL_BYTES:])
    assert f"[{len(data) - STDOUT_HEAD_BYTES - STDOUT_TAIL_BYTES} bytes left out]" in text


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b'{"type":1}',
        b'{"type":"x"',
        b"{" * 100_000,
        b'{"type":"x","a":' + b"[" * 100_000,
        b'{"type":"x","n":' + b"9" * 5000 + b"}",
        b'{"type":"x","a":[' + b"0," * 600_000 + b"0]}",
    ],
)
def test_what_is_no_message_or_too_intricate_is_not_read(line: bytes) -> None:
    assert parse_message(line) is None


def test_what_a_store_cannot_keep_is_replaced() -> None:
    read = parse_message(b'{"type":"x","a\\ud800":["\\udfff",{"b":"\\u0000"}],"n":NaN,"ok":"\\ud83d\\ude00"}')
    assert read == {
        "type": "x",
        "a\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}", {"b": "\N{REPLACEMENT CHARACTER}"}],
        "n": None,
        "ok": "\N{GRINNING FACE}",
    }


@pytest.mark.parametrize("step", [10, pytest.param(3, marks=pytest.mark.long)])
def test_a_secret_is_neither_in_what_is_kept_nor_in_the_files_wherever_it_was_cut(
    tmp_path: Path, step: int
) -> None:
    secret = b"sk-canary-41Xw9TtR9bLm6"
    redactor = Redactor([secret])
    for shift in range(0, 2 * len(secret), step):
        spool = OutputCapture(tmp_path, redactor)
        row = b"x" * shift + (secret + b".") * 70_000
        for at in range(0, len(row), 65_536):
            assert list(spool.feed_stdout(row[at : at + 65_536])) == []
            spool.feed_stderr(row[at : at + 65_536])
        kept = "".join(spool.to_run_output(None).output) + spool.stderr_text()
        spool.close()
        assert "bytes left out" in kept
        assert "[redacted].[redacted]" in kept
        parts = kept.replace("[redacted]", "").replace("\n", ".").split(".")
        assert not any("canary" in part or "TtR9" in part for part in parts)
    assert all(secret not in path.read_bytes() for path in tmp_path.iterdir())


def test_what_is_kept_of_text_without_a_secret_is_the_same_with_and_without_secrets() -> None:
    data = b"".join(b"%09d\n" % number for number in range(200_000))
    plain, looked = (
        HeadTailBuffer(STDOUT_HEAD_BYTES, STDOUT_TAIL_BYTES, NO_REDACTION),
        HeadTailBuffer(STDOUT_HEAD_BYTES, STDOUT_TAIL_BYTES, Redactor([b"sk-canary-41Xw9TtR9bLm6"])),
    )
    for at in range(0, len(data), 50_000):
        plain.append(data[at : at + 50_000])
        looked.append(data[at : at + 50_000])
        assert looked.text() == plain.text()


def test_a_number_that_json_cannot_carry_becomes_none() -> None:
    line = b'{"type":"x","a":[1e999,-1%se99,NaN,Infinity],"b":1.5}' % (b"0" * 290)
    assert parse_message(line) == {"type": "x", "a": [None] * 4, "b": 1.5}


class FullDisk:
    """Stands in for a file on a disk that is full until `room` bytes more are free."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.room = 0

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        data = data[: self.room]
        self.room -= len(data)
        return self._file.write(data) or 0

    def close(self) -> None:
        self._file.close()


def test_what_a_full_disk_does_not_take_is_held_and_written_later(tmp_path: Path) -> None:
    kept = CappedFile(tmp_path / "f")
    disk = kept._file = FullDisk(kept._file)  # type: ignore[assignment,arg-type]  # as far as it is used
    kept.write(b"one ")
    kept.write(b"two ")
    disk.room = 3  # a write that is done in part
    kept.write(b"three ")
    assert (tmp_path / "f").read_bytes() == b"one"
    disk.room = 1000
    kept.write(b"four")
    kept.close()
    assert (tmp_path / "f").read_bytes() == b"one two three four"


def test_what_cannot_be_held_is_counted_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyhand.runner.process.output.MAX_HELD_BYTES", 5)
    kept = CappedFile(tmp_path / "f")
    disk = kept._file = FullDisk(kept._file)  # type: ignore[assignment,arg-type]  # as far as it is used
    kept.write(b"1234567")
    kept.write(b"89")
    disk.room = 1000
    kept.write(b"")
    kept.write(b"more")
    kept.close()
    assert (tmp_path / "f").read_bytes() == b"12345\n[4 bytes left out: the disk was full]\nmore"


def test_a_file_that_cannot_be_opened_yet_is_opened_later(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    kept = CappedFile(tmp_path / "folder" / "f")
    kept.write(b"held")
    (tmp_path / "folder").unlink()
    kept.write(b" and written")
    kept.close()
    assert (tmp_path / "folder" / "f").read_bytes() == b"held and written"
