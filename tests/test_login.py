"""Logging in to a host, against a real sshd: what known_hosts says, host certificates, keys,
passphrases, the ssh-agent, jump hosts and ssh_config. Where ssh(1) has an opinion, it has the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from harness.errors import LabError
from harness.host import identity
from harness.host.connection import Connection, LinkLostError
from harness.host.target import Target
from harness.lab import inventory
from harness.lab.login import login
from tests.sshd import Sshd, make_key, public, run_here, ssh_agent, sshd, wire

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def target(server: Sshd, tmp_path: Path) -> Target:
    """Return where the server is, with files of the test's own."""
    key, known = tmp_path / "id", tmp_path / "known hosts"
    for suffix in ("", ".pub"):
        source = server.key.with_name(f"id{suffix}")
        key.with_name(f"id{suffix}").write_bytes(source.read_bytes())
    key.chmod(0o600)
    found = dataclasses.replace(server.target, key=key, known_hosts=known)
    known.write_text(f"{found.known_as} {public(server.host_key)}\n")
    return found


def enters(target: Target) -> str:
    """Log in and return "", or else what the error says. It always says what to do."""
    said = ""
    try:
        with Connection.to(target) as link:
            assert link.run("echo here").text == "here\n"
    except LabError as problem:
        said = str(problem)
    assert ("\n  fix: " in said) == bool(said)
    return said


def ssh_enters(target: Target) -> bool:
    """Return whether the command that a person is shown logs in."""
    done = run_here(target.command_line("echo here"))
    assert done.returncode in (0, 255), done.stderr
    return done.stdout == "here\n"


def known(target: Target, *lines: str | bytes) -> None:
    """Write known_hosts; NAME, PORT and KEY stand for the server's name, its port, and its key."""
    with target.known_hosts.open("wb") as file:
        for line in lines:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


# -- known_hosts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a key that is nobody's."""
    return public(make_key(tmp_path_factory.mktemp("other") / "key"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param(["NAME KEY"], "", id="plain"),
        pytest.param(["NAME KEY a comment"], "", id="comment"),
        pytest.param(["NAME OTHER", "NAME KEY"], "", id="one-of-two"),
        pytest.param(["127.0.0.1 KEY"], "", id="known-without-port"),
        pytest.param(["127.0.0.1 KEY", "NAME OTHER"], "shows another key", id="port-counts-more"),
        pytest.param(["[127.0.?.*]:PORT KEY"], "", id="wildcards"),
        pytest.param(["*,!NAME,!127.0.0.1 KEY"], "is not in", id="all-others"),
        pytest.param(["NAME OTHER"], "shows another key", id="changed"),
        pytest.param([], "is not in", id="empty"),
        pytest.param(["host KEY"], "is not in", id="another-name"),
        pytest.param(["NAME KEY", "@revoked * KEY"], "which is revoked", id="revoked"),
        pytest.param(["NAME KEY", "@revoked host KEY"], "", id="revoked-elsewhere"),
        pytest.param(["NAME KEY", "@revoked * OTHER"], "", id="another-revoked"),
        pytest.param(["@cert-authority * OTHER", "NAME KEY"], "", id="plain-beside-a-ca"),
        pytest.param(["@cert-authority * KEY"], "is not in", id="a-ca-is-no-host"),
        pytest.param([b"# B\xe4r", b"x \xff\xfe", "NAME KEY"], "", id="not-utf-8"),
        pytest.param(["garbage", "NAME ssh-ed25519 %%", "NAME KEY"], "", id="odd-lines"),
        pytest.param(["NAME ssh-dss AAAAB3NzaC1kc3M=", "NAME KEY"], "", id="old-type"),
    ],
)
def test_a_host_is_known_to_the_harness_as_it_is_to_ssh(
    server: Sshd, target: Target, other: str, lines: list[str | bytes], said: str
) -> None:
    def filled(line: str | bytes) -> str | bytes:
        if isinstance(line, bytes):
            return line
        line = line.replace("KEY", public(server.host_key)).replace("OTHER", other)
        return line.replace("NAME", target.known_as).replace("PORT", str(target.port))

    known(target, *map(filled, lines))
    answer = enters(target)
    assert said in answer
    assert bool(said) == bool(answer)
    assert ssh_enters(target) == (not said)


