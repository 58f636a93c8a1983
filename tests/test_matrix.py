"""Runs on several stacks are one table, in which no cell says what did not happen there. The runs
are real ones, of suites on hosts that are made up."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner, Result

from harness.cli import app
from harness.errors import HarnessError
from harness.matrix import page, table, text
from harness.matrix.cell import CellKind, Told
from harness.matrix.table import Table
from harness.report import behaviours
from harness.report.run import Run
from tests.suite_run import results, run_suite, write_suite

#: A suite on hosts whose software the environment tells: the first one, and one with a CMDQV.
SUITE = """
import json
import os
from types import SimpleNamespace

import pytest

from harness.errors import HarnessError, LabError, ProductError
from harness.host.host import Facts
from harness.lab.software import Software

STACKS = json.loads(os.environ["STACKS"])
covers = pytest.mark.covers

@pytest.fixture
def host(request, host_name):
    stack = STACKS[host_name]
    if stack is None:
        pytest.skip(f"not run: host {host_name} is given up: <b>no</b> answer")
    facts = Facts(*stack, frozenset())
    image = Software.named(host_kernel=request.config.getoption("--host-kernel")).host_image
    return SimpleNamespace(
        name=host_name,
        facts=facts,
        files=SimpleNamespace(firmware="/firmware"),
        digests={"host_kernel": image.digest} if image else {},
        capabilities=frozenset({"cmdqv"}),
        kernel_log=lambda: "",
    )

@covers("VEQ-01")
def test_passes(host): pass

@covers("VEQ-02")
@pytest.mark.needs("kprobe")
def test_needs(host): pass

@covers("VEQ-03")
def test_partly(host): pass

@covers("VEQ-03")
@pytest.mark.needs("kprobe")
def test_not_partly(host): pass

@covers("LOSS-05")
@pytest.mark.known_defect("LOSS-05", symptom="wrong")
def test_known(host):
    if host.facts.qemu.startswith("11"):
        raise ProductError("all is wrong")

@covers("VEQ-07", "VEQ-08")
def test_new_kernels(host):
    if host.facts.guest_kernel.startswith("7.3"):
        raise ProductError("no <record> & |none|")

@covers("VEQ-08")
@pytest.mark.parametrize("number", [1, 2])
def test_harness(host, number):
    if host.facts.guest_kernel.startswith("7.3") and number == 1:
        raise HarnessError("a mistake")

@covers("VEQ-09")
def test_lab(host):
    if host.facts.host_kernel.startswith("7.3"):
        raise LabError("cable")

@covers("CQV-01")
@pytest.mark.needs("cmdqv")
def test_cmdqv(host): pass

def test_nothing(host): pass
"""
OLD, NEW, QEMU = "7.2.12-vgrace", "7.3.4-hil", "11.1.3 (Debian 1:11.1.3)"
FIRST, OTHER = "vgrace", "vgrace-cmdqv"


def hosts(
    first: tuple[str, str, str] | None, other: tuple[str, str, str] | None = None
) -> dict[str, list[str] | None]:
    """Return the stacks of the hosts: host kernel, QEMU, guest kernel. Without `other`, both have
    the same."""
    stacks = {FIRST: first, OTHER: other or first}
    return {name: list(one) if one else None for name, one in stacks.items()}


def made(
    folder: Path, stacks: Mapping[str, list[str] | None], *options: str, ended: bool = True
) -> Path:
    """Run the suite, and return the run's folder."""
    before = set(folder.glob("out/*/"))
    said = run_suite(folder, *options, STACKS=json.dumps(stacks))
    (run,) = set(folder.glob("out/*/")) - before
    assert (run / "result.json").exists() is ended, said.stdout + said.stderr
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("matrix"), SUITE)


@pytest.fixture(scope="module")
def old(folder: Path) -> Path:
    return made(folder, hosts((OLD, QEMU, OLD)))


@pytest.fixture(scope="module")
def new(folder: Path) -> Path:
    return made(folder, hosts((NEW, QEMU, NEW)))


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    """Return a run on two hosts with different software."""
    return made(folder, hosts((OLD, QEMU, OLD), (NEW, QEMU, NEW)))


