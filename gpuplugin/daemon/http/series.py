"""The kinds of metrics, as plain numbers. How they are exported is in `exposition`.

Everything here may be used from any thread.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MAX_SERIES = 2_000
"""Of one metric; further ones share one whose labels are all `other`."""
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Scraped:
    """A metric whose samples are made at each scrape, so that none outlives what it describes."""

    name: str
    text: str
    label_names: tuple[str, ...] = ()
    kind: Literal["gauge", "counter", "histogram"] = "gauge"


class Number:
    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        with self._lock:
            self.value += amount

    def set(self, value: float) -> None:
        self.value = float(value)


class Counted:
    """The numbers of one name, each with values of the family's labels; without labels it is one.

    `name` is without the suffix that the kind may bring, as `_total` of a counter.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.text = text
        self.label_names = tuple(labels)
        self._numbers: dict[tuple[str, ...], Number] = {}
        self._lock = Lock()
        if not labels:
            self.labels()

    def labels(self, *values: object, **named: object) -> Number:
        """The number with these labels, made at first use; raises ValueError for others."""
        if named:
            values = (*values, *(named.pop(name) for name in self.label_names[len(values) :]))
        if named or len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}")
        key = tuple(map(str, values))
        number = self._numbers.get(key)
        if number is None:
            with self._lock:
                if len(self._numbers) >= MAX_SERIES:
                    key = (OTHER,) * len(key)
                number = self._numbers.setdefault(key, Number())
        return number

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """The numbers end that have these values of these labels."""
        wanted = [(self.label_names.index(name), value) for name, value in labels.items()]
        with self._lock:
            for key in [*self._numbers]:
                if all(key[place] == value for place, value in wanted):
                    del self._numbers[key]

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        with self._lock:
            return [(key, number.value) for key, number in self._numbers.items()]


class Counter(Counted):
    """Numbers that only grow."""


class Gauge(Counted):
    """Numbers that go up and down."""

    def set(self, value: float) -> None:
        self.labels().set(value)

    def set_to_current_time(self) -> None:
        self.set(time.time())


class Histogram:
    """How many of what was observed, in seconds, were within each of `bounds_s`."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self.bounds_s = tuple(bounds_s)
        self._lock = Lock()
        self._counts = [0] * (len(self.bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds_s, seconds)] += 1
            self._sum_s += seconds

    def counts(self) -> tuple[list[int], float]:
        """How many by bucket, one more than bounds for all that was longer, and the sum."""
        with self._lock:
            return [*self._counts], self._sum_s
