"""Each message that is known is explained with its own numbers, and nothing else is."""

from __future__ import annotations

import pytest

from harness.smmu import cmdqv
from harness.smmu.commands import CERRORS, describe
from harness.smmu.decode import messages
from harness.smmu.decode.messages import (
    ANYWHERE,
    OF_DEVICE,
    OF_SMMUV2,
    Meaning,
    bits,
    cons,
    explain,
    gerror,
)
from harness.smmu.registers import GERRORS


def test_errors_of_the_smmu_are_named_by_their_bits() -> None:
    assert gerror(0) == "0x0 = no error"
    assert gerror(1) == f"0x1 = CMDQ_ERR; {GERRORS[0][1]}"
    assert gerror(0x8000_0004) == f"0x80000004 = EVENTQ_ABT_ERR, bit 31; {GERRORS[2][1]}"
    assert gerror(0x2) == "0x2 = bit 1"
    assert gerror(1 << 32) == "0x100000000 = no error"
    assert gerror(0x10C) == (
        f"0x10c = EVENTQ_ABT_ERR, PRIQ_ABT_ERR, SFM_ERR; {GERRORS[2][1]}; {GERRORS[3][1]}; "
        f"{GERRORS[8][1]}"
    )


def test_errors_of_a_command_queue_have_an_index() -> None:
    assert cons(0x0100_0031) == f"CONS index 0x31, error 1 = CERROR_ILL; {CERRORS[1][1]}"
    assert cons(0x8000_0007) == f"CONS index 0x7, error 0 = CERROR_NONE; {CERRORS[0][1]}"
    assert cons(0xFF0F_FFFF) == (
        "CONS index 0xfffff, error 127 = reserved code 0x7f; a reserved code"
    )


def test_bits_are_numbered_from_the_lowest() -> None:
    assert bits(0) == []
    assert bits(1) == [0]
    assert bits(0x8005) == [0, 2, 15]
    assert bits(1 << 127) == [127]


