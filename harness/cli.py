"""The commands of `hil`: build and use the lab; look at events, runs, behaviours and defects.

Command docstrings are what `--help` prints: their lines fit in 80 columns of a terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import reproduce as reproducers
from harness.artifacts import disk
from harness.artifacts.store import Store
from harness.checkout import DEFAULT_LAB, OUT, ROOT, SUITES
from harness.errors import HarnessError, HilError, LabError
from harness.guest.fleet import Fleet
from harness.host.capability import words
from harness.kernel_image import KernelImage
from harness.lab import calls
from harness.lab import doctor as checks
from harness.lab import inventory as inventories
from harness.lab import offer as offers
from harness.lab import prune as pruning
from harness.lab import status as statuses
from harness.lab.inventory import HostEntry
from harness.lab.kexec import with_kernel
from harness.lab.provide import describe_virtual, machine, provided
from harness.lab.reservation import opened, reserved
from harness.lab.software import Software
from harness.progress import Progress
from harness.report import behaviours, defects, executor, host_coverage, requirements, site
from harness.report import compare as comparing
from harness.report import runs as old_runs
from harness.report.defects import Defect
from harness.report.run import load
from harness.smmu import decode as decoding
from harness.smmu.klog import Broken
from harness.virtual.machine import VirtualMachine, recipes

app = typer.Typer(
    help="Hardware-in-the-loop tests for accelerated SMMUv3 virtualisation on NVIDIA Grace. "
    "pytest runs the suites: `pytest suites/veventq --help` shows the options of a run.",
    epilog="Exit status: 0 if all is well; 1 if the command failed, or found what it looks for; 2 "
    "if it was called wrongly: an option, or a file that it names; 130 after Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
lab_app = typer.Typer(help="Build, start, stop and enter the lab's hosts.", no_args_is_help=True)
app.add_typer(lab_app, name="lab")
runs_app = typer.Typer(help="List runs, and remove old ones.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")

LabOption = Annotated[
    Path,
    typer.Option(
        "--lab",
        metavar="FILE",
        help=f"Inventory of the lab; default: {DEFAULT_LAB.relative_to(ROOT)}.",
        show_default=False,
    ),
]
LabOfHostOption = Annotated[
    Path | None,
    typer.Option(
        "--lab",
        metavar="FILE",
        help=f"Inventory that has the host of --host; default: {DEFAULT_LAB.relative_to(ROOT)}.",
        show_default=False,
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of a host in the inventory; default: the first."),
]
HostKernelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Kernel Image for the host itself, a file on this machine; default: the lab's own.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """Run `hil`. An error ends it with the error's text: a HarnessError, such as a wrong call, with
    status 2, any other and an OSError with status 1; Ctrl-C with status 130."""
    # A build that is terminated must clean up as one that is interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except HilError as problem:
        print(f"hil: {problem}", file=sys.stderr)
        sys.exit(_WRONG_CALL if isinstance(problem, HarnessError) else 1)
    except KeyboardInterrupt:
        print("hil: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. This keeps Python from an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as problem:
        print(f"hil: {problem}", file=sys.stderr)
        sys.exit(1)


#: The exit status of a wrong call, as typer has it.
_WRONG_CALL = 2


def _print_version(asked: bool) -> None:
    if asked:
        print(f"hil {importlib.metadata.version('grace-smmu-hil')} ({executor.revision(ROOT)})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the revision, and exit.",
        ),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def _refuse_lab_without_host(lab: Path | None, host: str | None) -> None:
    """Raise HarnessError where only a host's inventory is read, and no host is named."""
    if lab is not None and host is None:
        names = ", ".join(entry.name for entry in calls.inventory(lab).hosts)
        raise HarnessError(
            f"--lab: {lab} is read for one of its hosts only, and --host names none",
            fix=f"add --host with one of {names}",
        )


# -- lab ---------------------------------------------------------------------------------------


def _virtual(
    entry: HostEntry, store: Store, progress: Progress, kernel: KernelImage | None = None
) -> VirtualMachine:
    """Return the virtual machine of a host, which boots `kernel` in place of the lab's own. Raises
    LabError for a host that is not virtual."""
    vm = machine(entry, store, progress, kernel)
    if vm is None:
        raise LabError(
            f"host {entry.name} is not a virtual host: `hil lab` cannot build, start or stop it",
            fix="name a virtual host of the inventory with --host",
        )
    return vm


