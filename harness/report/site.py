"""Make Allure's page of a run: a single file, which a browser opens from a disk or a server, and
beside it a page of the behaviours.

Allure 3 is installed from npm into the cache. Its history of all reported runs is beside the run
folders: out/.history.jsonl. Its configuration is described by the package's README and its type
`Config`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import filelock

from harness.artifacts.store import Recipe, Store, content_key
from harness.errors import HarnessError, LabError
from harness.progress import Progress
from harness.report import behaviours_page
from harness.report.blame import Blame
from harness.report.run import FIXED, KNOWN, NOT_RUN, load

HISTORY = ".history.jsonl"
_RESULTS = "allure-results"
#: Allure's page, and the page of behaviours, which tests link to.
INDEX, BEHAVIOURS = "index.html", "behaviours.html"
#: How long Allure may take to make a page, npm to install Allure, and other reports to make theirs
#: before it is our turn, in seconds.
ALLURE_SECONDS, NPM_SECONDS, TURN_SECONDS = 900.0, 1800.0, 1800.0
#: How many runs Allure's trends go back.
HISTORY_RUNS = 60

#: Allure and all that it needs: what npm is to install, with the hash of each package.
_PACKAGES = resources.files(__package__) / "allure"
_PACKAGE, _LOCK = "package.json", "package-lock.json"

#: The part of Allure's page that reports each opening to a counter on the internet. It is removed.
_COUNTER = re.compile(
    r'<script async src="https?://[^"]*/gtag/js[^"]*"></script>\s*<script>.*?</script>', re.DOTALL
)

#: Allure's page shows only links with a full address, and a report does not know its own. So tests
#: link to this address, which cannot exist (RFC 2606), and the additions to the page open
#: BEHAVIOURS instead.
_PLACEHOLDER = "https://behaviours.invalid/"
_ADDITIONS = "additions.html"

#: The label that sorts tests that did not pass, and its values in the order of the page.
CATEGORY = "category"
CATEGORIES = (Blame.PRODUCT, FIXED, Blame.HARNESS, Blame.LAB, NOT_RUN, KNOWN)


def allure() -> Recipe:
    """Return the recipe of Allure's npm package with its dependencies, as they are locked."""
    files = {name: (_PACKAGES / name).read_bytes() for name in (_PACKAGE, _LOCK)}

    def build(out: Path, work: Path) -> dict[str, object]:
        npm = shutil.which("npm")
        if npm is None:
            raise LabError(
                "npm is missing: it installs Allure, which makes reports", fix="run `make setup`"
            )
        for name, content in files.items():
            (out / name).write_bytes(content)
        # Nothing of a package runs before Allure itself does: none of them needs to.
        install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        failed, said = _run([*install, f"--prefix={out}"], out, NPM_SECONDS)
        if failed:
            raise LabError(
                f"npm does not install Allure: {said}",
                fix="check that npm reaches its registry from this machine",
            )
        return {"packages": json.loads(files[_PACKAGE])["dependencies"]}

    return Recipe(
        "allure",
        content_key("allure 2", *files.values()),
        build,
        needs_bytes=200 << 20,
        expected_seconds=15,
    )


def check(run: Path) -> dict[str, Any]:
    """Return the result.json of a run's folder. Raises HarnessError when the folder has none, or
    none of Allure's results."""
    if not any((run / _RESULTS).glob("*-result.json")):
        what = "has no Allure results" if run.is_dir() else "is no folder"
        raise HarnessError(f"{run} {what}", fix="name a run's folder: out/<run-id>")
    return load(run)


