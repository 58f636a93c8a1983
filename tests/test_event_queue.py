"""A guest's memory is read through QEMU's monitor, or by a file where there is much of it. The
monitor is a script here; each test of an event on a lab reads a real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import ProductError
from harness.guest.event_queue import EventQueue
from harness.guest.journal import Journal
from harness.host.session import Session
from harness.qmp import Monitor
from harness.smmu.registers import EVENTQ_PROD

#: What QEMU 11.1 prints for `xp /4xg 0x48000000`.
RECORD = (
    "0000000048000000: 0x0000220000000010 0x0000020000000000\r\n"
    "0000000048000010: 0x0000000010000000 0x0000000000000000\r\n"
)


@dataclass
class Qemu:
    """A monitor that says the same to everything, and a host with the file that it saves."""

    says: str = ""
    asked: list[str] = field(default_factory=list)
    file: bytes = b""

    def human(self, command_line: str) -> str:
        self.asked.append(command_line)
        return self.says

    def execute(self, name: str, **arguments: object) -> None:
        self.asked.append(name)
        self.file = bytes(cast(int, arguments["size"]))

    def queue(self) -> EventQueue:
        session = SimpleNamespace(read_file=lambda path: self.file)
        return EventQueue(
            *(cast(Monitor, self), cast(Session, session), 0, 0x0900_0000, "/scratch", Journal()),
            exact=True,
        )


def test_a_record_is_read_through_the_monitor() -> None:
    qemu = Qemu(RECORD)
    words = (0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0)
    data = b"".join(word.to_bytes(8, "little") for word in words)
    assert qemu.queue().memory(0x4800_0000, 32) == data
    assert qemu.asked == ["xp /4xg 0x48000000"]


@pytest.mark.parametrize(
    ("address", "size"), [(0x4800_0000, 4096), (0x4800_0000, 12), (0x4800_0004, 8)]
)
def test_much_memory_and_parts_of_words_are_read_by_a_file(address: int, size: int) -> None:
    qemu = Qemu()
    assert qemu.queue().memory(address, size) == bytes(size)
    assert qemu.asked == ["pmemsave"]


def test_a_register_is_read_in_its_width() -> None:
    qemu = Qemu("00000000090100a8: 0x80000003\r\n")
    assert qemu.queue().register(EVENTQ_PROD) == 0x8000_0003
    assert qemu.asked == [f"xp /1xw {0x0900_0000 + EVENTQ_PROD:#x}"]


@pytest.mark.parametrize("said", ["Cannot access memory\r\n", "", RECORD.splitlines()[0]])
def test_what_cannot_be_read_is_told(said: str) -> None:
    with pytest.raises(ProductError, match=r"did not read 4 × 8 bytes at 0x48000000"):
        Qemu(said).queue().memory(0x4800_0000, 32)
