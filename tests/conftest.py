"""These fixtures are shared by the harness's own tests."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from xdist.scheduler import LoadScopeScheduling

from harness.lab import defaults

# How long an example takes depends on what else the machine does. The same examples each time: a
# change is judged by what it changes. `make fuzz` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=4000, print_blob=True)
# `make mutation`, which tries thousands of mutants: that an example fails is enough.
settings.register_profile(
    "mutation",
    settings.get_profile("same"),
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("same")

# A shell has what it starts in the background ignore Ctrl-C, and what that starts inherits it.
# Tests that press Ctrl-C are about programs that a person has started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests start is in the lab that they name, whatever this user's defaults say. The cache stays.
# A folder that is there: programs make one that is not (as root, that was /nowhere).
defaults.apply()
os.environ.pop(defaults.LAB, None)
_CONFIGURATION = tempfile.TemporaryDirectory(prefix="hil-tests-configuration-")
os.environ["XDG_CONFIG_HOME"] = _CONFIGURATION.name

# What tests start has the fixtures that they name, rather than all that are installed: those of
# labgrid and hypothesis take more than a second to be imported, each of a thousand times.
os.environ["PYTEST_ADDOPTS"] = "-p no:hil -p no:labgrid -p no:hypothesispytest"

_SOURCE = Path(__file__).parent.parent / "harness/guest/payload/guest-tool.c"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Have hypothesis's plugin here, and not in runs of suites (see pyproject.toml)."""
    pluginmanager.import_plugin("_hypothesis_pytestplugin")


class _Apart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Tests that share the lab's hosts are one worker's; those with hosts of their own run beside
    them, a file at a time."""

    def _split_scope(self, nodeid: str) -> str:
        own = "/own_hosts/" in nodeid or "/chaos/" in nodeid
        return str(super()._split_scope(nodeid)) if own else "the lab's hosts"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Apart | None:
    return _Apart(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the guest's program `hil` for this machine, and return its path."""
    binary = tmp_path_factory.mktemp("bin") / "hil"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O2", "-o", str(binary), str(_SOURCE)], check=True)
    return binary