def test_hashed_names_are_known(target: Target) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(target.known_hosts)], check=True, capture_output=True
    )
    assert "127.0.0.1" not in target.known_hosts.read_text()
    assert enters(target) == ""
    assert ssh_enters(target)


def test_an_unknown_host_is_told_with_the_line_to_add(target: Target) -> None:
    known(target, "nonsense")
    said = enters(target)
    assert "not a line of known_hosts: 1" in said
    known(target, said.rpartition("add this line: ")[2])
    assert enters(target) == ""


def test_a_changed_key_is_told_with_the_command_that_removes_the_old_one(
    target: Target, other: str
) -> None:
    known(target, f"{target.known_as} {other}")
    command = enters(target).partition("remove the old key with `")[2].partition("`")[0]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert "is not in" in enters(target)


def test_a_broken_line_that_revokes_is_an_error(target: Target) -> None:
    known(target, target.known_hosts.read_text(), "@revoked * ssh-ed25519 AAAA")
    assert f"{target.known_hosts}:3: a line that revokes a key cannot be read" in enters(target)


@pytest.mark.parametrize("field", ["key", "known_hosts"])
def test_files_that_cannot_be_read_are_named(target: Target, tmp_path: Path, field: str) -> None:
    absent = dataclasses.replace(target, **{field: Path("/no/file")})  # type: ignore[arg-type]
    assert f"{field} file /no/file does not exist" in enters(absent)
    folder = dataclasses.replace(target, **{field: tmp_path})  # type: ignore[arg-type]
    assert f"{field} file {tmp_path} cannot be read" in enters(folder)


# -- host certificates -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    make_key(folder / "rsa", kind="rsa")
    return make_key(folder / "ca")


def sign(authority: Path, key: Path, *options: str) -> None:
    """Make KEY-cert.pub, which is a host's unless the options say something else."""
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "id", *(options or ["-h"])]
    subprocess.run([*command, str(key.with_name(f"{key.name}.pub"))], check=True)


@contextlib.contextmanager
def certified(folder: Path, authority: Path, kind: str, *options: str) -> Iterator[Target]:
    """Yield a server that shows a certificate, and knows nothing of its plain key."""
    folder.mkdir()
    make_key(folder / "host_key", kind=kind)
    sign(authority, folder / "host_key", *options)
    with sshd(folder, f"HostCertificate {folder / 'host_key-cert.pub'}") as server:
        target = server.target
        known(target, f"@cert-authority 127.0.0.* {public(authority)}")
        yield target


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["-h", "-n", "127.0.0.1"], "", id="by-name"),
        pytest.param(["-h", "-n", "host,127.0.0.1"], "", id="one-of-two"),
        pytest.param(["-h"], "", id="any-host"),
        pytest.param(["-h", "-n", "127.*"], "it is for 127.* and not for", id="no-pattern"),
        pytest.param(["-h", "-n", "host"], "it is for host and not for 127.0.0.1", id="another"),
        pytest.param(["-h", "-V", "20200101:20210101"], "it expired on 20", id="expired"),
        pytest.param(["-h", "-V", "20990101:20990201"], "valid only from 20", id="not-yet"),
        pytest.param(["-h", "-V", "-1d:+1d"], "", id="today"),
    ],
)
def test_a_host_certificate_is_checked_as_ssh_checks_it(
    tmp_path: Path, authority: Path, options: list[str], said: str
) -> None:
    with certified(tmp_path / "sshd", authority, "ed25519", *options) as target:
        answer = enters(target)
        assert said in answer
        assert bool(said) == bool(answer)
        assert ssh_enters(target) == (not said)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_certificates_of_all_kinds_of_keys_are_known(
    tmp_path: Path, authority: Path, kind: str
) -> None:
    signer = authority.with_name("rsa")
    with certified(tmp_path / "sshd", signer, kind, "-h", "-t", "rsa-sha2-512") as target:
        assert enters(target) == ""
        assert ssh_enters(target)


