"""The virtual host is described as planned: its IORT, its devices, its command line."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.artifacts.store import Store
from harness.devices import igb, kind, kinds
from harness.devices.kind import DeviceKind, PciClass
from harness.errors import HarnessError, LabError
from harness.guest.description import (
    FIRST_BUS,
    GuestSpec,
    SmmuSpec,
    place,
)
from harness.host.ability import ANY
from harness.host.pci import PciDevice
from harness.lab.inventory import CmdqvEntry, HostEntry, Virtual
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.smmu.iort import stream_id
from harness.virtual.acpi import HostBridge, iort, mcfg, override_cpio, segments_ssdt
from harness.virtual.console import ConsoleLog
from harness.virtual.machine import VirtualMachine
from harness.virtual.qtest import Qtest
from harness.virtual.running import ProcessId, Running
from harness.virtual.silicon.registers import Parameters
from harness.virtual.sockets import connect, free_port, listening
from harness.virtual.topology import Topology, VirtualDevice
from harness.virtual.unsaved import config_address


def nodes(table: bytes) -> list[tuple[int, bytes]]:
    """Return the type and the bytes of each node of an IORT."""
    count, offset = struct.unpack_from("<II", table, 36)
    out = []
    for _ in range(count):
        kind, length = struct.unpack_from("<BH", table, offset)
        out.append((kind, table[offset : offset + length]))
        offset += length
    assert offset == len(table)
    return out


@given(st.integers(1, 4))
def test_iort_maps_every_stream_once(smmus: int) -> None:
    topology = Topology(smmus=smmus)
    table = iort(topology.smmu_nodes())
    assert sum(table) & 0xFF == 0, "checksum"
    assert struct.unpack_from("<I", table, 4) == (len(table),)
    kinds = [kind for kind, _ in nodes(table)]
    assert kinds == [0, *[4] * smmus, 2]
    complex_node = nodes(table)[-1][1]
    assert complex_node[16 + 7] & 4, "CANWBS"
    count, offset = struct.unpack_from("<II", complex_node, 8)
    maps = [struct.unpack_from("<5I", complex_node, offset + 20 * n) for n in range(count)]
    covered = [sid for first, extra, *_ in maps for sid in range(first, first + extra + 1)]
    assert covered == list(range(0x10000))
    behind_smmu = [m for m in maps if table[m[3]] == 4]
    assert [m[0] >> 8 for m in behind_smmu] == [node.buses.start for node in topology.smmu_nodes()]


@given(st.integers(1, 4))
def test_an_smmu_can_have_a_segment_of_its_own(smmus: int) -> None:
    """The host finds each device in its SMMU's segment. Its configuration space and its StreamID
    are those of its address in the emulator."""
    topology = Topology(smmus=smmus, segments=True)
    table = mcfg(0x1_0000_0000, topology.smmu_nodes())
    assert sum(table) & 0xFF == 0, "checksum"
    entries = list(struct.iter_unpack("<QHBB4x", table[44:]))
    last_buses = {segment: last for _, segment, first, last in entries if first == 0}
    assert last_buses == {0: 255, **{1 + smmu: 6 for smmu in range(smmus)}}
    bases = {segment: base for base, segment, *_ in entries}
    for device in topology.devices():
        here, emulated = (PciDevice(bdf, 0, 0, 0, None, None) for bdf in addresses(device))
        assert (here.segment, emulated.segment) == (1 + device.smmu, 0)
        found = stream_id(iort(topology.smmu_nodes()), here.segment, here.requester_id)
        assert found == emulated.requester_id != here.requester_id
        assert bases[here.segment] + (here.requester_id << 12) == bases[0] + (found << 12)
        assert found in topology.smmu_nodes()[device.smmu].requester_ids


def addresses(device: VirtualDevice) -> tuple[str, str]:
    return device.bdf, device.emulated_bdf


def test_without_segments_addresses_are_the_emulators() -> None:
    assert all(device.bdf == device.emulated_bdf for device in Topology().devices())
    assert b"mcfg.aml" not in Topology().acpi_cpio()
    assert b"ssdt-segments.aml" not in Topology().acpi_cpio()


def test_a_segments_host_bridges_replace_the_emulators() -> None:
    topology = Topology(smmus=2, roles=("nvme", "igb"), segments=True)
    table = topology.acpi_cpio().partition(b"ssdt-segments.aml\0")[2]
    assert b"mcfg.aml" in topology.acpi_cpio()
    hidden = [scope[:8] for scope in table.split(b"\\._SB_")[1:]]
    assert hidden == [b"PC08\x08_ST", b"PC10\x08_ST"]
    for name, port in (("B100", "08:00"), ("B101", "08:01"), ("B200", "10:00"), ("B201", "10:01")):
        _, _, device = table.partition(name.encode())
        assert config_address(f"0000:{port}.0").to_bytes(8, "little") in device[:400]


def test_the_ssdt_of_segments_is_one() -> None:
    table = segments_ssdt([8], [HostBridge(1, 0, 0x40_1080_0000)])
    assert table[:4] == b"SSDT"
    assert int.from_bytes(table[4:8], "little") == len(table)
    assert sum(table) % 256 == 0


def test_override_archive_is_uncompressed_newc_with_the_right_names() -> None:
    archive = override_cpio({"iort": b"table"})
    assert archive.startswith(b"070701")
    assert b"kernel/firmware/acpi/iort.aml\0" in archive
    assert archive.rstrip(b"\0").endswith(b"TRAILER!!!")
    assert len(archive) % 4 == 0


def test_devices_are_behind_their_smmu() -> None:
    topology = Topology(smmus=2)
    emulated = [kind.role for kind in kinds().values() if kind.emulation]
    for index, node in enumerate(topology.smmu_nodes()):
        mine = [device for device in topology.devices() if device.smmu == index]
        assert [device.kind.role for device in mine] == emulated
        assert all(int(device.bdf[5:7], 16) in node.buses for device in mine)


def test_devices_are_those_that_are_listed() -> None:
    devices = Topology(smmus=2, roles=("nvme", "igb", "nvme")).devices()
    assert [device.id for device in devices] == [
        *("nvme0.0", "igb0.0", "nvme0.1"),
        *("nvme1.0", "igb1.0", "nvme1.1"),
    ]
    assert [device.bdf[5:] for device in devices[:3]] == ["09:00.0", "0a:00.0", "0b:00.0"]


@pytest.mark.parametrize(
    ("roles", "said"),
    [(("igb",) * 8, "8 devices do not fit"), (("ghost",), "QEMU cannot emulate .* ghost")],
)
def test_devices_that_are_impossible_are_refused(
    monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...], said: str
) -> None:
    ghost = DeviceKind("ghost", PciClass(0))
    monkeypatch.setattr("harness.virtual.topology.kind", {"igb": igb.KIND, "ghost": ghost}.get)
    with pytest.raises(HarnessError, match=said):
        Topology(roles=roles).devices()


def test_every_nvme_has_a_drive() -> None:
    """Every NVMe has a drive, because the lab's QEMU crashes when it saves one without."""
    disks = {device.id: Path(f"/{device.id}") for device in Topology().devices()}
    line = " ".join(Topology().arguments(Path("/tree"), disks, Path("/none")))
    assert line.count("nvme,") == line.count(",drive=drive.nvme") == 2


