"""Sections: how they are read from a mapping, and what they are then."""

from __future__ import annotations

import pickle

import pytest

from gpuplugin.config.forms import boolean, integer, text
from gpuplugin.config.shape import Refused, Section, key, list_of, optional, section


class Wheel(Section):
    size_cm: int = key(integer)
    spare: bool = key(boolean, False)


class Car(Section):
    wheels: list[Wheel] = key(list_of(section(Wheel)), [])
    plate_text: str = key(text, "none", name="PLATE")
    trailer: Wheel | None = key(optional(section(Wheel)), None)


class Coin(Section):
    size_cm: int = key(integer)
    spare: bool = key(boolean, False)


CAR = section(Car)


def test_a_mapping_becomes_a_section_with_its_defaults() -> None:
    car = CAR.read({"wheels": [{"sizeCm": 60}, {"sizeCm": 55, "spare": True}], "unknown": 1})

    assert [(one.size_cm, one.spare) for one in car.wheels] == [(60, False), (55, True)]
    assert (car.plate_text, car.trailer) == ("none", None)


def test_a_section_is_written_as_it_is_read() -> None:
    data = {"wheels": [{"sizeCm": 60, "spare": True}], "PLATE": "x", "trailer": None}

    assert CAR.written(CAR.read(data)) == data
    assert CAR.written(CAR.read({**data, "trailer": {"sizeCm": 9}})) == {
        **data,
        "trailer": {"sizeCm": 9, "spare": False},
    }


def test_all_faults_are_told_with_their_place() -> None:
    with pytest.raises(Refused) as caught:
        CAR.read({"wheels": [{"sizeCm": 1}, {}, 7, {"sizeCm": "x", "spare": 0}], "trailer": []})

    assert dict(caught.value.faults) == {
        ("wheels", 1, "sizeCm"): "is required",
        ("wheels", 2): "must be a mapping of keys, found 7",
        ("wheels", 3, "sizeCm"): "must be a whole number, found 'x'",
        ("wheels", 3, "spare"): "must be true or false, found 0",
        ("trailer",): "must be a mapping of keys, found []",
    }
    assert "is required; must be a mapping" in str(caught.value)


def test_a_number_that_cannot_be_written_is_refused_all_the_same() -> None:
    with pytest.raises(Refused, match="must be text, found a number that is too long"):
        CAR.read({"PLATE": 10**5000})


def test_sections_of_the_same_class_and_values_are_equal() -> None:
    wheel = Wheel(size_cm=60, spare=False)

    assert wheel == Wheel(size_cm=60, spare=False)
    assert wheel != Wheel(size_cm=61, spare=False)
    assert wheel != Coin(size_cm=60, spare=False)
    assert repr(wheel) == "Wheel(size_cm=60, spare=False)"


def test_a_section_does_not_change() -> None:
    wheel = Wheel(size_cm=60, spare=False)

    with pytest.raises(AttributeError, match="immutable"):
        setattr(wheel, "size_cm", 61)  # noqa: B010 - no checker of types may see it
    assert wheel.size_cm == 60


def test_the_default_of_one_section_is_not_that_of_another() -> None:
    CAR.read({}).wheels.append(Wheel(size_cm=1, spare=True))

    assert CAR.read({}).wheels == []


def test_a_section_can_be_handed_to_another_process() -> None:
    car = CAR.read({"wheels": [{"sizeCm": 60}]})

    assert pickle.loads(pickle.dumps(car)) == car  # noqa: S301 - our own


def test_a_section_is_made_of_all_its_keys() -> None:
    with pytest.raises(TypeError, match="spare"):
        Wheel(size_cm=60)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="colour"):
        Wheel(size_cm=60, spare=False, colour="red")  # type: ignore[call-arg]