@lab_app.command("build")
def lab_build() -> None:
    """Build what a virtual host needs, if it is not in the cache yet.

    The first build takes about seven minutes on two cores. After Ctrl-C the
    next build continues where this one stopped. The cache is $HIL_CACHE, or
    `hil` in your cache folder.
    """
    progress, store = Progress(), calls.store()
    for recipe in recipes(store, progress):
        store.get(recipe, progress)


@lab_app.command("artifacts")
def lab_artifacts() -> None:
    """Show which artifacts are built, where they are, their sizes and versions.

    The last lines are the whole cache, with artifacts of other checkouts,
    snapshots and logs (`hil lab prune` removes what is old), and its disk.
    """
    progress, store = Progress(), calls.store()
    for recipe in recipes(store, progress):
        if not store.has(recipe):
            print(f"{recipe.name}: not built")
            continue
        path = store.path(recipe)
        print(f"{recipe.name}: {path} ({disk.size(disk.used(path))})")
        packages = store.manifest(recipe).get("packages")
        if isinstance(packages, dict):
            shown = {n: v for n, v in packages.items() if n.startswith(("qemu-s", "linux", "busy"))}
            print("".join(f"  {name} {version}\n" for name, version in shown.items()), end="")
    print(_cache_size(store))


def _cache_size(store: Store) -> str:
    on = disk.FileSystem.of(store.root)
    return f"the cache {store.root} has {disk.size(disk.used(store.root))}, on {on}"


@lab_app.command("prune")
def lab_prune(
    lab: Annotated[
        list[Path] | None,
        typer.Option(
            "--lab",
            metavar="FILE",
            help="An inventory whose hosts' logs stay, besides those in lab-inventory/.",
        ),
    ] = None,
    days: Annotated[
        float,
        typer.Option(
            "--unused-for", metavar="DAYS", min=0, help="Keep what was used within so many days."
        ),
    ] = 14,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove from the cache what nobody uses: old artifacts, unfinished builds, snapshots.

    What this checkout needs stays, and so does all that runs. Artifacts and
    unfinished builds of other checkouts go after some days without use,
    with --unused-for=0 at once. Of virtual hosts that do not run, drives and
    snapshots go; the logs of those that no inventory has go after these days.
    """
    progress, store = Progress(), calls.store()
    disk.prepare(store.root)
    files = [*DEFAULT_LAB.parent.glob("*.yaml"), *(lab or ())]
    described = {host.name for file in files for host in inventories.load(file).hosts}
    needed = {recipe.entry for recipe in (*recipes(store, progress), site.allure())}
    freed = 0
    for piece in pruning.prune(store, needed, described, days, remove=not dry_run):
        verdict = f"kept: {piece.kept}" if piece.kept else "would go" if dry_run else "removed"
        print(f"{piece.what} ({disk.size(piece.size)}): {verdict}")
        freed += 0 if piece.kept else piece.size
    print(f"{disk.size(freed)} {'would be ' if dry_run else ''}freed; {_cache_size(store)}")


@lab_app.command("up")
def lab_up(
    host: HostOption = None, lab: LabOption = DEFAULT_LAB, host_kernel: HostKernelOption = None
) -> None:
    """Boot a virtual host and leave it running: test runs use it until `hil lab down`.

    With --host-kernel, runs and other commands that use the host must be given
    the same kernel, or they refuse it.
    """
    entry = calls.host(calls.inventory(lab), host)
    software = Software.named(host_kernel=host_kernel)
    software.check(entry)
    progress, store = Progress(), calls.store()
    vm = _virtual(entry, store, progress, software.host_image)
    vm.up(stay=True)
    print(f"{entry.name} is up; `hil lab ssh --host {entry.name}` enters it")


@lab_app.command("down")
def lab_down(host: HostOption = None, lab: LabOption = DEFAULT_LAB) -> None:
    """Stop a virtual host with everything in it, and delete its snapshots."""
    entry = calls.host(calls.inventory(lab), host)
    progress, store = Progress(), calls.store()
    vm = _virtual(entry, store, progress)
    with reserved(entry, store.root, progress, wait=0):
        print(f"{entry.name} is down" if vm.down() else f"{entry.name} was not up")


@lab_app.command("status")
def lab_status(
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show of each virtual host whether it is up, since when, and who has it.

    A host that is not virtual is shown as `external`: it is not asked.
    """
    hosts, progress, store = calls.inventory(lab).hosts, Progress(), Store()
    out = [statuses.status(entry, store, progress) for entry in hosts]
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in out]))
        return
    for one in out:
        print(one)


