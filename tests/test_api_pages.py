"""The pages of what suites use have all of it, and a reference to what does not exist fails."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"


def test_what_suites_use_is_on_a_page() -> None:
    listed = {
        name
        for page in PAGES.glob("*.rst")
        for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.MULTILINE)
    }
    used = set()
    for file in (ROOT / "suites").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{one.name}" for one in node.names} | {node.module}
                used |= {name for name in names if name.startswith("harness.")}
    modules = {name for name in used if (ROOT / f"{name.replace('.', '/')}.py").exists()}
    assert len(modules) > 30
    assert modules - listed == set()


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ("Wait as harness.waiting.wait_for does.", ""),
        ("Wait as `harness.waiting.wait_four` does.", "harness.waiting.wait_four"),
        ("See harness.waiting_room.", "harness.waiting_room"),
    ],
)
def test_a_reference_to_nothing_fails(tmp_path: Path, told: str, wrong: str) -> None:
    shutil.copy(PAGES / "conf.py", tmp_path)
    (tmp_path / "index.rst").write_text("Page\n====\n\n.. automodule:: page\n")
    (tmp_path / "page.py").write_text(
        f'def wait() -> None:\n    """{told}\n\n    *, a_, `b_`."""\n'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ".", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == bool(wrong), ended.stderr
    assert f"reference target not found: {wrong}" in ended.stderr if wrong else not ended.stderr
    text = (tmp_path / "out/index.html").read_text()
    assert "<p>*, a_, " in text
    assert wrong or "harness.waiting.wait_for" in text
