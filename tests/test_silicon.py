"""The process of the silicon model answers on its control socket, and blames the lab when it
fails."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import HarnessError, LabError
from harness.report import evidence
from harness.smmu.cmdqv import ENABLE, VINTF_STRIDE, Config, QueueError
from harness.smmu.commands import Opcode
from harness.virtual.silicon import process
from harness.virtual.silicon.client import SiliconClient
from harness.virtual.silicon.model import AbortedError
from harness.virtual.silicon.process import ModelProcess
from harness.virtual.silicon.registers import Parameters

NOWHERE = Path("/nonexistent/socket")


@pytest.fixture
def silicon() -> ModelProcess:
    """Return a model without a machine, whose VINTF 1 has a queue 0."""
    made = ModelProcess(Parameters(), NOWHERE, NOWHERE, 0x0C00_0000, 200)
    made.model.write(Config.CONFIG, 4, ENABLE)
    made.model.write(Config.VINTF + VINTF_STRIDE, 4, ENABLE)
    made.model.write(Config.CMDQ_ALLOC, 4, 1 << 15 | 1)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "silicon.sock"


@pytest.fixture
def control(silicon: ModelProcess, path: Path) -> Iterator[SiliconClient]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threading.Thread(target=process.control, args=(listener, silicon), daemon=True).start()
    yield SiliconClient(path)
    path.unlink()


def test_commands_are_told_from_a_count_on(silicon: ModelProcess, control: SiliconClient) -> None:
    (queue,) = [one for one in silicon.model.registers.vcmdqs if one.allocated]
    assert control.count() == 0
    silicon.carried_out(
        queue, [(Opcode.TLBI_NH_VA, 1), (Opcode.SYNC, 0)], [(Opcode.TLBI_NH_VA | 5 << 32, 1), None]
    )
    before = control.count()
    silicon.carried_out(queue, [(Opcode.TLBI_NH_ASID, 2)], [(Opcode.TLBI_NH_ASID | 5 << 32, 2)])
    assert (before, control.count()) == (2, 3)
    assert control.commands(before) == [(1, 0, Opcode.TLBI_NH_ASID, 2)]
    assert [low for *_, low, _ in control.commands()] == [0x12, 0x46, 0x11]
    of_the_smmu = [(1, 0, 0x5_0000_0012, 1), (1, 0, 0x5_0000_0011, 2)]
    assert control.issued() == of_the_smmu
    assert control.issued(1) == control.issued(before) == of_the_smmu[1:]


def test_queues_that_nobody_has_may_be_left_dirty(
    silicon: ModelProcess, control: SiliconClient
) -> None:
    registers = silicon.model.registers
    assert control.leave_dirty() == len(registers.vcmdqs) - 1
    assert [one.index for one in registers.vcmdqs if not one.in_error] == [0]


def test_only_the_last_are_remembered_and_counts_stay_right(
    silicon: ModelProcess, control: SiliconClient
) -> None:
    queue = silicon.model.registers.vcmdqs[0]
    numbers = range(process.REMEMBERED + 5)
    silicon.carried_out(queue, [(number, 0) for number in numbers], [None for _ in numbers])
    assert control.commands(process.REMEMBERED + 3) == [
        (1, 0, process.REMEMBERED + 3, 0),
        (1, 0, process.REMEMBERED + 4, 0),
    ]


def test_the_last_commands_are_evidence(silicon: ModelProcess, control: SiliconClient) -> None:
    queue = silicon.model.registers.vcmdqs[0]
    numbers = range(evidence.COMMANDS + 3)
    silicon.carried_out(queue, [(number, 0) for number in numbers], [None for _ in numbers])
    lines = evidence.commands(control).splitlines()
    assert len(lines) == evidence.COMMANDS
    assert lines[0] == "VINTF 1 LVCMDQ 0: 0x0000000000000003 0x0000000000000000"


@contextmanager
def served(silicon: ModelProcess, path: Path) -> Iterator[SiliconClient]:
    """Serve a model's control socket, and have its worker work."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threading.Thread(target=process.control, args=(listener, silicon), daemon=True).start()
    threading.Thread(target=silicon.work, daemon=True).start()
    yield SiliconClient(path)


