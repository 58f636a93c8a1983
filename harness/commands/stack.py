"""The commands of `hil lab` about the stack: build it, renew it, tell what is newer."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from harness.artifacts import disk, parts, stack
from harness.artifacts.parts import Stack, StackWish, compare, find
from harness.artifacts.stack import DamagedRecordError
from harness.artifacts.store import Recipe, Store
from harness.errors import HilError, LabError
from harness.lab import calls
from harness.progress import Progress, roughly
from harness.virtual.machine import other_kernels, recipes

StackOption = Annotated[
    str | None,
    typer.Option(
        "--stack",
        metavar="PARTS",
        help="What to build from, here and from now on: linux=7.3, linux=7.3,linux=7.2, "
        "qemu=newest@sid, default. Default: $HIL_STACK, or what was chosen last.",
        show_default=False,
    ),
]


def every(store: Store, progress: Progress, known: Stack | None = None) -> list[Recipe]:
    """Return the recipes of all that `hil lab build` builds of a stack, by default the one in use;
    before that is known, none of them is built."""
    known = known or stack.recorded(store.root) or parts.UNKNOWN
    return [*recipes(known, store, progress), *other_kernels(known, progress)]


def in_words(store: Store) -> str:
    """Return what the stack in use is, for people."""
    try:
        known = stack.recorded(store.root)
    except DamagedRecordError as problem:
        return f"stack: {problem}"
    return f"stack: {known or 'not known yet; `hil lab build` finds it on the mirror'}"


def build(asked: StackOption = None) -> None:
    """Build what a virtual host needs, if it is not in the cache yet.

    The first build takes about 11 minutes on two cores. After Ctrl-C the
    next build continues where this one stopped. The cache is $HIL_CACHE, or
    `hil` in your cache folder.

    Which Linux and QEMU it is built from was found on the Debian mirror by the
    first command that needed it, and stays until `hil lab update`.
    """
    progress, store = Progress(), calls.store()
    wish = None if asked is None else StackWish.parse(asked, "--stack")
    found = stack.in_use(store.root, progress, wish)
    _build(found, store, progress)
    if wish:
        stack.write_down(store.root, wish, found, choose=True)


def update(asked: StackOption = None) -> None:
    """Look for newer Linux and QEMU on the Debian mirror, say what changes, and build it.

    The lab is built from the new ones once all of it is built; until then, and
    if that fails, everything stays as it was. Hosts that are up are refused
    afterwards: `hil lab down` ends them.
    """
    progress, store = Progress(), calls.store()
    disk.prepare(store.root)
    wish = None if asked is None else StackWish.parse(asked, "--stack")
    try:
        wish, old = wish or stack.wished(store.root), stack.recorded(store.root)
    except DamagedRecordError as problem:
        print(problem.message)
        wish, old = wish or StackWish(), None
    new = find(wish, progress)
    for line in changes(old, new):
        print(line)
    print(_work(new, store, progress), flush=True)
    _build(new, store, progress)
    stack.write_down(store.root, wish, new, choose=asked is not None)


def outdated(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Tell what is newer on the Debian mirror than what the lab is built from.

    Exit status: 0 if nothing is; 1 if something is; 2 if that cannot be told,
    because the mirror does not answer, say. Nothing is changed.
    """
    try:
        progress, store = Progress(), Store()
        wish = stack.wished(store.root)
        known = stack.recorded(store.root, wish)
        if known is None:
            raise LabError(
                f"the cache {store.root} does not know what the lab is built from",
                fix="run `hil lab build`, which finds it on the mirror",
            )
        compared = compare(known, wish, progress)
    except (HilError, OSError) as problem:
        print(f"hil: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    newer = any(one.outdated for one in compared)
    if as_json:
        told = [dataclasses.asdict(one) for one in compared]
        print(json.dumps({"asked": str(wish), "outdated": newer, "parts": told}))
    else:
        for one in compared:
            print(one)
        if newer:
            print("`hil lab update` builds the lab from what is newer")
    if newer:
        raise typer.Exit(1)


def changes(old: Stack | None, new: Stack) -> list[str]:
    """Return a line for each part of a stack: what it was, and what it will be."""
    before = (*old.linux, old.qemu) if old else ()
    after = (*new.linux, new.qemu)
    if len(before) != len(after):
        return [
            *(f"{one}: not in use any more" for one in before if one not in after),
            *(f"{one}: {'unchanged' if one in before else 'new'}" for one in after),
        ]
    return [
        f"{was}: unchanged" if was == now else f"{was} → {now}"
        for was, now in zip(before, after, strict=True)
    ]


def _work(new: Stack, store: Store, progress: Progress) -> str:
    missing = [one for one in every(store, progress, new) if not store.has(one)]
    if not missing:
        return "nothing is to be built"
    seconds = sum(one.expected_seconds for one in missing)
    names = ", ".join(f"{one.name} ({roughly(one.expected_seconds)})" for one in missing)
    return f"to be built: {names}; in all {roughly(seconds)}"


def _build(found: Stack, store: Store, progress: Progress) -> None:
    for recipe in every(store, progress, found):
        store.get(recipe, progress)
