"""The example pipelines are well-formed, and what they call exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "docs" / "pipelines"


@pytest.mark.parametrize(
    ("file", "schema"),
    [("gitlab-ci.yml", "gitlab-ci"), ("github-actions.yml", "github-workflows")],
)
def test_a_pipeline_fits_its_schema(file: str, schema: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", f"--builtin-schema=vendor.{schema}"]
    ended = subprocess.run([*check, PIPELINES / file], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not on this machine")
def test_units_are_sound() -> None:
    units = sorted(PIPELINES.glob("hil-nightly.*"))
    ended = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(units) == 2


def test_what_is_called_exists() -> None:
    """The pipelines call only targets that the Makefile has and options that pytest has."""
    text = "".join(file.read_text() for file in PIPELINES.iterdir())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"\bmake ([a-z][a-z-]*)", text)) - {"git"}  # apt-get install make git
    assert called
    assert called <= targets
    asked = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = set(re.findall(r"pytest suites (.*)$", text, re.MULTILINE))
    assert options
    for option in (word.split("=")[0] for line in options for word in line.split()):
        assert option in asked


def test_images_and_actions_are_pinned() -> None:
    """An image is pinned to one release, because the newest of a series changes from month to
    month; an action to a commit, because whoever owns it can move a tag."""
    text = "".join(file.read_text() for file in PIPELINES.glob("*.yml"))
    images = re.findall(r"^ *(?:image|container): (\S+)", text, re.MULTILINE)
    actions = re.findall(r"uses: (.*)", text)
    assert len(images) == 2
    assert actions
    assert [image for image in images if not re.fullmatch(r"[\w/]+:\d+\.\d+", image)] == []
    pin = r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert [action for action in actions if not re.fullmatch(pin, action)] == []


def test_a_night_is_told_what_to_test() -> None:
    def called(*given: str, **more: str) -> list[str]:
        told = subprocess.run(
            ["make", "--dry-run", "nightly", *given],
            cwd=ROOT,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = told.stdout.replace("\\\n", " ").splitlines()
        return [
            " ".join(line.split()) for line in lines if "hil lab build" in line or "pytest" in line
        ]

    build, night = called("QEMU=my qemu")
    assert "hil lab build" in build
    assert night.count("--qemu='my qemu' --report") == 2
    assert night.count("/pytest ") == 2
    for given, more in ((("LAB=a.yaml",), {}), ((), {"HIL_LAB": "a.yaml"})):
        (night,) = called("HOST=one", "HOST_KERNEL=Image", *given, **more)
        assert "--lab='a.yaml' --host='one' --host-kernel='Image' --report" in night
        assert night.count("/pytest ") == 1
