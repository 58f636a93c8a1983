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
from harness.host import embedded

_MAIN = "__main__"


@functools.cache
def pack(package: str) -> bytes:
    """Return a zip application of `package`: all its modules, and the modules of this project that
    they import. It runs `main()` of the package's `__main__`. The same sources give the same bytes.
    A process packs it once, because each test with a boundary asks for it twice.

    Raises HarnessError for a package without a `__main__`.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in _sources(package):
            # A ZipInfo without a given time is dated 1980, whenever the file was changed.
            archive.writestr(zipfile.ZipInfo(_inside(name, path)), path.read_bytes())
        archive.writestr(zipfile.ZipInfo(f"{_MAIN}.py"), _start(package))
    return buffer.getvalue()


@functools.cache
def script(package: str) -> bytes:
    """Return one Python source that does what `pack` does, for a program that a host reads from its
    standard input and that leaves no file there. Raises HarnessError as `pack`."""
    sources = {
        name: (_inside(name, path), path.read_text("utf-8")) for name, path in _sources(package)
    }
    head = Path(embedded.__file__).read_text("utf-8")
    return f"{head}\n\nEmbedded({sources!a}).install()\n{_start(package)}".encode()


def _sources(package: str) -> list[tuple[str, Path]]:
    """Return the modules of a program in the order of their names. Raises as `pack`."""
    sources = travelling(package)
    if f"{package}.{_MAIN}" not in sources:
        raise HarnessError(
            f"{package} has no {_MAIN}: it cannot run on a host",
            fix=f"add {_MAIN}.py with a function main() to the package",
        )
    return sorted(sources.items())


def _inside(name: str, path: Path) -> str:
    """Return where a module is in its program."""
    return name.replace(".", "/") + ("/__init__" if path.stem == "__init__" else "") + ".py"


def _start(package: str) -> str:
    return f"from {package}.{_MAIN} import main\nmain()\n"


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
        waiting += _imports(found[name], root)
    return found


def _file(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise HarnessError(f"there is no module {module} to send to a host")
    return Path(spec.origin)


def _imports(source: Path, root: str) -> Iterator[str]:
    """Yield the modules of the package `root` that a file imports, also those it imports inside of
    functions."""
    for node in ast.walk(ast.parse(source.read_bytes(), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_in(alias.name, root))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_in(node.module, root):
            yield node.module
            # A name that is imported from a package may be one of its modules.
            if _file(node.module).stem == "__init__":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in names if importlib.util.find_spec(name))


def _is_in(module: str, root: str) -> bool:
    return module.partition(".")[0] == root
