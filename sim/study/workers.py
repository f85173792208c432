"""Runs of the simulator on all cores, or on a Dask cluster: the same results, in the same order.

Whatever runs is a function of a module and of one value that can be pickled, and its result depends
on nothing else. So it can run anywhere, and again where a worker was lost.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

CONNECT_S = 10.0
_MOST_POOLS = 4
"""A pool whose processes die is made anew so often: with bad luck once more for each."""


class CannotRunThere(Exception):
    """The workers cannot be used; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where to run: a Dask scheduler's address, or without one so many processes here."""

    processes: int = 0
    """0: one for each core."""
    dask: str = ""

    def results(
        self,
        function: Callable[[_Item], _Result],
        items: Sequence[_Item],
        progress: Callable[[float], None] = lambda _share: None,
    ) -> list[_Result]:
        """The results of all items, in their order; `progress` is given the share that is done.

        Raises `CannotRunThere`, and what `function` raises for the first item that fails.
        """
        done: dict[int, _Result] = {}
        for _ in range(_MOST_POOLS):
            try:
                with self._executor(len(items)) as executor:
                    _collect(executor, function, items, done, progress)
                return [done[number] for number in range(len(items))]
            except BrokenProcessPool:
                # A process was killed, for want of memory perhaps; what was done is kept.
                continue
        raise CannotRunThere(
            f"processes of the pool were killed {_MOST_POOLS} times: is there enough memory for "
            f"{self._count(len(items))} at once? Take fewer with --processes"
        )

    @contextmanager
    def _executor(self, items: int) -> Iterator[Executor]:
        if self.dask:
            with _dask_executor(self.dask) as executor:
                yield executor
            return
        # A process that is forked would share this one's threads and locks.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._count(items), context) as executor:
            yield executor

    def _count(self, items: int) -> int:
        return max(1, min(items, self.processes or len(os.sched_getaffinity(0))))


def _collect(
    executor: Executor,
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    done: dict[int, _Result],
    progress: Callable[[float], None],
) -> None:
    running = {
        executor.submit(function, item): number
        for number, item in enumerate(items)
        if number not in done
    }
    try:
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                number = running.pop(future)
                done[number] = future.result()
            progress(len(done) / len(items))
    finally:
        for future in running:
            future.cancel()


@contextmanager
def _dask_executor(address: str) -> Iterator[Executor]:
    """Dask's own executor: what a lost worker had is run by another one."""
    try:
        distributed = import_module("distributed")
    except ModuleNotFoundError as error:
        raise CannotRunThere("--dask needs Dask: pip install 'gpuplugin-sim[sweep]'") from error
    for name in ("distributed", "distributed.core", "distributed.client"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (TimeoutError, OSError, ValueError) as error:
        raise CannotRunThere(
            f"no Dask scheduler answers at {address} ({type(error).__name__}: {error}); start one "
            "with 'dask scheduler', and workers with 'dask worker ADDRESS'"
        ) from error
    try:
        # Every call is a run of its own, though another one has the same arguments.
        yield client.get_executor(pure=False, retries=2)
    finally:
        client.close()
