"""Modules of the standard library that only annotations name: each is imported when somebody asks for the annotation.

A module of the package writes ``from token_budget._lazy import decimal, typing`` where it is run, and ``import decimal,
typing`` where type checkers read it. `typing.get_type_hints` then finds the real classes, and ``import token_budget``
does not pay for modules that most programs never need from here.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any


class LazyModule:
    """Stands for a module, and imports it at the first attribute that is asked for."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)

    def __repr__(self) -> str:
        return f"<module {self._name!r}, imported when it is used>"


datetime = LazyModule("datetime")
decimal = LazyModule("decimal")
fractions = LazyModule("fractions")
types = LazyModule("types")
typing = LazyModule("typing")


class Generic:
    """Stands for `typing.Generic` as the base of a class: what it is generic in matters to type checkers alone."""

    __slots__ = ()

    def __class_getitem__(cls, _parameters: object) -> type:
        return cls
