"""Programs that are copied to a lab host need nothing but Python 3.9 and its standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from harness.boundary.client import PACKAGE
from harness.host import close_and_destroy, embedded, in_use, open_files
from harness.host.program import pack, script, travelling
from harness.host.session import AGENT
from tests.interpreters import INTERPRETERS

BOUNDARY = travelling(PACKAGE)
PROGRAMS = {"agent": travelling(AGENT), "boundary": BOUNDARY}
#: Those that are sent as a single file, and the head of a script.
SINGLE = [
    *(Path(embedded.__file__), Path(in_use.__file__)),
    *(Path(close_and_destroy.__file__), Path(open_files.__file__)),
]
FILES = [*{file for modules in PROGRAMS.values() for file in modules.values()}, *SINGLE]


def newer_features(*files: Path) -> str:
    """Return vermin's report of features that Python 3.9 lacks; it is empty if there are none."""
    vermin = [sys.executable, "-c", "import vermin; vermin.main()"]
    options = ["--no-config-file", "--quiet", "--violations", "--no-eval-annotations", "-t=3.9-"]
    done = subprocess.run([*vermin, *options, *files], capture_output=True, text=True, check=False)
    return done.stdout.strip() + done.stderr


def run_time_unions(file: Path) -> list[int]:
    """Return the lines where isinstance() or issubclass() gets `X | Y`, a TypeError in Python 3.9.

    vermin can report these, but then also reports annotations and `O_CREAT | O_APPEND`.
    """
    return [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
        and any(isinstance(part, ast.BitOr) for kind in node.args[1:] for part in ast.walk(kind))
    ]


def foreign_imports(file: Path, ours: Collection[str] = ()) -> list[str]:
    """Return the imports that are neither of the standard library nor of `ours`."""
    return [
        name
        for name in _imports(file)
        if name.partition(".")[0] not in sys.stdlib_module_names and name not in ours
    ]


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_all_modules_travel() -> None:
    assert {f"{PACKAGE}.__main__", f"{PACKAGE}.seccomp", "harness.smmu.vevents"} <= set(BOUNDARY)


def test_nothing_is_newer_than_python_3_9() -> None:
    assert not newer_features(*FILES)


def test_no_union_is_made_at_run_time() -> None:
    assert not [(file, line) for file in FILES for line in run_time_unions(file)]


@pytest.mark.parametrize("modules", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_programs_import_only_what_is_there(modules: Mapping[str, Path]) -> None:
    foreign = [(name, foreign_imports(file, modules)) for name, file in modules.items()]
    assert not [(name, imports) for name, imports in foreign if imports]


@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_single_files_import_only_what_is_there(file: Path) -> None:
    assert not foreign_imports(file)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("match 1:\n    case _: pass", "pattern matching requires", id="match"),
        pytest.param("zip((), strict=True)", "'zip(strict)' requires", id="argument"),
        pytest.param("import tomllib", "'tomllib' module requires", id="module"),
    ],
)
def test_a_newer_feature_is_found(tmp_path: Path, source: str, found: str) -> None:
    (tmp_path / "new.py").write_text(f"{source}\n")
    assert found in newer_features(tmp_path / "new.py")


def test_a_union_at_run_time_is_found(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    file.write_text("def f(x: int | str):\n    return isinstance(x, int | (bytes | str))\n")
    assert run_time_unions(file) == [2]


def test_a_foreign_import_is_found(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    file.write_text("import os.path\nimport yaml\nfrom harness import errors\nfrom . import x\n")
    assert foreign_imports(file, ["harness.smmu"]) == ["yaml", "harness", "."]


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_the_packed_boundary_starts(interpreter: str, tmp_path: Path) -> None:
    archive = tmp_path / "boundary.pyz"
    archive.write_bytes(pack(PACKAGE))
    said = subprocess.run(
        [interpreter, "-I", "-S", archive, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("usage: boundary")


FAILING = """\
import sys, traceback
def fail():
    raise ValueError(sys.argv)
def main():
    try:
        fail()
    except ValueError:
        traceback.print_exc()
"""


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_script_has_its_arguments_and_shows_where_it_failed(
    interpreter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "scripted"
    package.mkdir()
    (package / "__init__.py").write_text('"""A package … of two modules."""\n')
    (package / "__main__.py").write_text("from scripted.deep import main\n")
    (package / "deep.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    said = subprocess.run(
        [interpreter, "-I", "-", "one", "two"],
        input=script("scripted"),
        capture_output=True,
        check=True,
    ).stderr.decode()
    assert 'File "scripted/deep.py", line 3, in fail\n    raise ValueError(sys.argv)\n' in said
    assert "ValueError: ['-', 'one', 'two']" in said
