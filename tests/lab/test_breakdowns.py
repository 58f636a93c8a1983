"""A QEMU that dies and a kernel that reports a bug fail the test in which it happens, and the
product is to blame: also where the test did not notice, and where the host is gone afterwards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.suite_run import run_suite

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
SIGABRT = r"QEMU of guest guest0 ended with signal 6 \(SIGABRT\)"
#: What each failure says, and whose it is.
FAILURES = {
    "host_kernel_warns": ("product", "the kernel of host .* reported a bug: WARNING: "),
    "guest_kernel_warns": ("product", "the kernel of guest guest0 reported a bug: .*WARNING: "),
    "guest_kernel_dies": ("product", "the guest crashed .*(.|\n)*kernel BUG at"),
    "guest_kernel_dies_unnoticed": ("product", "guest guest0 died:(.|\n)*Kernel panic"),
    "qemu_is_killed": ("product", r"ended with signal 11 \(SIGSEGV\)(.|\n)*where it was"),
    "qemu_is_killed_unnoticed": ("product", SIGABRT),
    "guest_is_missing_something": ("product", "`ls /sys/block/nvme0n1` ended in the guest"),
    "host_kernel_dies": ("product", "the kernel of host .* died: .*Kernel panic - not syncing"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run the suite, and return the results of its tests by name. The run must end as one that
    the product failed."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "suites").mkdir()
    shutil.copy(ROOT / "tests" / "lab" / "broken.py", folder / "suites" / "test_broken.py")
    shutil.copy(ROOT / "pyproject.toml", folder)
    ended = run_suite(folder, f"--out={folder / 'out'}")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (file,) = (folder / "out").glob("*/result.json")
    return {
        test["id"].partition("::test_")[2]: test for test in json.loads(file.read_text())["tests"]
    }


@pytest.mark.parametrize("name", FAILURES)
def test_it_is_the_products(results: dict[str, dict[str, Any]], name: str) -> None:
    whom, says = FAILURES[name]
    test = results[name]
    assert (test["outcome"], test["blame"]) == ("failed", whom), test["message"]
    assert re.search(says, test["message"]), test["message"]


def test_nothing_else_failed(results: dict[str, dict[str, Any]]) -> None:
    others = {name: test["outcome"] for name, test in results.items() if name not in FAILURES}
    assert others == {"nothing_breaks": "passed", "expected_warnings": "passed"}