def test_config_addresses() -> None:
    assert config_address("0000:09:00.0") == 0x40_1090_0000
    assert config_address("0000:01:1f.7") == 0x40_101F_F000


def test_guest_buses_are_never_the_hosts() -> None:
    host_buses = {bus for node in Topology(smmus=2).smmu_nodes() for bus in node.buses}
    guest = GuestSpec(smmus=(SmmuSpec(devices=(ANY, ANY)), SmmuSpec(devices=(ANY,))))
    devices = place(guest, [["a", "b"], ["c"]], dict.fromkeys("abc", kind("edu")))
    assert [device.guest_bdf for device in devices] == [
        "0000:21:00.0",
        "0000:22:00.0",
        "0000:31:00.0",
    ]
    assert [device.vsid for device in devices] == [0x2100, 0x2200, 0x3100]
    assert FIRST_BUS not in host_buses
    assert not {device.guest_bus for device in devices} & host_buses


def test_a_boot_does_not_wait_for_drivers_that_are_slow() -> None:
    assert "driver_async_probe=igb" in Topology().kernel_options().split()


def test_a_host_with_a_cmdqv_shares_its_memory_with_the_model() -> None:
    topology = Topology(smmus=1, cmdqv=Parameters())
    disks = {device.id: Path(f"/{device.id}") for device in topology.devices()}
    options = " ".join(topology.arguments(Path("/tree"), disks, Path("/model.sock")))
    assert ",memory-backend=memory " in options
    assert "memory-backend-memfd,id=memory,size=3072M,share=on" in options
    assert '"path": "/model.sock"' in options
    assert "arm_smmu_v3.bypass_vcmdq=1" in topology.kernel_options().split()
    assert "bypass_vcmdq" not in Topology().kernel_options()
    assert b"ssdt-cmdqv.aml" in topology.acpi_cpio()
    assert b"ssdt" not in Topology().acpi_cpio()


