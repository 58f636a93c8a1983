"""Make an NVMe drive read at chosen addresses, by commands whose data is there."""

from __future__ import annotations

from functools import cached_property

from harness.devices.dma import Dma
from harness.devices.nvme_admin import (
    CONTROLLER,
    FLBAS_WORD,
    FORMATS,
    MOST_FORMATS,
    NAMESPACE,
    NAMESPACES,
    ONCS,
    ONCS_COMPARE,
    ONCS_TIMESTAMP,
    TIMESTAMP_BYTES,
    QueuePair,
    block_bytes,
    compare,
    create_queues,
    identify,
    set_timestamp,
)
from harness.devices.nvme_dma import MarkedSource
from harness.errors import HarnessError
from harness.guest.choice import MissingDevicesError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Op, inside, read32
from harness.host.ability import Ability

#: How long a controller may take to complete a command whose data it cannot fetch, if it does.
_DATA_SECONDS = 2.0


class CommandData(MarkedSource):
    """A read of a chosen address, by a command whose data the controller cannot fetch: 8 bytes by
    Set Features (Timestamp), or blocks by Compare, whichever the controller has.

    A controller that cannot read the time keeps its clock, or sets it to 0 (QEMU); each program
    ends with a reset, which resets it anyway. Dataset Management is not used: a controller need not
    read its ranges if it is told to do nothing with them, and QEMU's does not.

    Raises MissingDevicesError for a controller that has neither command.
    """

    way = "command-data"
    can = frozenset({Ability.READ, Ability.EXACT_LENGTH})
    grain = 4096
    longest = 4096

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        if not (self._has(ONCS_TIMESTAMP) or self._block_bytes):
            raise MissingDevicesError(
                f"{self} has neither the feature Timestamp nor, with a namespace without metadata, "
                "the command Compare (ONCS)",
                fix="list another NVMe drive of the host in the inventory, or run the test on "
                "another host",
                lacking="an NVMe drive with Timestamp or Compare",
            )
        if not self._block_bytes:
            self.longest = TIMESTAMP_BYTES

    @property
    def unit(self) -> int:
        """Return the smallest length."""
        return TIMESTAMP_BYTES if self._has(ONCS_TIMESTAMP) else self._block_bytes

    def check(self, dma: Dma) -> None:
        """Raise HarnessError as FaultSource.check, and for a length that no command has."""
        if not self._carries(dma.length):
            block = self._block_bytes
            lengths = [f"{TIMESTAMP_BYTES}"] if self._has(ONCS_TIMESTAMP) else []
            lengths += [f"a multiple of {block}, up to {self.longest}"] if block else []
            raise HarnessError(
                f"{self} cannot move {dma.length} bytes by its {self.way}",
                fix=f"choose {', or '.join(lengths)}",
            )
        super().check(dma)

    def _carries(self, length: int) -> bool:
        if length == TIMESTAMP_BYTES and self._has(ONCS_TIMESTAMP):
            return True
        block = self._block_bytes
        return block > 0 and length % block == 0 and length <= self.longest

    # -- what the controller has -----------------------------------------------------------

    def _has(self, command: int) -> bool:
        """Return whether the controller has an optional command, by its bit in ONCS."""
        return bool(self._identity[0] & command)

    @cached_property
    def _identity(self) -> tuple[int, int]:
        """Return the controller's ONCS and its first namespace, 0 if it has none."""
        queue = self._queue(self._entries)
        controller, namespaces = self._page(queue, 0), self._page(queue, 1)
        oncs, namespace = self._identified(
            queue,
            *queue.carry_out(identify(controller.iova, CONTROLLER)),
            *queue.carry_out(identify(namespaces.iova, NAMESPACES)),
            reads=[read32(controller.at + ONCS), read32(namespaces.at)],
        )
        return oncs, namespace

    @cached_property
    def _block_bytes(self) -> int:
        """Return the size of the blocks that the controller can compare; 0 if it cannot."""
        namespace = self._identity[1]
        if not (namespace and self._has(ONCS_COMPARE)):
            return 0
        queue = self._queue(self._entries)
        page = self._page(queue, 0)
        formats = range(page.at + FORMATS, page.at + FORMATS + 4 * MOST_FORMATS, 4)
        flbas_word, *words = self._identified(
            queue,
            *queue.carry_out(identify(page.iova, NAMESPACE, namespace)),
            reads=[read32(page.at + FLBAS_WORD), *map(read32, formats)],
        )
        return block_bytes(flbas_word, words)

    def _identified(self, queue: QueuePair, *ops: Op, reads: list[Op]) -> list[int]:
        """Perform operations on the enabled controller, and return what is in memory then."""
        program = self._program(
            queue,
            [*queue.enable(), *ops, inside(queue.memory), *reads, inside(queue.registers)],
        )
        return self.run(program, 0, f"{self}: what has it?")

    # -- doing it --------------------------------------------------------------------------

    def _once(self, queue: QueuePair, dma: Dma) -> list[Op]:
        page_bytes = self.capabilities.page_bytes
        if dma.length == TIMESTAMP_BYTES:
            command = set_timestamp(dma.iova, page_bytes)
            return [*queue.enable(), *queue.attempt(command, seconds=_DATA_SECONDS)]
        buffers = self._page(queue, 0), self._page(queue, 1)
        pair = QueuePair(self.capabilities, 1, self._entries, *buffers, *self._places)
        submission, completion = buffers
        created = create_queues(completion.iova, submission.iova, self._entries)
        command = compare(dma.iova, dma.length, page_bytes, self._identity[1], self._block_bytes)
        return [
            *queue.enable(),
            *pair.clear(),
            *(op for one in created for op in queue.carry_out(one)),
            *pair.attempt(command, seconds=_DATA_SECONDS),
        ]