@lab_app.command("ssh", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab_ssh(
    context: typer.Context,
    host: HostOption = None,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Open a shell on a host, or run a command there: `hil lab ssh -- uname -a`.

    A virtual host must be up. Everything after `--` is the command.
    """
    entry = calls.host(calls.inventory(lab), host)
    progress, store = Progress(), calls.store()
    vm = machine(entry, store, progress)
    if vm is None:
        with provided(entry, store, progress) as described:
            target = described.target
    else:
        running = vm.running()
        if running is None:
            raise LabError(
                f"host {entry.name} is not up", fix=f"run `hil lab up --host {entry.name}`"
            )
        target = describe_virtual(entry, vm, running).target
    argv = target.command_line(*context.args)
    sys.stdout.flush()
    os.execvp(argv[0], argv)


@lab_app.command("schema")
def lab_schema() -> None:
    """Print the JSON schema of an inventory: lab-inventory/schema.json."""
    print(inventories.schema(), end="")


# -- tools -------------------------------------------------------------------------------------


@app.command()
def doctor(
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Check for this host only, and enter it as a run does."),
    ] = None,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Check what this machine lacks for a lab, and say what it is for and how to get it.

    A lab of virtual hosts needs tools to build them; one of other hosts needs
    few. With --host, that host is probed besides, as a test run does it; a
    virtual host is booted for that if it is not up. The exit status is 1 if
    something is missing.
    """
    inventory, store = calls.inventory(lab), calls.store()
    hosts = inventory.hosts if host is None else [calls.host(inventory, host)]
    missing = 0
    for check in checks.checks(hosts, store, OUT):
        print(f"{'ok     ' if check.met else 'MISSING'} {check.what}: {check.purpose}")
        if not check.met:
            missing += 1
            print(f"        {check.fix}")
    if host is not None:
        _enter(hosts[0], store)
    if missing:
        raise LabError(
            f"this machine lacks {missing} of the above",
            fix="run `make setup`, or do what is said below each MISSING line",
        )


def _enter(entry: HostEntry, store: Store) -> None:
    """Enter a host as a run does, and print what it has."""
    progress = Progress()
    with (
        reserved(entry, store.root, progress),
        provided(entry, store, progress) as described,
        opened(described, (), progress) as found,
    ):
        print(f"ok      kernel {found.facts.host_kernel}")
        print(f"ok      QEMU {found.facts.qemu}")
        for bdf, device in found.devices.items():
            print(f"ok      {bdf} {found.role(bdf)}, behind {device.iommu}")
        print(f"ok      capabilities: {', '.join(sorted(found.capabilities))}")


@app.command()
def decode(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A kernel log, or lines of four hexadecimal words; default: standard input."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line instead of text.")
    ] = False,
) -> None:
    """Explain SMMUv3 events: from a kernel log (dmesg) or from lines of four 64-bit words.

    Broken lines are reported with their numbers, and the exit status is 1 then.

    Example: echo '0x0000210000000010 0x0000020800000000 0x1000 0x0' | hil decode
    """
    broken = 0
    with _opened(file) as lines:
        batch: list[str] = []
        for found in decoding.decode(lines):
            if isinstance(found, Broken):
                broken += 1
                print(f"{file or 'standard input'}:{found.line}: {found.reason}", file=sys.stderr)
                continue
            record = found[1]
            batch.append(decoding.as_json(record) if as_json else str(record))
            if len(batch) >= 4096:
                print("\n".join(batch))
                batch.clear()
        if batch:
            print("\n".join(batch))
    if broken:
        raise typer.Exit(1)


@contextlib.contextmanager
def _opened(file: Path | None) -> Iterator[TextIO]:
    """Yield the lines of a file, or of standard input for `-` or no file."""
    if file is None or str(file) == "-":
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield sys.stdin
        return
    try:
        opened = file.open(errors="replace")
    except OSError as problem:
        raise HarnessError(
            f"cannot read {file}: {problem.strerror}",
            fix="name a file that you can read, or pipe the text to `hil decode`",
        ) from None
    with opened:
        yield opened