def test_a_hosts_port_is_no_outgoing_connections() -> None:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = {free_port() for _ in range(5)}
    assert all(not int(first) <= port <= int(last) for port in ports)
    # Each call returns another port, so that two hosts that boot at once do not choose the same.
    assert len(ports) == 5


def test_a_host_gets_its_last_port_again_unless_somebody_else_has_it() -> None:
    port = free_port()
    assert free_port(port) == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        assert free_port(port) != port


def test_a_port_whose_last_connection_has_just_been_closed_is_free() -> None:
    """For a minute its end is kept (TIME_WAIT), as that of a host which was taken down."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _address = server.accept()
            accepted.close()
            assert client.recv(1) == b""
        # Somebody else listens.
        assert free_port(port) != port
    assert free_port(port) == port


def test_a_qtest_socket_that_is_closed_is_the_labs_failure(tmp_path: Path) -> None:
    with listening(tmp_path / "qtest.sock") as server:
        with Qtest.on(tmp_path / "qtest.sock") as qtest:
            accepted, _address = server.accept()
            accepted.close()
            with pytest.raises(LabError, match="qtest readl 0x0: "):
                qtest.readl(0)
        with Qtest.on(tmp_path / "qtest.sock") as qtest:
            accepted, _address = server.accept()
            with accepted:
                accepted.sendall(b"OK 0x1\n")
                accepted.shutdown(socket.SHUT_WR)
                with pytest.raises(LabError, match=r"qtest writel 0x4 0x2: no answer"):
                    qtest.at_once("readl 0x0", "writel 0x4 0x2")


def test_sockets_may_be_in_a_deep_folder(tmp_path: Path) -> None:
    """The path of a Unix socket has 107 bytes at most."""
    folder = tmp_path / ("f" * 120) / ("g" * 120)
    folder.mkdir(parents=True)
    for _ in range(2):
        with listening(folder / "qmp.sock") as server, socket.socket(socket.AF_UNIX) as client:
            connect(client, folder / "qmp.sock")
            accepted, _address = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        connect(client, folder / "none.sock")
    with pytest.raises(LabError, match="no qtest socket"), Qtest.on(folder / "none.sock"):
        pass


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("cmdqv", [None, CmdqvEntry()])
def test_a_plain_host_is_described_as_bare_metal_is(
    tmp_path: Path, plain: bool, cmdqv: CmdqvEntry | None
) -> None:
    """Without snapshots, without commands to the model, and with no capability but probed ones."""
    entry = HostEntry(name="one", virtual=Virtual(cmdqv=cmdqv, plain=plain))
    vm = machine(entry, Store(tmp_path), Progress(enabled=False))
    assert vm
    me = ProcessId.mine()
    described = describe_virtual(entry, vm, Running(me, me, None, 2222, 0.0, True, ""))
    assert (described.snapshots is None) == plain
    assert (described.silicon is None) == bool(plain or not cmdqv)
    assert ("cmdqv-model" in described.capabilities) == bool(cmdqv and not plain)
    assert not (plain and described.capabilities)
    assert described.stay_up is None, "it stays up anyway"
    owned = describe_virtual(entry, vm, Running(me, me, me, 2222, 0.0, True, ""))
    assert owned.stay_up is not None
    assert described.console is not None, "bare metal has a console as well"


def test_consoles_of_earlier_boots_are_kept(tmp_path: Path) -> None:
    """The last words of the boot that died are there after the next one, and the oldest go."""
    console = ConsoleLog(tmp_path / "console.log")
    assert (console.text(), console.last_boot()) == ("", "")
    for boot in range(6):
        console.begin_boot()
        assert console.text() == ""
        assert console.last_boot() == (f"boot {boot - 1}\n" if boot else "")
        console.path.write_text(f"boot {boot}\n")
    console.note("snapshot clean is restored")
    assert console.text() == "boot 5\nhil: snapshot clean is restored\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "console.log": console.text(),
        "console.1.log": "boot 4\n",
        "console.2.log": "boot 3\n",
        "console.3.log": "boot 2\n",
    }


def test_what_would_not_wake_up_is_not_saved(tmp_path: Path) -> None:
    vm = VirtualMachine("plain", Topology(), Store(tmp_path), Progress(), snapshots=False)
    with pytest.raises(HarnessError, match="plain has no snapshots"):
        vm.save("clean", "")