def test_a_saved_model_goes_on_in_another_process(silicon: ModelProcess, tmp_path: Path) -> None:
    registers = silicon.model.registers
    silicon.model.write(Config.VINTF_INT_MASK, 4, 2)
    silicon.model.leave_dirty()
    registers.vintfs[1].sid_match[2] = 0x801
    registers.vcmdqs[0].injected = QueueError.ILLEGAL
    silicon.carried_out(registers.vcmdqs[0], [(Opcode.SYNC, 0)], [None])
    with served(silicon, tmp_path / "first") as control:
        control.invalidate(False)
        state = control.save()
        assert state == control.save()
    other = ModelProcess(Parameters(), NOWHERE, NOWHERE, 0x0C00_0000, 200)
    with served(other, tmp_path / "second") as control:
        assert control.save() != state
        control.load(state)
        assert control.save() == state
        assert control.commands() == [(1, 0, Opcode.SYNC, 0)]
    assert other.model.registers.state() == registers.state()
    assert other.model.registers.find(1, 0) is other.model.registers.vcmdqs[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": "on"}, "a register is no number"),
        ({"vintfs": []}, "the registers are another device's"),
        ({"vcmdqs": [{"index": 0}]}, "no state of this model: KeyError('injected')"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    silicon: ModelProcess, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    before = silicon.model.registers.state()
    with served(silicon, tmp_path / "silicon.sock") as control:
        state = control.save()
        with pytest.raises(HarnessError, match=re.escape(said)):
            control.load({**state, "registers": {**before, "int_mask": 7, **change}})
    assert silicon.model.registers.state() == before


def test_errors_are_for_queues_that_there_are(control: SiliconClient) -> None:
    control.inject(1, 0, 1)
    with pytest.raises(HarnessError, match="inject: VINTF 1 has no LVCMDQ 7"):
        control.inject(1, 7, 1)
    with pytest.raises(HarnessError, match="inject: 9 is not a valid QueueError"):
        control.inject(1, 0, 9)


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"[" * 100_000,
        b"\xff",
        b'{"do": "commands"}',
        b'{"do": "commands", "since": 1e999}',
        b'{"do": "commands", "since": -1}',
        b'{"do": "commands", "since": true}',
        b'{"do": "inject", "vintf": 1, "lvcmdq": 0, "error": {}}',
        b'{"do": "invalidate", "on": 0}',
        b'{"do": "load"}',
        b'{"do": "load", "state": {"commands": [[1, 0, 18, 1]], "issued": []}}',
        b'{"do": "load", "state": {"commands": [], "issued": [], "registers": {"config": 1, '
        b'"int_mask": 0, "vcmdqs": [], "vintfs": []}}}',
        b'{"do": ["status"]}',
    ],
    ids=lambda line: line[:40].decode(errors="replace"),
)
def test_no_request_ends_the_thread_that_answers(
    control: SiliconClient, path: Path, line: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(line + b"\n")
        assert "error" in json.loads(client.makefile().readline())
    assert control.count() == 0


def test_a_client_that_is_silent_does_not_keep_others_waiting(
    control: SiliconClient, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        silent.send(b'{"do"')
        assert control.count() == 0


def test_answers_agree_with_each_other_while_commands_run(silicon: ModelProcess) -> None:
    """The number of each command that runs here is in the command."""
    queue = silicon.model.registers.vcmdqs[0]
    ended = threading.Event()

    def run() -> None:
        number = 0
        while not ended.is_set():
            with silicon.model.lock:  # as Cmdqv.process does
                silicon.carried_out(queue, [(number + more, 0) for more in range(50)], [None] * 50)
            number += 50

    runner = threading.Thread(target=run)
    runner.start()
    try:
        for _ in range(300):
            count = silicon.handle({"do": "status"})["commands"]
            answer = silicon.handle({"do": "commands", "since": max(0, count - 10)})
            numbers = [low for _, _, low, _ in answer["commands"]]
            assert numbers == [*range(answer["first"], answer["first"] + len(numbers))]
    finally:
        ended.set()
        runner.join()


def test_an_answer_that_is_cut_off_is_the_labs_fault(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "silicon.sock"))
    listener.listen()

    def answer() -> None:
        with listener, listener.accept()[0] as client:
            client.recv(1 << 16)
            client.send(b'{"commands": 1')

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(LabError, match="closed before the answer was complete"):
        SiliconClient(tmp_path / "silicon.sock").count()
    thread.join()


def test_the_smmu_may_be_left_alone(silicon: ModelProcess, control: SiliconClient) -> None:
    control.invalidate(False)
    silicon.invalidate([(Opcode.TLBI_NH_VA, 0)])
    control.invalidate(True)
    with pytest.raises(AbortedError):  # VINTF0 has no queue to borrow: the attempt fails
        silicon.invalidate([(Opcode.TLBI_NH_VA, 0)])


def test_a_model_that_failed_is_the_labs_fault(
    silicon: ModelProcess, control: SiliconClient
) -> None:
    (queue,) = [one for one in silicon.model.registers.vcmdqs if one.allocated]
    silicon.doorbell(queue)
    silicon.work()  # fails because there is no machine
    with pytest.raises(LabError, match=r"(?s)model has failed:.*no qtest socket"):
        control.status()


def test_a_process_that_is_gone_is_the_labs_fault(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="does not answer") as caught:
        SiliconClient(tmp_path / "silicon.sock").count()
    assert "silicon.log" in str(caught.value)
