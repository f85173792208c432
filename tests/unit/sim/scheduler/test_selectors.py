"""The selectors of DeviceClasses, as the simulated scheduler reads them."""

from __future__ import annotations

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.celtypes import BoolType
from celpy.evaluation import CELEvalError

from sim.scheduler.selectors import Selectable, SelectorFailed, UnsupportedSelector, parse

GPU = Selectable(
    "gpu.example.com",
    {
        "gpu.example.com": {"type": "gpu", "minor": 3, "ready": True},
        "resource.kubernetes.io": {"numaNode": 0},
    },
    shared=True,
)


SELECTED = [
    ("device.driver == 'gpu.example.com'", True),
    ('device.driver == "other"', False),
    ("'other' != device.driver", True),
    (
        "true && device.attributes['gpu.example.com'].type == 'gpu'",
        True,
    ),
    ("device.attributes['gpu.example.com'].type == 'mig'", False),
    ("device.attributes['gpu.example.com']['type'] == 'gpu'", True),
    ("device.attributes['gpu.example.com'].minor == 3", True),
    ("device.attributes['gpu.example.com'].minor == -3", False),
    ("device.attributes['gpu.example.com'].minor == '3'", False),
    ("device.attributes['resource.kubernetes.io'].numaNode == 0", True),
    ("device.attributes['gpu.example.com'].ready", True),
    ("!device.attributes['gpu.example.com'].ready", False),
    ("!!device.allowMultipleAllocations", True),
    ("device.allowMultipleAllocations == false", False),
    ("'type' in device.attributes['gpu.example.com']", True),
    ("'profile' in device.attributes['gpu.example.com']", False),
    (
        "'x' in device.attributes['a'] && device.attributes['a'].x == 1",
        False,
    ),
    ("true", True),
    ("1 == true", False),
]


@pytest.mark.parametrize(("expression", "selected"), SELECTED)
def test_what_they_select(expression: str, selected: bool) -> None:
    assert parse(expression).selects(GPU) is selected


@pytest.mark.parametrize("expression", [one for one, _ in SELECTED if " == '3'" not in one])
def test_cel_selects_the_same(expression: str) -> None:
    """Kubernetes refuses a comparison of a text with a number when the class is written."""
    device = {
        "driver": GPU.driver,
        "attributes": {domain: dict(one) for domain, one in GPU.attributes.items()},
        "allowMultipleAllocations": GPU.shared,
    }
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    try:
        selected = program.evaluate({"device": json_to_cel(device)})
    except CELEvalError:
        selected = BoolType(False)
    assert parse(expression).selects(GPU) is bool(selected)


@pytest.mark.parametrize("domain", ["gpu.example.com", "other"])
def test_an_attribute_that_is_not_there_is_an_error(domain: str) -> None:
    with pytest.raises(SelectorFailed, match="no such key: profile"):
        parse(f"device.attributes['{domain}'].profile == 'x'").selects(GPU)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("device.driver == 'a' || device.driver == 'b'", "||"),
        ("device.driver.startsWith('gpu')", "device.driver.startsWith"),
        ("device.capacity['a'].memory.compareTo(quantity('40Gi')) >= 0", "device.capacity"),
        ("(device.driver == 'a')", "("),
        ("device.driver == 'a' device", "device"),
        ("device.driver == 'a\\n'", "'a"),
        ("device.driver ==", "its end"),
        ("device.attributes['a'].b.c == 1", "b.c"),
        ("device.attributes['a' == 1", "=="),
        ("device.attributes['a'].minor > 1", "> 1"),
        ("1.5 == 1", "1.5"),
        ("'a' in ['a']", "in"),
        ("!'a' in device.attributes['a']", "in"),
        ("", "its end"),
    ],
)
def test_what_is_beyond_them_is_named(expression: str, named: str) -> None:
    with pytest.raises(UnsupportedSelector) as caught:
        parse(expression)
    assert named in str(caught.value)
