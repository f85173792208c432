"""Metrics as Prometheus reads them: its text format, and OpenMetrics.

Prometheus's library for Python loads a web server, a parser of mails and OpenSSL with it, 8 MiB in
all (prometheus-client 0.26, Python 3.11). Formats: version 0.0.4 of Prometheus's own, in its
documentation under "Exposition formats", and version 1.0 of the OpenMetrics specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

Kind: TypeAlias = Literal["gauge", "counter", "histogram", "info", "unknown"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
_OPENMETRICS_TYPE = "application/openmetrics-text"
_TEXT_KINDS: Mapping[Kind, str] = {"info": "gauge", "unknown": "untyped"}
_SUFFIXES: Mapping[Kind, str] = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric: name, labels, value. `name` is without the kind's suffix."""

    name: str
    text: str
    kind: Kind = "gauge"
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    @property
    def sample_name(self) -> str:
        return self.name + _SUFFIXES.get(self.kind, "")

    def add(self, value: float, labels: Mapping[str, str] | None = None) -> None:
        self.samples.append((self.sample_name, labels or {}, value))

    def add_histogram(
        self, bounds: Sequence[float], counts: Sequence[int], total: float, **labels: str
    ) -> None:
        """`counts` by bucket, one more than bounds; Prometheus adds them up."""
        names = (*map(repr, bounds), "+Inf")
        sums = list(accumulate(counts))
        for bound, count in zip(names, sums, strict=True):
            self.samples.append((f"{self.name}_bucket", {**labels, "le": bound}, count))
        self.samples.append((f"{self.name}_count", labels, sums[-1]))
        self.samples.append((f"{self.name}_sum", labels, total))


def only(families: Iterable[Family], names: Collection[str]) -> Iterator[Family]:
    """The samples of these names."""
    for family in families:
        if samples := [one for one in family.samples if one[0] in names]:
            yield Family(family.name, family.text, family.kind, samples)


def chosen_format(accept: str) -> str:
    """The content type for an Accept header: OpenMetrics where version 1 of it is accepted."""
    for accepted in accept.split(","):
        kind, *parameters = (part.strip() for part in accepted.split(";"))
        version = next((one[8:] for one in parameters if one.startswith("version=")), "1")
        if kind == _OPENMETRICS_TYPE and not version.startswith("0."):
            return OPENMETRICS
    return TEXT


def encoded(families: Iterable[Family], content_type: str) -> bytes:
    is_open = content_type == OPENMETRICS
    lines: list[str] = []
    for family in families:
        kind = family.kind if is_open else _TEXT_KINDS.get(family.kind, family.kind)
        name = family.name if is_open else family.sample_name
        lines += (f"# HELP {name} {_escaped(family.text)}", f"# TYPE {name} {kind}")
        for sample, labels, value in family.samples:
            pairs = [f'{key}="{_quoted(text)}"' for key, text in sorted(labels.items())]
            between = f"{{{','.join(pairs)}}}" if pairs else ""
            lines.append(f"{sample}{between} {_number(value)}")
    if is_open:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def gzip_accepted(encodings: str) -> bool:
    return any(one.partition(";")[0].strip().lower() == "gzip" for one in encodings.split(","))