SYNC = "no answer to the CMD_SYNC at 0x1a3: PROD"


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        ("unexpected global error reported (0x00000014), this", "GERROR", gerror(0x14)),
        ("CMDQ error (cons 0x01000031): Illegal command", "CMDQ error", cons(0x0100_0031)),
        (
            "CMD_SYNC timeout at 0x000001a3 [hwprod 0x000001a4, hwcons 0x00000016]",
            "CMD_SYNC timeout",
            f"{SYNC} 0x1a4, CONS 0x16; 398 commands wait. The SMMU has stopped, or is slow: "
            "see GERROR",
        ),
        (
            "CMD_SYNC timeout at 0x000001a3 [hwprod 0x000001a4, hwcons 0x000001a4]",
            "CMD_SYNC timeout",
            f"{SYNC} 0x1a4, CONS 0x1a4; the queue is empty, so the answer itself was lost",
        ),
        (
            "CMD_SYNC timeout at 0x000001a3 [hwprod 0x000001a4, hwcons 0x000001a5]",
            "CMD_SYNC timeout",
            f"{SYNC} 0x1a4, CONS 0x1a5; commands wait (the queue has wrapped)",
        ),
        *(
            (
                f"CMD_SYNC timeout at 0x000001a3 [hwprod 0x000001a4, hwcons {register:#010x}]",
                "CMD_SYNC timeout",
                f"{SYNC} 0x1a4, CONS {register & 0xFFFFF:#x}; the SMMU has stopped at an error: "
                f"{cons(register)}",
            )
            for register in (0x300_0016, 0x100_01A4, 0x200_01A5)
        ),
        (
            "CMD_SYNC timeout",
            "CMD_SYNC timeout",
            "no answer to a CMD_SYNC: the SMMU has stopped, or is slow",
        ),
        (
            "EVTQ write aborted -- events may have been lost",
            "write aborted",
            "the queue was full or its memory refused the write: what it was to hold is lost",
        ),
        (
            "CMDQ MSI write aborted",
            "MSI aborted",
            "CMDQ MSI write aborted: the interrupt could not be written to its address",
        ),
        ("unexpected PRI request received:", "page request", "its next line says of whom"),
        (
            "sid 0x00004200.0x00013: [7L] unprivileged RW access at iova 0x0000000012345000",
            "page request",
            "sid 0x4200  ssid 0x13  group 7L  unprivileged RW access  iova 0x12345000; "
            "a device asked for a page and was refused",
        ),
        (
            "sid 0x00004200.0x00003: [7] privileged  access at iova 0x0000000012345000",
            "page request",
            "sid 0x4200  ssid 0x3  group 7  privileged no access  iova 0x12345000; "
            "a device asked for a page and was refused",
        ),
        (
            "tegra241_cmdqv: unexpected error reported. vintf_map: 0000000000000012, "
            "vcmdq_map 00000000:00000000:00000001:00000004",
            "CMDQV error",
            "in error: VINTF 1, 4, VCMDQ 2, 32",
        ),
        (
            "unexpected error reported. vintf_map: 0, vcmdq_map: 0",
            "CMDQV error",
            "in error: no VINTF, no VCMDQ",
        ),
        (
            "tegra241_cmdqv: VINTF3: VCMDQ7/LVCMDQ1: GERRORN=0x4, GERROR=0x5, CONS=0x1000018",
            "CMDQV queue",
            f"VINTF 3 VCMDQ 7: active {gerror(1, cmdqv.GERRORS)}; {cons(0x100_0018)}",
        ),
        *(
            (
                f"tegra241_cmdqv: VINTF0: VCMDQ0/LVCMDQ0: GERRORN=0x0, GERROR={bit:#x}, CONS=0x0",
                "CMDQV queue",
                f"VINTF 0 VCMDQ 0: active {said}; {cons(0)}",
            )
            for bit, said in (
                (
                    1,
                    "0x1 = CMDQ_ERR; a command failed: the queue takes no more until it is "
                    "acknowledged",
                ),
                (2, "0x2 = CONS_DRAM_WR_ABT_ERR; the queue's CONS could not be written to memory"),
                (4, "0x4 = CMDQ_INIT_ERR; the queue could not be set up"),
                (8, "0x8 = bit 3"),
            )
        ),
        (
            "CMDQV: failed to enable, STATUS=0x00000001",
            "CMDQV queue",
            "CMDQV: failed to enable, STATUS 0x1: the hardware did not follow",
        ),
        (
            "VINTF0: VCMDQ1/LVCMDQ1: failed to enable, STATUS=0x0000001F",
            "CMDQV queue",
            "VINTF0: VCMDQ1/LVCMDQ1: failed to enable, STATUS 0x1f: the hardware did not follow",
        ),
        (
            "VINTF0: VCMDQ1/LVCMDQ1: uncleared error detected, resetting",
            "CMDQV queue",
            "VINTF0: VCMDQ1/LVCMDQ1: an error of the queue's last user was left, and is cleared",
        ),
        (
            "Aliasing StreamID 0x42 (from 0000:01:00.0) unsupported, expect DMA to be broken",
            "StreamID aliasing",
            "two devices share StreamID 0x42, the other is 0000:01:00.0",
        ),
        (
            "no priq irq - PRI will be broken",
            "events unreported",
            "no interrupt of the priq: the kernel does not look there",
        ),
        (
            "failed to enable gerror irq",
            "events unreported",
            "no interrupt of the gerror: the kernel does not look there",
        ),
        (
            "failed to enable event queue ",
            "probe failed",
            "failed to enable event queue: this SMMU, or a part of it, does not work",
        ),
    ],
)
def test_a_message_of_the_driver_has_its_numbers(body: str, name: str, said: str) -> None:
    assert explain(OF_DEVICE, body) == Meaning(name, said)


