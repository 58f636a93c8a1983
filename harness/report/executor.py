"""Find out who runs the suites, a CI job or a person's machine, and at which revision of this
project."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path


def describe(run: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return Allure's executor.json for the run named `run`, from the variables that GitLab and
    GitHub set for a job."""
    if environment.get("GITLAB_CI"):
        return {
            "type": "gitlab",
            "name": "GitLab CI",
            "buildName": f"{environment.get('CI_JOB_NAME', '')} {environment.get('CI_JOB_ID', '')}",
            "buildUrl": environment.get("CI_JOB_URL", ""),
        }
    if environment.get("GITHUB_ACTIONS"):
        repository = (
            f"{environment.get('GITHUB_SERVER_URL')}/{environment.get('GITHUB_REPOSITORY')}"
        )
        number = environment.get("GITHUB_RUN_ID", "")
        return {
            "type": "github",
            "name": "GitHub Actions",
            "buildName": f"{environment.get('GITHUB_WORKFLOW', '')} {number}",
            "buildUrl": f"{repository}/actions/runs/{number}",
        }
    return {"type": "local", "name": socket.gethostname(), "buildName": run}


def version() -> str:
    """Return the version of this project."""
    return importlib.metadata.version("grace-smmu-hil")


#: How the revision of a run begins whose tests are not this project's.
_OF_HARNESS = "harness "


def of_harness(revision: str) -> str:
    """Return the revision of a run with a revision of the harness that does not tell its tests."""
    return f"{_OF_HARNESS}{revision}"


def tells_tests(revision: str) -> bool:
    """Return whether the revision of a run tells what its tests were: not where there is none, or
    where there are changes, and not if it is the harness's alone."""
    known = revision not in ("", "unknown")
    return known and not revision.endswith("-dirty") and not revision.startswith(_OF_HARNESS)


def revision(checkout: Path) -> str:
    """Return `git describe` of the checkout, with `-dirty` if it has changes; "unknown" outside of
    git, and where there is no git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        ended = subprocess.run(describe, cwd=checkout, capture_output=True, check=False)
    except OSError:
        return "unknown"
    # A tag may have any character, which git prints in UTF-8 as a rule.
    return ended.stdout.decode(errors="replace").strip() if ended.returncode == 0 else "unknown"
