"""Intel 82576, a network card with a driver of its own in Linux (igb) and a model in QEMU, as a
source of DMA: its transmit queues fetch descriptors, and write back how far they are.

No packet is ever sent. A card that met a read fault fetches nothing more until a function level
reset, so each DMA is a program of its own: opening the device resets it.

Registers: Intel 82576EB datasheet, section 8, and drivers/net/ethernet/intel/igb/e1000_regs.h in
Linux; its start as in tools/testing/selftests/vfio/lib/drivers/igb/igb.c.
"""

from __future__ import annotations

import abc

from harness.devices.dma import Dma
from harness.devices.kind import DeviceKind, Emulation, PciId
from harness.devices.source import prepared
from harness.devices.vfio_source import MARK, OWN, VfioSource
from harness.guest.mmio import (
    Op,
    inside,
    pause,
    series,
    series32,
    until32,
    wait32,
    write32,
)
from harness.guest.vfio import BAR0, MEMORY, map_memory, vfio_command
from harness.host.ability import Ability
from harness.smmu.access import WORD_BYTES, Access
from harness.smmu.events import EventType

_CTRL, _MDIC, _TCTL, _IMC, _EIMC, _GCR = 0x0000, 0x0020, 0x0400, 0x150C, 0x1528, 0x5B00
#: Transmit queue 0; the other queues follow at a distance of _STRIDE.
_TDBAL, _TDBAH, _TDLEN, _TDH, _TDT = 0xE000, 0xE004, 0xE008, 0xE010, 0xE018
_TXDCTL, _TDWBAL, _TDWBAH = 0xE028, 0xE038, 0xE03C
_STRIDE, _QUEUES = 0x40, 16
_TCTL_EN, _TXDCTL_ENABLE, _HEAD_WB_EN = 1 << 1, 1 << 25, 1
#: Full duplex at 1 Gbit/s with the link up, whatever is at the other end of the cable.
_FORCED_LINK = 1 << 12 | 1 << 11 | 2 << 8 | 1 << 6 | 1
#: Write to register 0 of the PHY: loop back, 1 Gbit/s, full duplex.
_PHY_LOOPBACK, _MDIC_READY = 1 << 26 | 1 << 21 | 0x4140, 1 << 28

_U16, _U32 = 0xFFFF, 0xFFFF_FFFF
_DESCRIPTOR_BYTES = 16
#: A ring begins at a multiple of this (TDBAL).
_RING_ALIGNMENT = 128
_RING_BYTES = 4096
_RING_ENTRIES = _RING_BYTES // _DESCRIPTOR_BYTES
#: The upper half of a descriptor without data that reports its end (RS, legacy format).
_REPORT = 1 << 27
#: How long a card may take to fetch descriptors. A real one waits for its link first.
_FETCH_SECONDS = 1.0


class IgbSource(VfioSource):
    """A card that performs DMA by its transmit queues. Raises ProductError as FaultSource, LabError
    for a card that does not become ready."""

    vital = frozenset({_MDIC, *(_TXDCTL + queue * _STRIDE for queue in range(_QUEUES))})

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says. Each time is a program of
        its own."""
        self.check(dma)
        wait = f"; usleep {pause_ms * 1000}" if pause_ms else ""
        each = f"{{ {self._once(dma)}; }} || exit{wait}"
        if not delay_ms:
            return f"(for i in $(seq {times}); do {each}; done)"
        first = f"{{ {self._once(dma, delay_ms)}; }} || exit{wait}"
        return f"({first}; for i in $(seq {times - 1}); do {each}; done)"

    @abc.abstractmethod
    def _once(self, dma: Dma, delay_ms: int = 0) -> str:
        """Return the guest's shell command that performs a DMA once, with a delay as `command`
        says."""

    def _program(self, *ops: Op) -> str:
        """Return the guest's shell command that performs operations on the card as it is after a
        reset. The program's memory is one page at OWN, in which each descriptor reports its end."""
        memory = [
            inside(MEMORY),
            series(8, _DESCRIPTOR_BYTES, _RING_ENTRIES, _REPORT, 0),
            inside(BAR0),
            map_memory(OWN, 0, _RING_BYTES),
        ]
        link = [
            # No interrupts, and no second try of a read that failed (Completion_Timeout_Resend).
            *(write32(_IMC, 0xFFFF_FFFF), write32(_EIMC, 0xFFFF_FFFF), write32(_GCR, 0)),
            # A real card fetches nothing without a link.
            *(write32(_MDIC, _PHY_LOOPBACK), until32(_MDIC, _MDIC_READY, _MDIC_READY), pause(50)),
            write32(_CTRL, _FORCED_LINK),
        ]
        return vfio_command(self.assigned.guest_bdf, _RING_BYTES, *memory, *link, *ops)

    def _writes(self, iova: int, words: int, delay_ms: int = 0) -> list[Op]:
        """Return the operations that write words from an IOVA on: each queue in turn takes a
        descriptor, and writes its head to an address of its own."""
        ops = [
            _all(_TDBAL, OWN & _U32),
            _all(_TDBAH, OWN >> 32),
            _all(_TDLEN, _RING_BYTES),
            *_enabled(_QUEUES),
            *prepared(_TDH, delay_ms),
        ]
        for first in range(0, words, _QUEUES):
            queues, tail = range(min(_QUEUES, words - first)), first // _QUEUES + 1
            at = iova + first * WORD_BYTES
            ops.append(series32(_TDWBAL, _STRIDE, len(queues), at & _U32 | _HEAD_WB_EN, WORD_BYTES))
            for queue in queues:
                ops.append(write32(_TDWBAH + queue * _STRIDE, at + queue * WORD_BYTES >> 32))
            ops.append(_all(_TDT, tail, len(queues)))
            ops += [until32(_TDH + queue * _STRIDE, _U16, tail) for queue in queues]
        return ops