def test_a_certificate_signed_with_sha_1_is_refused(tmp_path: Path, authority: Path) -> None:
    signer = authority.with_name("rsa")
    with certified(tmp_path / "sshd", signer, "ed25519", "-h", "-t", "ssh-rsa") as target:
        assert "it is signed with SHA-1" in enters(target)
        assert not ssh_enters(target)


def test_what_is_known_beside_a_certificate_counts(tmp_path: Path, authority: Path) -> None:
    with certified(tmp_path / "sshd", authority, "ed25519", "-h", "-n", "host") as target:
        plain = public(tmp_path / "sshd" / "host_key")
        ca = f"@cert-authority * {public(authority)}"
        unknown_ca = f"@cert-authority * {public(authority.with_name('rsa'))}"
        for lines, said in (
            ([f"{target.known_as} {plain}"], ""),
            ([ca, f"{target.known_as} {plain}"], ""),
            ([unknown_ca, f"{target.known_as} {plain}"], ""),
            ([unknown_ca], "is not in"),
            ([ca, f"{target.known_as} {plain}", f"@revoked * {plain}"], "which is revoked"),
            ([f"@revoked * {public(authority)}", ca], "which is revoked"),
        ):
            known(target, *lines)
            answer = enters(target)
            assert said in answer, lines
            assert bool(said) == bool(answer), lines
            assert ssh_enters(target) == (not said), lines


# -- keys --------------------------------------------------------------------------------------


def test_a_key_that_others_can_read_is_refused_with_the_command_that_helps(
    target: Target,
) -> None:
    assert target.key
    target.key.chmod(0o644)
    said = enters(target)
    assert f"others can read key file {target.key} (mode 0644)" in said
    assert not ssh_enters(target)
    subprocess.run(shlex.split(said.partition("run `")[2].partition("`")[0]), check=True)
    assert enters(target) == ""
    assert ssh_enters(target)


def test_what_is_no_key_is_told(target: Target) -> None:
    assert target.key
    for text in ("not a key\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"):
        target.key.write_text(text)
        assert f"{target.key} is not a usable private key" in enters(target)


def test_a_key_that_the_host_does_not_know_is_told(target: Target, tmp_path: Path) -> None:
    stranger = dataclasses.replace(target, key=make_key(tmp_path / "stranger"))
    assert f"refuses user {target.user} with key {tmp_path / 'stranger'}" in enters(stranger)
    assert not ssh_enters(stranger)


def test_a_users_certificate_beside_the_key_is_used(tmp_path: Path, authority: Path) -> None:
    trusted = f"TrustedUserCAKeys {authority.with_name('ca.pub')}"
    with sshd(tmp_path / "sshd", trusted) as server:
        key = make_key(tmp_path / "id")
        sign(authority, key, "-n", server.user)
        target = dataclasses.replace(server.target, key=key)
        assert enters(target) == ""
        assert ssh_enters(target)


def test_a_host_that_wants_more_than_a_key_is_told(tmp_path: Path) -> None:
    wanted = ("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    with sshd(tmp_path / "sshd", *wanted) as server:
        assert "wants more of user" in enters(server.target)


# -- passphrases -------------------------------------------------------------------------------


@pytest.fixture
def locked(target: Target) -> Target:
    """Return the target with a key that has the passphrase `open sesame`."""
    lock = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(target.key)]
    subprocess.run(lock, check=True, capture_output=True)
    return target


