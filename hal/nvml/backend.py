"""`NvmlBackend`: the HAL's contract on top of NVML. It connects, and delegates to the others.

Enumeration is in `hal.nvml.inventory`, events in `hal.nvml.watch`, readings in
`hal.nvml.readings`, and the driver's calls are in `hal.nvml.api`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hal.errors import (
    DriverNotFound,
    DriverReplaced,
    DriverUnavailable,
    HalError,
    NotSupported,
)
from hal.nvml.api import Code, NvmlError
from hal.nvml.failures import hal_error, open_error
from hal.nvml.inventory import Inventory
from hal.nvml.kernelfiles import KernelFolders, read_epoch
from hal.nvml.library import LibraryFile, load_library
from hal.nvml.readings import (
    Readiness,
    ShutdownLimits,
    list_processes,
    read_links,
    read_probe,
    read_telemetry,
)
from hal.nvml.surveys import Surveys
from hal.nvml.timeslice import set_time_slice
from hal.nvml.values import Values
from hal.nvml.watch import WAIT_S, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from hal.nvml.api import NvmlApi
    from hal.types import ComputeProcess, Event, Gpu, Link, Probe, Telemetry, TimeSliceLevel

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Session:
    api: NvmlApi
    driver_version: str
    cuda_version: tuple[int, int] | None
    library: Path | None
    limits: ShutdownLimits
    readiness: Readiness


class NvmlBackend:
    """The GPUs of this machine; implements `hal.Backend`.

    Identities of GPUs outlive `close`, so a GPU that is lost while the backend is closed is
    listed as lost after the next `open`.
    """

    def __init__(
        self,
        driver_root: Path = Path("/"),
        api: NvmlApi | None = None,
        *,
        sysfs_root: Path = Path("/sys"),
        procfs_root: Path = Path("/proc"),
        rescan_s: float = 5.0,
        survey_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`api` None loads the library on `open`; `wait_events` scans for GPUs every `rescan_s`.

        It also reports what other scans found, so a caller that lists the GPUs needs no rescan.
        For `survey_s` after everything was read and found well, `gpus` and `probe` ask little.
        """
        self._driver_root = driver_root
        self._given_api = api
        self._sysfs_root = sysfs_root
        self._procfs_root = procfs_root
        self._rescan_s = rescan_s
        self._clock = clock
        self._inventory = Inventory(KernelFolders(sysfs_root, procfs_root), clock)
        self._file: LibraryFile | None = None
        self._surveys = Surveys(self._inventory, procfs_root, survey_s, clock)
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._watcher: Watcher | None = None
        self._unfinished: list[tuple[NvmlApi, Watcher | None]] = []
        """Connections that could not be shut down, because a call was in them."""
        self._links: tuple[frozenset[str], Mapping[tuple[str, str], Link]] | None = None

    def open(self) -> None:
        """Load the library and connect; see `hal.Backend.open`. Does nothing if it is open."""
        with self._lock:
            if self._session is not None:
                return
            self._finish(WAIT_S + _CLOSE_TIMEOUT_S)
            api, library = self._load()
            try:
                api.init()
            except NvmlError as err:
                self._check_library(err)
                raise open_error(err) from err
            try:
                self._session = self._connect(api, library)
            finally:
                if self._session is None:
                    with contextlib.suppress(NvmlError):
                        api.shutdown()
            watcher = self._watcher = self._new_watcher(api)
        # Without the lock: a GPU may hang here.
        try:
            watcher.begin(self._inventory.scan(api))
        except (DriverNotFound, DriverUnavailable):
            self.close()
            raise
        except HalError as error:
            self.close()
            raise DriverUnavailable(error.cause, error.remedy) from error

    def close(self) -> None:
        with self._lock:
            session, self._session = self._session, None
            watcher, self._watcher = self._watcher, None
            waits = watcher is not None and not watcher.close(_CLOSE_TIMEOUT_S) and watcher.waits
            if session is not None:
                self._unfinished.append((session.api, watcher))
            self._finish(0.0)
            if self._unfinished and session is not None and not waits:
                _log.warning("a call to NVML does not return; it stays initialised until it does")

    def _finish(self, timeout_s: float) -> None:
        """Shut down what no call is in any more: under one, that can crash the process.

        A wait for events cannot be interrupted, so the next `open` waits for its end, and who ends
        with the process waits for nothing.
        NVML counts its users, and sees a driver that was loaded anew after the last shutdown only.
        """
        if self._inventory.calls.in_progress:
            return
        left = [
            one
            for one in self._unfinished
            if one[1] is not None and not one[1].close(timeout_s, anyway=True)
        ]
        for api, _ in (one for one in self._unfinished if one not in left):
            try:
                api.shutdown()
            except NvmlError as err:
                _log.warning("NVML could not be shut down: %s", err)
        self._unfinished = left

    def call_lasting_s(self, thread: int) -> float | None:
        return self._inventory.calls.lasting_s(thread)

    def give_up(self, thread: int) -> bool:
        self._surveys.suspect()
        return self._inventory.calls.give_up(thread)

    @property
    def driver_version(self) -> str:
        return self._open_session().driver_version

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        return self._open_session().cuda_version

    def gpus(self) -> tuple[Gpu, ...]:
        api = self._open_session().api
        snapshot = self._surveys.still_good(api)
        if snapshot is None:
            snapshot = self._inventory.scan(api)
            self._surveys.surveyed(snapshot)
        return snapshot.gpus

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        """Raises `HalError` if the driver cannot be watched now; try again after a pause."""
        api = self._open_session().api
        watcher = self._watcher
        if watcher is None or self._inventory.calls.given_up_in(watcher.thread):
            # The thread of the last one hangs in a GPU.
            if watcher is not None:
                watcher.close(0.0)
            watcher = self._watcher = self._new_watcher(api)
        try:
            events = watcher.wait(timeout_s)
        except HalError:
            self._surveys.suspect()
            raise
        finally:
            if watcher is not self._watcher:  # it was closed, without waiting for this
                with self._lock:
                    self._finish(0.0)
        if events:
            self._surveys.suspect()
        return events

    def probe(self, uuid: str) -> Probe:
        session = self._open_session()
        api = session.api
        gpu = self._inventory.identify(api, uuid)
        with self._inventory.calls.about(gpu.index):
            epoch = read_epoch(gpu, session.driver_version, self._sysfs_root, self._procfs_root)
            if (same := self._surveys.pulse(api, uuid, epoch, session.limits)) is not None:
                return same
            probe = read_probe(
                api,
                lambda: self._inventory.handle(api, uuid),
                epoch,
                session.limits,
                session.readiness,
            )
        self._inventory.warn_of_unknown(uuid, probe.unknown)
        self._surveys.probed(uuid, probe)
        return probe

    def telemetry(self, uuid: str) -> Telemetry:
        api = self._open_session().api
        try:
            with self._about(api, uuid):
                reading = read_telemetry(api, self._inventory.handle(api, uuid))
        except NvmlError as err:
            self._surveys.suspect()
            raise hal_error(err, "Reading the telemetry", uuid) from err
        self._inventory.warn_of_unknown(uuid, reading.unknown)
        return reading

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        api = self._open_session().api
        with self._about(api, uuid):
            return list_processes(api, self._inventory, uuid)

    def links(self) -> Mapping[tuple[str, str], Link]:
        """The link matrix; see `hal.Backend.links`. Read anew when other GPUs respond."""
        api = self._open_session().api
        snapshot = self._inventory.scan(api)
        uuids = frozenset(snapshot.handles)
        cached = self._links
        if cached is None or cached[0] != uuids:
            try:
                cached = (uuids, read_links(api, snapshot, self._inventory.calls))
                self._links = cached
            except NvmlError as err:
                raise hal_error(err, "Reading the links") from err
        return cached[1]

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        """Set the time slice by way of `nvidia-smi`; see `hal.Backend.set_time_slice`."""
        session = self._open_session()
        try:
            with self._about(session.api, uuid):
                self._inventory.handle(session.api, uuid, anew=True)
        except NvmlError as err:
            raise hal_error(err, "Finding the handle", uuid) from err
        if self._inventory.known(uuid).mig_enabled:
            raise NotSupported(
                f"GPU {uuid} is in MIG mode, where the time slice cannot be set",
                "Turn MIG off, or leave the time slice alone",
            )
        set_time_slice(self._driver_root, session.library, uuid, level)

    def _about(self, api: NvmlApi, uuid: str) -> AbstractContextManager[None]:
        """For calls about a GPU; raises `UnknownGpu`, or `HalHung` if it hangs."""
        return self._inventory.calls.about(self._inventory.identify(api, uuid).index)

    def _new_watcher(self, api: NvmlApi) -> Watcher:
        return Watcher(api, self._inventory, self._rescan_s, self._clock)

    def _open_session(self) -> _Session:
        session = self._session
        if session is None:
            raise DriverUnavailable("The NVML backend is not open", "Call open() first")
        return session

    def _load(self) -> tuple[NvmlApi, Path | None]:
        if self._given_api is not None:
            return self._given_api, None
        library = load_library(self._driver_root)
        # Imported late: it costs tens of milliseconds, and a simulated node needs none of it.
        from hal.nvml.binding import pynvml_api

        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = LibraryFile.at(library) if library else LibraryFile.loaded()
        return pynvml_api(), library

    def _check_library(self, err: NvmlError) -> None:
        """Raises `DriverReplaced` if the library of this process is the reason for `err`."""
        if err.code == Code.LIB_RM_VERSION_MISMATCH and self._file and self._file.was_replaced():
            raise DriverReplaced(
                f"Connecting to the driver failed: {err}; {self._file.path} was replaced since it "
                "was loaded",
                "Restart this program: a process cannot load the library anew",
            ) from err

    def _connect(self, api: NvmlApi, library: Path | None) -> _Session:
        self._inventory.connected()
        self._surveys.begin()
        values = Values()
        version = values.read("", api.driver_version)
        cuda = values.read(None, api.cuda_version)
        for failure in values.failures:
            self._inventory.warn_once(f"A version of the driver is unknown: {failure}")
        cuda_version = None if cuda is None else (cuda // 1000, cuda % 1000 // 10)
        return _Session(api, version, cuda_version, library, ShutdownLimits(api), Readiness(api))
