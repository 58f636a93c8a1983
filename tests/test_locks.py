"""Everything that is installed is locked to an exact version and hash, and the locks contain
nothing of the machine that made them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON = (ROOT / "requirements.lock").read_text()
ALLURE = ROOT / "harness" / "report" / "allure"
NPM = json.loads((ALLURE / "package-lock.json").read_text())["packages"]

#: A locked package: its name and version, and hashes on the lines that follow.
_LOCKED = re.compile(r"^([\w.-]+)==(\S+)(?: ; [^\\\n]*)? \\\n((?:    --hash=sha256:.*\n)*)", re.M)


def test_every_python_package_has_a_version_and_hashes() -> None:
    locked = _LOCKED.findall(PYTHON)
    assert len(locked) > 40
    assert [name for name, _, hashes in locked if not hashes] == []
    # There is no other line, such as one that names another source or a package without version.
    assert [
        line for line in _LOCKED.sub("", PYTHON).splitlines() if not line.lstrip().startswith("#")
    ] == []


def test_what_the_project_asks_for_is_locked() -> None:
    """Every requirement of the project is locked, in a version that it allows. Otherwise `make
    setup` installs something else; run `make lock` then."""
    locked = {canonicalize_name(name): version for name, version, _ in _LOCKED.findall(PYTHON)}
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = asked["project"]
    wanted = [
        *asked["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
    ]
    wrong = [
        one
        for one in map(Requirement, wanted)
        if not one.specifier.contains(
            locked.get(canonicalize_name(one.name), "0"), prereleases=True
        )
        or canonicalize_name(one.name) not in locked
    ]
    assert wrong == []


def test_the_lock_names_no_server_and_no_folder() -> None:
    assert re.findall(r"\w+://\S*|--(?:index|extra-index|find-links)\S*| /\w\S*", PYTHON) == []


def test_every_npm_package_has_a_version_and_a_hash() -> None:
    packages = {path: package for path, package in NPM.items() if path}
    assert len(packages) > 100
    assert [
        path
        for path, package in packages.items()
        if not package["integrity"].startswith("sha512-") or not package["version"]
    ] == []


def test_npm_is_told_no_server() -> None:
    """The lock names no server, so npm uses the one that the machine is configured for. By default
    npm writes the server into the lock."""
    assert [path for path, package in NPM.items() if "resolved" in package] == []


def test_npm_packages_run_nothing_when_they_are_installed() -> None:
    """No package has an install script; reports do not need any. If a renewed lock brings one, it
    must be reviewed."""
    assert [path for path, package in NPM.items() if "hasInstallScript" in package] == []


def test_allure_is_locked_as_it_is_asked_for() -> None:
    asked = json.loads((ALLURE / "package.json").read_text())["dependencies"]
    assert asked == NPM[""]["dependencies"]
    assert asked["allure"] == NPM["node_modules/allure"]["version"]
