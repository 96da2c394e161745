"""What the adapters of other implementations share: finding a checkout, standing in for what an update never uses."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from genreward_fast.bench.contestant import Unavailable


def add_checkout(folder: str | None, needed: str) -> Path:
    """Puts a checkout in front of the import path.

    Raises:
        Unavailable: it does not have the file `needed`.
    """
    path = Path(folder or "").resolve()
    if not (path / needed).exists():
        raise Unavailable(f"{path}: has no {needed}; give a checkout of the repository")
    sys.path.insert(0, str(path))
    return path


def require(*modules: str) -> None:
    """Raises Unavailable, naming the first of `modules` that cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Unavailable(f"needs the Python package {name}: {error}") from None


class _Anything:
    """Stands in for any class of a missing module; nobody may use what it makes."""

    def __init__(self, *_: Any, **__: Any):
        raise Unavailable(f"{type(self).__module__} is missing, and an update seems to need it")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Anything,), {"__module__": self.__name__})


def stand_in(modules: Iterable[str]) -> None:
    """Makes `import` of those of `modules` succeed that are missing: loggers and simulators, which no update uses."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            module = sys.modules[name] = _StandIn(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


class Settings(dict):
    """A dict out of a configuration file whose keys are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def settings(value: Any, root: Any = None) -> Any:
    """Nested plain values as `Settings`, with ${a.b} replaced by the value at a.b and "3e-4" read as a number."""
    root = value if root is None else root
    if isinstance(value, dict):
        return Settings({name: settings(entry, root) for name, entry in value.items()})
    if isinstance(value, list):
        return [settings(entry, root) for entry in value]
    if isinstance(value, str):
        if match := re.fullmatch(r"\$\{([\w.]+)\}", value):
            entry = root
            for name in match[1].split("."):
                entry = entry[name]
            return settings(entry, root)
        if re.fullmatch(r"-?\d+(\.\d*)?e-?\d+", value):
            return float(value)
    return value


class Space:
    """An observation or action space, as far as the agents look at it."""

    def __init__(self, *shape: int):
        self.shape = shape


class Spaces:
    """A dict of spaces."""

    def __init__(self, **spaces: Space):
        self.spaces = spaces
