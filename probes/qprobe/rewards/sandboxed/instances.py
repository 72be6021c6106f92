"""What an instance of a class of ``setup`` holds; read and set without running any of its code."""

import types
from collections.abc import Mapping
from typing import Any

__all__ = ["attributes_of", "set_attributes"]

Value = Any  # of whatever type can cross


def attributes_of(instance: object) -> dict[str, Value]:
    """Return what an instance of a class of ``setup`` holds, in slots too."""
    slots = {name: getattr(instance, name) for name in _slots(instance) if hasattr(instance, name)}
    return {**getattr(instance, "__dict__", {}), **slots}


def set_attributes(instance: object, attributes: Mapping[str, Value]) -> None:
    """Have an instance of a class of ``setup`` hold this and nothing else; runs nothing of it."""
    slots = _slots(instance)
    if hasattr(instance, "__dict__"):
        vars(instance).clear()
        vars(instance).update({k: v for k, v in attributes.items() if k not in slots})
    for name in slots:
        if name in attributes:
            object.__setattr__(instance, name, attributes[name])
        elif hasattr(instance, name):
            object.__delattr__(instance, name)


def _slots(instance: object) -> list[str]:
    return [
        name
        for kind in type(instance).__mro__
        for name, value in vars(kind).items()
        if isinstance(value, types.MemberDescriptorType)
    ]
