"""Modules import in one direction only, and no two classes have the same name."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages in a folder against the import contracts in its pyproject.toml."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_keep_to_the_layers() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy everything that the import contracts are about, and return the folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        pytest.param(
            "harness/smmu/events.py",
            "import harness.cli",
            "harness.smmu.events -> harness.cli",
            id="up",
        ),
        pytest.param(
            "harness/faults/stall.py",
            "import harness.boundary.client",
            "harness.faults.stall -> harness.boundary.client",
            id="to-the-side",
        ),
        pytest.param(
            "harness/artifacts/cpio.py",
            "import harness.guest.description",
            "harness.artifacts.cpio -> harness.guest.description",
            id="artifacts-to-guest",
        ),
        pytest.param(
            "harness/errors.py",
            "import harness.fixtures.lab",
            "harness.errors -> harness.fixtures.lab",
            id="harness-to-fixtures",
        ),
        pytest.param(
            "harness/fixtures/lab.py",
            "import tests.processes",
            "harness.fixtures.lab -> tests",
            id="fixtures-to-tests",
        ),
        pytest.param(
            "harness/fixtures/lab.py",
            "import fixtures.run",
            "harness.fixtures.lab -> fixtures",
            id="fixtures-by-their-folder",
        ),
        pytest.param(
            "harness/smmu/events.py",
            "import harness.smmu.decode",
            "No cycles are allowed in harness.smmu.",
            id="circle",
        ),
        pytest.param("harness/attic/__init__.py", "", "harness.attic", id="new-room"),
    ],
)
def test_an_import_against_the_order_is_found(copy: Path, file: str, line: str, found: str) -> None:
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as source:
        source.write(f"{line}\n")
    done = lint_imports(copy)
    assert done.returncode == 1, done.stderr
    assert found in done.stdout


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in sorted((ROOT / "harness").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}
