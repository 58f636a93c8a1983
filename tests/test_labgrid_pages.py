"""What docs/labgrid.md says is done as written: its units, files and commands make a lab of ten
machines, in a private copy of this machine's /etc and network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkout import ROOT
from harness.lab import inventory
from harness.lab.coordinator import Place, Resource
from harness.lab.placed import with_place
from tests.labgrid_lab import BIN

PAGE = ROOT / "docs" / "labgrid.md"
EXAMPLE = ROOT / "lab-inventory" / "labgrid.example.yaml"
#: A block of the page: its language, what stands behind that, and its text.
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [found.groups() for found in _BLOCK.finditer(PAGE.read_text())]
#: The files that the page makes, by their paths.
FILES = {where: text for _, where, text in BLOCKS if where and where.startswith("/")}
UNITS = {where: text for where, text in FILES.items() if where.endswith(".service")}

needs_namespaces = pytest.mark.skipif(
    os.getuid() != 0, reason="only root has an /etc and a network of its own"
)

#: It stands in for systemd, which runs no services in a test: it starts what a unit starts, where
#: the unit says.
SYSTEMCTL = """\
#!/bin/sh
[ "$1" = enable ] || exit 0
unit=/etc/systemd/system/$3
[ -e "$unit" ] || { echo "no unit $3" >&2; exit 1; }
cd "$(sed -n 's/^WorkingDirectory=//p' "$unit" | grep . || echo /)" || exit 1
exec >"/run/$3.log" 2>&1
PYTHONUNBUFFERED=1 setsid sh -c "exec $(sed -n 's/^ExecStart=//p' "$unit")" </dev/null &
for _ in $(seq 600); do
    grep -q -e 'listening on' -e 'creating poll task' "/run/$3.log" && exit 0
    sleep 0.2
done
exit 1
"""

#: The private copy: what is written goes to memory. All names are this machine's.
INSIDE = """\
set -e
ip link set lo up
for folder in /etc /var/lib /opt; do
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=/mnt/upper,workdir=/mnt/work" $folder
done
mount -t tmpfs tmpfs /run
echo '127.0.0.1 localhost labgrid.lab.example' >/etc/hosts
mkdir -p /opt/labgrid
ln -s {bin} /opt/labgrid/bin
cp -r {files}/etc/. /etc/
export PATH={shims}:$PATH
cd {folder}
"""


def shell(*kinds: str | None) -> str:
    """Return the commands of the page's blocks of these kinds, in their order."""
    return "".join(text for language, what, text in BLOCKS if language == "sh" and what in kinds)


def inventory_of_the_page() -> str:
    """Return the inventory that the page describes the lab by."""
    (text,) = (text for language, _, text in BLOCKS if language == "yaml" and "lab:" in text)
    return text


def test_the_page_has_what_is_tried() -> None:
    assert set(FILES) == {
        "/etc/systemd/system/labgrid-coordinator.service",
        "/etc/systemd/system/labgrid-exporter.service",
        "/etc/labgrid/exporter.yaml",
    }
    assert "pip install" in shell("install")
    assert "hil doctor" in shell("check")
    assert "set-tags" in shell(None)


@needs_namespaces
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    written = [tmp_path / Path(where).name for where in UNITS]
    for path, text in zip(written, UNITS.values(), strict=True):
        path.write_text(text)
    # Their programs exist in a private /opt only.
    script = f"mount -t tmpfs t /opt && mkdir /opt/labgrid && ln -s {BIN} /opt/labgrid/bin && "
    verify = script + 'exec systemd-analyze verify "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", verify, "sh", *map(str, written)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "labgrid" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@needs_namespaces
def test_a_lab_of_ten_machines_is_made_as_written(tmp_path: Path) -> None:
    (tmp_path / "grace.yaml").write_text(inventory_of_the_page())
    for where, text in FILES.items():
        path = tmp_path / "files" / where.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "systemctl").write_text(SYSTEMCTL)
    (shims / "hil").write_text(f'#!/bin/sh\nexec {sys.executable} -m harness.cli "$@"\n')
    for shim in shims.iterdir():
        shim.chmod(0o755)
    inside = INSIDE.format(bin=BIN, files=tmp_path / "files", shims=shims, folder=tmp_path)
    # What this machine lacks for a lab is no matter of the page.
    doctor = "hil doctor --lab grace.yaml"
    check = f"export PYTHONPATH={ROOT}\n" + shell("check").replace(doctor, f"{doctor} || :")
    (tmp_path / "all.sh").write_text(inside + shell(None) + check)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL"),
            *("--mount-proc", "sh", str(tmp_path / "all.sh")),
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    fit = ", ".join(f"grace-{n}" for n in (1, 10, *range(2, 10)))
    assert f"ok      places with board=grace: {fit}: are hosts" in said
    assert "ok      labgrid's coordinator at labgrid.lab.example:20408: hands out hosts" in said
    status = "\n".join(f"  grace-{n}: free for a run" for n in (1, 10, *range(2, 10)))
    assert f"grace: a place of labgrid with board=grace\n{status}" in said


def test_the_pages_inventory_describes_a_host(tmp_path: Path) -> None:
    file = tmp_path / "grace.yaml"
    file.write_text(inventory_of_the_page())
    _check(file)


def test_the_example_describes_a_host() -> None:
    _check(EXAMPLE)
    assert EXAMPLE.read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def _check(file: Path) -> None:
    """Check that a place that the exporter of the page exports becomes a host with power."""
    lab = inventory.load(file)
    resources = (
        Resource("host", "NetworkService", {"address": "grace-1.lab.example", "username": "root"}),
        Resource(
            "bmc",
            "NetworkService",
            {"address": "grace-1-bmc.lab.example", "username": "hil", "port": 443},
        ),
    )
    place = Place("grace-1", {"board": "grace"}, None, 0.0, resources, ())
    entry = with_place(lab, lab.hosts[0], place)
    assert entry.address == "grace-1.lab.example"
    assert entry.devices
    assert entry.power
    assert entry.power.redfish
    assert entry.power.redfish.url == "https://grace-1-bmc.lab.example:443"
