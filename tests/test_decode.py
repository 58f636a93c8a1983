"""`hil decode` reads what people post, loses nothing in silence, and says nothing wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.smmu.decode.found import (
    Aside,
    Damaged,
    Explained,
    Found,
    Sighting,
    Unknown,
    known_fields,
)
from harness.smmu.decode.reader import Reading, read_text
from harness.smmu.events import EventRecord
from harness.smmu.klog import logged_events
from tests.decode_forms import SMMU, log, noise, texts, zstd

LOG = f"""\
[    2.730787] pci 0000:22:00.0: enabling device (0000 -> 0002)
[   11.272523] {SMMU} event 0x10 received:
[   11.272530] {SMMU} \t0x0000220000000010
[   11.272539] {SMMU} \t0x0000020000000000
[   11.272540] audit: something in between
[   11.272547] {SMMU} \t0x0000000010000000
[   11.272550] {SMMU} \t0x0000000000000000
[   11.272561] {SMMU} event: F_TRANSLATION client: 0000:22:00.0 sid: 0x2200 ssid: 0x0 \
iova: 0x10000000 ipa: 0x0
[   11.272561] {SMMU} unpriv data write s1 "Input address caused fault" stag: 0x0
"""
RECORD = EventRecord((0x220000000010, 0x20000000000, 0x10000000, 0))
ENVIRONMENT = {**os.environ, "COLUMNS": "200"}
COMMAND = [sys.executable, "-m", "harness.cli", "decode"]


def run(text: str | bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    data = text if isinstance(text, bytes) else text.encode()
    ended = subprocess.run(
        [*COMMAND, *arguments], input=data, capture_output=True, check=False, env=ENVIRONMENT
    )
    out, err = ended.stdout.decode(), ended.stderr.decode()
    return subprocess.CompletedProcess(ended.args, ended.returncode, out, err)


def found_in(text: str) -> list[Found]:
    return list(read_text(text))


def events(text: str) -> list[EventRecord]:
    return [one.record for one in found_in(text) if isinstance(one, Sighting)]


def damage(text: str) -> list[Damaged]:
    return [one for one in found_in(text) if isinstance(one, Damaged)]


def explained(text: str) -> list[tuple[str, str]]:
    return [(one.name, one.said) for one in found_in(text) if isinstance(one, Explained)]


def lines(*bodies: str, smmu: str = SMMU) -> str:
    return "".join(f"[{at / 100:12.6f}] {smmu} {body}\n" for at, body in enumerate(bodies, 100))


HEAD = "event 0x10 received:"
W = [f"\t{word:#018x}" for word in RECORD.words]


# -- events --------------------------------------------------------------------------------------


def test_kernel_log() -> None:
    assert found_in(LOG) == [
        Sighting(2, RECORD.words, "arm-smmu-v3.0.auto", "0000:22:00.0", 11.272523)
    ]


def test_two_smmus_may_interleave() -> None:
    other = LOG.replace("v3.0.auto", "v3.1.auto")
    pairs = zip(LOG.splitlines(), other.splitlines(), strict=True)
    found = found_in("\n".join(line for pair in pairs for line in pair))
    assert [one.record for one in found if isinstance(one, Sighting)] == [RECORD] * 2
    assert [one.smmu for one in found if isinstance(one, Sighting)] == [
        "arm-smmu-v3.0.auto",
        "arm-smmu-v3.1.auto",
    ]


def test_an_event_is_not_counted_again_by_its_text() -> None:
    between = LOG.replace("[   11.272561] arm", "[ 11.3] usb 1-1: new\n[   11.272561] arm", 1)
    assert len(events(between)) == 1


def test_text_that_differs_from_the_words_is_said() -> None:
    (found,) = found_in(LOG.replace("iova: 0x10000000", "iova: 0x10001000"))
    assert isinstance(found, Sighting)
    assert found.record == RECORD, "the words are what the SMMU wrote"
    assert found.notes == ("line 8: the kernel's text has another iova",)


def test_suites_have_the_same_reader() -> None:
    (event,) = logged_events(LOG)
    assert (event.record, event.line, event.client) == (RECORD, 2, "0000:22:00.0")
    assert logged_events("\n".join(texts(RECORD))) == [], "a record that was not seen"
    assert logged_events("0x10 0x0 0x0 0x0\n" + lines(HEAD, *W[:3])) == []


# -- damage --------------------------------------------------------------------------------------


def test_an_event_that_is_cut_short_says_what_is_known() -> None:
    (found,) = found_in(lines(HEAD, *W[:3]))
    assert isinstance(found, Damaged)
    assert (found.line, found.last, found.reason) == (1, 4, "event 0x10 has 3 of its 4 words")
    known = known_fields(found)
    assert known == {"type": 0x10, "name": "F_TRANSLATION", "sid": 0x2200}
    two = found_in(lines(HEAD, W[0], HEAD, *W))
    assert [type(one) for one in two] == [Damaged, Sighting]


def test_a_word_that_is_damaged_leaves_the_others_in_their_places() -> None:
    (found,) = found_in(lines(HEAD, W[0], "\t0x0000 02#0000000", *W[2:]))
    assert isinstance(found, Damaged)
    assert found.reason == "event 0x10: a word is damaged (line 3)"
    assert known_fields(found) == {
        "type": 0x10,
        "name": "F_TRANSLATION",
        "sid": 0x2200,
        "input_addr": 0x10000000,
    }


def test_a_word_with_a_gap_is_put_together() -> None:
    (found,) = found_in(lines(HEAD, "\t0x00002200 00000010", *W[1:]))
    assert isinstance(found, Sighting)
    assert found.record == RECORD
    assert found.notes == ("line 2: a word with a gap in it was put together",)


def test_a_lost_first_word_is_not_replaced_by_the_next() -> None:
    (found,) = found_in(lines(HEAD, *W[1:]))
    assert isinstance(found, Damaged)
    assert known_fields(found) == {"type": 0x10, "name": "F_TRANSLATION"}


def test_words_of_another_type_than_the_head_says() -> None:
    (found,) = found_in(lines("event 0x13 received:", *W))
    assert isinstance(found, Damaged)
    assert found.reason == "the head says event 0x13, but the words are event 0x10"


def test_words_without_a_head_are_no_event() -> None:
    (found,) = found_in(lines(*W))
    assert isinstance(found, Damaged)
    assert "head is missing" in found.reason
    assert known_fields(found)["sid"] == 0x2200


def test_text_says_what_the_damaged_words_do_not() -> None:
    text = texts(RECORD)[0].split(": ", 1)[1]
    (found,) = damage(lines(HEAD, W[0], text))
    assert known_fields(found)["input_addr"] == 0x10000000
    assert found.client == "0000:42:00.0"


SKIP = ("skipping command in error state:", "\t0x0001000000000011", "\t0x0000000000000000")


@pytest.mark.parametrize("at", range(1, 6))
def test_a_command_between_an_events_words_is_a_command(at: int) -> None:
    event = [HEAD, *W]
    found = found_in(lines(*event[:at], *SKIP, *event[at:]))
    assert [one.record for one in found if isinstance(one, Sighting)] == [RECORD]
    (command,) = [one for one in found if isinstance(one, Explained)]
    assert command.said.startswith("CMD_TLBI_NH_ASID  vmid 0x0  asid 0x1")
    assert not [one for one in found if isinstance(one, (Damaged, Unknown))]


def test_an_incomplete_command_is_told() -> None:
    (found,) = found_in(lines(*SKIP[:2]))
    assert isinstance(found, Damaged)
    assert found.reason == "the skipped command has 1 of its 2 words"


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        ("unexpected global error reported (0x000001fd), this", "GERROR", "MSI_CMDQ_ABT_ERR"),
        ("unexpected global error reported (0x00000004), this", "GERROR", "= EVENTQ_ABT_ERR;"),
        (
            "CMDQ error (cons 0x01000031): Illegal command",
            "CMDQ error",
            "CONS index 0x31, error 1 = CERROR_ILL;",
        ),
        (
            "CMDQ error (cons 0x02000007): Abort",
            "CMDQ error",
            "CONS index 0x7, error 2 = CERROR_ABT",
        ),
        ("CMDQ error (cons 0x03000007): ATC", "CMDQ error", "CERROR_ATC_INV_SYNC"),
        ("CMDQ error (cons 0x04000007): Unknown", "CMDQ error", "reserved code 0x4"),
        (
            "CMD_SYNC timeout at 0x000001a3 [hwprod 0x000001a4, hwcons 0x00000016]",
            "CMD_SYNC timeout",
            "398 commands wait",
        ),
        ("CMDQ timeout", "CMDQ timeout", "stayed full"),
        ("EVTQ overflow detected -- events lost", "event queue overflow", "lost"),
        ("EVTQ write aborted -- events may have been lost", "write aborted", "lost"),
        ("GERROR MSI write aborted", "MSI aborted", "GERROR MSI write aborted"),
        ("device has entered Service Failure Mode!", "Service Failure Mode", "until it is reset"),
        (
            "\tsid 0x00004200.0x00003: [7L] unprivileged RW access at iova 0x0000000012345000",
            "page request",
            "sid 0x4200  ssid 0x3  group 7L  unprivileged RW access  iova 0x12345000",
        ),
        (
            "tegra241_cmdqv: unexpected error reported. vintf_map: 0000000000000002, "
            "vcmdq_map 00000000:00000000:00000001:00000004",
            "CMDQV error",
            "VINTF 1, VCMDQ 2, 32",
        ),
        (
            "tegra241_cmdqv: VINTF0: VCMDQ1/LVCMDQ1: GERRORN=0x0, GERROR=0x1, CONS=0x1000008",
            "CMDQV queue",
            "VINTF 0 VCMDQ 1: active 0x1 = CMDQ_ERR",
        ),
        ("no evtq irq - events will not be reported!", "events unreported", "evtq"),
        ("failed to enable event queue", "probe failed", "does not work"),
    ],
)
def test_messages_of_the_driver(body: str, name: str, said: str) -> None:
    ((its_name, its_said),) = explained(lines(body))
    assert its_name == name
    assert said in its_said


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("arm_smmu_evtq_thread: 120 callbacks suppressed", "events left out", "120 events"),
        ("qemu: warning: vEVENTQ(type 1 id 5): lost 3 event(s)", "vEVENTQ", "3 events"),
        ("qemu: warning: vEVENTQ(type 2 id 7): overflowed", "vEVENTQ", "overflowed"),
        ("vEVENTQ(type 1 id 5): short read(12/40 bytes)", "vEVENTQ", "12 of 40 bytes"),
        ("vEVENTQ(type 1 id 5): read failed (Bad address)", "vEVENTQ", "Bad address"),
        (
            "2026-01-02T03:04:05.678Z smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x8",
            "QEMU: event forwarded",
            "F_TRANSLATION  sid 0x8",
        ),
        (
            "smmuv3-iommu-memory-region-8-0 translation failed for iova=0x5000 "
            "(SMMU_EVT_F_PERMISSION)",
            "QEMU: fault",
            "F_PERMISSION  iova 0x5000",
        ),
        ("smmuv3_write_gerror toggled=0x4, new GERROR=0x4", "QEMU: GERROR raised", "EVENTQ_ABT"),
        (
            "tegra241_cmdqv_err_map hw irq received. error (hex) maps: 0000:0000:0000:0003",
            "QEMU: CMDQV error",
            "LVCMDQ 0, 1",
        ),
        (
            "128 entries at 0x48000000, PROD 0x80000003, CONS 0x1",
            "event queue",
            "2 of them wait to be read; it has overflowed",
        ),
        ("VINTF 0 LVCMDQ 1: 0x0000000000000046 0x0000000000000000", "command", "CMD_SYNC"),
        (
            "1764030000.000001 ARM_SMMUV3 0 id 5: alloc: fail: ENOMEM",
            "boundary: call",
            "alloc: rule fail: ENOMEM",
        ),
        (
            "1764030000.000001 ARM_SMMUV3 0 id 5: invalidate: fail: EIO, 1 of 2 entries",
            "boundary: call",
            "EIO, 1 of 2 entries",
        ),
        ("1764030000.000001 ARM_SMMUV3 0 id 5: pass: #7 LOST_EVENTS", "LOST_EVENTS", "#7"),
        (
            "1764030000.000001 TEGRA241_CMDQV 0 id 6: pass: #2 " + "02" + 30 * "0",
            "CMDQV error",
            "LVCMDQ 1",
        ),
        (
            "[  1.0] arm-smmu 5000000.iommu: Unhandled context fault: fsr=0x402, iova=0x5000",
            "SMMUv2 fault",
            "SMMUv2",
        ),
    ],
)
def test_other_messages(line: str, name: str, said: str) -> None:
    ((its_name, its_said),) = explained(line)
    assert its_name == name
    assert said in its_said


def test_what_the_boundary_did_to_an_event_is_said() -> None:
    data = RECORD.to_bytes().hex()
    (found,) = found_in(f"1764030000.000001 ARM_SMMUV3 0 id 5: drop: #7 {data} -> nothing")
    assert isinstance(found, Sighting)
    assert found.record == RECORD
    assert found.notes == ("#7", "boundary: drop, sent as nothing")


def test_the_boundarys_own_log() -> None:
    packed = '"BwAAAAAAAAAQAAAAACIAAAAAAAAAAgAAAAAAEAAAAAAAAAAAAAAAAA=="'
    line = f'{{"time":1.5,"queue":[1,0],"id":5,"did":"pass","arrived":1.4,"got":[{packed}]}}'
    (found,) = found_in(line)
    assert isinstance(found, Sighting)
    assert (found.record, found.smmu, found.time) == (RECORD, "ARM_SMMUV3 0", 1.5)


def test_greetings_are_no_events_and_no_riddles() -> None:
    text = lines("ias 48-bit, oas 48-bit (features 0x1fff)", "allocated 65536 entries for cmdq")
    assert not [one for one in found_in(text) if not isinstance(one, Aside)]


def test_a_message_nobody_knows_is_named() -> None:
    ended = run(lines("something new has happened", *2 * ["and again"]))
    assert ended.returncode == 0
    assert "standard input:1: not understood: 'something new has happened'" in ended.stderr
    assert "2 more messages of an SMMU's driver: lines 2, 3" in ended.stderr
    assert "3 lines not understood" in ended.stderr


# -- numbers and prose ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a device faults", "add the patch", "10 20 30 words", "dead"])
def test_prose_is_no_error(text: str) -> None:
    ended = run(f"{text}\n{LOG}{text}\n")
    assert ended.returncode == 0
    assert ended.stderr == (
        "standard input: 1 event, no message explained, no line not understood; of 11 lines\n"
    )


def test_few_digits_are_no_record() -> None:
    ended = run("10 00 00 00\n")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "needs 0x, or at least 8 digits" in ended.stderr


def test_an_incomplete_dump_is_told() -> None:
    (found,) = found_in("0x0000220000000010 0x20000000000 0x10000000\nthe end\n")
    assert isinstance(found, Damaged)


def test_empty_slots_and_left_out_lines_of_a_dump() -> None:
    text = (
        "00000000  10 00 00 00 00 22 00 00  00 00 00 00 00 02 00 00  |.....\"..........|\n"
        "00000010  00 00 00 10 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n"
        "00000020  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n"
        "*\n"
        "00000060  10 00 00 00 00 22 00 00  00 00 00 00 00 02 00 00  |.....\"..........|\n"
        "00000070  00 00 00 10 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n"
        "00000080\n"
    )  # fmt: skip
    assert events(text) == [RECORD, RECORD]
    assert damage(text) == []


# -- the command ---------------------------------------------------------------------------------


def test_json_has_everything() -> None:
    ended = run(LOG, "--json")
    assert ended.returncode == 0
    fields = json.loads(ended.stdout)
    assert fields.items() >= RECORD.as_dict().items()
    place = {"smmu": "arm-smmu-v3.0.auto", "client": "0000:22:00.0", "bdf": "22:00.0"}
    assert fields.items() >= {**place, "line": 2, "time": 11.272523, "kind": "event"}.items()
    assert "not mapped" in fields["meaning"]


def test_text_names_what_happened_and_means() -> None:
    first, meaning = run(LOG).stdout.splitlines()
    assert first == (
        "F_TRANSLATION  sid 0x2200  bdf 22:00.0  unprivileged data write  iova 0x10000000  "
        "stage 1  class IN  client 0000:22:00.0  smmu arm-smmu-v3.0.auto  time 11.272523  line 2"
    )
    assert "not mapped" in meaning
    assert len(run(LOG * 3).stdout.splitlines()) == 4, "the meaning is said once"


def test_summary() -> None:
    records = [EventRecord((*RECORD.words[:2], 0x100 * at, 0)) for at in (1, 5, 3)]
    text = "\n".join(f"[{at:12.6f}] {line}" for at, line in enumerate(log(records)))
    ended = run(text, "--summary")
    assert ended.stdout == (
        "3 × F_TRANSLATION  sid 0x2200  bdf 22:00.0  write  iova 0x100 … 0x500  "
        "smmu arm-smmu-v3.0.auto  first 0.000000  last 10.000000  lines 1 to 11\n"
    )
    assert "3 events" in ended.stderr
    counted = json.loads(run(text, "--summary", "--json").stdout)
    assert (counted["count"], counted["directions"]) == (3, ["write"])


def test_damage_is_told_in_order_once_for_a_kind() -> None:
    text = lines(*[*[HEAD, *W], *3 * [HEAD, W[0]], HEAD, *W])
    ended = subprocess.run(
        COMMAND, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = ended.stdout.decode().splitlines()
    assert ended.returncode == 1
    at = [number for number, line in enumerate(said) if line.startswith("standard input:6-7:")]
    assert 0 < at[0] < len(said) - 3, "between the events"
    assert "known: F_TRANSLATION  sid 0x2200" in said[at[0]]
    assert said[-2] == "standard input: 2 more incomplete events: lines 8, 10"
    assert said[-1] == (
        "standard input: 2 events, no message explained, 3 damaged, no line not understood; "
        "of 16 lines"
    )


def test_no_event_is_said() -> None:
    ended = run("[  1.0] pci 0000:42:00.0: enabling device (0000 -> 0002)\n")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "no event" in ended.stderr


def test_format_says_what_the_input_is(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(64) + EventRecord((0x77, 0, 0, 0)).to_bytes() + bytes(5))
    ended = run("", "--format", "raw", str(memory))
    assert ended.returncode == 1
    assert "RESERVED_0x77" in ended.stdout
    assert "5 of the 32 bytes" in ended.stderr
    assert run("1" * 16 + " 2 3 4\n", "--format", "log").stdout == ""


def test_a_queue_that_begins_with_empty_slots() -> None:
    found = list(Reading([bytes(100_000 // 32 * 32), RECORD.to_bytes(), bytes(64)]))
    assert found == [Sighting(3126, RECORD.words)]


def test_zstd() -> None:
    pytest.importorskip("zstandard")
    assert "F_TRANSLATION" in run(zstd(LOG.encode())).stdout


@pytest.mark.parametrize(
    "data", [b"\x1f\x8b\x08\x00rubbish and more", b"\xfd7zXZ\x00rubbish", b"BZh9rubbish"]
)
def test_damaged_compression_is_an_error_in_a_line(data: bytes) -> None:
    ended = run(data)
    assert ended.returncode == 1
    assert "data" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        ended = run("", str(path))
        assert ended.returncode == 2
        assert str(path) in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("seed", range(4))
def test_rubbish_is_no_flood(seed: int) -> None:
    ended = run(noise(seed, 100_000) + b"\n" + LOG.encode())
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) < 10
    assert ended.stdout.count("F_TRANSLATION  sid 0x2200") == 1


def test_a_huge_line_is_no_trouble() -> None:
    ended = run(b"x" * 5_000_000 + b"\n" + LOG.encode())
    assert ended.returncode == 0
    assert "F_TRANSLATION" in ended.stdout


def shell(command: str, text: str = LOG) -> subprocess.CompletedProcess[str]:
    program = command.replace("DECODE", " ".join(COMMAND))
    return subprocess.run(
        ["bash", "-c", program], input=text, capture_output=True, text=True, check=False
    )


def test_closed_standard_input() -> None:
    ended = shell("DECODE <&-")
    assert ended.returncode == 2
    assert "standard input is closed" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_closed_standard_output() -> None:
    ended = shell("DECODE >&-")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_a_full_disk() -> None:
    ended = shell("DECODE >/dev/full")
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr


def test_a_closed_pipe() -> None:
    ended = shell("DECODE | head -1; exit ${PIPESTATUS[0]}", LOG * 20_000)
    assert ended.returncode == 141
    assert "Traceback" not in ended.stderr


def test_a_log_is_decoded_while_it_comes() -> None:
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin
        assert process.stdout
        for lines_of in (LOG, lines(HEAD, *W)):
            process.stdin.write(lines_of.encode())
            process.stdin.flush()
            while b"F_TRANSLATION" not in process.stdout.readline():
                pass
        process.stdin.close()


def test_flat_memory_and_lines_by_pieces() -> None:
    """Pieces of any size give the same: here an endless input is read a little."""

    def endless() -> object:
        while True:
            yield LOG.encode() * 100

    started = time.monotonic()
    reading = Reading(endless())  # type: ignore[arg-type]
    for count, _ in enumerate(reading):
        if count == 5000:
            break
    assert reading.lines < 60_000
    assert time.monotonic() - started < 60
