"""Good inventories load. Bad ones are refused with file, line, field, what was found and what is
allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.devices import kinds
from harness.errors import LabError
from harness.lab import inventory
from harness.lab.inventory import OF_DEBUG_KERNELS
from harness.lab.login import login
from harness.lab.provide import provided
from harness.progress import Progress

SHIPPED = Path(__file__).parent.parent / "lab-inventory"

GOOD = """\
lab: mine
hosts:
  - name: one
    address: 127.0.0.1
    key: keys/id
    known_hosts: /etc/known
    devices:
      - bdf: "0000:09:00.0"
        role: edu
"""


def load(tmp_path: Path, text: str) -> inventory.Inventory:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return inventory.load(path)


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    host = load(tmp_path, GOOD).host()
    assert host.key == tmp_path / "keys/id"
    assert host.known_hosts == Path("/etc/known")


def test_a_device_may_name_its_vfio_driver(tmp_path: Path) -> None:
    device = '      - {bdf: "0000:0a:00.0", role: igb, vfio_driver: igb_vfio_pci}\n'
    entry = load(tmp_path, GOOD + device).host()
    with provided(entry, Store(tmp_path), Progress(enabled=False)) as described:
        assert described.vfio_drivers == {"0000:0a:00.0": "igb_vfio_pci"}


@pytest.mark.parametrize("name", ["virtual.yaml", "lookalike.yaml", "grace.example.yaml"])
def test_shipped_inventories_load(name: str) -> None:
    assert inventory.load(SHIPPED / name).hosts


def test_schema_file_is_current() -> None:
    assert (SHIPPED / "schema.json").read_text() == inventory.schema(), "run `make schema`"


@pytest.mark.parametrize(
    ("change", "line", "parts"),
    [
        (('"0000:09:00.0"', '"9:0.0"'), 8, ["hosts[0].devices[0].bdf", "'9:0.0'", "0000:09:00.0"]),
        (("role: edu", "role: gpu"), 9, ["hosts[0].devices[0].role", "'gpu'", "iommu-testdev"]),
        (("name: one", "name: One!"), 3, ["hosts[0].name", "'One!'", "lower-case"]),
        (("    key:", "    kee:"), 5, ["hosts[0].kee", "unknown field", "known_hosts"]),
        (("    key: keys/id\n", ""), 3, ["hosts[0]", "needs `key`"]),
        (("    address: 127.0.0.1\n", ""), 3, ["hosts[0]", "`virtual`, `address` or"]),
        (("lab: mine\n", ""), 1, ["lab", "missing"]),
        (("address: 127.0.0.1", "address: 127.0.0.1\n    port: 70000"), 5, ["port", "65535"]),
        (("    key:", "    merging: 2\n    key:"), 5, ["merging", "found 2", "true or false"]),
        (("        role: edu\n", ""), 8, ["hosts[0].devices[0].role", "missing"]),
        (
            ("role: edu", "role: edu\n        vfio_driver: a b"),
            10,
            ["hosts[0].devices[0].vfio_driver", "'a b'", "such as vfio-pci"],
        ),
    ],
)
def test_errors_say_where_what_and_how(
    tmp_path: Path, change: tuple[str, str], line: int, parts: list[str]
) -> None:
    assert change[0] in GOOD
    with pytest.raises(LabError) as caught:
        load(tmp_path, GOOD.replace(*change))
    said = str(caught.value)
    assert f"lab.yaml:{line}: " in said
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("text", ["", "- 1\n", "lab: x\n  hosts: [\n", "\t- x", "just words"])
def test_what_is_no_inventory_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabError, match=r"lab\.yaml:\d+: "):
        load(tmp_path, text)


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"lab\.yaml:2: hosts: found 5; allowed: a list of at least"):
        load(tmp_path, "lab: mine\nhosts: 5\n")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LabError) as caught:
        load(tmp_path, GOOD.replace("edu", "gpu").replace("name: one", "name: 1!"))
    assert caught.value.message.count("lab.yaml:") == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"absent\.yaml cannot be read"):
        inventory.load(tmp_path / "absent.yaml")


def test_an_unknown_host_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="choose one of one"):
        load(tmp_path, GOOD).host("two")


@pytest.mark.parametrize("twice", ["host", "device"])
def test_duplicates_are_refused(tmp_path: Path, twice: str) -> None:
    body = GOOD.split("hosts:\n")[1]
    device = body.split("devices:\n")[1]
    text = GOOD + (body if twice == "host" else device)
    with pytest.raises(LabError, match="same name" if twice == "host" else "listed twice"):
        load(tmp_path, text)


MODEL = """\
lab: mine
hosts:
  - name: plain
    virtual: {}
  - name: model
    virtual:
      cmdqv: {vintfs: 2, vcmdqs: 4}
