"""A password comes from where the inventory says, and is in nothing that is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import psutil
import pytest

from harness import secret
from harness.checkout import ROOT
from harness.errors import LabError
from harness.lab import inventory
from harness.secret import HIDDEN, Password, Secret
from harness.waiting import wait_for
from tests.bmc import start

HUNTER = "hunter2-is-secret"
WHOSE = "the BMC of host grace-1"


def test_a_secret_is_not_shown() -> None:
    one = Secret(HUNTER)
    assert f"{one} {one!r} {[one]}" == f"{HIDDEN} {HIDDEN} [{HIDDEN}]"
    assert one.reveal() == HUNTER
    assert one.hide(f"user {HUNTER}@bmc") == f"user {HIDDEN}@bmc"
    assert Secret("").hide("nothing") == "nothing"


def test_it_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMC", HUNTER)
    assert Password(password_env="BMC").password(WHOSE).reveal() == HUNTER


def test_it_comes_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{HUNTER}\nanother line\n")
    file.chmod(0o600)
    assert Password(password_file=file).password(WHOSE).reveal() == HUNTER


def test_it_comes_from_a_command() -> None:
    command = f"printf '%s\\n' {HUNTER} another"
    assert Password(password_command=command).password(WHOSE).reveal() == HUNTER


def refused(entry: Password) -> str:
    with pytest.raises(LabError) as caught:
        entry.password(WHOSE)
    assert WHOSE in caught.value.message
    assert caught.value.fix
    assert HUNTER not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "password"
    file.write_text(HUNTER)
    file.chmod(mode)
    said = refused(Password(password_file=file))
    assert f"others can read password_file {file} (mode 0{mode:o})" in said
    assert f"chmod 600 {file}" in said


def test_what_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BMC", raising=False)
    assert "no variable BMC" in refused(Password(password_env="BMC"))
    monkeypatch.setenv("BMC", "")
    assert "or it is empty" in refused(Password(password_env="BMC"))
    nowhere = Password(password_file=tmp_path / "nowhere")
    assert "cannot be read: No such file or directory" in refused(nowhere)
    for content, why in ((b"", "its first line is empty"), (b"\xff", "it is not UTF-8")):
        file = tmp_path / "file"
        file.touch(0o600)
        file.write_bytes(content)
        assert why in refused(Password(password_file=file))


def test_a_command_that_fails_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    leaking = Password(password_command=f"echo {HUNTER}; echo {HUNTER} >&2; exit 3")
    assert "password_command ended with status 3" in refused(leaking)
    monkeypatch.setattr(secret, "COMMAND_SECONDS", 0.2)
    assert "did not end within" in refused(Password(password_command=f"sleep 5; echo {HUNTER}"))
    assert "first line is empty" in refused(Password(password_command="true"))


@pytest.mark.parametrize("strange", ["\udce4", "\0", "\x1b"])
def test_a_password_that_no_bmc_can_have_is_told_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strange: str
) -> None:
    """An error of Python about such a text has the whole text in it."""
    password = f"{HUNTER}{strange}"
    if strange != "\0":  # no variable can have that
        monkeypatch.setenv("BMC", password)
        assert "the variable BMC has" in refused(Password(password_env="BMC"))
    file = tmp_path / "file"
    file.touch(0o600)
    file.write_bytes(os.fsencode(password))
    why = "not UTF-8" if strange == "\udce4" else "has a control character"
    assert why in refused(Password(password_file=file))


def test_the_first_line_ends_where_the_lines_of_a_file_do(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_bytes(f"{HUNTER}\u2028too\r\nanother\n".encode())
    assert Password(password_file=file).password(WHOSE).reveal() == f"{HUNTER}\u2028too"


def test_what_a_command_has_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret, "COMMAND_SECONDS", 0.5)
    pid = tmp_path / "pid"
    entry = Password(password_command=f"sleep 60 & echo $! >{pid}; wait")
    assert "did not end within" in refused(entry)
    left = int(pid.read_text())
    wait_for("what was left to end", lambda: not psutil.pid_exists(left), deadline=5)


LAB = """
lab: mine
hosts:
  - name: grace-1
    address: 127.0.0.1
    key: id
    known_hosts: known_hosts
    power: {{redfish: {{{entry}}}}}
"""


@pytest.mark.parametrize(
    "entry",
    [
        f"url: 'https://bmc', user: admin, password: {HUNTER}",
        f"url: 'https://bmc', user: admin, password_env: {HUNTER}",
        f"url: 'https://admin:{HUNTER}@bmc', user: admin, password_env: P",
        f"url: 'https://bmc', user: admin, password_env: , passphrase: {HUNTER}",
    ],
)
def test_one_that_was_written_into_an_inventory_is_not_repeated(tmp_path: Path, entry: str) -> None:
    (tmp_path / "lab.yaml").write_text(LAB.format(entry=entry))
    with pytest.raises(LabError) as caught:
        inventory.load(tmp_path / "lab.yaml")
    assert "lab.yaml:8: hosts[0].power.redfish" in str(caught.value)
    assert HUNTER not in str(caught.value)


def test_nor_is_a_passphrase(tmp_path: Path) -> None:
    text = LAB.format(entry="url: 'https://bmc', user: admin, password_env: P")
    (tmp_path / "lab.yaml").write_text(f"{text}    passphrase_env: {HUNTER}\n")
    with pytest.raises(LabError) as caught:
        inventory.load(tmp_path / "lab.yaml")
    assert "lab.yaml:9: hosts[0].passphrase_env: found what is no name of" in str(caught.value)
    assert HUNTER not in str(caught.value)


FAILING = """
import json, pathlib, pytest
from harness.power.kinds import PowerEntry

@pytest.mark.parametrize("kind", ["redfish", "ipmi"])
def test_fails(kind):
    entry = json.loads(pathlib.Path("entries").read_text())[kind]
    PowerEntry.model_validate({kind: entry}).control("grace-1").state()
"""


def test_no_report_shows_it_even_with_all_variables(tmp_path: Path) -> None:
    """The BMCs are real, and refuse the password."""
    (tmp_path / "test_fails.py").write_text(FAILING)
    password = tmp_path / "password"
    password.write_text(HUNTER)
    password.chmod(0o600)
    with start.redfish(tmp_path / "one") as one, start.ipmi(tmp_path / "two") as two:
        known = {"user": "admin", "password_file": "password"}
        by_redfish = {"url": f"https://127.0.0.1:{one.port}", "certificate": str(one.certificate)}
        by_ipmi = {"address": "127.0.0.1", "port": two.port}
        entries = {"redfish": {**known, **by_redfish}, "ipmi": {**known, **by_ipmi}}
        (tmp_path / "entries").write_text(json.dumps(entries))
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-l", "-vv", "--log-level=debug", "-pno:xdist"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ":".join([str(ROOT), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "2 failed" in ended.stdout, ended.stdout
    assert "refuses user admin or the password" in ended.stdout
    assert "Unable to establish IPMI" in ended.stdout
    assert f"password   = {HIDDEN}" in ended.stdout
    assert HUNTER not in ended.stdout + ended.stderr
