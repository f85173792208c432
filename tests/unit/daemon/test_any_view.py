"""Whatever drivers, pods and files say: the page and the metrics can be made, and be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gpuplugin.config.load import load_settings
from gpuplugin.core.node import NodeModel
from gpuplugin.core.usage import Holding, PodName, Reading, Seen, Work, usage_of
from gpuplugin.daemon.http.dcgm import dcgm_families
from gpuplugin.daemon.http.exposition import families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.page import page_html
from gpuplugin.daemon.http.pageview import page_view
from gpuplugin.daemon.http.textformat import encoded
from gpuplugin.daemon.status import StatusReport
from hal import (
    CallFailure,
    ComputeProcess,
    Gpu,
    MigDevice,
    Probe,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
    XidError,
)
from tests.unit.builders import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = st.text(st.characters(), max_size=8) | st.just("\ud800")
COUNTS = st.integers(-1, 2**64)
NUMBERS = st.floats(width=32) | st.integers(-1, 2**64).map(float)
FAILURES = st.lists(st.builds(CallFailure, TEXTS, COUNTS, TEXTS), max_size=2).map(tuple)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


MIG = st.builds(
    MigDevice,
    uuid=st.sampled_from(["MIG-0", "MIG-1"]),
    index=st.integers(0, 3),
    profile=TEXTS,
    memory_bytes=COUNTS,
    attributes=st.none(),
)
GPUS = st.lists(
    st.builds(
        Gpu,
        uuid=st.sampled_from(["GPU-0", "GPU-1"]),
        index=st.integers(0, 7),
        product=TEXTS,
        pci_bus_id=TEXTS,
        memory_bytes=maybe(COUNTS),
        compute_capability=maybe(st.tuples(COUNTS, COUNTS)),
        mig_devices=st.lists(MIG, max_size=2, unique_by=lambda one: one.uuid).map(tuple),
        unknown=FAILURES,
    ),
    max_size=2,
    unique_by=lambda one: one.uuid,
)
TELEMETRY = st.builds(
    Telemetry,
    utilization=maybe(NUMBERS),
    memory_used_bytes=maybe(COUNTS),
    memory_free_bytes=maybe(COUNTS),
    memory_total_bytes=maybe(COUNTS),
    temperature_c=maybe(NUMBERS),
    power_w=maybe(NUMBERS),
    power_limit_w=maybe(NUMBERS),
    energy_j=maybe(NUMBERS),
    sm_clock_mhz=maybe(COUNTS),
    memory_clock_mhz=maybe(COUNTS),
    throttle_reasons=st.integers(0, 63).map(ThrottleReason),
    corrected_ecc=maybe(COUNTS),
    uncorrectable_ecc=maybe(COUNTS),
    unknown=FAILURES,
)
PROBES = st.builds(
    Probe,
    recovery_action=st.sampled_from(RecoveryAction),
    epoch=TEXTS,
    failure=maybe(st.builds(CallFailure, TEXTS, COUNTS, TEXTS)),
    unknown=FAILURES,
)
PROCESSES = st.builds(
    ComputeProcess,
    pid=COUNTS,
    name=TEXTS,
    memory_bytes=maybe(COUNTS),
    sm_share=maybe(NUMBERS),
    mig_uuid=st.sampled_from([None, "MIG-0"]),
)
PODS = st.builds(PodName, TEXTS, TEXTS)


@given(
    GPUS,
    st.lists(TELEMETRY, min_size=2, max_size=2),
    st.lists(PROBES, min_size=2, max_size=2),
    st.lists(st.tuples(PROCESSES, maybe(PODS)), max_size=3),
    st.lists(st.tuples(PODS, TEXTS), max_size=2),
    st.lists(st.integers(0, 2**64), max_size=3),
)
def test_there_is_a_page_and_there_are_metrics(
    gpus: Sequence[Gpu],
    telemetry: Sequence[Telemetry],
    probes: Sequence[Probe],
    processes: Sequence[tuple[ComputeProcess, PodName | None]],
    pods: Sequence[tuple[PodName, str]],
    xids: Sequence[int],
) -> None:
    uuids = [gpu.uuid for gpu in gpus]
    model = NodeModel(PLAIN)
    model.updated(gpus, dict(zip(uuids, probes, strict=False)), 1.0)
    model.events_received([XidError(uuid, xid) for uuid in uuids for xid in xids], 2.0)
    holdings = [Holding(pod, name, "nvidia.com/gpu", tuple(uuids)) for pod, name in pods]
    work = {uuid: [Work(uuid, one, pod) for one, pod in processes] for uuid in uuids}
    values = dict(zip(uuids, telemetry, strict=False))
    usage = usage_of(Seen(gpus, model.view.inventory, holdings, values, work))
    model.used(Reading(at_s=2.0, gpus=gpus, telemetry=values, usage=usage, unseen={"pods": "x"}))
    model.held(holdings, 3.0)
    loaded = load_settings({}, {}, None)
    html = page_html(page_view("1", StatusReport(True, {}, 3.0), model.view, [], loaded))
    assert html.endswith("</html>\n")
    made = [*families(Metrics(), model.view, "node"), *dcgm_families(model.view, "node", 3.0)]
    text = encoded(made, "text/plain; version=0.0.4").decode()
    read = {family.name for family in text_string_to_metric_families(text)}
    assert "gpuplugin_build" in read or len(read) > 10