"""


def test_hosts_say_what_tests_may_expect(tmp_path: Path) -> None:
    plain, model = load(tmp_path, MODEL).hosts
    assert plain.capabilities == {"no-cmdqv", "snapshot", "exact-events"}
    sizes = {"cmdqv-vintfs:2", "cmdqv-sids:16"}
    assert {"cmdqv", "cmdqv-model", "snapshot", *sizes} <= model.capabilities
    assert "no-cmdqv" not in model.capabilities
    debug = load(tmp_path, MODEL.replace("virtual: {}", "virtual: {debug_kernel: true}")).hosts[0]
    assert debug.capabilities == plain.capabilities | OF_DEBUG_KERNELS
    assert load(tmp_path, GOOD).host().capabilities == {"cmdqv", *OF_DEBUG_KERNELS}


def test_a_plain_host_may_have_what_bare_metal_may_have(tmp_path: Path) -> None:
    text = MODEL.replace("virtual: {}", "virtual: {plain: true}")
    without, model = load(tmp_path, text + "      plain: true\n").hosts
    assert without.capabilities == {"no-cmdqv"}
    assert model.capabilities == {"cmdqv"}


def test_a_virtual_host_has_the_devices_that_are_listed(tmp_path: Path) -> None:
    every, listed = load(tmp_path, MODEL + "      devices: [nvme, nvme, igb]\n").hosts
    assert every.virtual
    assert set(every.virtual.devices) == {role for role, kind in kinds().items() if kind.emulation}
    assert listed.virtual
    assert listed.virtual.devices == ("nvme", "nvme", "igb")


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("[nvme, gpu]", "virtual.devices[1]: found 'gpu'; allowed: a list of 1 to 7 roles"),
        ("[]", "virtual.devices: found []; allowed: a list of 1 to 7 roles"),
        (f"[{', '.join(['igb'] * 8)}]", "allowed: a list of 1 to 7 roles"),
        ("igb", "virtual.devices: found 'igb'; allowed: a list of 1 to 7 roles"),
    ],
)
def test_devices_that_no_virtual_host_has_are_refused(
    tmp_path: Path, devices: str, said: str
) -> None:
    with pytest.raises(LabError) as caught:
        load(tmp_path, MODEL + f"      devices: {devices}\n")
    assert "lab.yaml:8: " in str(caught.value)
    assert said in str(caught.value)
    assert ", ".join(inventory.EMULATED_ROLES) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("vintfs: 2", "vintfs: 3"), "found 3; allowed: number of virtual interfaces: 1, 2, 4"),
        (("vcmdqs: 4", "vcmdqs: 1"), "at least one of `vcmdqs` for each of `vintfs`"),
        (("vcmdqs: 4", "queues: 4"), "unknown field; allowed: one of vintfs, vcmdqs"),
        (("vcmdqs: 4", "version: 99"), "found 99; allowed: hardware version, 0 to 15"),
    ],
)
def test_sizes_that_no_cmdqv_has_are_refused(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(LabError) as caught:
        load(tmp_path, MODEL.replace(*change))
    assert said in str(caught.value)
    assert "lab.yaml:7:" in str(caught.value)


@pytest.mark.parametrize("field", ["key: keys/id", "known_hosts: /etc/known"])
def test_a_home_that_nobody_has_is_refused(tmp_path: Path, field: str) -> None:
    name = field.partition(":")[0]
    with pytest.raises(LabError) as caught:
        load(tmp_path, GOOD.replace(field, f"{name}: ~nouser-of-hil/id"))
    assert f"hosts[0].{name}: found '~nouser-of-hil/id': " in str(caught.value)
    assert caught.value.fix


def test_a_home_is_that_of_its_user(tmp_path: Path) -> None:
    host = load(tmp_path, GOOD.replace("keys/id", "~root/id")).host()
    assert host.key == Path("~root/id").expanduser()


# -- SSH ---------------------------------------------------------------------------------------


def with_fields(*lines: str) -> str:
    """Return the good inventory with these lines in its host."""
    return GOOD.replace("    devices:", "".join(f"    {line}\n" for line in lines) + "    devices:")


@pytest.mark.parametrize(
    "address",
    ["grace-1", "grace_1.lab.example", "a." * 126 + "a", "10.0.0.1", "::1", "fe80::1%eth0"],
)
def test_addresses_are_host_names_or_ip_addresses(tmp_path: Path, address: str) -> None:
    host = load(tmp_path, GOOD.replace("127.0.0.1", f"'{address}'")).host()
    assert host.address == address


@pytest.mark.parametrize(
    "address",
    ["a..b", ".a", "a" * 64, "a." * 127, "gr\xe4ce", "-oProxyCommand=id", "a b", "a/b", "a-", "%h"],
)
def test_an_address_that_no_host_has_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(LabError) as caught:
        load(tmp_path, GOOD.replace("127.0.0.1", f"'{address}'"))
    assert "lab.yaml:4: hosts[0].address: found " in str(caught.value)
    assert "a host name (ASCII; labels of 1 to 63" in str(caught.value)


@pytest.mark.parametrize("user", ["root", "lab-user", "a.b@lab.example", "svc$"])
def test_users_are_names(tmp_path: Path, user: str) -> None:
    assert load(tmp_path, with_fields(f"user: {user}")).host().user == user


@pytest.mark.parametrize("user", ["-oProxyCommand=touch /tmp/x #", "-l", "a b", "a;b", "a%h", "$x"])
def test_a_user_that_is_no_name_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(LabError, match=r"lab.yaml:7: hosts\[0\].user: found .* no - first"):
        load(tmp_path, with_fields(f"user: '{user}'"))


def test_jump_hosts_are_a_list_or_a_text(tmp_path: Path) -> None:
    both = ("me@a:2222", "[fe80::1%eth0]:22")
    for written in (f"'{both[0]}, {both[1]}'", f"['{both[0]}', '{both[1]}']"):
        host = load(tmp_path, with_fields(f"proxy_jump: {written}")).host()
        assert host.proxy_jump == both
    jumps = login(host).jumps
    assert [(one.user, one.address, one.port) for one in jumps] == [
        ("me", "a", 2222),
        ("root", "fe80::1%eth0", 22),
    ]
    assert load(tmp_path, with_fields("proxy_jump: a")).host().proxy_jump == ("a",)


@pytest.mark.parametrize("jump", ["", "a..b", "a:0", "a:65536", "-oX@a", "a@-b", "fe80::1", "a,,b"])
def test_a_jump_host_that_is_none_is_refused(tmp_path: Path, jump: str) -> None:
    with pytest.raises(LabError, match=r"lab.yaml:7: hosts\[0\].proxy_jump.*: found .*USER@"):
        load(tmp_path, with_fields(f"proxy_jump: '{jump}'"))


def test_files_for_ssh_start_at_the_inventory(tmp_path: Path) -> None:
    text = with_fields("passphrase_file: pass", "ssh_config: config", "agent: true")
    host = load(tmp_path, text).host()
    assert (host.passphrase_file, host.ssh_config) == (tmp_path / "pass", tmp_path / "config")
    asked = load(tmp_path, with_fields("ssh_config: true")).host()
    assert asked.ssh_config == Path.home() / ".ssh" / "config"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["passphrase_env: A-B"], "passphrase_env: found what is no name"),
        (["passphrase_env: A", "passphrase_file: b"], "one of `passphrase_file` and"),
        (["passphrase: secret"], "passphrase: unknown field"),
        (["ssh_config: 5"], "ssh_config: found 5; allowed: true to obey"),
        (["agent: 5"], "agent: found 5"),
        (["passphrase_file: ~nobody-at-all/p"], "passphrase_file: found '~nobody-at-all/p': "),
    ],
)
def test_odd_fields_for_ssh_are_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(LabError) as caught:
        load(tmp_path, with_fields(*lines))
    assert said in str(caught.value)


def test_an_agent_or_a_configuration_takes_the_place_of_a_key(tmp_path: Path) -> None:
    for line in ("agent: true", "ssh_config: true"):
        assert load(tmp_path, with_fields(line).replace("    key: keys/id\n", "")).host()


def test_a_virtual_host_has_no_fields_for_ssh(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="a virtual host has no `agent`"):
        load(tmp_path, MODEL.replace("    virtual: {}", "    virtual: {}\n    agent: true"))
