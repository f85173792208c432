"""What pods hold: what must not be offered because of it, and who would have to end."""

from __future__ import annotations

from gpuplugin.core.holdings import held_by_plugin, holders, withheld
from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.usage import Holding, PodName
from tests.unit.builders import a_gpu, gpus, sharing, uuid_of_gpu
from tests.unit.core.test_mig_strategies import mig_gpu

A, B, C = (uuid_of_gpu(index) for index in range(3))
WHOLE = build_inventory(gpus(2), Plan())
SHARED = build_inventory(gpus(2), sharing(4))


def held(pod: str, *ids: str, by_claim: bool = False) -> Holding:
    return Holding(PodName("shop", pod), "main", GPU_RESOURCE, ids, by_claim)


def test_what_is_held_in_another_form_is_withheld() -> None:
    holdings = [held("one", A), held("two", f"{B}::3", f"{C}::0")]
    assert withheld(SHARED, holdings) == {
        A: "pod shop/one holds it whole, and it is configured as shared"
    }
    assert withheld(WHOLE, holdings) == {
        B: "pod shop/two holds it shared, and it is configured as whole"
    }


def test_with_dra_what_a_device_plugin_gave_is_not_offered() -> None:
    holdings = [held("one", f"{A}::1", C), held("two", B, by_claim=True)]
    for inventory in (SHARED, WHOLE):
        assert held_by_plugin(inventory, holdings) == {
            A: "pod shop/one holds it by a device plugin"
        }


def test_the_pods_that_hold_a_gpu_or_its_mig_devices() -> None:
    gpu = mig_gpu(0, "1g.10gb", "2g.20gb")
    first, second = (mig.uuid for mig in gpu.mig_devices)
    holdings = [
        held("z", B, f"{second}::1"),
        held("a", gpu.uuid),
        held("m", first, B),
        held("a", second),
        held("other", B),
    ]
    assert holders(gpu, holdings) == ("shop/a", "shop/m", "shop/z")
    assert holders(a_gpu(1), holdings) == ("shop/m", "shop/other", "shop/z")
    assert holders(a_gpu(2), holdings) == ()
