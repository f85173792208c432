"""Log output: one line per fact, as text or JSON; repeated lines are counted instead of written."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S = 60.0
_MAX_TEXTS = 1000


@dataclass(slots=True)
class _Written:
    at_s: float
    left_out: int = 0


class RepeatFilter(logging.Filter):
    """Lets a text through once within `QUIET_S`.

    The next one after that has `repeated`, how many were left out. Texts of level debug always
    pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._written: dict[tuple[int, str], _Written] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        key, now_s = (record.levelno, record.getMessage()), self._clock()
        with self._lock:
            last = self._written.get(key)
            if last is not None and now_s - last.at_s < QUIET_S:
                last.left_out += 1
                return False
            if last is not None and last.left_out:
                record.repeated = last.left_out
            # Texts in the order in which they were last written: the first are the oldest.
            self._written.pop(key, None)
            self._written[key] = _Written(now_s)
            if len(self._written) > _MAX_TEXTS:
                del self._written[next(iter(self._written))]
        return True


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(level: str, form: Literal["text", "json"]) -> None:
    """Log to standard error from `level` up; called once, by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def log_fact(log: logging.Logger, level: int, event: str, text: str, **fields: object) -> None:
    """Log one fact: `text` is for people, `event` and `fields` are for programs."""
    log.log(level, "%s", text, extra={"event": event, **fields})


class TextFormatter(logging.Formatter):
    """`time level message key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, with control characters escaped; a traceback, if there is one, follows it."""
        extras = "".join(
            f" {key}={_quoted(value)}"
            for key, value in _extras(record).items()
            if value not in (None, "")
        )
        message = _escaped(record.getMessage())
        line = f"{_time(record)} {record.levelname.lower():7} {message}{extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line with the keys ts, level, event, message and the fact's own."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "event": "message",
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: object) -> str:
    """The value as it is, or as a JSON string where a reader would split or misread it."""
    text = str(value)
    plain = text.isprintable() and not any(character in text for character in ' ="')
    return text if plain else json.dumps(text)


def _escaped(text: str) -> str:
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
