"""The report of a run with one failure of each kind shows a reviewer what failed and why. Tests
open its page in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from harness.fixtures.evidence import folder_name
from harness.lab.inventory import Inventory
from harness.lab.pool import Hosts
from tests.lab.plain import write_inventory
from tests.suite_run import run_suite

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
#: Flags that a headless browser needs as root, and flags that keep it from using the internet.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DESK, PHONE = 1280, 390
CATEGORIES = ("Product", "Known defect fixed", "Harness", "Lab", "Known defect")


@pytest.fixture(scope="module")
def ended(
    hosts: Hosts, lab: Inventory, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """Run the planted suite with a report, and return the result."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "suites").mkdir()
    shutil.copy(ROOT / "tests" / "lab" / "planted.py", folder / "suites" / "test_planted.py")
    shutil.copy(ROOT / "pyproject.toml", folder)
    inventory = write_inventory(hosts.describe(lab.host().name), folder)
    return run_suite(folder, f"--lab={inventory}", "--report")


@pytest.fixture(scope="module")
def report(ended: subprocess.CompletedProcess[str]) -> Path:
    """Return the folder of the report, which is in the last line that the run printed."""
    said = re.fullmatch(r"report: (.*)/index.html", ended.stdout.splitlines()[-1])
    assert said, ended.stdout + ended.stderr
    return Path(said[1])


def test_the_run_says_whose_the_failures_are(
    ended: subprocess.CompletedProcess[str], report: Path
) -> None:
    assert ended.returncode == 1
    summary = (report.parent / "summary.md").read_text()
    assert summary.startswith("**FAILED (4 product, 1 lab, 1 harness)**: 1 passed, 5 failed")
    tests = json.loads((report.parent / "result.json").read_text())["tests"]
    (missing,) = [test for test in tests if test["id"].endswith("test_missing_event")]
    again = ".venv/bin/pytest suites/test_planted.py::test_missing_event --lab="
    assert again in missing["again"]
    assert missing["again"] in summary


def attachments(report: Path, test: str) -> dict[str, Path]:
    """Return the files that are attached to a test's result, by name."""
    results = report.parent / "allure-results"
    (found,) = [
        one
        for one in map(json.loads, (file.read_text() for file in results.glob("*-result.json")))
        if one["name"] == test
    ]
    return {one["name"]: results / one["source"] for one in found["attachments"]}


def test_evidence_of_a_passed_test_is_small(report: Path) -> None:
    attached = attachments(report, "test_right")
    assert list(attached) == ["timeline"]
    assert attached["timeline"].stat().st_size < 20_000


@pytest.mark.parametrize("test", ["test_missing_event", "test_guest_of_its_own"])
def test_evidence_of_a_failed_test_is_whole(report: Path, test: str) -> None:
    attached = attachments(report, test)
    told = {name: file.read_text() for name, file in attached.items()}
    assert "smmuv3_accel" in told["guest0: QEMU trace"]
    assert "Linux version" in told["guest0: kernel log"]
    assert "entries at" in told["guest0: event queue of smmu0"]
    assert not [name for name, text in told.items() if text.startswith("not available")]
    logs = report.parent / "logs" / folder_name(f"suites/test_planted.py::{test}")
    assert {file.stem for file in logs.iterdir()} == {
        name.replace(": ", "-").replace(" ", "_") for name in attached
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "run `make lab-test`, which installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=["disk", "HTTP"])
def address(request: pytest.FixtureRequest, report: Path) -> Iterator[str]:
    """Yield the report's address: once as a file, once on a server."""
    if request.param == "disk":
        yield report.as_uri()
        return

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=report)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """Yield a new window with the report. At the end, check that there was no error in it and no
    request to another server."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((address, "data:", "blob:"))
            else wrong.append(f"asks for {asked.url}")
        ),
    )
    page.goto(f"{address}/index.html")
    yield page
    page.close()
    assert wrong == []


def test_a_run_that_is_reported_again_is_in_the_history_once(report: Path) -> None:
    run = report.parent
    again = [sys.executable, "-m", "harness.cli", "report", str(run)]
    said = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == f"{report}/index.html\n"
    history = (run.parent / ".history.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in history] == [f"plain, {run.name}"]


def open_test(page: Page, name: str) -> None:
    page.get_by_text(name).first.click()
    expect(page.get_by_test_id("test-result-meta-links")).to_be_visible()


def test_categories_tell_failures_apart(page: Page) -> None:
    page.get_by_text("Categories", exact=True).first.click()
    for name in CATEGORIES:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_it_fits_the_window(page: Page) -> None:
    for name in ("test_right", "test_missing_event"):
        expect(page.get_by_text(name).first).to_be_visible()
    assert not too_wide(page)
    open_test(page, "test_missing_event")
    assert not too_wide(page)


def too_wide(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def test_the_evidence_of_a_failed_test_opens(page: Page) -> None:
    open_test(page, "test_missing_event")
    expect(
        page.get_by_text("8 records in all; 0 records, not 1, of the access").first
    ).to_be_visible()
    # A test's description is in a frame of its own, and so is an attached page.
    again = ".venv/bin/pytest suites/test_planted.py::test_missing_event"
    expect(page.frame_locator("iframe").first.get_by_text(again)).to_be_visible()
    page.get_by_text("actual and expected", exact=True).click()
    row = page.frame_locator("iframe[src^='blob:']").first.locator("tr.missing")
    row.scroll_into_view_if_needed()
    expect(row).to_be_in_viewport()
    expect(row).to_contain_text("iova 0x1234560020")
    page.get_by_text("timeline", exact=True).click()
    expect(page.locator("img[src^='blob:']")).to_be_visible()
    page.get_by_text("guest0: QEMU trace", exact=True).click()
    expect(page.get_by_text("smmuv3_propagate_event").first).to_be_visible()


def test_a_test_leads_to_its_behaviour(page: Page) -> None:
    open_test(page, "test_missing_event")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="VEQ-07").click()
    behaviours = opened.value
    section = behaviours.locator("#VEQ-07")
    expect(section).to_be_in_viewport()
    expect(section.get_by_text("test_planted.py::test_missing_event")).to_be_visible()
    assert not too_wide(behaviours)
    behaviours.close()
