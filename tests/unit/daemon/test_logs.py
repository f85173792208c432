"""Lines of the log."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.daemon.logs import JsonFormatter, RepeatFilter, TextFormatter, set_up_logging

if TYPE_CHECKING:
    from collections.abc import Iterator


def a_record(
    message: str = "hello", level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": "gpuplugin.test",
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            "created": 1_700_000_000.123,
            **extra,
        }
    )


def fail() -> NoReturn:
    raise ValueError("broken\nin two lines")


def a_failure() -> logging.LogRecord:
    try:
        fail()
    except ValueError:
        return a_record("failed", logging.ERROR, exc_info=sys.exc_info())


def test_text_is_time_level_message_and_facts() -> None:
    line = TextFormatter().format(a_record("Xid 79", logging.WARNING, event="xid", gpu=3))

    assert line == "2023-11-14T22:13:20.123Z warning Xid 79 event=xid gpu=3"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        (7, "7"),
        (0, "0"),
        (False, "False"),
        ("\u00e9", "\u00e9"),
    ],
)
def test_values_are_quoted_where_a_reader_would_split_them(value: object, shown: str) -> None:
    assert TextFormatter().format(a_record(key=value)).endswith(f" hello key={shown}")


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_value_is_left_out_of_text(value: object) -> None:
    assert TextFormatter().format(a_record(key=value)).endswith(" hello")


@pytest.mark.parametrize("value", ["a\nb", "a\n b", "tab\there", '"quoted"', "back\\slash", "\r"])
def test_a_value_never_breaks_its_line_and_can_be_read_back(value: str) -> None:
    line = TextFormatter().format(a_record(key=value, other="end"))

    assert len(line.splitlines()) == 1
    assert line.endswith(" other=end")
    shown = line.partition(" key=")[2].removesuffix(" other=end")
    assert value in (shown, json.loads(shown) if shown.startswith('"') else shown)


def test_a_message_of_several_lines_is_one_line_of_text() -> None:
    line = TextFormatter().format(a_record("one\ntwo"))

    assert len(line.splitlines()) == 1


@given(st.text(), st.text())
def test_any_fact_is_one_line_of_text(message: str, value: str) -> None:
    line = TextFormatter().format(a_record("%s", args=(message,), key=value))

    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_a_traceback_follows_the_line_in_text() -> None:
    first, *others = TextFormatter().format(a_failure()).splitlines()

    assert first.endswith("error   failed")
    assert others[0].startswith("Traceback")


def test_json_has_the_fixed_keys_and_the_facts() -> None:
    fields = json.loads(JsonFormatter().format(a_record("Xid %d", args=(79,), event="xid", gpu=3)))

    assert fields == {
        "ts": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "event": "xid",
        "message": "Xid 79",
        "gpu": 3,
    }
    assert datetime.fromisoformat(fields["ts"]).utcoffset() is not None


def test_json_of_a_failure_is_one_line_with_the_traceback() -> None:
    line = JsonFormatter().format(a_failure())

    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["traceback"]


@given(
    st.text(),
    st.dictionaries(
        st.sampled_from(["gpu", "task", "reason"]),
        st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.just(object())),
    ),
)
def test_any_fact_is_one_line_of_json(message: str, extra: dict[str, object]) -> None:
    record = a_record("%s", logging.INFO, args=(message,), **extra)
    line = JsonFormatter().format(record)

    fields = json.loads(line)
    assert len(line.splitlines()) == 1
    assert fields["message"] == message
    assert fields["event"] == "message"
    assert extra.keys() <= fields.keys()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("form", ["text", "json"])
def test_logging_goes_to_standard_error_from_the_level_up(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], form: Literal["text", "json"]
) -> None:
    set_up_logging("warning", form)
    log = logging.getLogger("gpuplugin.test")
    log.info("quiet")
    log.warning("loud", extra={"event": "noise"})

    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "loud" in line
    assert "noise" in line
    assert line.startswith("{") == (form == "json")
    assert len(root_logger.handlers) == 1


class Lines:
    """What passes the filter, at times that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._filter = RepeatFilter(lambda: self.now_s)

    def __call__(self, text: str, level: int = logging.WARNING) -> str | None:
        record = logging.makeLogRecord({"msg": text, "levelno": level})
        if not self._filter.filter(record):
            return None
        return f"{text} {getattr(record, 'repeated', '')}".rstrip()


def test_the_same_text_is_written_once_a_minute_and_counted() -> None:
    lines = Lines()
    assert lines("a") == "a"
    assert lines("b") == "b"
    assert [lines("a") for _ in range(3)] == [None] * 3
    lines.now_s = 59.0
    assert lines("a") is None
    lines.now_s = 60.0
    assert lines("a") == "a 4"
    assert lines("b") == "b"
    lines.now_s = 200.0
    assert lines("a") == "a"


def test_the_level_makes_another_line_and_debug_is_never_left_out() -> None:
    lines = Lines()
    assert lines("a", logging.INFO) == "a"
    assert lines("a", logging.ERROR) == "a"
    assert [lines("d", logging.DEBUG) for _ in range(2)] == ["d", "d"]


def test_many_different_texts_do_not_pile_up() -> None:
    lines = Lines()
    for number in range(5000):
        assert lines(str(number)) == str(number)
    assert len(lines._filter._written) <= 1000
    assert lines("4999") is None
    assert lines("0") == "0"