def words(shown: Table, behaviour: str) -> list[str]:
    (row,) = [row for row in shown.rows if row.behaviour.id == behaviour]
    return [cell.words for cell in row.cells]


def stacks(shown: Table) -> list[list[str]]:
    return [[part.version for part in column.stack.parts] for column in shown.columns]


#: What a cell says of each behaviour that a test of the suite carries, on both stacks.
CELLS = {
    "VEQ-01": ["passed", "passed"],
    "VEQ-02": ["not run: skipped", "not run: skipped"],
    "VEQ-03": ["passed, 1 of 2 not run", "passed, 1 of 2 not run"],
    "VEQ-07": ["passed", "failed: product"],
    "VEQ-08": ["passed", "failed: product"],
    "VEQ-09": ["passed", "failed: lab"],
    "LOSS-05": ["known defect LOSS-05", "known defect LOSS-05"],
    "CQV-01": ["passed", "passed"],
}


def test_each_cell_is_the_worst_of_a_behaviours_tests_on_a_stack(old: Path, new: Path) -> None:
    shown = table.read([new, old])
    assert stacks(shown) == [[OLD, OLD, QEMU], [NEW, NEW, QEMU]]
    assert [column.label for column in shown.columns] == ["A", "B"]
    told = {row.behaviour.id: [c.words for c in row.cells] for row in shown.rows}
    assert told == {name: CELLS.get(name, ["", ""]) for name in behaviours.catalogue()}
    assert {row.behaviour.id for row in shown.rows if row.differs} == {"VEQ-07", "VEQ-08", "VEQ-09"}
    nothing = len(told) - len(CELLS)
    assert shown.counts(0) == {
        "known defect": 1,
        "passed": 6,
        "not run: skipped": 1,
        "nothing": nothing,
    }
    assert sum(shown.counts(1).values()) == len(told)
    assert shown.notes == tuple(
        f"{run.name}: 1 test left out that carry no behaviour" for run in (old, new)
    )


def test_a_run_says_why_a_test_was_skipped(old: Path) -> None:
    (test,) = [one for one in results(old).values() if one["id"].endswith("test_needs")]
    assert (test["message"], test["again"]) == ("the host lacks kprobe", "")
    summary = (old / "summary.md").read_text()
    assert "### `suites/test_suite.py::test_known`" in summary
    assert "### `suites/test_suite.py::test_needs`" not in summary


def test_the_head_of_a_column_has_what_differs(old: Path, new: Path, two: Path) -> None:
    assert table.titles(table.read([old]).columns) == [["A"]]
    heads = table.titles(table.read([old, new]).columns)
    assert heads == [["A", f"host {OLD}", f"guest {OLD}"], ["B", f"host {NEW}", f"guest {NEW}"]]


def test_the_reasons_are_told(old: Path, new: Path) -> None:
    why = list(text.reasons(table.read([old, new]), True))
    assert why[0].startswith("VEQ-07, VEQ-08 on B: failed: product: ")
    assert "no <record> & |none|" in why[0]
    skipped = "VEQ-02 on A, B: not run: skipped: the host lacks kprobe"
    assert skipped in list(text.reasons(table.read([old, new]), False))


def test_a_run_on_several_hosts_has_each_test_on_its_own_stack(old: Path, two: Path) -> None:
    shown = table.read([two])
    assert stacks(shown) == [[OLD, OLD, QEMU], [NEW, NEW, QEMU]]
    assert words(shown, "CQV-01") == ["", "passed"]
    assert words(shown, "VEQ-09") == ["passed", ""]
    assert [column.runs for column in shown.columns] == [[two], [two]]


def test_workers_tell_the_stacks_of_their_hosts(folder: Path) -> None:
    run = made(folder, hosts((OLD, QEMU, OLD), (NEW, QEMU, NEW)), "-n2")
    assert words(table.read([run]), "CQV-01") == ["", "passed"]


