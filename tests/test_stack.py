"""What the lab is built from is found on a mirror, and stays until it is renewed; what is old is
told. apt itself reads the mirrors here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.artifacts import debian, images, kernel, stack
from harness.artifacts.parts import (
    KernelSource,
    QemuPackages,
    Stack,
    StackWish,
    find,
    unpack_qemu,
    unpack_source,
)
from harness.artifacts.store import Recipe, Store
from harness.cli import app
from harness.commands import stack as stack_commands
from harness.errors import HarnessError, LabError
from harness.progress import Progress
from tests.mirror import BACKPORTS, Mirror, plant, source_package, stack_of

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stack.VARIABLE, raising=False)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Return a mirror like Debian's, which nobody signs."""
    mirror = Mirror(tmp_path / "mirror")
    for version in ("7.3.9-1~bpo13+1", "7.3.12-1~bpo13+1", "7.4.4-1~bpo13+1"):
        mirror.linux(version)
    mirror.qemu("1:11.1.3+ds-1~bpo13+1")
    mirror.linux("6.12.117-1", "trixie")
    mirror.qemu("1:10.0.13+ds-0+deb13u1", "trixie")
    mirror.linux("7.10.1-1", "sid")
    mirror.linux("7.9.14-1", "sid")
    mirror.qemu("1:11.2.0+ds-1", "sid")
    mirror.publish()
    monkeypatch.setenv("HIL_DEBIAN_MIRROR", f"file:{mirror.folder}")
    monkeypatch.setattr(debian, "TRUST", "trusted=yes")
    monkeypatch.setenv("APT_CONFIG", str(configuration(tmp_path)))
    return mirror


def configuration(folder: Path, *lines: str) -> Path:
    """Write a configuration for this machine's apt, and return its path. apt's own user could not
    read the folders of tests."""
    path = folder / "machine.conf"
    path.write_text("\n".join(('APT::Sandbox::User "root";', *lines)))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("HIL_CACHE", str(cache))
    return cache


def wish(text: str = "") -> StackWish:
    return StackWish.parse(text, "here")


def found(text: str = "") -> list[str]:
    """Return the versions that the mirror has of a wish: those of Linux, and that of QEMU."""
    got = find(wish(text), QUIET)
    return [*(one.version for one in got.linux), got.qemu.version]


# -- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("", "linux=7.3/newest@trixie-backports,qemu=newest@trixie-backports"),
        ("default", "linux=7.3/newest@trixie-backports,qemu=newest@trixie-backports"),
        ("linux=7.4", "linux=7.4@trixie-backports,qemu=newest@trixie-backports"),
        (
            " qemu=11.1@sid, linux=newest@forky linux=6.12@trixie ",
            "linux=newest@forky,linux=6.12@trixie,qemu=11.1@sid",
        ),
    ],
)
def test_a_wish_has_one_form(text: str, means: str) -> None:
    assert str(wish(text)) == means
    assert wish(means) == wish(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lnux=7.3", "here: 'lnux=7.3' is no part of a stack"),
        ("linux", "'linux' is no part"),
        ("linux=7.3@", "'linux=7.3@' is no part"),
        ("qemu=new", "'qemu=new' is no part"),
        ("qemu=newest@../x", "is no part"),
        ("linux=7.3 default", "'default' is no part"),
        ("qemu=newest,qemu=11.1", "names two QEMUs"),
        ("linux=7.3,linux=7.3", "names a Linux twice"),
    ],
)
def test_a_wrong_wish_is_told_with_its_form(text: str, says: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(says)):
        wish(text)