QUEUE = "the vEVENTQ of type 1, id 5"


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        (
            "arm_smmu_evtq_thread: 120 callbacks suppressed",
            "events left out",
            "the kernel did not print 120 events, as it limits their rate: this log does not have "
            "all",
        ),
        (
            "arm_smmu_gerror_handler: 12 callbacks suppressed",
            "messages left out",
            "the kernel left out 12 messages of arm_smmu_gerror_handler: it limits their rate",
        ),
        (
            "arm-smmu-v3: probe of arm-smmu-v3.0.auto failed with error -22",
            "probe failed",
            "probe of arm-smmu-v3.0.auto failed with error -22: this SMMU does not work",
        ),
        *(
            (
                line,
                "messages left out",
                f"{count} lines of the kernel's log are lost: events may be among them",
            )
            for line, count in (
                ("Missed 3 kernel messages", "3"),
                ("Suppressed 4 messages from kernel", "4"),
                ("** 5 printk messages dropped **", "5"),
                ("some messages lost", "some"),
            )
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): lost 3 event(s)",
            "vEVENTQ",
            f"3 events of {QUEUE} never reached QEMU: a gap in the sequence numbers",
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): lost 2147483648 event(s)",
            "vEVENTQ",
            f"no event of {QUEUE} is lost: its numbers began anew at 0, which QEMU miscounts",
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): lost 2147483651 event(s)",
            "vEVENTQ",
            f"3 events of {QUEUE} never reached QEMU: a gap in the sequence numbers",
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): overflowed",
            "vEVENTQ",
            f"{QUEUE} overflowed: an unknown number of events is lost",
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): short read(12/40 bytes)",
            "vEVENTQ",
            f"QEMU read 12 of 40 bytes of a record of {QUEUE}, and dropped it",
        ),
        (
            "qemu: warning: vEVENTQ(type 1 id 5): read failed (Bad address)",
            "vEVENTQ",
            f"QEMU cannot read {QUEUE}: Bad address. It gets no more events",
        ),
        (
            "smmuv3-iommu-memory-region-8-0 translation failed for iova=0x5000 "
            "(SMMU_EVT_F_PERMISSION)",
            "QEMU: fault",
            "F_PERMISSION  iova 0x5000  by the emulated SMMU, region "
            "smmuv3-iommu-memory-region-8-0",
        ),
        (
            "smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x8",
            "QEMU: event forwarded",
            "F_TRANSLATION  sid 0x8  QEMU wrote the host's event to the guest's queue",
        ),
        (
            "smmuv3_record_event F_TRANSLATION sid=0x8",
            "QEMU: event recorded",
            "F_TRANSLATION  sid 0x8  the emulated SMMU wrote it to the guest's queue",
        ),
        (
            "smmuv3_write_gerror toggled=0x4, new GERROR=0x5",
            "QEMU: GERROR raised",
            gerror(4),
        ),
        (
            "smmuv3_write_gerrorn acked=0x4, new GERRORN=0x5",
            "QEMU: GERROR acknowledged",
            gerror(4),
        ),
        (
            "smmuv3_cmdq_consume_error Error on SMMU_CMD_SYNC command execution: 1",
            "QEMU: CMDQ error",
            "command SMMU_CMD_SYNC: CERROR_ILL",
        ),
        (
            "smmuv3_cmdq_consume_error Error on SMMU_CMD_SYNC command execution: 9",
            "QEMU: CMDQ error",
            "command SMMU_CMD_SYNC: ?",
        ),
        (
            "smmuv3_unhandled_cmd Unhandled command type=68",
            "QEMU: command ignored",
            "CMD_RESUME: the emulated SMMU does nothing for it",
        ),
        (
            "smmuv3_unhandled_cmd Unhandled command type=254",
            "QEMU: command ignored",
            "opcode 0xfe: the emulated SMMU does nothing for it",
        ),
        *(
            (
                "smmuv3_translate_abort smmuv3-iommu-memory-region-8-0 sid=0x8 abort on "
                f"iova:0x5000 is_write={write}",
                "QEMU: aborted",
                f"sid 0x8  {how}  iova 0x5000  the emulated SMMU aborted it without an event, "
                "region smmuv3-iommu-memory-region-8-0",
            )
            for write, how in enumerate(("read", "write"))
        ),
        (
            "tegra241_cmdqv_err_map hw irq received. error (hex) maps: 0000:0000:0002:8001",
            "QEMU: CMDQV error",
            "QEMU tells the guest of errors: LVCMDQ 0, 15, 17",
        ),
        (
            "tegra241_cmdqv_err_map maps: 0:0:0:1",
            "QEMU: CMDQV error",
            "QEMU tells the guest of errors: LVCMDQ 0",
        ),
        (
            "Invalid STE config for sid 0x42",
            "QEMU: invalid STE",
            "sid 0x42  the guest's stream table entry is not one QEMU can install",
        ),
        (
            "128 entries at 0x48000000, PROD 0x4, CONS 0x1",
            "event queue",
            "128 entries at 0x48000000, 3 of them wait to be read",
        ),
        (
            "128 entries at 0x48000000, PROD 0x1, CONS 0xff",
            "event queue",
            "128 entries at 0x48000000, 2 of them wait to be read",
        ),
        (
            "128 entries at 0x48000000, PROD 0x80, CONS 0x0",
            "event queue",
            "128 entries at 0x48000000, 128 of them wait to be read",
        ),
        (
            "128 entries at 0x48000000, PROD 0x80000003, CONS 0x1",
            "event queue",
            "128 entries at 0x48000000, 2 of them wait to be read; it has overflowed: "
            "events are lost",
        ),
        (
            "128 entries at 0x48000000, PROD 0xc0000003, CONS 0x80000001",
            "event queue",
            "128 entries at 0x48000000, 2 of them wait to be read",
        ),
        (
            "VINTF 3 LVCMDQ 1: 0x0001000000000011 0x0000000000000000",
            "command",
            "VINTF 3 LVCMDQ 1: CMD_TLBI_NH_ASID  vmid 0x0  asid 0x1",
        ),
        (
            "VINTF 3 LVCMDQ 1: 0x0000000000000012 0x0000000012345000",
            "command",
            "VINTF 3 LVCMDQ 1: " + describe((0x12, 0x12345000)),
        ),
    ],
)
def test_other_messages_are_found_anywhere_in_a_line(line: str, name: str, said: str) -> None:
    for text in (line, f"before it: {line}"):
        assert explain(ANYWHERE, text, start=False) == Meaning(name, said)