def generate(run: Path, store: Store, progress: Progress) -> Path:
    """Make the pages of a run's folder and return the path of its index.html. Older pages of the
    run are replaced, and so is its line in the history.

    Raises HarnessError as `check` does, LabError when Allure does not run, OSError when a file
    cannot be written.
    """
    result, results = check(run), run / _RESULTS
    site, title = run / "report", f"{result.get('lab', '')}, {run.name}"
    program = store.get(allure(), progress) / "node_modules" / ".bin" / "allure"
    config = run / "allurerc.json"
    config.write_text(json.dumps(configuration(run, site, title), indent=1))
    index = site / INDEX
    with progress.step(f"report on {run.name}", 10), _without(run.parent / HISTORY, title):
        shutil.rmtree(site, ignore_errors=True)
        make: list[str | Path] = [program, "generate", f"--config={config}", results]
        failed, said = _run(make, run, ALLURE_SECONDS)
        if failed or not index.exists():
            raise LabError(f"Allure made no report of {run}: {said}", fix="run `hil doctor`")
    head, end, tail = _COUNTER.sub("", index.read_text(encoding="utf-8")).rpartition("</body>")
    additions = resources.files(__package__).joinpath(_ADDITIONS).read_text(encoding="utf-8")
    index.write_text(head + additions + end + tail, encoding="utf-8")
    (site / BEHAVIOURS).write_text(behaviours_page.html(title, result), encoding="utf-8")
    return index


def _run(argv: Sequence[str | Path], folder: Path, seconds: float) -> tuple[bool, str]:
    """Run a program in a folder. Return whether it failed, or did not end within so many seconds,
    and what it said."""
    try:
        ended = subprocess.run(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True, f"it did not end within {seconds:.0f} s"
    return ended.returncode != 0, (ended.stderr or ended.stdout).strip()


@contextlib.contextmanager
def _without(history: Path, title: str) -> Iterator[None]:
    """Remove the run with this title from Allure's history while the body makes its page again:
    Allure adds a line for each page that it makes. Restore the history if the body fails.

    Runs that share the history wait for each other. Raises HarnessError for a damaged file.
    """
    with _turn(history):
        lines = _lines(history)
        _write(history, (line for name, line in lines if name != title))
        try:
            yield
        except BaseException:
            _write(history, (line for _, line in lines))
            raise


@contextlib.contextmanager
def _turn(history: Path) -> Iterator[None]:
    """Hold the lock of a history while the body runs. Raises LabError if another report has it for
    long."""
    lock = filelock.FileLock(history.with_name(f"{history.name}.lock"))
    try:
        lock.acquire(timeout=TURN_SECONDS)
    except filelock.Timeout:
        raise LabError(
            f"{history} is in use by another report; waited {TURN_SECONDS:.0f} s for it",
            fix=f"end what holds it: `fuser {shlex.quote(lock.lock_file)}` tells its process",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _lines(history: Path) -> list[tuple[str, str]]:
    """Return the lines of a history, each with its run's title. Raises HarnessError."""
    found = []
    text = history.read_text(encoding="utf-8", errors="replace") if history.exists() else ""
    # Not splitlines(): JSON may have what ends lines for Python only, such as U+2028.
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        try:
            found.append((json.loads(line)["name"], line))
        except (ValueError, KeyError, TypeError):
            raise HarnessError(
                f"{history}:{number} is no line of Allure's history",
                fix="remove that line, or the whole file: then trends begin anew",
            ) from None
    return found


def _write(history: Path, lines: Iterable[str]) -> None:
    """Replace a history at once, so that a killed writer leaves the old one."""
    new = history.with_name(f"{history.name}.new")
    new.write_text("".join(lines), encoding="utf-8")
    new.replace(history)


def behaviour_link(behaviour: str) -> str:
    """Return the address that a test links to for a behaviour's id. It works only on a page with
    the additions of `generate`."""
    return f"{_PLACEHOLDER}#{behaviour}"


def configuration(run: Path, site: Path, title: str) -> dict[str, Any]:
    """Return Allure's configuration for the page of `run` in the folder `site`."""
    return {
        "name": title,
        "output": str(site),
        "historyPath": str(run.parent / HISTORY),
        "historyLimit": HISTORY_RUNS,
        "appendHistory": True,
        "categories": {
            "rules": [
                {
                    "name": name.capitalize(),
                    "matchers": {"labels": {CATEGORY: f"^{name}$"}},
                    "groupByMessage": True,
                }
                for name in CATEGORIES
            ]
        },
        "plugins": {
            "awesome": {
                "options": {
                    "singleFile": True,
                    "groupBy": ["feature", "story"],
                    "reportLanguage": "en",
                }
            }
        },
    }