# -- what the mirror has -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("", ["7.3.12-1~bpo13+1", "1:11.1.3+ds-1~bpo13+1"]),
        ("linux=newest", ["7.4.4-1~bpo13+1", "1:11.1.3+ds-1~bpo13+1"]),
        ("linux=7.3.9", ["7.3.9-1~bpo13+1", "1:11.1.3+ds-1~bpo13+1"]),
        ("linux=7.4,linux=7.3", ["7.4.4-1~bpo13+1", "7.3.12-1~bpo13+1", "1:11.1.3+ds-1~bpo13+1"]),
        # 7.10 is newer than 7.9.
        ("linux=newest@sid,qemu=11@sid", ["7.10.1-1", "1:11.2.0+ds-1"]),
        # A suite is not asked for what another has.
        ("linux=newest,qemu=newest@sid", ["7.4.4-1~bpo13+1", "1:11.2.0+ds-1"]),
        ("linux=newest@sid", ["7.10.1-1", "1:11.1.3+ds-1~bpo13+1"]),
        ("linux=6.12@trixie,qemu=newest@trixie", ["6.12.117-1", "1:10.0.13+ds-0+deb13u1"]),
    ],
)
def test_the_newest_of_what_is_asked_for_is_found(
    mirror: Mirror, text: str, versions: list[str]
) -> None:
    assert found(text) == versions


def test_a_new_machine_gets_a_lab_when_the_default_series_has_left(mirror: Mirror) -> None:
    mirror.clear()
    mirror.linux("7.4.4-1~bpo13+1")
    mirror.linux("7.5.1-1~bpo13+1")
    mirror.qemu("1:11.2.1-1~bpo13+1")
    mirror.publish()
    assert found() == ["7.5.1-1~bpo13+1", "1:11.2.1-1~bpo13+1"]
    with pytest.raises(LabError, match=r"linux=7\.3@trixie-backports asks for; .*7\.5.*7\.4"):
        found("linux=7.3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "linux=7.5",
            r"linux=7\.5@trixie-backports asks for; it has in trixie-backports: "
            r"linux-source-7\.4 7\.4\.4-1~bpo13\+1; linux-source-7\.3 7\.3\.12-1~bpo13\+1; "
            r"linux-source-7\.3 7\.3\.9-1~bpo13\+1\n.*say for example",
        ),
        ("qemu=12", r"qemu=12@.*: 1:11\.1\.3\+ds-1~bpo13\+1 for amd64; 1:11\.1\.3.* for arm64\n"),
        ("linux=7.1@sid", r"linux=7\.1@sid .* it has in sid: linux-source-7\.10 7\.10\.1-1; "),
    ],
)
def test_what_the_mirror_does_not_have_is_told_with_what_it_has(
    mirror: Mirror, text: str, says: str
) -> None:
    with pytest.raises(LabError, match=says):
        found(text)