def test_a_passphrase_is_read_from_a_file(locked: Target, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    target = dataclasses.replace(locked, passphrase_file=file)
    assert f"passphrase_file file {file} does not exist" in enters(target)
    file.write_text("open sesame\n")
    file.chmod(0o640)
    assert f"others can read passphrase_file file {file}" in enters(target)
    file.chmod(0o600)
    assert enters(target) == ""
    file.write_text("open barley\n")
    assert f"cannot be read with the passphrase of file {file}" in enters(target)


def test_a_passphrase_is_read_from_the_environment(
    locked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = dataclasses.replace(locked, passphrase_env="HIL_TEST_PASSPHRASE")
    assert "the environment has no variable HIL_TEST_PASSPHRASE" in enters(target)
    monkeypatch.setenv("HIL_TEST_PASSPHRASE", "open sesame")
    assert enters(target) == ""
    monkeypatch.setenv("HIL_TEST_PASSPHRASE", "")
    assert "of environment variable HIL_TEST_PASSPHRASE" in enters(target)


PROGRAM = """
import sys
from pathlib import Path
from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.target import Target
address, port, user, key, known_hosts = sys.argv[1:]
for _ in range(2):
    try:
        with Connection.to(Target(address, int(port), user, Path(key), Path(known_hosts))) as link:
            print(link.run("echo here").text, flush=True)
    except LabError as problem:
        print(problem, flush=True)
"""


def program(target: Target) -> list[str]:
    """Return a command line that logs in twice."""
    fields = target.address, target.port, target.user, target.key, target.known_hosts
    return [sys.executable, "-c", PROGRAM, *map(str, fields)]


def test_a_passphrase_is_asked_for_once_on_a_terminal(locked: Target) -> None:
    argv = program(locked)
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(ROOT), timeout=20, encoding="utf-8")
    child.expect_exact(f"Passphrase of key {locked.key}: ")
    child.sendline("open barley")
    child.expect_exact("cannot be read with the passphrase of the terminal")
    child.expect_exact(f"Passphrase of key {locked.key}: ")
    child.sendline("open sesame")
    child.expect_exact("here")
    child.expect(pexpect.EOF)
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(ROOT), timeout=20, encoding="utf-8")
    child.expect_exact(f"Passphrase of key {locked.key}: ")
    child.sendline("open sesame")
    child.expect_exact("here")
    child.expect_exact("here")
    child.expect(pexpect.EOF)


def test_without_a_terminal_a_key_with_a_passphrase_is_told(locked: Target) -> None:
    done = subprocess.run(
        program(locked),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
        timeout=60,
    )
    assert done.stdout.count("has a passphrase, and no terminal gives it") == 2
    assert "passphrase_env" in done.stdout


# -- the agent ---------------------------------------------------------------------------------


@pytest.fixture
def agent(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """Return the target, to be used with an agent that has its key and many others."""
    assert target.key
    strangers = [make_key(tmp_path / f"stranger{n}") for n in range(7)]
    with ssh_agent(tmp_path, *strangers, target.key) as where:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
        yield dataclasses.replace(target, agent=True)


def test_the_agents_keys_are_used(agent: Target) -> None:
    """One is named by its private half, which may have a passphrase, or by its public one."""
    assert agent.key
    lock = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(agent.key)]
    subprocess.run(lock, check=True, capture_output=True)
    for key in (agent.key, agent.key.with_name("id.pub")):
        named = dataclasses.replace(agent, key=key)
        assert enters(named) == ""
        assert ssh_enters(named)


def test_the_agent_is_not_used_unless_asked(agent: Target) -> None:
    assert agent.key
    without = dataclasses.replace(agent, agent=False, key=agent.key.with_name("stranger0"))
    assert "refuses user" in enters(without)
    assert not ssh_enters(without)


def test_an_agent_with_more_keys_than_sshd_tries_is_told(agent: Target) -> None:
    assert "with the ssh-agent's 8 keys" in enters(dataclasses.replace(agent, key=None))