def image(file: Path, release: str, more: bytes = b"") -> Path:
    """Make a file that is a kernel Image with this release."""
    banner = f"Linux version {release} (me@here)".encode()
    file.write_bytes(bytes(56) + b"ARM\x64" + bytes(4) + banner + more)
    return file


def test_builds_of_one_version_are_different_stacks(folder: Path, old: Path) -> None:
    given = image(folder / "Image", OLD)
    run = made(folder, hosts((OLD, QEMU, OLD)), f"--host-kernel={given}", "-ktest_passes")
    shown = table.read([old, run])
    assert stacks(shown) == [[OLD, OLD, QEMU]] * 2
    heads = table.titles(shown.columns)
    assert heads[0] == ["A", f"host {OLD} (own)"]
    assert re.fullmatch(rf"host {OLD} \(sha256 [0-9a-f]{{12}}\)", heads[1][1])


def test_a_kernel_that_no_host_could_boot_has_a_column(folder: Path) -> None:
    given, guest = image(folder / "Image", NEW), image(folder / "guest", OLD)
    run = made(folder, hosts(None), f"--host-kernel={given}", f"--guest-kernel={guest}")
    shown = table.read([run])
    assert stacks(shown) == [[NEW, OLD, ""]]
    assert shown.columns[0].lab == "virtual"
    assert words(shown, "VEQ-01") == ["not run: host given up"]
    assert f"{run.name} does not say which QEMU it had" in shown.notes
    assert shown.bad


def test_a_host_that_was_never_open_is_not_taken_for_another(folder: Path) -> None:
    run = made(folder, {FIRST: [OLD, QEMU, OLD], OTHER: None})
    shown = table.read([run])
    assert stacks(shown) == [["", "", ""], [OLD, OLD, QEMU]]
    assert words(shown, "CQV-01") == ["not run: host given up", ""]


def test_the_later_of_two_results_counts(folder: Path, old: Path) -> None:
    """A test that was not repeated keeps its result."""
    source = folder / "suites" / "test_suite.py"
    whole = source.read_text()
    source.write_text(
        whole.replace("def test_passes(host): pass", "def test_passes(host): assert 0")
    )
    try:
        run = made(folder, hosts((OLD, QEMU, OLD)), "-ktest_passes or test_known")
    finally:
        source.write_text(whole)
    for order in ([old, run], [run, old]):
        shown = table.read(order)
        assert words(shown, "VEQ-01") == ["failed: product"]
        assert words(shown, "VEQ-03") == ["passed, 1 of 2 not run"]
        assert shown.columns[0].runs == [old, run]
        said = (
            f"{run.name} repeats 2 tests of {old.name} on the same stack: the later results count"
        )
        assert said in shown.notes
    # The same run, named twice, is one.
    assert table.read([old, old / ".." / old.name]).columns[0].runs == [old]


# -- runs that are not whole -------------------------------------------------------------------


def copied(run: Path, folder: Path, **changes: Any) -> Path:
    """Copy a run, and change its result.json; a key that is None is removed."""
    copy = folder / f"copy-{run.name}"
    shutil.copytree(run, copy)
    body = {**json.loads((copy / "result.json").read_text()), **changes}
    kept = {key: value for key, value in body.items() if value is not None}
    (copy / "result.json").write_text(json.dumps(kept))
    return copy


OLDER = {"stacks": None, "given": None, "started": None, "broken": None}


def without_hosts(run: Path) -> list[dict[str, Any]]:
    tests = json.loads((run / "result.json").read_text())["tests"]
    return [{key: one for key, one in test.items() if key != "host"} for test in tests]


def test_a_run_of_an_older_version_is_shown_if_it_had_one_stack(old: Path, tmp_path: Path) -> None:
    older = copied(old, tmp_path, **OLDER, tests=without_hosts(old))
    shown = table.read([older])
    assert stacks(shown) == [[OLD, OLD, QEMU]]
    assert words(shown, "LOSS-05") == ["known defect LOSS-05"]
    assert not shown.incomplete


