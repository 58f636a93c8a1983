"""Imports modules whose sources are in a script: `program.script` puts this file before them.

It runs on lab hosts: standard library only, Python 3.9. The base classes in `importlib.abc` would
cost a start tens of milliseconds: newer Pythons import a large part of the library for them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Embedded:
    """Finds and loads modules. `sources` has the file and the text of each, by its name."""

    def __init__(self, sources: Mapping[str, tuple[str, str]]) -> None:
        self._sources = sources

    def install(self) -> None:
        """Import these modules from here: also if the host has some of the same names."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name not in self._sources:
            return None
        file, _text = self._sources[name]
        loader: Any = self  # without the base class, see above
        return ModuleSpec(name, loader, origin=file, is_package=file.endswith("/__init__.py"))

    def create_module(self, _spec: ModuleSpec) -> None:
        """Have the module made as usual."""

    def exec_module(self, module: ModuleType) -> None:
        file, text = self._sources[module.__name__]
        exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name: str) -> str:
        """Return a module's text. A traceback shows lines of it."""
        return self._sources[name][1]
