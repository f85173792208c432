"""From a request of the library to the function that responds. `FUNCTIONS` is the whole table."""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hal.nvml.api import Code
from sim.gpu.returns import not_simulated
from sim.nvml.abi import PLACES, ComputeInstance, GpuInstance, Kind
from sim.nvml.call import Enumerations, Handles, NvmlCall, NvmlFailure, Place
from sim.nvml.functions import board, errors, events, gpm, instances, inventory, links, load, mig
from sim.nvml.functions.events import EventSets
from sim.nvml.functions.gpm import GpmSamples
from sim.nvml.wire import (
    Given,
    check_pointers,
    failure_bytes,
    hello_bytes,
    numbers_of,
    read_arguments,
    response_bytes,
    structures_of,
    texts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.gpu import returns
    from sim.node.node import SimulatedNode
    from sim.node.realtime import RealTimeNode
    from sim.nvml.abi import Function, Response, Value
    from sim.nvml.pids import ProcessIds
    from sim.nvml.visible import Visible


THEMES: Final = (
    inventory.system,
    inventory.function,
    load.function,
    board.function,
    errors.function,
    errors.fields,
    links.function,
    mig.function,
    instances.function,
    gpm.function,
    events.function,
)

FUNCTIONS: Final[tuple[Function, ...]] = tuple(function for theme in THEMES for function in theme)

LOCAL: Final = ("nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString")
"""Those that the library answers by itself."""


NOT_SIMULATED: Final = not_simulated()
"""Those that return `NOT_SUPPORTED` for every call."""


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hello:
    """A process introduces itself: the same session for all its connections, 0 for a new one."""

    session: int
    new_session: int
    deadline_s: float = math.inf


@dataclass(slots=True)
class Request:
    """A call of a process, not answered yet; `deadline_s` is on the monotonic clock.

    `tried` is true once it was found to have to wait.
    """

    function: Function
    given: tuple[Given, ...]
    session: int
    deadline_s: float = math.inf
    tried: bool = False


def responded(function: Function, call: NvmlCall, *, again: bool = False) -> Response | None:
    """What the call returns, the truth or not; None while it waits. Raises `NvmlFailure`.

    `again` is true for a call that has waited: what it returns in place of the truth is settled.
    """
    for place in (call.place, call.other):
        if place is not None and place.gpu.lost:
            raise NvmlFailure(Code.GPU_IS_LOST)
        if place is not None and place.mig is not None and not function.mig:
            raise NvmlFailure(Code.NOT_SUPPORTED)
    answer = None if again else call.answer
    if answer is None:
        return function.response(call)
    if answer.code is not Code.SUCCESS:
        raise NvmlFailure(answer.code)
    response = function.response(call)
    return response if response is None or answer.value is None else odd(response, answer.value)


def odd(response: Response, value: returns.Value) -> Response:
    """The response with the value in place of its numbers, of its members, or of its text."""
    if isinstance(response, tuple):
        return tuple(_odd(one, value) for one in response)
    return _odd(response, value)


def _odd(one: Value, value: returns.Value) -> Value:
    match one, value:
        case ((str() | bytes()), bytes()):
            return value
        case int(), int():
            return value
        case ctypes.Structure(), int() | Mapping():
            members = (
                value
                if isinstance(value, Mapping)
                else {name: value for name, kind in _members(one) if name != "version"}
            )
            for name, number in members.items():
                setattr(one, name, number)
            return one
        case list(), _:
            return [_odd(element, value) for element in one]  # type: ignore[return-value]
    return one


def _members(structure: ctypes.Structure) -> Iterator[tuple[str, object]]:
    """The members that are numbers."""
    for name, kind, *_ in structure._fields_:
        if isinstance(getattr(structure, name), int):
            yield name, kind


class Dispatcher:
    """Answers the calls of all processes, or those of one container; for one thread.

    A container can change nothing, and knows what is `visible`.
    """

    def __init__(
        self, node: RealTimeNode, pids: ProcessIds, visible: Visible | None = None
    ) -> None:
        self._node = node
        self._pids = pids
        self._visible = visible
        self.handles = Handles()
        self.enumerations = Enumerations()
        self.event_sets = EventSets()
        self.samples = GpmSamples()
        with node.read() as model:
            model.listeners.append(self.event_sets.hear)

    def close(self) -> None:
        with self._node.read() as model:
            model.listeners.remove(self.event_sets.hear)

    def request(self, function: Function, body: bytes, session: int) -> Request:
        """A call from its bytes; raises `NotARequest`."""
        given = read_arguments(function, body)
        if not function.waits:
            return Request(function, given, session)
        timeout_ms = numbers_of(given)[-1]
        return Request(function, given, session, time.monotonic() + timeout_ms / 1000)

    def end(self, session: int) -> None:
        with self._node.read():
            self.event_sets.end(session)
            self.samples.end(session)
            self.enumerations.end(session)

    def response(self, pending: Hello | Request) -> bytes | None:
        """The response; None while the call hangs or waits."""
        return self._welcome(pending) if isinstance(pending, Hello) else self._call(pending)

    def _welcome(self, hello: Hello) -> bytes | None:
        if hello.session:
            return hello_bytes(Code.SUCCESS, hello.session)
        with self._node.read() as model:
            if model.hangs():
                return None
            if model.driver.failure() is not None:
                return hello_bytes(Code.DRIVER_NOT_LOADED, 0)
            answer = model.driver.returned.to("nvmlInit_v2", model.now_s)
            if answer is not None and answer.code is not Code.SUCCESS:
                return hello_bytes(answer.code, 0)
            self.enumerations.of(hello.new_session, model)
        return hello_bytes(Code.SUCCESS, hello.new_session)

    def _call(self, request: Request) -> bytes | None:
        with self._node.read() as model:
            try:
                return self._response(model, request)
            except NvmlFailure as failure:
                return failure_bytes(request.given, failure)
            except Exception:  # a mistake in one answer must not end those of all processes
                log.exception("%s could not be answered", request.function.name)
                return failure_bytes(request.given, NvmlFailure(Code.UNKNOWN))

    def _response(self, model: SimulatedNode, request: Request) -> bytes | None:
        given, function = request.given, request.function
        check_pointers(given)
        if model.hangs():
            return None
        if model.driver.failure() is not None:
            raise NvmlFailure(Code.DRIVER_NOT_LOADED)
        places = self._places(model, given)
        if any(model.hangs(place.gpu.identity.uuid) for place in places):
            return None
        self._pids.refresh(model)
        call = NvmlCall(
            function.name,
            model,
            self.handles,
            self.enumerations,
            self.event_sets,
            self.samples,
            self._pids,
            request.session,
            places[0] if places else None,
            places[1] if len(places) > 1 else None,
            numbers=numbers_of(given),
            texts=texts_of(given),
            structures=structures_of(given),
            visible=self._visible,
        )
        self._check_permitted(function, places)
        response = responded(function, call, again=request.tried)
        request.tried = True
        if function.changes:
            self._node.changed()
        if response is not None:
            return response_bytes(given, response)
        if time.monotonic() >= request.deadline_s:
            raise NvmlFailure(Code.TIMEOUT)
        return None

    def _check_permitted(self, function: Function, places: Sequence[Place]) -> None:
        """A container looks at its devices, and partitions none; raises `NvmlFailure`."""
        if self._visible is None:
            return
        partitions = any(one.ctype in (GpuInstance, ComputeInstance) for one in function.arguments)
        if function.changes or partitions:
            raise NvmlFailure(Code.NO_PERMISSION)
        if not all(self._visible.gpu(place.gpu) for place in places):
            raise NvmlFailure(Code.INVALID_ARGUMENT)

    def _places(self, model: SimulatedNode, given: Sequence[Given]) -> list[Place]:
        return [
            self.handles.place(model, one.value)
            for one in given
            if one.argument.kind is Kind.NUMBER and one.argument.ctype in PLACES
        ]