def test_a_run_of_an_older_version_on_several_stacks_is_left_out(two: Path, tmp_path: Path) -> None:
    older = copied(two, tmp_path, **OLDER, tests=without_hosts(two))
    shown = table.read([older])
    assert shown.columns == ()
    assert shown.incomplete
    (note,) = shown.notes
    assert note.startswith(
        f"{older.name}: 11 tests left out, because the run had several stacks and "
    )


def test_a_run_that_says_less_is_shown_with_what_it_says(old: Path, tmp_path: Path) -> None:
    environment = json.loads((old / "result.json").read_text())["environment"]
    del environment["QEMU"]
    older = copied(old, tmp_path, **OLDER, tests=without_hosts(old), environment=environment)
    shown = table.read([older])
    assert stacks(shown) == [[OLD, OLD, ""]]
    assert f"{older.name} does not say which QEMU it had" in shown.notes


def test_runs_that_did_not_end_are_left_out(old: Path, tmp_path: Path) -> None:
    killed, damaged = Run.create(tmp_path).folder, copied(old, tmp_path)
    (damaged / "result.json").write_text("{")
    shown = table.read([old, killed, damaged])
    assert f"{killed.name} is left out: it did not end, or has not ended yet" in shown.notes
    assert any(one.startswith(f"{damaged.name} is left out: ") for one in shown.notes)
    assert shown.incomplete
    assert [column.runs for column in shown.columns] == [[old]]
    with pytest.raises(HarnessError, match=r"no run is left to show\n.* did not end"):
        table.read([killed])
    with pytest.raises(HarnessError, match="no run's folder"):
        table.read([old, tmp_path])


def test_a_run_that_ended_early_is_shown_and_told(old: Path, tmp_path: Path) -> None:
    shown = table.read([copied(old, tmp_path, broken="interrupted")])
    assert words(shown, "VEQ-01") == ["passed"]
    assert any("ended early (interrupted): tests are missing" in one for one in shown.notes)
    assert shown.bad


def test_behaviours_that_are_not_in_the_catalogue_are_shown(old: Path, tmp_path: Path) -> None:
    tests = json.loads((old / "result.json").read_text())["tests"]
    tests[0]["covers"] = ["VEQ-<99>"]
    shown = table.read([copied(old, tmp_path, tests=tests)])
    assert words(shown, "VEQ-<99>") == ["passed"]
    assert shown.groups(False)[-1][0] == table.UNKNOWN_GROUP


def test_labs_are_not_mixed(old: Path, tmp_path: Path) -> None:
    environment = json.loads((old / "result.json").read_text())["environment"]
    real = copied(old, tmp_path, environment={**environment, "lab": "grace"})
    heads = table.titles(table.read([old, real]).columns)
    assert heads == [["A", "lab grace"], ["B", "lab virtual"]]


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        ({"outcome": "failed"}, CellKind.UNKNOWN),
        ({"outcome": "failed", "blame": "gremlins"}, CellKind.UNKNOWN),
        ({"outcome": "exploded"}, CellKind.UNKNOWN),
        ({"outcome": "known defect fixed", "blame": "product"}, CellKind.FIXED),
        ({"outcome": "failed", "blame": "harness"}, CellKind.HARNESS),
    ],
)
def test_a_failure_of_nobody_is_a_failure(test: dict[str, str], kind: CellKind) -> None:
    assert Told.of({"id": "t", **test}, Path()).kind is kind
    assert kind.failed


# -- the command ---------------------------------------------------------------------------------


def called(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["matrix", *map(str, arguments)])


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"outcome": "skipped"}, 0),
        ({"outcome": "known defect"}, 0),
        ({"outcome": "failed", "blame": "product"}, 1),
        ({"outcome": "failed", "blame": "harness"}, 1),
        ({"outcome": "failed", "blame": "lab"}, 1),
        ({"outcome": "known defect fixed", "blame": "product"}, 1),
        ({"outcome": "not run"}, 1),
    ],
)
def test_it_is_a_gate(old: Path, tmp_path: Path, change: dict[str, str], status: int) -> None:
    tests = json.loads((old / "result.json").read_text())["tests"]
    (passed,) = [test for test in tests if test["id"].endswith("test_passes")]
    passed.update(change)
    assert called(copied(old, tmp_path, tests=tests)).exit_code == status


