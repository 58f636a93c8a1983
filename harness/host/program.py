"""Pack a folder of this project's Python that runs on a host, so that it travels as one file."""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError

_MAIN = "__main__"


@functools.cache
def pack(package: str) -> bytes:
    """Return a zip application of `package`: all its modules, and the modules of this project that
    they import. It runs `main()` of the package's `__main__`. The same sources give the same bytes.
    A process packs it once, because each test with a boundary asks for it twice.

    Raises HarnessError for a package without a `__main__`.
    """
    sources = travelling(package)
    if f"{package}.{_MAIN}" not in sources:
        raise HarnessError(
            f"{package} has no {_MAIN}: it cannot run on a host",
            fix=f"add {_MAIN}.py with a function main() to the package",
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(sources.items()):
            inside = name.replace(".", "/") + ("/__init__" if path.stem == "__init__" else "")
            # A ZipInfo without a given time is dated 1980, whenever the file was changed.
            archive.writestr(zipfile.ZipInfo(f"{inside}.py"), path.read_bytes())
        start = f"from {package}.{_MAIN} import main\nmain()\n"
        archive.writestr(zipfile.ZipInfo(f"{_MAIN}.py"), start)
    return buffer.getvalue()


def travelling(package: str) -> dict[str, Path]:
    """Return the modules of this project that a package needs, its own included: names and
    files."""
    root = package.partition(".")[0]
    folder = _file(package).parent
    waiting = [package, *(f"{package}.{path.stem}" for path in folder.glob("[!_]*.py"))]
    waiting += [f"{package}.{_MAIN}"] if (folder / f"{_MAIN}.py").exists() else []
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _file(name)
        # Importing a module imports the packages around it first.
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += [one for one in _imports(found[name]) if one.partition(".")[0] == root]
    return found


def _file(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise HarnessError(f"there is no module {module} to send to a host")
    return Path(spec.origin)


def _imports(source: Path) -> Iterator[str]:
    """Yield the modules that a file imports, also those it imports inside of functions."""
    for node in ast.walk(ast.parse(source.read_bytes(), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                # A name that is imported from a package may be one of its modules.
                name = f"{node.module}.{alias.name}"
                if _is_module(name):
                    yield name


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
