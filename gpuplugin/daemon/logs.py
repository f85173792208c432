"""Log output: one line per fact, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from gpuplugin.daemon.logrepeats import RepeatFilter

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(level: str, form: Literal["text", "json"]) -> None:
    """Log to standard error from `level` up; called once, by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


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
        """One line, always."""
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
