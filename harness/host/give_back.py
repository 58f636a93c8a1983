"""Remember on a host what a PCI device had before it was assigned, and give the device back to it.

A note of each assigned device stays on the host until the device has been given back. So the next
session knows what a device had even if an earlier session failed to give it back.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

#: How sysfs shows a driver_override that is not set.
NO_OVERRIDE = "(null)"
_NO_DRIVER = "-"


@dataclass(frozen=True)
class Before:
    """What a device had before it was assigned: its driver, or None, and its driver_override, as
    sysfs shows it."""

    driver: str | None
    override: str

    @classmethod
    def of(cls, driver: str | None, override: str, note: str) -> Before:
        """Return what a device had before any session assigned it. It has `driver` and `override`
        now; `note` is the host's note of it, or empty.

        A note counts if the device is still as a session left it: with the driver that the session
        gave it, or with none. Otherwise somebody has repaired the device since.
        """
        words = note.split()
        if len(words) == 3 and driver in (None, words[2]):
            return cls(None if words[0] == _NO_DRIVER else words[0], words[1])
        return cls(driver, override)

    def note(self, given: str) -> str:
        """Return the note of a device that gets the driver `given`."""
        return f"{self.driver or _NO_DRIVER} {self.override} {given}"


def note_file(root: str, bdf: str) -> str:
    """Return the path of a device's note. `root` is the folder of all sessions on the host."""
    return f"{root}/device-{bdf}"


# The note is written as a whole or not at all.
_TAKE_NOTE = "echo {note} >{file}.new && mv {file}.new {file}"


def take_note(before: Before, given: str, file: str) -> str:
    """Return the shell command that writes a note, before a device gets the driver `given`."""
    return _TAKE_NOTE.format(note=shlex.quote(before.note(given)), file=shlex.quote(file))


# A driver takes a device that the override names, even if it does not know it. So the override is
# the driver's name for as long as it takes to bind. A write to `bind` may be answered with success
# by a kernel whose driver refused the device: the link tells. A driver may also have taken the
# device by itself already.
_GIVE_BACK = """\
bdf={bdf} had={had} override={override} d={sysfs}/{bdf} drivers={drivers}
put() {{ /bin/echo "$1" >"$2"; }}
now() {{ basename "$(readlink $d/driver)"; }}
[ -e $d ] || {{ rm -f {file}; exit 0; }}
said=
if [ "$(now)" != "$had" ]; then
  said=$(
    exec 2>&1
    [ ! -e $d/driver ] || put $bdf $d/driver/unbind
    put "$had" $d/driver_override
    [ -z "$had" ] || put $bdf $drivers/$had/bind
  )
fi
restored=$(put "$override" $d/driver_override 2>&1)
if [ "$(now)" = "$had" ] && [ "$(cat $d/driver_override)" = "${{override:-{none}}}" ]; then
  rm -f {file}
  exit 0
fi
has=$(now)
echo "device $bdf had driver ${{had:-none}} and driver_override ${{override:-{none}}};" \\
  "now it has driver ${{has:-none}} and driver_override $(cat $d/driver_override)."
[ -z "$said$restored" ] || echo "The kernel answered: $said $restored"
dmesg 2>/dev/null | grep -F $bdf | tail -n 3
[ -z "$had" ] || [ -e $drivers/$had ] || echo "Driver $had is not loaded: load its module first."
[ -z "$has" ] || echo "To repair it: echo $bdf >$d/driver/unbind"
[ -z "$had" ] || echo "To repair it: echo $had >$d/driver_override; echo $bdf >$drivers/$had/bind"
echo "To repair it: echo '$override' >$d/driver_override"
exit 1
"""


def command(bdf: str, before: Before, *, file: str, devices: str, drivers: str) -> str:
    """Return the shell command that gives a device back, and looks whether it has everything that
    it had. It may be run more than once. `file` is the device's note; `devices` and `drivers` are
    sysfs's folders of them.

    If it fails it prints what is wrong, what the kernel says, and how to repair it.
    """
    return _GIVE_BACK.format(
        bdf=bdf,
        had=shlex.quote(before.driver or ""),
        override=shlex.quote("" if before.override == NO_OVERRIDE else before.override),
        none=NO_OVERRIDE,
        file=shlex.quote(file),
        sysfs=devices,
        drivers=drivers,
    )