def test_a_key_that_the_agent_lacks_is_told(agent: Target, tmp_path: Path) -> None:
    absent = make_key(tmp_path / "absent").with_name("absent.pub")
    assert f"the ssh-agent does not have key {absent}" in enters(
        dataclasses.replace(agent, key=absent)
    )


def test_an_agent_with_one_key_needs_no_name(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target.key
    with ssh_agent(tmp_path, target.key) as where:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
        nameless = dataclasses.replace(target, agent=True, key=None)
        assert enters(nameless) == ""
        assert ssh_enters(nameless)


def test_no_agent_is_told(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    used = dataclasses.replace(target, agent=True)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert "SSH_AUTH_SOCK is not set" in enters(used)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/no/agent")
    assert "the ssh-agent at /no/agent does not answer" in enters(used)


def test_an_agent_that_is_silent_is_told(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another machine's, and the link to that is lost, or it waits for a person."""
    monkeypatch.setattr(identity, "AGENT_SECONDS", 0.5)
    where = str(tmp_path / "silent.sock")
    monkeypatch.setenv("SSH_AUTH_SOCK", where)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(where)
        silent.listen()
        said = enters(dataclasses.replace(target, agent=True))
    assert f"the ssh-agent at {where} does not answer: timed out" in said


def test_an_agents_key_may_have_a_comment_in_any_encoding(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target.key
    other = tmp_path / "other"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other), "-C"]
    subprocess.run([*make, "Zoë".encode("latin-1")], check=True, stdin=subprocess.DEVNULL)
    with ssh_agent(tmp_path, other, target.key) as where:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
        assert enters(dataclasses.replace(target, agent=True)) == ""


# -- addresses and jump hosts ------------------------------------------------------------------


def test_ipv6_addresses_are_addresses(tmp_path: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with sshd(tmp_path / "six", address="::1") as server, sshd(tmp_path / "jump") as jump:
        target = server.target
        assert target.known_as == f"[::1]:{server.port}"
        assert enters(target) == ""
        assert ssh_enters(target)
        known(
            target,
            f"{target.known_as} {public(server.host_key)}",
            f"{jump.target.known_as} {public(jump.host_key)}",
        )
        hop = dataclasses.replace(jump.target, known_hosts=target.known_hosts)
        through = dataclasses.replace(target, jumps=(hop,))
        assert enters(through) == ""
        assert ssh_enters(through)


@pytest.fixture
def way(server: Sshd, target: Target, tmp_path: Path) -> Iterator[Callable[[int], Target]]:
    """Return a function that returns the target behind so many jump hosts."""
    with sshd(tmp_path / "first") as first, sshd(tmp_path / "second") as second:
        key = first.key.rename(tmp_path / "50% of 'it'")
        hops = [
            dataclasses.replace(first.target, known_hosts=target.known_hosts, key=key),
            dataclasses.replace(second.target, known_hosts=target.known_hosts),
        ]
        known(
            target,
            target.known_hosts.read_text(),
            *(
                f"{hop.known_as} {public(one.host_key)}"
                for hop, one in zip(hops, (first, second), strict=True)
            ),
        )
        yield lambda count: dataclasses.replace(target, jumps=tuple(hops[:count]))


@pytest.mark.parametrize("count", [1, 2])
def test_jump_hosts_are_on_the_way(way: Callable[[int], Target], count: int) -> None:
    target = way(count)
    first = target.jumps[0]
    with wire(first.port) as line:
        known(
            target,
            target.known_hosts.read_text().replace(f":{first.port} ", f":{line.port} "),
        )
        jumps = (dataclasses.replace(first, port=line.port), *target.jumps[1:])
        target = dataclasses.replace(target, jumps=jumps)
        assert enters(target) == ""
        assert ssh_enters(target)
        assert line.connections == 2
        with Connection.to(target) as link:
            threading.Timer(0.5, line.cut).start()
            with pytest.raises(LinkLostError):
                link.run("sleep 30")
            assert link.run("echo back").text == "back\n"
            assert link.run("wc -c", stdin=bytes(3_000_000)).text.strip() == "3000000"


def test_the_keys_of_jump_hosts_are_checked(way: Callable[[int], Target]) -> None:
    target = way(2)
    second = target.jumps[1]
    lines = target.known_hosts.read_text().splitlines()
    known(target, *(line for line in lines if not line.startswith(second.known_as)))
    said = enters(target)
    assert f"on the way to host {target.known_as}: host {second.known_as} is not in" in said
    assert not ssh_enters(target)


def test_a_jump_host_that_forwards_nothing_is_told(target: Target, tmp_path: Path) -> None:
    with sshd(tmp_path / "jump", "AllowTcpForwarding no") as jump:
        said = enters(dataclasses.replace(target, jumps=(jump.target,)))
    assert "is not reachable through its jump host" in said
    assert "AllowTcpForwarding" in said


# -- ssh_config --------------------------------------------------------------------------------


def entry(tmp_path: Path, known_hosts: Path, *lines: str) -> inventory.HostEntry:
    """Return the entry of host `one` of an inventory with these fields."""
    fields = "".join(f"    {line}\n" for line in lines)
    lab = tmp_path / "lab.yaml"
    lab.write_text(f"lab: mine\nhosts:\n  - name: one\n    known_hosts: '{known_hosts}'\n{fields}")
    return inventory.load(lab).host()


PROXY = """
import socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def copy():
    while data := sys.stdin.buffer.read1(65536):
        sock.sendall(data)
    sock.close()
threading.Thread(target=copy, daemon=True).start()
while data := sock.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


@pytest.mark.parametrize("proxy", ["", "jump", "command"])
def test_a_host_is_found_by_the_ssh_config_that_is_asked_for(
    way: Callable[[int], Target], tmp_path: Path, proxy: str
) -> None:
    target = way(1)
    (first,) = target.jumps
    assert first.key
    key = first.key.rename(tmp_path / "bastion's key")
    script = tmp_path / "proxy.py"
    script.write_text(PROXY)
    lines = {
        "": "",
        "jump": "ProxyJump bastion",
        "command": f"ProxyCommand {sys.executable} {script} %h %p",
    }
    config = tmp_path / "config"
    config.write_text(
        f"Host grace\n  HostName 127.0.0.1\n  Port {target.port}\n  {lines[proxy]}\n"
        f"Host bastion\n  HostName 127.0.0.1\n  Port {first.port}\n"
        f'  IdentityFile "{key}"\n'
        f"Host *\n  User {target.user}\n  IdentityFile /no/key\n  IdentityFile {target.key}\n"
    )
    asked = entry(tmp_path, target.known_hosts, "address: grace", "ssh_config: config")
    found = login(asked)
    assert (found.address, found.port, found.key) == ("127.0.0.1", target.port, target.key)
    assert [one.port for one in found.jumps] == ([first.port] if proxy == "jump" else [])
    assert enters(found) == ""
    assert ssh_enters(found)


def test_what_the_inventory_says_takes_precedence_over_ssh_config(
    way: Callable[[int], Target], tmp_path: Path
) -> None:
    target = way(1)
    (first,) = target.jumps
    config = tmp_path / "config"
    config.write_text("Host *\n  Port 1\n  User nobody\n  ProxyCommand false\n")
    lines = [
        "address: 127.0.0.1",
        f"port: {target.port}",
        f"user: {target.user}",
        f"key: {target.key}",
        f"proxy_jump: {first.user}@127.0.0.1:{first.port}",
        "ssh_config: config",
    ]
    found = login(entry(tmp_path, target.known_hosts, *lines))
    assert [one.port for one in found.jumps] == [first.port]
    # The configuration still says it of the jump host.
    assert found.jumps[0].proxy_command == "false"
    direct = dataclasses.replace(
        found,
        jumps=tuple(
            dataclasses.replace(one, key=first.key, proxy_command=None) for one in found.jumps
        ),
    )
    assert enters(direct) == ""


def test_ssh_config_is_obeyed_on_request_only(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh(1) finds a person's own file by the password database, not by $HOME; the printed
    command therefore names the file, or none."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(f"Host *\n  Port {target.port}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = ["address: 127.0.0.1", f"key: {target.key}", f"user: {target.user}"]
    plain = login(entry(tmp_path, target.known_hosts, *lines))
    assert plain.port == 22
    assert plain.command_line()[1:3] == ["-F", "none"]
    asked = login(entry(tmp_path, target.known_hosts, *lines, "ssh_config: true"))
    assert asked.port == target.port
    assert asked.command_line()[1:3] == ["-F", str(tmp_path / ".ssh" / "config")]
    assert enters(asked) == ""
    assert ssh_enters(asked)
    assert login(entry(tmp_path, target.known_hosts, *lines, "ssh_config: false")).port == 22


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Include other\n", ":1: Include is not followed"),
        ("Host *\n  Port many\n", "cannot be used for grace"),
        ("Host *\n  Port 70000\n", "70000 is not a port"),
        ("Host *\n  HostName a..b\n", "HostName of grace is 'a..b'"),
        ("Host *\n  User -oProxyCommand=false\n", "User of grace is '-oProxyCommand=false'"),
        ("Host *\n  ProxyJump -x\n", "jump host '-x' cannot be used"),
        ("Host *\n  ProxyJump grace\n", "the way to it is a circle"),
        ('Match exec "true"\n  Port 1\n', "cannot be used for grace"),
        ("Host *\n", "has no IdentityFile for grace"),
        ("\xff", "cannot be read"),
    ],
)
def test_an_ssh_config_that_cannot_be_used_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config").write_bytes(text.encode("latin-1"))
    key = () if "IdentityFile" in said else ("key: k",)
    asked = entry(tmp_path, Path("known"), "address: grace", "ssh_config: config", *key)
    with pytest.raises(LabError) as caught:
        login(asked)
    assert said in str(caught.value)
    assert caught.value.fix


def test_what_a_proxy_command_says_is_told_and_it_ends(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    command = f"sh -c 'echo $$ >{pid}; echo no route >&2; exec sleep 100'"
    monkeypatch.setattr("harness.host.link.CONNECT_SECONDS", 0.5)
    assert "printed: no route" in enters(dataclasses.replace(target, proxy_command=command))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# -- what a person is shown --------------------------------------------------------------------


def test_hil_lab_ssh_enters_a_host(target: Target, tmp_path: Path) -> None:
    """It enters by the rules of the inventory, and its exit status is that of ssh."""
    lines = (
        "address: 127.0.0.1",
        f"port: {target.port}",
        f"user: {target.user}",
        f'key: "{target.key}"',
    )
    entry(tmp_path, target.known_hosts, *lines)
    hil = [sys.executable, "-m", "harness.cli", "lab", "ssh", "--lab", str(tmp_path / "lab.yaml")]
    done = run_here([*hil, "--", "echo", "-n", "here"], cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "here"), done.stderr
    known(target)
    done = run_here([*hil, "--", "echo", "here"], cwd=ROOT)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_a_command_line_is_quoted_and_ends_its_options(target: Target) -> None:
    command = target.command_line("echo 'a  b'", tty=True)
    assert command[command.index("--") :] == ["--", "127.0.0.1", "echo 'a  b'"]
    assert command[command.index("--") - 1] == "-t"
    done = subprocess.run(
        shlex.join(target.command_line("echo 'a  b'")), shell=True, capture_output=True, check=True
    )
    assert done.stdout == b"a  b\n"
