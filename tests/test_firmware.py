"""The flash that a first boot leaves is kept without its empty end; QEMU is a script here. The real
one is in tests/lab/test_firmware.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts import firmware
from harness.errors import LabError
from harness.guest.description import CONSOLE_SLOT

#: Writes some bytes to the file that -drive names, as QEMU does for the firmware.
WRITES = r"""#!/bin/sh
while [ "$1" != -drive ]; do shift; done
test "$(stat -c %s "${2##*file=}")" = 67108864 || exit 3
printf 'store\0\377' | dd of="${2##*file=}" conv=notrunc status=none
"""


def variables(tmp_path: Path, script: str) -> bytes:
    qemu = tmp_path / "qemu"
    qemu.write_text(script)
    qemu.chmod(0o755)
    return firmware.variables(
        [str(qemu)], Path("/firmware.fd"), Path("/Image"), Path("/initramfs"), tmp_path
    )


def test_what_was_written_is_kept(tmp_path: Path) -> None:
    assert variables(tmp_path, WRITES) == b"store\0\xff"
    assert not (tmp_path / "flash").exists()


def test_it_has_the_console_of_guests() -> None:
    """Else each guest's firmware writes down its own."""
    assert any(word.endswith(f",addr={CONSOLE_SLOT:#x}") for word in firmware._CONSOLE)


def test_a_firmware_without_variables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"firmware\.fd keeps no variables"):
        variables(tmp_path, "#!/bin/sh\n")


def test_a_boot_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"first boot of the guests' firmware failed with status 1"):
        variables(tmp_path, "#!/bin/sh\necho no such machine\nexit 1\n")
