"""Connections, keys, leases and devices of a real host over SSH behave well when things fail."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from harness.devices import kind
from harness.errors import LabError
from harness.host import pci
from harness.host.answer import ask
from harness.host.connection import CommandFailedError, Connection, LinkLostError
from harness.host.host import IORT, Host, HostDescription
from harness.host.session import ReservedError, Session
from harness.host.target import Target
from harness.waiting import wait_for

pytestmark = pytest.mark.lab

#: Ends sshd's process of the connection, and only then the shell's parent, of whose end that
#: process would tell.
KILL_THE_LINK = "kill -9 $(ps -o ppid= -p $PPID) $PPID"


@pytest.fixture
def target(host_description: HostDescription) -> Target:
    return host_description.target


@pytest.fixture
def connection(target: Target) -> Iterator[Connection]:
    with Connection.to(target) as link:
        yield link


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    running = Session.start(connection)
    try:
        yield running
    finally:
        running.end()


def refused(target: Target) -> str:
    with pytest.raises(LabError) as caught, Connection.to(target):
        pass
    assert caught.value.fix
    return str(caught.value)


# -- connecting --------------------------------------------------------------------------------


def test_unknown_host_key_is_refused_with_the_line_to_add(target: Target, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.touch()
    said = refused(dataclasses.replace(target, known_hosts=empty))
    assert "add this line" in said
    line = said.rpartition("add this line: ")[2]
    empty.write_text(line + "\n")
    with Connection.to(dataclasses.replace(target, known_hosts=empty)) as link:
        assert link.run("true").status == 0


def test_changed_host_key_is_refused(target: Target, tmp_path: Path) -> None:
    # The user's own key serves as a host key that is not the right one.
    assert target.key
    ours = paramiko.PKey.from_path(target.key)
    changed = tmp_path / "known_hosts"
    changed.write_text(f"{target.known_as} {ours.get_name()} {ours.get_base64()}\n")
    said = refused(dataclasses.replace(target, known_hosts=changed))
    assert "shows another key" in said
    assert "ssh-keygen" in said


def test_wrong_user_key_is_refused(target: Target, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    assert "refuses user root" in refused(dataclasses.replace(target, key=key))


def test_a_key_that_is_none_is_named(target: Target, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("not a key\n")
    assert f"{key} is not a usable private key" in refused(dataclasses.replace(target, key=key))


def test_missing_key_file_is_named(target: Target) -> None:
    assert "/no/key" in refused(dataclasses.replace(target, key=Path("/no/key")))


def test_unreachable_host_is_told(target: Target) -> None:
    said = refused(dataclasses.replace(target, port=1))
    # Another port is another name in known_hosts, but the connection fails before any key is sent.
    assert "not reachable" in said


# -- commands ----------------------------------------------------------------------------------


def test_commands_are_exact(connection: Connection) -> None:
    data = bytes(range(256)) * 2000
    assert connection.run("cat", stdin=data).stdout == data
    done = connection.run("echo out; echo err >&2; exit 5", check=False)
    assert (done.status, done.stdout, done.stderr) == (5, b"out\n", b"err\n")
    with pytest.raises(CommandFailedError, match="status 5: why"):
        connection.run("echo why >&2; exit 5")


def test_a_deadline_holds_on_the_host_too(connection: Connection) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailedError, match="did not end within 1 s"):
        connection.run("exec sleep 987", timeout=1)
    assert time.monotonic() - started < 6
    assert connection.run("pgrep -f 'sleep 98[7]'", check=False).status == 1


def test_files_are_replaced_whole(connection: Connection) -> None:
    connection.write_file("/tmp/file", b"one", mode=0o600)
    connection.write_file("/tmp/file", b"second")
    assert connection.read_file("/tmp/file", offset=3) == b"ond"
    assert connection.run("stat -c %a /tmp/file; ls /tmp/file*").text.split() == [
        "644",
        "/tmp/file",
    ]


def test_a_lost_link_is_an_error_once_then_comes_back(connection: Connection) -> None:
    with pytest.raises(LinkLostError):
        connection.run(KILL_THE_LINK)
    assert connection.run("echo back").text == "back\n"


def test_no_listener_is_told(connection: Connection) -> None:
    with pytest.raises(LabError, match="no connection to /run/nobody"):
        connection.unix_socket("/run/nobody")


# -- sessions ----------------------------------------------------------------------------------


def test_processes_survive_a_reconnect(connection: Connection, session: Session) -> None:
    session.spawn("p", ["sleep", "600"], log=f"{session.folder}/log")
    with pytest.raises(LinkLostError):
        connection.run(KILL_THE_LINK)
    assert session.processes() == {"p": None}


def test_a_second_session_is_refused(session: Session, target: Target) -> None:
    with Connection.to(target) as other, pytest.raises(ReservedError, match=session.name):
        Session.start(other)
    there = set(session.connection.run("ls /run/hil").text.split())
    assert there - {"probed"} == {session.name, "lock", "undos"}


def test_a_session_whose_harness_is_gone_ends_by_itself(
    connection: Connection, target: Target
) -> None:
    session = Session.start(connection, lease=2.0)
    bdf = "0000:0b:00.0"
    before = pci.describe(session, [bdf])[bdf].driver
    pci.assign(session, [bdf])
    pid = session.spawn("p", ["sleep", "600"], log=f"{session.folder}/log")
    session.abandon()  # as if the harness was killed: the lease is no longer renewed
    wait_for(
        "the lease to run out",
        lambda: connection.run(["test", "-e", session.folder], check=False).status == 1,
        deadline=15,
        interval=0.5,
    )
    assert connection.run(["test", "-e", f"/proc/{pid}"], check=False).status == 1
    now = Session.start(connection)
    try:
        assert pci.describe(now, [bdf])[bdf].driver == before == "nvme"
    finally:
        now.end()


# -- programs ----------------------------------------------------------------------------------


def mount_option(connection: Connection, option: str) -> None:
    """Change an option of the mounts that a session may put programs on."""
    for place in ("/tmp", "/var/tmp", "/root"):
        connection.run(["mount", "-o", f"remount,{option}", place])


def test_programs_can_be_run_from_their_folder(connection: Connection) -> None:
    """The host does not allow it in /run, where all other files of a session are."""
    session = Session.start(connection)
    program = f"{session.programs()}/program"
    connection.write_file(program, b"#!/bin/sh\necho ran\n", mode=0o755)
    assert connection.run([program]).text == "ran\n"
    assert session.programs() == str(Path(program).parent)
    session.end()
    left = connection.run("ls -d /run/hil/* /tmp/hil-*", check=False).text
    assert set(left.split()) - {"/run/hil/probed"} == {"/run/hil/lock", "/run/hil/undos"}


def test_a_host_that_runs_no_programs_is_told(session: Session) -> None:
    mount_option(session.connection, "noexec")
    try:
        with pytest.raises(LabError, match=r"no folder of .* allows to run programs") as caught:
            session.programs()
    finally:
        mount_option(session.connection, "exec")
    assert caught.value.message.count("Permission denied") == 4
    assert "host:PATH" in str(caught.value)
    left = session.connection.run("ls -d /run/hil/*/programs /*/hil-* /var/tmp/hil-*", check=False)
    assert left.text == ""


# -- devices -----------------------------------------------------------------------------------


def test_assignment_is_idempotent_and_undone(session: Session) -> None:
    bdfs = ["0000:09:00.0", "0000:0b:00.0"]
    before = pci.describe(session, bdfs)
    for _ in range(2):
        pci.assign(session, bdfs)
        drivers = {device.driver for device in pci.describe(session, bdfs).values()}
        assert drivers == {"vfio-pci"}
    pci.release(session, bdfs)
    assert pci.describe(session, bdfs) == before


def test_a_device_is_held_while_it_is_as_it_was_assigned(session: Session) -> None:
    bdfs = ["0000:09:00.0", "0000:0b:00.0"]
    assert pci.held(session, bdfs) == []
    pci.assign(session, bdfs)
    assert pci.held(session, bdfs) == bdfs
    session.connection.run(f"echo {bdfs[0]} >{pci.SYSFS}/{bdfs[0]}/driver/unbind")
    assert pci.held(session, bdfs) == bdfs[1:]
    pci.release(session, bdfs)
    assert pci.held(session, bdfs) == []


def test_an_absent_device_is_named(session: Session) -> None:
    with pytest.raises(LabError, match=r"no PCI device 0000:7f:00\.0"):
        pci.assign(session, ["0000:7f:00.0"])


def test_a_busy_device_is_left_alone(session: Session) -> None:
    bdf = "0000:09:00.0"
    pci.assign(session, [bdf])
    hold = f"exec 3<>/dev/vfio/devices/$(ls /sys/bus/pci/devices/{bdf}/vfio-dev); exec sleep 600"
    pid = session.spawn("holder", ["sh", "-c", hold], log=f"{session.folder}/log")
    wait_for(
        "the holder to hold it",
        lambda: "vfio" in session.connection.run(f"ls -l /proc/{pid}/fd/3", check=False).text,
        deadline=10,
    )
    with pytest.raises(LabError, match=rf"{bdf} is in use: held by process {pid}"):
        pci.assign(session, ["0000:0b:00.0", bdf])
    assert pci.describe(session, ["0000:0b:00.0"])["0000:0b:00.0"].driver == "nvme"


# -- software ----------------------------------------------------------------------------------


def opened(described: HostDescription) -> str:
    with pytest.raises(LabError) as caught, Host.open(described):
        pass
    assert caught.value.fix
    return str(caught.value)


def test_missing_qemu_is_told(host_description: HostDescription) -> None:
    files = dataclasses.replace(host_description.files, qemu="/opt/none/qemu")
    said = opened(dataclasses.replace(host_description, files=files))
    assert "no working QEMU at /opt/none/qemu" in said


def test_old_qemu_is_told(host_description: HostDescription, connection: Connection) -> None:
    old = b"#!/bin/sh\necho 'QEMU emulator version 7.2.18 (Debian 1:7.2)'\n"
    connection.write_file("/tmp/old-qemu", old, mode=0o755)
    files = dataclasses.replace(host_description.files, qemu="/tmp/old-qemu")
    said = opened(dataclasses.replace(host_description, files=files))
    assert "7.2.18" in said
    assert "11.1 or newer" in said


def test_missing_guest_kernel_is_told(host_description: HostDescription) -> None:
    files = dataclasses.replace(host_description.files, guest_kernel="/none/Image")
    assert "/none/Image" in opened(dataclasses.replace(host_description, files=files))


def test_a_wrong_role_is_told(host_description: HostDescription) -> None:
    devices = {"0000:09:00.0": kind("nvme")}
    said = opened(dataclasses.replace(host_description, devices=devices))
    assert "0000:09:00.0 is 1234:11e8, not a device of the role nvme" in said


# -- StreamIDs ---------------------------------------------------------------------------------


def test_stream_ids_are_read_from_the_hosts_tables(host_description: HostDescription) -> None:
    """Each device has a StreamID of its own. One that no SMMU translates for has none."""
    with Host.open(host_description) as host:
        found = {host.stream_id(bdf) for bdf in host.devices}
        assert len(found) == len(host.devices)
        host.devices |= pci.describe(host.session, ["0000:00:00.0"])
        with pytest.raises(LabError, match=r"0000:00:00\.0 has no StreamID: .*not to an SMMUv3"):
            host.stream_id("0000:00:00.0")


@pytest.fixture
def without_tables(connection: Connection) -> Iterator[None]:
    """Hide the ACPI tables of the host."""
    connection.run(f"mount -t tmpfs none {Path(IORT).parent}")
    yield
    connection.run(f"umount {Path(IORT).parent}")


@pytest.mark.usefixtures("without_tables")
def test_a_host_without_an_iort_is_told(host_description: HostDescription) -> None:
    said = opened(host_description)
    assert f"no readable {IORT}" in said
    assert "with ACPI" in said


# -- status ------------------------------------------------------------------------------------


def test_a_host_tells_who_has_it(target: Target, host_description: HostDescription) -> None:
    """`hil lab status` asks so."""
    free = ask(target, host_description.files.qemu)
    assert (free.held, free.holder) == (False, None)
    with Connection.to(target) as link:
        session = Session.start(link)
        try:
            held = ask(target, host_description.files.qemu)
            release = link.run("uname -r").text.strip()
        finally:
            session.end()
    assert held.holder
    assert held.holder.pid == os.getpid()
    assert held.kernel == release
    assert held.qemu[0].isdigit()
    assert "/run" in {disk.mounted for disk in held.disks}
