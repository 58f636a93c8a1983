"""One snapshot of a virtual host: memory, devices, drives, the state that QEMU does not save, and a
note.

It is a folder. Its manifest, which has the note, is written last, and knows the sizes of the files,
and the boot of this machine in which they were written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts.disk import told_when_full
from harness.artifacts.store import MANIFEST, SIZES, damage, sizes
from harness.errors import LabError
from harness.qmp import Monitor, QmpRefusedError
from harness.virtual import unsaved
from harness.virtual.qtest import Qtest
from harness.virtual.running import boot_id
from harness.virtual.silicon.client import SiliconClient
from harness.waiting import wait_for

SAVE_SECONDS = 60.0
LOAD_SECONDS = 30.0
_CANCEL_SECONDS = 10.0
#: What QEMU says of a migration that it has not ended.
_GOES_ON = ("setup", "active", "device", "cancelling")


@dataclass(frozen=True)
class Snapshot:
    """The snapshot in `folder`, complete or not yet saved."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """Return the path of the snapshot's manifest, which was written when the snapshot was last
        used."""
        return self.folder / MANIFEST

    @property
    def complete(self) -> bool:
        if damage(self.folder) is not None:
            return False
        # What the disk did not get before this machine lost its power is not seen by sizes.
        return bool(json.loads(self.manifest.read_text()).get("boot") == boot_id())

    @property
    def note(self) -> str:
        return str(json.loads(self.manifest.read_text())["note"])

    def use(self) -> bool:
        """Note that the snapshot is used now. Return whether it is complete."""
        if not self.complete:
            return False
        with contextlib.suppress(FileNotFoundError):  # somebody removes it now
            os.utime(self.manifest)
        return self.complete

    @property
    def _memory(self) -> str:
        return f"file:{self.folder / 'memory'}"

    @property
    def _silicon(self) -> Path:
        return self.folder / "silicon.json"

    def save(
        self,
        monitor: Monitor,
        qtest: Path,
        drives: Iterable[Path],
        left_out: Sequence[str],
        silicon: SiliconClient | None,
        note: str,
    ) -> None:
        """Save a running machine, which is stopped meanwhile and runs on afterwards.

        `left_out` are the PCI addresses, as QEMU numbers the buses, of devices that it does not
        save; `silicon` is the model of its CMDQV, if it has one. When saving fails, raise LabError
        and leave no folder.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        _set_up_migration(monitor)
        monitor.execute("stop")
        try:
            with told_when_full(f"saving snapshot {self.folder.name}", self.folder):
                self.folder.mkdir(parents=True)
                if silicon:
                    # First, because what the model still carries out changes the machine's memory.
                    self._silicon.write_text(json.dumps(silicon.save()))
                monitor.execute("migrate", uri=self._memory)
                wait_for(
                    f"snapshot {self.folder.name} to be saved",
                    lambda: _migrated(monitor),
                    deadline=SAVE_SECONDS,
                    interval=0.02,
                )
                for drive in drives:
                    _copy_sparse(drive, self.folder / drive.name)
                with Qtest.on(qtest) as connected:
                    configurations = unsaved.read(connected, left_out)
                (self.folder / "unsaved.json").write_text(json.dumps(configurations))
                record = {"note": note, "boot": boot_id(), SIZES: sizes(self.folder)}
                self.manifest.write_text(json.dumps(record))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            # What went wrong is what is told, whatever goes wrong here; and the machine runs on.
            with contextlib.suppress(LabError, QmpRefusedError):
                _cancel(monitor)
            with contextlib.suppress(LabError, QmpRefusedError):
                monitor.execute("cont")
            raise
        monitor.execute("cont")

    def restore_drives(self, drives: Iterable[Path]) -> None:
        """Restore the drives. Call this before the machine that uses them starts. Raises
        LabError."""
        with told_when_full(f"restoring snapshot {self.folder.name}", self.folder):
            for drive in drives:
                _copy_sparse(self.folder / drive.name, drive)

    def load(
        self,
        monitor: Monitor,
        qtest: Path,
        silicon: SiliconClient | None,
        check: Callable[[], None],
    ) -> None:
        """Load the snapshot into a machine that was started with `-incoming defer`, and let it run.
        `check` raises when that machine has ended. Raises LabError."""

        def loaded() -> bool:
            check()
            return bool(monitor.execute("query-status")["status"] != "inmigrate")

        _set_up_migration(monitor)
        monitor.execute("migrate-incoming", uri=self._memory)
        wait_for(
            f"snapshot {self.folder.name} to be restored",
            loaded,
            deadline=LOAD_SECONDS,
            interval=0.01,
        )
        with Qtest.on(qtest) as connected:
            unsaved.write(connected, json.loads((self.folder / "unsaved.json").read_text()))
        if silicon:
            silicon.load(json.loads(self._silicon.read_text()))
        monitor.execute("cont")


def _set_up_migration(monitor: Monitor) -> None:
    # Each page has a fixed place in the file, so that saving writes it once and loading is fast.
    wanted = [{"capability": "mapped-ram", "state": True}]
    monitor.execute("migrate-set-capabilities", capabilities=wanted)
    # No limit: by default QEMU writes 128 MiB a second, as for a network.
    monitor.execute("migrate-set-parameters", **{"max-bandwidth": 0})


def _migrated(monitor: Monitor) -> bool:
    answer = monitor.execute("query-migrate")
    if answer.get("status") in ("failed", "cancelled"):
        raise LabError(
            f"the snapshot was not saved: {answer.get('error-desc', answer)}",
            fix="read QEMU's messages: qemu.log in the host's folder",
        )
    return bool(answer.get("status") == "completed")


def _cancel(monitor: Monitor) -> None:
    """End a migration that goes on. QEMU does one at a time, and writes to the file meanwhile."""
    monitor.execute("migrate_cancel")
    wait_for(
        "QEMU to cancel a migration",
        lambda: monitor.execute("query-migrate").get("status") not in _GOES_ON,
        deadline=_CANCEL_SECONDS,
        interval=0.02,
    )


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a file without its holes. Raises LabError; the target may then be a part."""
    copied = subprocess.run(
        ["cp", "--sparse=always", str(source), str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if copied.returncode != 0:
        raise LabError(f"drive {source.name} was not copied: {copied.stderr.strip()}")
