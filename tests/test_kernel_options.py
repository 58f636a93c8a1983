"""kernel.config says who needs each option, and a kernel's .config is compared with it."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifacts.kernel_options import (
    Importance,
    KernelUser,
    is_taken,
    missing,
    options,
    parse,
    settings,
)
from harness.errors import HarnessError
from harness.kernel_image import configuration

ROOT = Path(__file__).parents[1]
HOST, GUEST, VIRTUAL_HOST = KernelUser
NEEDED, USEFUL = Importance
#: All that our options ask for, as a .config says it.
COMPLETE = "CONFIG_ARM64=y\n" + "".join(
    f"# {option.name} is not set\n" if option.value == "n" else f"{option}\n"
    for option in options()
)


def test_a_section_says_who_needs_its_options() -> None:
    first, second, third = parse(
        "# A comment\n\n"
        "# == one thing\n# needed by: host\n# useful to: guest, virtual-host\nCONFIG_A=y\n"
        '# Why.\nCONFIG_B="b"\n'
        "# == choices\nCONFIG_C=10\n"
    )
    assert (first.name, first.value, first.purpose) == ("CONFIG_A", "y", "one thing")
    assert [first.importance(user) for user in KernelUser] == [NEEDED, USEFUL, NEEDED]
    assert str(second) == 'CONFIG_B="b"'
    assert second.needed_by == {HOST}
    assert [third.importance(user) for user in KernelUser] == [None, None, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# == a\n# needed by: hosts\nCONFIG_A=y", "line 2: 'hosts' is none of host, guest"),
        ("CONFIG_A=y\nCONFIG_A=n", "line 2: CONFIG_A is there twice"),
        ("CONFIG_A", "line 1: 'CONFIG_A' is no option"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(text: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        parse(text)


def test_what_the_documentation_asks_of_a_host_is_needed() -> None:
    text = (ROOT / "docs/lab.md").read_text().partition("## What a host needs")[2]
    named = set(re.findall(r"`(CONFIG_\w+)`", text.partition("A guest's kernel")[0]))
    assert len(named) == 4
    assert named <= {option.name for option in options() if HOST in option.needed_by}


def test_a_host_needs_no_driver_of_a_virtual_machine() -> None:
    for option in options():
        if "VIRTIO" in option.name or "EROFS" in option.name:
            assert option.importance(HOST) is None


def test_settings_of_a_config() -> None:
    text = '# Automatic\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x y"\n  CONFIG_A=m\nno=1\n'
    assert settings(text) == {"CONFIG_A": "m", "CONFIG_B": "n", "CONFIG_C": '"x y"'}


@pytest.mark.parametrize(
    ("wanted", "found", "built_in", "with_modules"),
    [
        ("y", "y", True, True),
        ("y", "m", False, True),
        ("m", "y", True, True),
        ("y", None, False, False),
        ("n", None, True, True),
        ("n", "n", True, True),
        ("n", "y", False, False),
        ("n", "m", False, False),
        ("10", "10", True, True),
        ("10", "9", False, False),
        ('"x"', None, False, False),
    ],
)
def test_whether_an_option_is_taken(
    wanted: str, found: str | None, built_in: bool, with_modules: bool
) -> None:
    assert is_taken(wanted, found) is built_in
    assert is_taken(wanted, found, modules=True) is with_modules


def test_a_complete_kernel_lacks_nothing() -> None:
    assert list(missing(settings(COMPLETE))) == []


@pytest.mark.parametrize(
    ("old", "new", "found", "matters_to"),
    [
        ("CONFIG_IOMMUFD=y", "", "absent", {HOST: NEEDED, GUEST: USEFUL, VIRTUAL_HOST: NEEDED}),
        # A host loads modules; a guest and the virtual host have none.
        ("CONFIG_VFIO_PCI=y", "CONFIG_VFIO_PCI=m", "module", {GUEST: USEFUL, VIRTUAL_HOST: NEEDED}),
        (
            "CONFIG_VIRTIO_BLK=y",
            "# CONFIG_VIRTIO_BLK is not set",
            "not set",
            {VIRTUAL_HOST: NEEDED},
        ),
        (
            "# CONFIG_STRICT_DEVMEM is not set",
            "CONFIG_STRICT_DEVMEM=y",
            "built in",
            {GUEST: NEEDED},
        ),
    ],
)
def test_what_a_kernel_lacks(
    old: str, new: str, found: str, matters_to: dict[KernelUser, Importance]
) -> None:
    assert f"{old}\n" in COMPLETE
    (lacking,) = missing(settings(COMPLETE.replace(f"{old}\n", f"{new}\n")))
    assert (lacking.found, lacking.matters_to) == (found, matters_to)


def test_choices_are_nobodys() -> None:
    assert list(missing(settings(COMPLETE.replace("CONFIG_NR_CPUS=8", "CONFIG_NR_CPUS=512")))) == []


IMAGE_HEAD = bytes(56) + b"ARM\x64" + bytes(100)


@pytest.mark.parametrize(
    "content",
    [
        COMPLETE.encode(),
        gzip.compress(COMPLETE.encode()),
        IMAGE_HEAD + b"IKCFG_ST" + gzip.compress(COMPLETE.encode()) + b"IKCFG_ED" + bytes(10),
        gzip.compress(
            IMAGE_HEAD + b"IKCFG_ST" + gzip.compress(COMPLETE.encode()) + b"IKCFG_ED" + bytes(10)
        ),
    ],
    ids=["config", "config.gz", "Image", "Image.gz"],
)
def test_a_configuration_is_found_in(content: bytes) -> None:
    assert configuration(content) == COMPLETE


@pytest.mark.parametrize("rest", [b"", b"IKCFG_ST", b"IKCFG_STnot packedIKCFG_ED"])
def test_a_kernel_without_its_configuration(rest: bytes) -> None:
    with pytest.raises(ValueError, match="CONFIG_IKCONFIG"):
        configuration(IMAGE_HEAD + rest)


def hil(*words: str, stdin: bytes = b"") -> tuple[int, str]:
    """Call `hil kernel config`; return its status and all that it says."""
    argv = [sys.executable, "-m", "harness.cli", "kernel", "config", *words]
    ended = subprocess.run(argv, cwd=ROOT, input=stdin, capture_output=True, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode()


def test_the_command_tells_a_kernel_that_has_all(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(COMPLETE)
    assert hil(str(tmp_path / "config")) == (
        0,
        "host: nothing is missing\nguest: nothing is missing\nvirtual-host: nothing is missing\n",
    )


def test_the_command_tells_what_is_missing_and_to_whom() -> None:
    lacking = COMPLETE.replace("CONFIG_DEVMEM=y\n", "").replace("CONFIG_KPROBES=y\n", "")
    status, said = hil("-", stdin=gzip.compress(lacking.encode()))
    assert status == 1
    assert re.search(r"CONFIG_DEVMEM=y +absent +needed +a guest's queues", said)
    assert re.search(r"CONFIG_KPROBES=y +absent +useful +useful +kernel probes", said)
    assert said.endswith(
        "host: all that is needed is there; useful and missing: 1\n"
        "guest: needed and missing: 1; useful and missing: 0\n"
        "virtual-host: all that is needed is there; useful and missing: 1\n"
    )
    status, said = hil("-", "--for", "host", stdin=lacking.encode())
    assert (status, "CONFIG_DEVMEM" in said, "guest:" in said) == (0, False, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no options"),
        (b"CONFIG_X86=y\n", "for another architecture"),
        (IMAGE_HEAD, "CONFIG_IKCONFIG"),
    ],
)
def test_a_file_without_options_is_a_wrong_call(content: bytes, said: str) -> None:
    status, told = hil("-", stdin=content)
    assert (status, said in told, "fix: name " in told) == (2, True, True)


def test_a_closed_standard_input_is_told() -> None:
    closed = [sys.executable, "-m", "harness.cli", "kernel", "config", "-"]
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *closed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "hil: standard input is closed" in ended.stderr


def test_without_a_file_the_options_are_printed() -> None:
    status, said = hil()
    assert (status, parse(said)) == (0, options())