def test_a_stack_on_which_nothing_ran_is_no_success(old: Path, tmp_path: Path) -> None:
    tests = json.loads((old / "result.json").read_text())["tests"]
    skipped = [{**test, "outcome": "skipped"} for test in tests]
    assert called(copied(old, tmp_path, tests=skipped)).exit_code == 1


def test_the_terminal_says_it_without_colour(old: Path, new: Path) -> None:
    said = called(old, new)
    assert said.exit_code == 1
    assert re.search(rf"^A: host kernel {OLD}, guest kernel", said.stdout, re.MULTILINE)
    (row,) = [line for line in said.stdout.splitlines() if line.startswith("VEQ-07")]
    assert re.search(r"passed +failed: product", row)
    assert "[b]" not in said.stdout
    few = called(old, new, "--differing").stdout
    ids = [line.split()[0] for line in few.splitlines() if re.match("[A-Z]+-[0-9]+ ", line)]
    assert [name for name in ids if few.count(name)] == ["VEQ-07", "VEQ-08", "VEQ-09"]
    assert "no behaviour differs" in called(old, "--differing").stdout


def test_json_has_every_test_of_every_cell(old: Path, new: Path) -> None:
    body = json.loads(called(old, new, "--json").stdout)
    assert [one["host kernel"]["version"] for one in body["stacks"]] == [OLD, NEW]
    (row,) = [one for one in body["behaviours"] if one["id"] == "VEQ-08"]
    cell = row["cells"]["B"]
    assert (cell["verdict"], cell["run"], cell["report"]) == ("failed: product", str(new), None)
    assert sorted(one["verdict"] for one in cell["tests"]) == [
        "failed: harness", "failed: product", "passed",
    ]  # fmt: skip
    assert body["bad"] is True
    assert len(json.loads(called(old, new, "--json", "--differing").stdout)["behaviours"]) == 3


def test_one_form_at_a_time(old: Path) -> None:
    assert isinstance(called(old, "--json", "--markdown").exception, HarnessError)


def test_markdown_is_a_table(old: Path, new: Path, tmp_path: Path) -> None:
    tests = json.loads((new / "result.json").read_text())["tests"]
    tests[0]["covers"] = ["VEQ-`|<99>"]
    said = called(old, copied(new, tmp_path, tests=tests), "--markdown").stdout
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert any(row.startswith("| VEQ-\\`\\|\\<99\\> |") for row in rows)
    (row,) = [line for line in rows if line.startswith("| VEQ-07 |")]
    assert row.endswith("| passed | **failed: product** |")
    assert "`VEQ-07, VEQ-08 on B: failed: product: " in said


# -- the page ------------------------------------------------------------------------------------

VOID = {"meta", "br"}


