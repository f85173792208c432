"""Trials of an advice in this process, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sim.study.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class InProcess(Workers):
    def results(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        progress: Callable[[float], None] = lambda _share: None,
    ) -> list[Result]:
        return list(map(function, items))
