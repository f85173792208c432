"""What an idle plugin costs: calls of the driver, wake-ups by timers, share of a processor.

The first two are counts, which do not depend on the machine or on who else uses it. Calls are
counted by the node that simulates the driver. Wake-ups are waits of the plugin's process that ended
because their time was over; a library that is loaded before it counts them.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import cpu_s, resident_mib
from benchmarks.plugins import Node, nvml_environment, own_plugin, started
from sim.node.kernel import kernel_folder
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import load_scenario
from sim.node.serve import kernel_files
from sim.nvml.library import built_library, compiler
from sim.nvml.server import NvmlServer, nvml_socket

if TYPE_CHECKING:
    from gpuplugin.rpc import EngineName

SETTLE_S = 8.0
"""After the first list: the configuration is read once more meanwhile."""
REPLICAS = 10
_VARIABLE = "GPUPLUGIN_BENCH_WAKEUPS"
_COUNTER_BYTES = 8

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

static unsigned long *count;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("GPUPLUGIN_BENCH_WAKEUPS");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) count = memory;
    close(file);
}

static void over(int is_over) {
    int kept = errno;
    if (is_over && count) __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    errno = kept;
}

#define WAIT(name, parameters, arguments, is_over) \
    int name parameters { \
        static int (*real) parameters; \
        if (!real) real = (int (*) parameters) dlsym(RTLD_NEXT, #name); \
        int found = real arguments; \
        over(is_over); \
        return found; \
    }

WAIT(epoll_wait, (int set, struct epoll_event *events, int most, int ms), (set, events, most, ms),
     found == 0 && ms != 0)
WAIT(poll, (struct pollfd *files, nfds_t many, int ms), (files, many, ms), found == 0 && ms != 0)
WAIT(select, (int many, fd_set *in, fd_set *out, fd_set *odd, struct timeval *within),
     (many, in, out, odd, within), found == 0)
WAIT(sem_timedwait, (sem_t *lock, const struct timespec *until), (lock, until),
     found != 0 && errno == ETIMEDOUT)
WAIT(sem_clockwait, (sem_t *lock, clockid_t clock, const struct timespec *until),
     (lock, clock, until), found != 0 && errno == ETIMEDOUT)
WAIT(pthread_cond_timedwait,
     (pthread_cond_t *change, pthread_mutex_t *lock, const struct timespec *until),
     (change, lock, until), found == ETIMEDOUT)
WAIT(clock_nanosleep,
     (clockid_t clock, int flags, const struct timespec *within, struct timespec *left),
     (clock, flags, within, left), found == 0)
"""


@dataclass(frozen=True, slots=True)
class Idle:
    """In a minute, but for the last two."""

    driver_calls: float
    wake_ups: float
    cpu_percent: float
    resident_mib: float


def idle_costs(engine: EngineName, over_s: float) -> Idle:
    """Of our daemon with eight simulated GPUs, watched by a kubelet that asks for nothing.

    Raises:
        CannotBuild: there is no C compiler.
        DidNotStart: the plugin did not come up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp")))
        counter = stack.enter_context(_counter(folder / "wake-ups"))
        node = RealTimeNode(SimulatedNode(load_scenario("default")))
        stack.callback(node.stop)
        node.start()
        stack.enter_context(kernel_files(node, kernel_folder(folder)))
        driver = stack.enter_context(closing(NvmlServer(node, nvml_socket(folder))))
        environment = {
            **nvml_environment(built_library(), folder),
            "LD_PRELOAD": str(_built(folder)),
            _VARIABLE: str(folder / "wake-ups"),
        }
        spec = replace(own_plugin(engine, "nvml"), name="idle")
        running = stack.enter_context(started(spec, Node("nvml", environment, folder), REPLICAS))
        running.first()
        time.sleep(SETTLE_S)
        before = driver.calls, _read(counter), cpu_s(running.pids), time.monotonic()
        time.sleep(over_s)
        took_s = time.monotonic() - before[3]
        per_minute = 60 / took_s
        return Idle(
            driver_calls=(driver.calls - before[0]) * per_minute,
            wake_ups=(_read(counter) - before[1]) * per_minute,
            cpu_percent=(cpu_s(running.pids) - before[2]) / took_s * 100,
            resident_mib=resident_mib(running.pids),
        )


def _counter(path: Path) -> mmap.mmap:
    path.write_bytes(bytes(_COUNTER_BYTES))
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, _COUNTER_BYTES)
    finally:
        os.close(descriptor)


def _read(counter: mmap.mmap) -> int:
    return int.from_bytes(counter[:_COUNTER_BYTES], "little")


def _built(folder: Path) -> Path:
    source, library = folder / "wakeups.c", folder / "wakeups.so"
    source.write_text(_SOURCE)
    command = [
        *compiler(os.environ),
        "-shared",
        "-fPIC",
        "-O2",
        "-o",
        str(library),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return library
