"""Make what a mutant needs: a kernel that differs by it, or a copy of this checkout that does.

The source tree of Linux is the program's own, and one mutant at a time is in it. A file that was
changed is put back before the next one: also by the next call, if this one was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.artifacts import kernel, stack
from harness.artifacts.kernel_tree import Overlay
from harness.artifacts.parts import KernelSource
from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.kernel_image import SMALL_QUEUES
from harness.progress import Progress
from tests.mutants.catalogue import Kind, Mutant

#: What a copy of the checkout has no use for.
_LEFT_OUT = shutil.ignore_patterns(".*", "out", "build", "__pycache__", "node_modules")
_CHANGED = "changed.json"


@dataclass(frozen=True)
class Subject:
    """What pytest is to run on: the checkout to run in, options that name the software under test
    and the lab, and its environment."""

    checkout: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


#: The stack and the project as they are.
ORIGINAL = Subject(ROOT)


class Workshop:
    """A folder in which mutants are made. Threads may share it."""

    def __init__(self, folder: Path, store: Store, progress: Progress) -> None:
        self.folder, self._store, self._progress = folder, store, progress
        #: Held while a mutant is in the source tree of Linux.
        self._linux = threading.Lock()

    def tidy(self) -> None:
        """Remove what a call that was killed has left."""
        self._restore()
        for left in self.folder.glob("checkout-*"):
            shutil.rmtree(left)
        for left in self.folder.glob(f"{kernel.IMAGE}-*"):
            left.unlink()

    @property
    def linux(self) -> KernelSource:
        """Return the source of the lab's kernel. Raises LabError when that is not known yet."""
        return stack.in_use(self._store.root, self._progress).source()

    def linux_tree(self) -> Path:
        """Return the source tree of the lab's kernel, as it is upstream. Raises LabError when it
        cannot be had."""
        source = self.linux
        work = self.folder / f"{source.package}-{source.version}"
        if not work.exists():
            for other in self.folder.glob("linux-source-*"):
                shutil.rmtree(other)
        work.mkdir(parents=True, exist_ok=True)
        kernel.unpack(source, work, self._progress)
        return work / kernel.SOURCE

    def build_linux(self) -> None:
        """Build the source tree as it is upstream, which takes minutes the first time. Each mutant
        then takes seconds. Raises LabError."""
        image = self.folder / kernel.IMAGE
        kernel.build_tree(self.linux_tree(), (), image, self._store, self._progress)
        image.unlink()

    @contextlib.contextmanager
    def made(self, mutant: Mutant) -> Iterator[Subject]:
        """Yield a mutant, ready to run; nothing of it is left afterwards. Raises HarnessError if it
        does not fit its source, LabError if it does not compile."""
        with self._kernel(mutant) if mutant.kind.of_linux else self._copy(mutant) as subject:
            yield subject

    @contextlib.contextmanager
    def _kernel(self, mutant: Mutant) -> Iterator[Subject]:
        image = self.folder / f"{kernel.IMAGE}-{mutant.kind}-{mutant.name}"
        option, images = "--host-kernel", {image: tuple[Overlay, ...]()}
        if mutant.kind is Kind.GUEST_KERNEL:
            option, small = "--guest-kernel", image.with_name(image.name + SMALL_QUEUES)
            images[small] = (kernel.SMALL_QUEUES,)
        quiet = Progress(enabled=False)
        try:
            with self._linux:
                tree = self.linux_tree()
                with self._changed(mutant.apply(tree)):
                    for path, overlays in images.items():
                        kernel.build_tree(tree, overlays, path, self._store, quiet)
            yield Subject(ROOT, (f"{option}={image}",))
        finally:
            for path in images:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _copy(self, mutant: Mutant) -> Iterator[Subject]:
        copy = self.folder / f"checkout-{mutant.kind}-{mutant.name}"
        try:
            shutil.copytree(ROOT, copy, symlinks=True, ignore=_LEFT_OUT)
            for path, text in mutant.apply(ROOT).items():
                (copy / path.relative_to(ROOT)).write_text(text)
            # Before the installed project, in this and all processes that it starts.
            yield Subject(copy, (), {**os.environ, "PYTHONPATH": str(copy)})
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    # -- a tree that is changed for a while ------------------------------------------------------

    @contextlib.contextmanager
    def _changed(self, files: dict[Path, str]) -> Iterator[None]:
        originals = {str(path): path.read_text() for path in files}
        whole = self.folder / f"{_CHANGED}.new"
        whole.write_text(json.dumps(originals))
        whole.rename(self.folder / _CHANGED)
        try:
            for path, text in files.items():
                path.write_text(text)
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        note = self.folder / _CHANGED
        if note.exists():
            for path, text in json.loads(note.read_text()).items():
                if Path(path).exists():
                    Path(path).write_text(text)
            note.unlink()
