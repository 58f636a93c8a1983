"""`hil lab`: build, start, stop and enter the lab's hosts, and tidy its cache."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.artifacts import disk
from harness.artifacts.store import Store
from harness.checkout import DEFAULT_LAB
from harness.commands import power, stack
from harness.commands.options import (
    HostKernelOption,
    HostOption,
    JsonOption,
    LabOption,
    NoBuildOption,
)
from harness.errors import LabError
from harness.kernel_image import KernelImage
from harness.lab import calls, defaults, preflight
from harness.lab import inventory as inventories
from harness.lab import prune as pruning
from harness.lab import status as statuses
from harness.lab.inventory import HostEntry
from harness.lab.login import login
from harness.lab.places import placed
from harness.lab.provide import describe_virtual, machine, provided
from harness.lab.reservation import reserved
from harness.lab.software import Software
from harness.progress import Progress
from harness.report import site
from harness.virtual import lasting
from harness.virtual.machine import VirtualMachine

app = typer.Typer(
    add_completion=False, help="Build, start, stop and enter the lab's hosts.", no_args_is_help=True
)
app.command("build")(stack.build)
app.command("update")(stack.update)
app.command("outdated")(stack.outdated)
app.command(no_args_is_help=True)(power.power)


@app.command()
def artifacts() -> None:
    """Show the stack, which artifacts are built, where they are, their sizes and versions.

    The last lines are the snapshots of hosts, and the whole cache, with
    artifacts of other checkouts and logs (`hil lab prune` removes what is old),
    and its disk.
    """
    progress, store = Progress(), calls.store()
    print(stack.in_words(store))
    for recipe in stack.every(store, progress):
        if not store.has(recipe):
            print(f"{recipe.name}: not built")
            continue
        path = store.path(recipe)
        print(f"{recipe.name}: {path} ({disk.size(disk.used(path))})")
        packages = store.manifest(recipe).get("packages")
        if isinstance(packages, dict):
            shown = {n: v for n, v in packages.items() if n.startswith(("qemu-s", "linux", "busy"))}
            print("".join(f"  {name} {version}\n" for name, version in shown.items()), end="")
    snapshots = lasting.every(store.root)
    print(f"lasting snapshots: {len(snapshots)} ({disk.size(sum(map(disk.used, snapshots)))})")
    print(_cache_size(store))


def _cache_size(store: Store) -> str:
    on = disk.FileSystem.of(store.root)
    return f"the cache {store.root} has {disk.size(disk.used(store.root))}, on {on}"


@app.command()
def prune(
    lab: Annotated[
        list[Path] | None,
        typer.Option(
            "--lab",
            metavar="FILE",
            help="An inventory whose hosts' logs stay, besides those in lab-inventory/ and "
            "$HIL_LAB.",
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
    unfinished builds of other checkouts go after some days without use, and so
    do lasting snapshots, with --unused-for=0 at once. Of virtual hosts that do
    not run, drives and other snapshots go; the logs of those that no inventory
    has go after these days.
    """
    progress, store = Progress(), calls.store()
    disk.prepare(store.root)
    mine = defaults.lab()
    labs = [inventories.load(one) for one in DEFAULT_LAB.parent.glob("*.yaml")]
    labs += [calls.inventory(one) for one in (*([mine] if mine else []), *(lab or ()))]
    described = {host.name for one in labs for host in one.hosts}
    needed = {recipe.entry for recipe in (*stack.every(store, progress), site.allure())}
    freed = 0
    for piece in pruning.prune(store, needed, described, days, remove=not dry_run):
        verdict = f"kept: {piece.kept}" if piece.kept else "would go" if dry_run else "removed"
        print(f"{piece.what} ({disk.size(piece.size)}): {verdict}")
        freed += 0 if piece.kept else piece.size
    print(f"{disk.size(freed)} {'would be ' if dry_run else ''}freed; {_cache_size(store)}")


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


@app.command()
def up(
    host: HostOption = None,
    lab: LabOption = DEFAULT_LAB,
    host_kernel: HostKernelOption = None,
    no_build: NoBuildOption = False,
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
    if no_build:
        preflight.check_built([entry], store)
    vm.up(stay=True)
    print(f"{entry.name} is up; `hil lab ssh --host {entry.name}` enters it")


@app.command()
def down(host: HostOption = None, lab: LabOption = DEFAULT_LAB) -> None:
    """Stop a virtual host with everything in it, and delete its snapshots.

    Lasting ones, which test runs on hosts of their own have left in the cache,
    stay: `hil lab prune` removes them.
    """
    entry = calls.host(calls.inventory(lab), host)
    progress, store = Progress(), calls.store()
    vm = _virtual(entry, store, progress)
    with reserved(entry, store.root, progress, wait=0):
        print(f"{entry.name} is down" if vm.down() else f"{entry.name} was not up")


@app.command()
def status(
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show the stack, and of each host whether it is up, what it runs, its disks, and who has it.

    Hosts are asked over SSH; nothing is booted, built or reserved for that. The
    exit status is 1 if a host cannot be reached.
    """
    inventory, progress, store = calls.inventory(lab), Progress(), Store()
    out = statuses.statuses(inventory, store, progress)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in out]))
    else:
        print(stack.in_words(store))
        for one in out:
            print(one)
    if any(one.problem for one in out):
        raise typer.Exit(1)


@app.command("ssh", context_settings={"ignore_unknown_options": True})
def ssh(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="What to run there, after `--`; default: a shell.",
            show_default=False,
        ),
    ] = None,
    host: HostOption = None,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Open a shell on a host, or run a command there: `hil lab ssh -- uname -a`.

    A virtual host must be up. A place of labgrid is held meanwhile.
    """
    inventory = calls.inventory(lab)
    entry = calls.host(inventory, host)
    progress, store = Progress(), calls.store()
    vm = machine(entry, store, progress)
    if entry.place is not None:
        # The place is held as long as the shell is open.
        with placed(inventory, entry, progress) as complete:
            argv = login(complete).command_line(*command or ())
            sys.stdout.flush()
            raise typer.Exit(subprocess.run(argv, check=False).returncode)
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
    argv = target.command_line(*command or ())
    sys.stdout.flush()
    os.execvp(argv[0], argv)


@app.command()
def schema() -> None:
    """Print the JSON schema of an inventory: lab-inventory/schema.json."""
    print(inventories.schema(), end="")