@pytest.mark.parametrize("after", ["`", " (see above)", "</code>, then more", '"}'])
def test_what_follows_qemus_words_on_a_line_is_none_of_them(after: str) -> None:
    for said in ("lost 3 event(s)", "overflowed", "short read(12/40 bytes)", "read failed (No)"):
        warning = f"qemu: warning: vEVENTQ(type 1 id 5): {said}"
        meaning = explain(ANYWHERE, warning, start=False)
        assert isinstance(meaning, Meaning)
        assert explain(ANYWHERE, f"{warning}{after}", start=False) == meaning


@pytest.mark.parametrize(
    "line",
    [
        "qemu: warning: vEVENTQ(type 1 id 5): lost 3 events",
        "qemu: warning: vEVENTQ(type 1 id 5): read failed (Bad addr",
        "qemu: warning: veventq(type 1 id 5): overflowed",
    ],
)
def test_a_warning_that_is_cut_or_changed_is_not_understood(line: str) -> None:
    assert explain(ANYWHERE, line, start=False) is False


def test_maps_that_are_damaged_name_no_queue() -> None:
    for maps in ("0000::0001", "0000:0000:", ":"):
        said = f"unexpected error reported. vintf_map: 0000000000000002, vcmdq_map {maps}"
        assert explain(OF_DEVICE, said) is False
        assert explain(ANYWHERE, f"tegra241_cmdqv_err_map maps: {maps}", start=False) is True


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        (
            "Unhandled context fault: fsr=0x402, iova=0x5000 ",
            "SMMUv2 fault",
            "fsr=0x402, iova=0x5000; this is an SMMUv2, whose faults have no event records: see "
            "FSR and FSYNR in Arm IHI 0062",
        ),
        (
            "Blocked unknown Stream ID 0x42; boot",
            "SMMUv2 fault",
            "Blocked unknown Stream ID 0x42;; this is an SMMUv2: see GFSR in Arm IHI 0062",
        ),
        ("FSR    = 00000402 ", "SMMUv2 registers", "FSR    = 00000402; of an SMMUv2"),
    ],
)
def test_messages_of_smmuv2s_driver(body: str, name: str, said: str) -> None:
    assert explain(OF_SMMUV2, body) == Meaning(name, said)
    assert explain(OF_SMMUV2, "anything else") is True


def test_a_greeting_tells_of_nothing_and_a_riddle_is_none() -> None:
    assert explain(OF_DEVICE, "ias 48-bit, oas 48-bit (features 0x1fff)") is True
    assert explain(OF_DEVICE, "something new") is False
    assert explain(OF_DEVICE, "an EVTQ overflow detected") is False, "it does not begin so"
    assert explain(OF_DEVICE, "an EVTQ overflow detected", start=False)
    assert explain(ANYWHERE, "smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC", start=False) is True


def test_a_device_is_found_with_its_text() -> None:
    found = messages.DEVICE.search("[ 1.0] arm-smmu-v3 arm-smmu-v3.0.auto: " + "x" * 601)
    assert found is not None
    assert (found["driver"], found["smmu"]) == ("arm-smmu-v3", "arm-smmu-v3.0.auto")
    assert found["body"] == "x" * 600
    acpi = messages.DEVICE.search("acpi NVDA200C:00: VINTF0: enabled")
    assert acpi is not None
    assert (acpi["smmu"], acpi["body"]) == ("NVDA200C:00", "VINTF0: enabled")


def test_the_rest_of_a_name_that_was_cut_is_no_device() -> None:
    assert messages.DEVICE.search("arm-smmu-v3 arm-smmu -v3.0.auto: event") is None
