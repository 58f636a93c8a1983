"""`hil reproduce`: show a known defect with the fewest steps."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from harness import reproduce as reproducers
from harness.checkout import DEFAULT_LAB
from harness.commands.options import HostKernelOption, HostOption, LabOption, NoBuildOption
from harness.errors import HilError, LabError
from harness.guest.fleet import Fleet
from harness.lab import calls, preflight
from harness.lab.kexec import with_kernel
from harness.lab.places import placed
from harness.lab.provide import provided
from harness.lab.reservation import opened, reserved
from harness.lab.software import Software
from harness.progress import Progress
from harness.report import defects
from harness.report.defects import Defect

app = typer.Typer(add_completion=False)


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
    no_build: NoBuildOption = False,
) -> None:
    """Show a known defect with the fewest steps, and say whether this QEMU or kernel has it.

    It performs the steps that cause the defect, most often with a guest
    behind an accelerated SMMUv3, and prints what should happen and what does.

    The exit status is 1 if the defect is there, 0 if it is not, and 2 if that
    cannot be told. In a script for `git bisect run`, turn 2 into 125.
    """
    try:
        software = Software.named(qemu, guest_kernel, host_kernel, host_initrd, host_modules)
        _reproduce(defects.defect(name), lab, host, software, no_build=no_build)
    except (HilError, OSError) as problem:
        print(f"hil: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    except typer.Exit:
        raise
    except Exception:
        # Python would end with 1, which says that the defect is there.
        traceback.print_exc()
        raise typer.Exit(2) from None


def _reproduce(
    wanted: Defect, lab: Path, host: str | None, software: Software, *, no_build: bool
) -> None:
    """Show a defect on a host. Raises typer.Exit with status 1 if the defect is there."""
    show = reproducers.reproducer(wanted)
    inventory = calls.inventory(lab)
    chosen = calls.host(inventory, host)
    software.check(chosen)
    progress, store = Progress(), calls.store()
    if no_build:
        preflight.check_built([chosen], store)
    print(f"{wanted}\n{wanted.why}\n")
    there = False
    try:
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            entry = enter(placed(inventory, chosen, progress))
            software.check(entry)
            enter(reserved(entry, store.root, progress))
            described = enter(provided(entry, store, progress, software.host_image))
            running = enter(with_kernel(described, software, progress))
            found = enter(opened(*software.applied(running), progress))
            facts = found.facts
            print(f"QEMU {facts.qemu}", end=", ")
            print(f"host kernel {facts.host_kernel}, guest kernel {facts.guest_kernel}")
            there = show(Fleet(found, progress, entry.adapt), print)
    except LabError as problem:
        # A host that the defect has killed cannot be given back.
        if not there:
            raise
        print(f"afterwards: {problem.message}", file=sys.stderr)
    right = f"the defect is not there with this {wanted.components}"
    print(f"\nverdict: {'the defect is there' if there else right}")
    if there:
        raise typer.Exit(1)