class Page(HTMLParser):
    """The tables of a page, as lists of rows; each cell has its tag, attributes, text and links."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.tables: dict[str, list[list[dict[str, Any]]]] = {}
        self.ids: dict[str, dict[str, Any]] = {}
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(told["id"] or "", [])
        elif tag == "tr":
            self.rows.append([])
            self.row = told
        elif tag in ("td", "th"):
            self.rows[-1].append({"row": self.row, "class": "", "text": "", "links": [], **told})
        elif tag == "a":
            self.rows[-1][-1]["links"].append(told["href"])
        assert not any(name.startswith("on") or name == "style" for name in told)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "tr" in self.open:
            self.rows[-1][-1]["text"] += data

    def cells(self, behaviour: str) -> list[dict[str, Any]]:
        (row,) = [
            row for row in self.tables["behaviours"] if row and row[0]["row"].get("id") == behaviour
        ]
        return row


def test_the_page_has_every_cell(old: Path, new: Path, tmp_path: Path) -> None:
    file = tmp_path / "matrix.html"
    assert called(old, new, "--html", file).exit_code == 1
    shown = Page(file.read_text())
    assert shown.tags.isdisjoint({"script", "link", "img", "iframe", "b", "record"})
    for name, (one, other) in CELLS.items():
        row = shown.cells(name)
        assert [
            cell["text"].startswith(said) for cell, said in zip(row[2:], (one, other), strict=True)
        ] == [True] * 2
        assert ("differs" in row[0]["row"].get("class", "")) is (one != other)
    assert [cell["class"] for cell in shown.cells("VEQ-07")[2:]] == ["passed", "product"]
    assert "no <record> & |none|" in shown.cells("VEQ-07")[3]["text"]
    assert [cell["class"] for cell in shown.cells("VEQ-04")[2:]] == ["", ""]
    ids = [row[0]["text"] for row in shown.tables["behaviours"] if row[0]["row"].get("id")]
    assert ids == list(behaviours.catalogue())
    stacks = shown.tables["stacks"]
    assert [cell["text"] for cell in stacks[1][:4]] == ["A", OLD, OLD, QEMU]
    assert "1 failed: lab" in stacks[2][5]["text"]
    called(old, new, "--html", file, "--differing")
    few = [row[0]["row"].get("id") for row in Page(file.read_text()).tables["behaviours"]]
    assert [one for one in few if one] == ["VEQ-07", "VEQ-08", "VEQ-09"]


def test_cells_lead_to_the_run_that_decided_them(old: Path, new: Path, tmp_path: Path) -> None:
    reported = tmp_path / "out" / "run #1 \udcff"
    shutil.copytree(new, reported)
    (reported / "report").mkdir()
    (reported / "report" / "index.html").write_text("")
    (tmp_path / "pages").mkdir()
    shown = table.read([old, reported])

    def links(cell: dict[str, Any]) -> list[Path]:
        return [
            Path(
                os.path.normpath(
                    tmp_path / "pages" / unquote(urlsplit(one).path, errors="surrogateescape")
                )
            )
            for one in cell["links"]
        ]

    made = Page(page.html(shown, False, tmp_path / "pages"))
    cells = made.cells("VEQ-07")
    assert links(cells[2]) == []
    assert links(cells[3]) == [reported / "report" / "index.html"]
    (reported / "report" / "behaviours.html").write_text("")
    cells = Page(page.html(shown, False, tmp_path / "pages")).cells("VEQ-07")
    assert links(cells[3]) == [reported / "report" / "behaviours.html"]
    assert cells[3]["links"][0].endswith("#VEQ-07")


HOSTILE = "<script>alert(1)</script>\"'&]]>\x1b[1m\x00 [bold]x[/] | `\n# <!--"


def test_no_text_of_a_run_is_markup(old: Path, new: Path, tmp_path: Path) -> None:
    body = json.loads((old / "result.json").read_text())
    for test in body["tests"]:
        test["covers"] = [*test["covers"], HOSTILE]
        test.update(outcome=HOSTILE, message=HOSTILE, id=HOSTILE + test["id"])
    stacks = {FIRST: {"host kernel": HOSTILE, "QEMU file": HOSTILE}, OTHER: {"QEMU": HOSTILE}}
    named = {"stacks": stacks, "environment": {"lab": HOSTILE}, "broken": HOSTILE}
    run = copied(old, tmp_path, **named, tests=body["tests"])
    shown = table.read([run])
    made = Page(page.html(shown, False, tmp_path))
    plain = Page(page.html(table.read([old, new]), False, tmp_path))
    assert made.tags <= plain.tags | {"ul", "li", "small"}
    assert "\x1b" not in "".join(made.text)
    printed = called(run)
    assert "\x1b" not in printed.stdout
    assert "[bold]x[/]" in printed.stdout
    lines = [
        line for line in called(run, "--markdown").stdout.splitlines() if line.startswith("| ")
    ]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in lines}) == 1
    assert json.loads(called(run, "--json").stdout)["stacks"]