class DescriptorFetch(IgbSource):
    """Reads of 16-byte descriptors from a chosen address on, which the card may fetch several at a
    time. A real card stops at the first that faults. After a reset the card writes at MARK."""

    way = "descriptor-fetch"
    can = frozenset({Ability.READ})
    grain = _DESCRIPTOR_BYTES
    alignment = _DESCRIPTOR_BYTES
    cut = True
    longest = _RING_BYTES - _RING_ALIGNMENT

    def _once(self, dma: Dma, delay_ms: int = 0) -> str:
        ring = dma.iova // _RING_ALIGNMENT * _RING_ALIGNMENT
        head = (dma.iova - ring) // _DESCRIPTOR_BYTES
        tail = head + dma.length // _DESCRIPTOR_BYTES
        read = self._program(
            *(write32(_TDBAL, ring & _U32), write32(_TDBAH, ring >> 32)),
            *(write32(_TDLEN, _RING_BYTES), write32(_TDH, head), write32(_TDT, head)),
            *_enabled(1),
            *prepared(_TDH, delay_ms),
            write32(_TDT, tail),
            wait32(_TDH, _U16, tail, seconds=_FETCH_SECONDS),
        )
        return f"{read} && {self._program(*self._writes(MARK, 1))}"

    def expected(self, dma: Dma, kind: EventType = EventType.F_TRANSLATION) -> list[Access]:
        """Return one access for all descriptors, and that at MARK."""
        first, *_ = super().expected(dma, kind)
        return self.marked([Access.cut(first.record, dma.length)])


class HeadWriteBack(IgbSource):
    """Writes of four bytes, each by a descriptor of its own: the head of its queue, which the card
    writes when it has taken the descriptor. Each raises one record."""

    way = "head-write-back"
    can = frozenset({Ability.WRITE})
    alignment = WORD_BYTES
    longest = 4096

    def _once(self, dma: Dma, delay_ms: int = 0) -> str:
        return self._program(*self._writes(dma.iova, dma.length // WORD_BYTES, delay_ms))


def _all(register: int, value: int, queues: int = _QUEUES) -> Op:
    """Return the operation that writes a register of the first queues."""
    return series32(register, _STRIDE, queues, value, 0)


def _enabled(queues: int) -> list[Op]:
    """Return the operations that enable the first queues, and wait until they are."""
    each = [_TXDCTL + queue * _STRIDE for queue in range(queues)]
    return [
        _all(_TXDCTL, _TXDCTL_ENABLE, queues),
        write32(_TCTL, _TCTL_EN),
        *(until32(register, _TXDCTL_ENABLE, _TXDCTL_ENABLE) for register in each),
    ]


KIND = DeviceKind(
    role="igb",
    identity=PciId(0x8086, 0x10C9),
    # If the guest's kernel has no igb driver, the device is ready when its registers are there.
    ready="test -e resource0 && { test ! -e /sys/bus/pci/drivers/igb || test -e net/eth*; }",
    # Each card adds 0.4 s to a boot that waits for its driver.
    emulation=Emulation("igb", slow_driver="igb"),
    sources=(DescriptorFetch, HeadWriteBack),
    rank=2,
)