@app.command()
def coverage(
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show which behaviours can run on this host of the lab."),
    ] = None,
    lab: LabOfHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every behaviour, its tests, their known defects, and the last outcome in each lab.

    With --host it shows which behaviours can run on that host of the lab, or
    what is missing for them. The host is not reached: what its inventory says
    counts. Capabilities that only probing can tell (a CMDQV, kernel probes, …)
    are assumed and named; `hil doctor --host NAME` probes them. Devices of one
    PCI segment are assumed to be behind one SMMU.

    Example: hil coverage --host grace-1 --lab lab-inventory/grace.example.yaml
    """
    _refuse_lab_without_host(lab, host)
    if host is not None:
        chosen = lab or DEFAULT_LAB
        _coverage_on(calls.host(calls.inventory(chosen), host), chosen, as_json)
        return
    rows = behaviours.coverage(SUITES, OUT)
    if as_json:
        for row in rows:
            one = row.behaviour
            body = {"id": one.id, "text": one.text, "tests": row.tests, "ran": row.outcomes}
            known = [defect.model_dump(mode="json") for defect in row.defects]
            print(json.dumps({**body, "known_defects": known}))
        return
    table = _behaviour_table(("tests", 4), ("ran", 1))
    for row in rows:
        tests = "\n".join(test.removeprefix("suites/") for test in row.tests) or "[dim]none[/]"
        for defect in row.defects:
            tests += f"\n[yellow]known defect[/], {defect.concerned}: {defect.title}"
        ran = "\n".join(f"{lab}: {outcome}" for lab, outcome in row.outcomes.items())
        table.add_row(row.behaviour.id, row.behaviour.text, tests, ran)
    console = _wide_console()
    console.print(table)
    carried = sum(bool(row.tests) for row in rows)
    console.print(f"{carried} of {len(rows)} behaviours have a test")


def _behaviour_table(*columns: tuple[str, int]) -> Table:
    """Return an empty table of behaviours with these columns besides, each with its share of the
    width."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for title, ratio in (("behaviour", 3), *columns):
        table.add_column(title, ratio=ratio, overflow="fold")
    return table


def _wide_console() -> Console:
    """Return a console that writes long lines where its output is not shown on a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _coverage_on(entry: HostEntry, lab: Path, as_json: bool) -> None:
    """Print which behaviours can run on a host."""
    offered = offers.offer(entry)
    tests = requirements.requirements(SUITES, lab, entry.name)
    rows = host_coverage.host_coverage(behaviours.catalogue().values(), tests, offered)
    if as_json:
        for row in rows:
            verdicts = [
                {"test": one.test, "missing": one.missing, "unprobed": sorted(one.unprobed)}
                for one in row.tests
            ]
            one = row.behaviour
            body = {"id": one.id, "text": one.text, "host": entry.name, "runs": bool(row.running)}
            print(json.dumps({**body, "tests": verdicts}))
        return
    table = _behaviour_table((f"on {entry.name}", 3))
    for row in rows:
        table.add_row(row.behaviour.id, row.behaviour.text, escape(str(row)))
    console = _wide_console()
    console.print(table)
    for name in sorted({name for row in rows for name in row.unprobed}):
        ids = ", ".join(row.behaviour.id for row in rows if name in row.unprobed)
        console.print(f"only if probing finds {name}, {words(name)}: {ids}", highlight=False)
    if offered.guessed:
        console.print("devices of one PCI segment are assumed to be behind one SMMU")
    running = sum(bool(row.running) for row in rows)
    console.print(f"{running} of {len(rows)} behaviours can run on {entry.name}")


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", help="Folders of runs: out/<run-id>; default: the latest run."
        ),
    ] = None,
) -> None:
    """Make Allure's page of a run: one file, <run>/report/index.html, that any browser opens."""
    chosen = runs or sorted(OUT.glob("*/result.json"))[-1:]
    if not chosen:
        raise HarnessError(
            "there is no run in out/", fix="run `make nightly` first, or name the folder of a run"
        )
    folders = [(run.parent if run.is_file() else run).resolve() for run in chosen]
    for folder in folders:
        site.check(folder)
    progress, store = Progress(), calls.store()
    for folder in folders:
        print(site.generate(folder, store, progress))


OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="FOLDER", help="The folder of runs.", show_default="out"),
]


@runs_app.command("list")
def runs_list(out: OutOption = OUT) -> None:
    """Show all runs, with their sizes and verdicts."""
    total = 0
    for one in old_runs.runs(out):
        total += one.size
        print(f"{one.folder.name} ({disk.size(one.size)}): {one.verdict}")
    print(f"{disk.size(total)} in {out}, on {disk.FileSystem.of(out)}")


@runs_app.command("prune")
def runs_prune(
    keep: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the latest runs to keep.")
    ],
    out: OutOption = OUT,
) -> None:
    """Remove all but the latest N runs, and show what that frees.

    A run that has not ended stays, unless nothing was written for a day.
    The history that reports show stays.
    """
    freed = 0
    for one in old_runs.prune(out, keep):
        freed += one.size
        print(f"{one.folder.name} ({disk.size(one.size)}): removed")
    print(f"{disk.size(freed)} freed in {out}, on {disk.FileSystem.of(out)}")


@app.command(no_args_is_help=True)
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="Folder of the earlier run: out/<run-id>.")
    ],
    after: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the later run.")],
    as_json: JsonOption = False,
) -> None:
    """Show what changed from one run to another: versions, outcomes, times.

    The exit status is 1 if RUN_B is worse or tells less: tests fail that did
    not fail in RUN_A or that are new, tests of RUN_A are missing or were not
    run, or nothing ran in one of the two. It is 0 if not, and 2 if the runs
    cannot be compared, because one is no run's folder or is damaged.
    """
    changes = comparing.compare(load(before), load(after))
    if as_json:
        print(json.dumps([dataclasses.asdict(change) for change in changes], indent=1))
    else:
        for kind, group in itertools.groupby(changes, key=lambda change: change.kind):
            print(f"{kind}:")
            for change in group:
                print(f"  {change}")
        if not changes:
            print("nothing changed")
    if any(change.kind in comparing.WORSE for change in changes):
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="A defect of suites/defects.yaml, such as LOSS-05.")
    ],
    lab: LabOption = DEFAULT_LAB,
    host: HostOption = None,
    qemu: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="QEMU to check: a file on this machine, or host:PATH; default: the host's.",
        ),
    ] = None,
    guest_kernel: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Kernel Image of the guest: a file on this machine, or host:PATH; "
            "default: the host's.",
        ),
    ] = None,
    host_kernel: HostKernelOption = None,
    host_initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its initrd, for a host with kexec.")
    ] = None,
    host_modules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its modules, a tar archive, for a host with kexec."),
    ] = None,
) -> None:
    """Show a known defect with the fewest steps, and say whether this QEMU or kernel has it.

    It performs the steps that cause the defect, most often with a guest
    behind an accelerated SMMUv3, and prints what should happen and what does.

    The exit status is 1 if the defect is there, 0 if it is not, and 2 if that
    cannot be told. In a script for `git bisect run`, turn 2 into 125.
    """
    try:
        software = Software.named(qemu, guest_kernel, host_kernel, host_initrd, host_modules)
        _reproduce(defects.defect(name), lab, host, software)
    except (HilError, OSError) as problem:
        print(f"hil: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None


def _reproduce(wanted: Defect, lab: Path, host: str | None, software: Software) -> None:
    """Show a defect on a host. Raises typer.Exit with status 1 if the defect is there."""
    show = reproducers.reproducer(wanted)
    entry = calls.host(calls.inventory(lab), host)
    software.check(entry)
    progress, store = Progress(), calls.store()
    print(f"{wanted.id}: {wanted.title}\n{wanted.why}\n")
    with (
        reserved(entry, store.root, progress),
        provided(entry, store, progress, software.host_image) as described,
        with_kernel(described, software, progress) as running,
        opened(*software.applied(running), progress) as found,
    ):
        print(f"QEMU {found.facts.qemu}, host kernel {found.facts.host_kernel}")
        there = show(Fleet(found, progress, entry.adapt), print)
    right = f"this {wanted.component.words} is right"
    print(f"\nverdict: {'the defect is there' if there else right}")
    if there:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