def test_a_suite_that_the_mirror_does_not_have_is_told(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a suite that is trusted without a signature, apt would not look for its Release.
    monkeypatch.setattr(debian, "TRUST", f"signed-by={debian.KEYRING}")
    with pytest.raises(LabError, match=f"the mirror file:{mirror.folder} has no suite bullseye\n"):
        found("linux=5.10@bullseye,qemu=newest@bullseye")


def test_a_qemu_that_one_architecture_lacks_is_not_taken(mirror: Mirror) -> None:
    mirror.qemu("1:11.1.4+ds-1~bpo13+1", architectures=["amd64"])
    mirror.publish()
    with pytest.raises(LabError, match=r"11\.1\.4.* for amd64; 1:11\.1\.3.* for arm64"):
        found()


def test_a_package_that_was_built_anew_has_a_version_of_its_own(mirror: Mirror) -> None:
    again = "1:11.1.3+ds-1~bpo13+1+b2"
    mirror.put("qemu-system-arm", again, BACKPORTS, "arm64", "arm64")
    mirror.publish()
    versions = find(wish(), QUIET).qemu.versions
    assert versions["arm64"] == {
        "qemu-system-arm": again,
        "qemu-system-common": "1:11.1.3+ds-1~bpo13+1",
        "qemu-system-data": "1:11.1.3+ds-1~bpo13+1",
    }
    assert set(versions["amd64"].values()) == {"1:11.1.3+ds-1~bpo13+1"}


def test_a_mirror_that_nobody_signed_is_refused(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Neither may the machine's own configuration allow it.
    configuration(tmp_path, 'Acquire::AllowInsecureRepositories "true";')
    monkeypatch.setattr(debian, "TRUST", f"signed-by={debian.KEYRING}")
    with pytest.raises(LabError, match="is not signed"):
        found()


def test_the_machines_own_apt_is_left_alone(mirror: Mirror, tmp_path: Path) -> None:
    """Neither its state is touched, nor are its hooks called, nor do its sources and what it
    prefers count."""
    lists, preferences, sources = (tmp_path / name for name in ("lists", "preferences", "sources"))
    lists.mkdir()
    sources.mkdir()
    (sources / "own.list").write_text("deb [trusted=yes] file:/nowhere stable main\n")
    preferences.write_text("Package: *\nPin: release *\nPin-Priority: -1\n")
    configuration(
        tmp_path,
        f'Dir::State::lists "{lists}";',
        f'Dir::Etc::Preferences "{preferences}";',
        f'Dir::Etc::SourceParts "{sources}";',
        f'APT::Update::Pre-Invoke {{ "touch {tmp_path}/before"; }};',
        f'APT::Update::Post-Invoke {{ "touch {tmp_path}/after"; }};',
    )
    assert found() == ["7.3.12-1~bpo13+1", "1:11.1.3+ds-1~bpo13+1"]
    assert list(lists.iterdir()) == []
    assert list(tmp_path.glob("[ab]*")) == []


# -- what is built from --------------------------------------------------------------------------


def test_an_exact_source_is_downloaded_alone(mirror: Mirror, tmp_path: Path) -> None:
    for version in ("7.3.30-1", "7.3.31-1"):
        mirror.linux(version, "forky", archive=source_package(tmp_path / version, version))
    mirror.publish()
    older = KernelSource("linux-source-7.3", "7.3.30-1", "forky")
    tarball = unpack_source(older, tmp_path / "tree")
    listed = ["tar", "-xOJf", str(tarball), "linux-source-7.3/Makefile"]
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == (
        "# 7.3.30-1\n"
    )


def test_what_has_left_the_mirror_is_told(mirror: Mirror, tmp_path: Path) -> None:
    old = stack_of("7.3.6-1~bpo13+1", "1:11.1.2+ds-1~bpo13+1")
    says = r"no longer has linux-source-7\.3 7\.3\.6-1.*7\.3\.12-1~bpo13\+1.*\n.*`hil lab update`"
    with pytest.raises(LabError, match=says):
        unpack_source(old.source(), tmp_path / "tree")
    says = r"no longer has qemu-system-arm 1:11\.1\.2.*has qemu-system-arm 1:11\.1\.3"
    with pytest.raises(LabError, match=says):
        unpack_qemu(old.qemu, "arm64", (), tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_what_is_built_is_known_by_its_exact_packages(tmp_path: Path) -> None:
    one, store = stack_of(), Store(tmp_path)

    def keys(of: Stack) -> tuple[str, str, str]:
        return (
            images.emulator(of.qemu).key,
            kernel.recipe(of.source(), QUIET).key,
            images.host_disk(of, store, QUIET).key,
        )

    assert keys(one) == keys(stack_of())
    other_linux = [a == b for a, b in zip(keys(one), keys(stack_of(linux="7.3.7-1")), strict=True)]
    assert other_linux == [True, False, False]
    other_qemu = [a == b for a, b in zip(keys(one), keys(stack_of(qemu="1:11.2-1")), strict=True)]
    assert other_qemu == [False, True, False]
    # The emulator is that of this machine, the host's QEMU that of the host.
    again = {**one.qemu.versions["arm64"], "qemu-system-arm": "1:11.1.3-1+b1"}
    anew = {"amd64": one.qemu.versions["amd64"], "arm64": again}
    for_host = Stack(one.linux, QemuPackages(BACKPORTS, anew))
    assert [a == b for a, b in zip(keys(one), keys(for_host), strict=True)] == [True, True, False]


def test_a_qemu_of_another_suite_has_other_libraries() -> None:
    here = stack_of().qemu
    elsewhere = QemuPackages("sid", here.versions)
    assert images.emulator(here).key != images.emulator(elsewhere).key
    assert debian.family(BACKPORTS) == ("trixie", BACKPORTS)
    assert debian.family("sid") == ("sid",)


@pytest.mark.parametrize("checked", [True, False])
def test_an_expired_mirror_is_taken_where_the_machine_takes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checked: bool
) -> None:
    """mmdebstrap is told, because it does not read the machine's configuration."""
    own = configuration(
        tmp_path, *('Dir::Etc::Parts "/dev/null";', f'Acquire::Check-Valid-Until "{checked}";')
    )
    monkeypatch.setenv("APT_CONFIG", str(own))
    told = ['--aptopt=Acquire::Check-Valid-Until "false"']
    assert debian._validity() == ([] if checked else told)


def test_a_stack_has_the_kernel_of_a_series(mirror: Mirror) -> None:
    both = find(wish("linux=7.3,linux=7.4"), QUIET)
    assert both.source() == both.source("7.3")
    assert kernel.recipe(both.source("7.4"), QUIET).key != kernel.recipe(both.source(), QUIET).key
    with pytest.raises(HarnessError, match=r"no Linux 7\.5, only 7\.3, 7\.4\n.*linux=7\.5"):
        both.source("7.5")


# -- what is written down ------------------------------------------------------------------------


def test_the_mirror_is_asked_once(
    mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stack.recorded(cache) is None
    first = stack.in_use(cache, QUIET)
    mirror.linux("7.3.13-1~bpo13+1")
    mirror.publish()
    assert stack.in_use(cache, QUIET) == stack.recorded(cache) == first
    monkeypatch.setenv("HIL_DEBIAN_MIRROR", "file:/nowhere")
    assert stack.in_use(cache, QUIET) == first
    # Another wish has another stack, and does not touch the first.
    with pytest.raises(LabError):
        stack.in_use(cache, QUIET, wish("linux=7.4"))
    monkeypatch.setenv("HIL_DEBIAN_MIRROR", f"file:{mirror.folder}")
    monkeypatch.setenv(stack.VARIABLE, "linux=7.4")
    assert stack.in_use(cache, QUIET).source().version == "7.4.4-1~bpo13+1"
    monkeypatch.delenv(stack.VARIABLE)
    assert stack.in_use(cache, QUIET) == first
    assert not list(cache.glob("*.json.*"))


def test_processes_that_begin_together_agree(mirror: Mirror, cache: Path) -> None:
    """The second one waits, and does not ask the mirror, which has something newer by then."""
    first = stack.in_use(cache, QUIET)
    (cache / stack.RECORD).unlink()
    script = """
import logging, sys
from pathlib import Path
from harness.artifacts import debian, stack
from harness.progress import Progress
debian.TRUST = "trusted=yes"
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
print(stack.in_use(Path(sys.argv[1]), Progress(enabled=False)).source().version)
"""
    begin = [sys.executable, "-c", script, str(cache)]
    with stack._lock(cache):
        second = subprocess.Popen(begin, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert second.stdout
        # filelock says that it waits, and then asks again and again.
        while " not acquired " not in (line := second.stdout.readline()):
            assert line, "it has ended"
        stack._change(cache, stacks={str(wish()): first})
        mirror.linux("7.3.13-1~bpo13+1")
        mirror.publish()
    said, _ = second.communicate(timeout=60)
    assert said.splitlines()[-1] == "7.3.12-1~bpo13+1"


_EMPTY = '{"stacks": {"x": {"linux": [], "qemu": {"suite": "sid", "versions": {}}}}}'


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"stacks": {"x": 1}}', _EMPTY, '{"chosen": "linux"}', "\xff"]
)
def test_a_damaged_record_is_told_and_nothing_is_guessed(cache: Path, text: str) -> None:
    (cache / stack.RECORD).write_bytes(text.encode("latin-1"))
    with pytest.raises(LabError, match=r"stack\.json.* cannot be read: (.|\n)*`hil lab update`"):
        stack.in_use(cache, QUIET)
    assert "cannot be read" in hil("lab", "status").output
    assert hil("lab", "outdated").exit_code == 2


#: Print what a cache on a read-only file system still tells, and what it refuses.
READ_ONLY = """
import sys
from pathlib import Path
from harness.artifacts import stack
from harness.artifacts.parts import StackWish
from harness.errors import LabError
from harness.progress import Progress

root, quiet = Path(sys.argv[1]), Progress(enabled=False)
print(stack.in_use(root, quiet).source().version)
for call in (
    lambda: stack.in_use(root, quiet, StackWish.parse("linux=7.4", "here")),
    lambda: stack.write_down(root, StackWish(), stack.in_use(root, quiet)),
):
    try:
        call()
    except LabError as problem:
        print(problem.message)
"""


def test_a_cache_that_cannot_be_written_is_read(cache: Path) -> None:
    """It is told before the mirror is asked, which here does not exist."""
    plant(cache)
    script = f'mount --bind -o ro "$1" "$1" && exec {sys.executable} -c "$2" "$1"'
    said = subprocess.run(
        [*("unshare", "--mount", "--map-root-user"), "sh", "-c", script, "sh", cache, READ_ONLY],
        cwd=ROOT,
        env={**os.environ, "HIL_DEBIAN_MIRROR": "file:/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[0] == "7.3.6-1"
    assert [line.startswith(f"the cache {cache} cannot be written") for line in said[1:]] == [
        True,
        True,
    ]


# -- commands ------------------------------------------------------------------------------------


def hil(*words: str) -> Result:
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, HarnessError | LabError):
        raise result.exception
    return result


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have `hil` build small things in place of the lab, and return what was built. A Linux of
    version 0 cannot be built."""
    built: list[str] = []

    def recipes(of: Stack, store: Store, progress: Progress) -> list[Recipe]:
        return [made(one) for one in of.linux[:1]]

    def made(source: KernelSource) -> Recipe:
        def build(out: Path, work: Path) -> dict[str, object]:
            if ".0-" in source.version:
                raise LabError("it does not compile")
            (out / "Image").touch()
            built.append(source.version)
            return {"version": source.version}

        key = kernel.recipe(source, QUIET).key
        return Recipe("kernel", key, build, needs_bytes=0, expected_seconds=120)

    def second(of: Stack, progress: Progress) -> list[Recipe]:
        return [made(one) for one in of.linux[1:]]

    monkeypatch.setattr(stack_commands, "recipes", recipes)
    monkeypatch.setattr(stack_commands, "other_kernels", second)
    return built


def test_the_second_kernels_are_built_too_and_the_choice_stays(
    mirror: Mirror, cache: Path, built: list[str]
) -> None:
    hil("lab", "build")
    assert built == ["7.3.12-1~bpo13+1"]
    hil("lab", "build", "--stack=linux=7.4,linux=7.3")
    assert built[1:] == ["7.4.4-1~bpo13+1"], "7.3 is there already"
    assert "stack: linux-source-7.4 7.4.4-1~bpo13+1 (trixie-backports), linux-source-7.3" in (
        hil("lab", "status").stdout
    )
    shown = hil("lab", "artifacts").stdout.splitlines()
    assert [line.partition(": ")[0] for line in shown[:3]] == ["stack", "kernel", "kernel"]
    assert "lasting snapshots: 0 (0 KiB)" in shown
    hil("lab", "build", "--stack=default")
    assert stack.wished(cache) == StackWish()
    assert len(built) == 2


def test_an_update_says_what_changes_before_it_builds(
    mirror: Mirror, cache: Path, built: list[str]
) -> None:
    hil("lab", "build")
    assert "nothing is to be built" in hil("lab", "update").stdout
    mirror.linux("7.3.13-1~bpo13+1")
    mirror.publish()
    hil("lab", "build")
    assert built == ["7.3.12-1~bpo13+1"], "nothing is built unasked"
    said = hil("lab", "update").stdout.splitlines()
    assert said == [
        "linux-source-7.3 7.3.12-1~bpo13+1 (trixie-backports) → linux-source-7.3 7.3.13-1~bpo13+1 "
        "(trixie-backports)",
        "QEMU 1:11.1.3+ds-1~bpo13+1 (trixie-backports): unchanged",
        "to be built: kernel (about 2 minutes); in all about 2 minutes",
    ]
    assert built[1:] == ["7.3.13-1~bpo13+1"]


def test_a_failed_update_changes_nothing(mirror: Mirror, cache: Path, built: list[str]) -> None:
    hil("lab", "build")
    before = stack.in_use(cache, QUIET)
    mirror.clear()
    mirror.linux("7.5.0-1~bpo13+1")
    mirror.qemu("1:11.2-1~bpo13+1")
    mirror.publish()
    for words in (["update"], ["update", "--stack=linux=7.5"], ["build", "--stack=linux=7.5"]):
        with pytest.raises(LabError, match="it does not compile"):
            hil("lab", *words)
        assert stack.in_use(cache, QUIET) == before
    hil("lab", "build")
    assert built == ["7.3.12-1~bpo13+1"], "what is built stays usable when it has left the mirror"


def test_an_update_replaces_a_damaged_record(mirror: Mirror, cache: Path, built: list[str]) -> None:
    (cache / stack.RECORD).write_text("{")
    with pytest.raises(LabError, match=r"stack\.json"):
        hil("lab", "build")
    said = hil("lab", "update").stdout
    assert "stack.json, which says what the lab is built from, cannot be read" in said
    assert "linux-source-7.3 7.3.12-1~bpo13+1 (trixie-backports): new" in said
    assert stack.in_use(cache, QUIET).source().version == "7.3.12-1~bpo13+1"


def outdated() -> tuple[int, dict[str, object]]:
    ended = hil("lab", "outdated", "--json")
    return ended.exit_code, json.loads(ended.stdout)


def test_what_is_newer_is_told(mirror: Mirror, cache: Path) -> None:
    assert hil("lab", "outdated").exit_code == 2, "nothing is known yet"
    stack.in_use(cache, QUIET)
    linux = {
        "part": "linux",
        "have": "linux-source-7.3 7.3.12-1~bpo13+1 (trixie-backports)",
        "newest": "linux-source-7.3 7.3.12-1~bpo13+1 (trixie-backports)",
        "outdated": False,
        "left": False,
        "later": ["linux-source-7.4 7.4.4-1~bpo13+1 (trixie-backports)"],
    }
    status, told = outdated()
    assert (status, told["outdated"]) == (0, False)
    assert told["parts"][0] == linux  # type: ignore[index]
    assert hil("lab", "outdated").stdout.splitlines()[1:] == [
        "QEMU 1:11.1.3+ds-1~bpo13+1 (trixie-backports): the newest"
    ]

    mirror.linux("7.3.13-1~bpo13+1")
    mirror.publish()
    status, told = outdated()
    assert (status, told["outdated"]) == (1, True)
    newer = {"newest": "linux-source-7.3 7.3.13-1~bpo13+1 (trixie-backports)", "outdated": True}
    assert told["parts"][0] == {**linux, **newer}  # type: ignore[index]

    mirror.clear()
    mirror.linux("7.4.5-1~bpo13+1")
    mirror.publish()
    ended = hil("lab", "outdated")
    assert ended.exit_code == 1
    assert ended.stdout.splitlines() == [
        "linux-source-7.3 7.3.12-1~bpo13+1 (trixie-backports) → linux-source-7.4 7.4.5-1~bpo13+1 "
        "(trixie-backports); the mirror no longer has the old one: no other machine can build it",
        "QEMU 1:11.1.3+ds-1~bpo13+1 (trixie-backports) → nothing: the mirror has none any more; "
        "the mirror no longer has the old one: no other machine can build it",
        "`hil lab update` builds the lab from what is newer",
    ]


def test_what_cannot_be_told_has_a_status_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(cache)
    monkeypatch.setenv("HIL_DEBIAN_MIRROR", "file:/nowhere")
    ended = hil("lab", "outdated")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "trixie-backports" in ended.stderr
