"""Recipes of the lab's file trees: QEMU for this machine, the guest's initramfs, the host's root
disk."""

from __future__ import annotations

import gzip
import shutil
import stat
from importlib import resources
from pathlib import Path

import paramiko

from harness.artifacts import architecture, debian, firmware, kernel, selftests, tools
from harness.artifacts.cpio import Entry, newc
from harness.artifacts.parts import QemuPackages, Stack, unpack_qemu
from harness.artifacts.store import MANIFEST, Recipe, Store, content_key
from harness.errors import LabError
from harness.kernel_image import KernelImage, digest
from harness.progress import Progress

#: Where the host's root file system keeps what guests boot from.
HOST_SHARE = "usr/share/hil"
#: The folder there with the kernel's own tests.
SELFTESTS = "selftests"

#: Where a host that is up has its guests' second flash, as a first boot leaves it.
FIRMWARE_VARIABLES = "/run/firmware-variables"
#: The firmware whose variables these are.
FIRMWARE = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"

#: What a tree has besides QEMU.
EMULATOR_PACKAGES = ("qemu-efi-aarch64",)
HOST_PACKAGES = (
    *EMULATOR_PACKAGES,
    "bash",
    "coreutils",
    "dash",
    # It shows where a QEMU was that died.
    "gdb-minimal",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "kexec-tools",
    "kmod",
    "mount",
    "openssh-server",
    "openssh-sftp-server",
    "pciutils",
    "procps",
    "psmisc",
    "python3",
    "sed",
    "socat",
    "util-linux",
)
#: Folders that no program needs, and that make up most of the unpacked size.
_LEFT_OUT = (
    "usr/share/AAVMF",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/info",
)


def _payload(name: str) -> bytes:
    """Return a file of the payload that runs inside every guest."""
    return resources.files("harness.guest").joinpath("payload", name).read_bytes()


def _host_init() -> bytes:
    return resources.files("harness.artifacts").joinpath("host-init.sh").read_bytes()


def emulator(qemu: QemuPackages) -> Recipe:
    """Return the recipe of a tree with the QEMU that emulates the host, and its firmware."""
    here = architecture.here().name

    def build(out: Path, work: Path) -> dict[str, object]:
        versions = unpack_qemu(qemu, here, EMULATOR_PACKAGES, out / "tree")
        for name in _LEFT_OUT:
            shutil.rmtree(out / "tree" / name, ignore_errors=True)
        return {"packages": versions}

    return Recipe(
        "emulator",
        content_key("emulator 3", here, _key(qemu, here), EMULATOR_PACKAGES, _LEFT_OUT),
        build,
        needs_bytes=2 << 30,
        expected_seconds=20,
    )


def emulator_command(tree: Path) -> list[str]:
    """Return the command line of an emulator tree's QEMU, to which its options are added."""
    qemu = debian.program(tree, "qemu-system-aarch64")
    return [*qemu, "-L", str(tree / "usr/share/qemu")]


def _key(qemu: QemuPackages, whose: str) -> tuple[object, ...]:
    """Return what the content of a tree depends on that has this QEMU for an architecture."""
    return debian.family(qemu.suite), sorted(qemu.versions[whose].items())


def guest_initramfs() -> Recipe:
    """Return the recipe of `initramfs.cpio.gz`: busybox, the guests' tool `hil` and an init."""

    def build(out: Path, work: Path) -> dict[str, object]:
        shutil.rmtree(work / "tree", ignore_errors=True)
        versions = debian.extract(work / "tree", "arm64", ("busybox-static",))
        busybox = (work / "tree/usr/bin/busybox").read_bytes()
        source = work / "guest-tool.c"
        source.write_bytes(_payload("guest-tool.c"))
        compiler = [f"{architecture.CROSS_COMPILE}gcc", "-static", "-Os", "-s", "-Wall", "-o"]
        tools.run([*compiler, str(work / "hil"), str(source)])
        links = [
            Entry(f"bin/{applet}", b"busybox", stat.S_IFLNK | 0o777)
            for applet in _GUEST_APPLETS.split()
        ]
        folders = [Entry(name) for name in ("bin", "dev", "proc", "sys", "tmp", "root")]
        archive = newc(
            [
                *folders,
                Entry("bin/busybox", busybox),
                Entry("bin/hil", (work / "hil").read_bytes()),
                Entry("init", _payload("guest-init.sh")),
                *links,
            ]
        )
        # Stored, not compressed: each guest unpacks it under emulation, which took 4 % of its boot.
        (out / "initramfs.cpio.gz").write_bytes(gzip.compress(archive, 0, mtime=0))
        return {"packages": versions}

    parts = [_payload(name) for name in ("guest-tool.c", "guest-init.sh")]
    return Recipe(
        "guest",
        content_key("guest 2", *parts, _GUEST_APPLETS),
        build,
        needs_bytes=256 << 20,
        expected_seconds=10,
    )


#: Commands that become links to busybox. Debian builds them into busybox-static.
_GUEST_APPLETS = (
    "awk basename cat clear cmp cp cut date dd devmem dirname dmesg echo env false find free grep "
    "gzip halt head hostname id kill less ln ls md5sum mkdir mount mv od poweroff printf ps "
    "readlink reboot rm sed seq setsid sh sha256sum sleep sort stty sync sysctl tail taskset tee "
    "test timeout tr true umount uname uniq usleep vi wc xargs"
)


def given_kernel(image: KernelImage) -> Recipe:
    """Return the recipe of a copy of a kernel Image, so that a host boots the same one when it is
    started again, whatever becomes of the file. Building it raises LabError if the file has
    changed since it was read."""

    def build(out: Path, work: Path) -> dict[str, object]:
        content = image.path.read_bytes()
        if digest(content) != image.digest:
            raise LabError(
                f"{image.path} has changed since this command began",
                fix="repeat the command when the build of the kernel is done",
            )
        (out / kernel.IMAGE).write_bytes(content)
        return {"release": image.release}

    return Recipe("given-kernel", image.digest, build, needs_bytes=128 << 20, expected_seconds=1)


def host_disk(stack: Stack, store: Store, progress: Progress) -> Recipe:
    """Return the recipe of the host's disk: `root.erofs`, and the SSH keys for it, `user_key` and
    `host_key.pub`."""
    image, guest = kernel.recipe(stack.source(), progress), guest_initramfs()
    tests, ours = selftests.recipe(stack.source(), progress), emulator(stack.qemu)

    def build(out: Path, work: Path) -> dict[str, object]:
        tree = work / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        with progress.step("unpack the host's packages", 25):
            versions = unpack_qemu(stack.qemu, "arm64", HOST_PACKAGES, tree)
        for name in _LEFT_OUT:
            shutil.rmtree(tree / name, ignore_errors=True)
        share = tree / HOST_SHARE
        share.mkdir(parents=True)
        for name in (kernel.IMAGE, kernel.SMALL_QUEUES_IMAGE):
            shutil.copy(store.get(image, progress) / name, share)
        shutil.copy(store.get(guest, progress) / "initramfs.cpio.gz", share)
        shutil.copytree(
            store.get(tests, progress),
            share / SELFTESTS,
            ignore=shutil.ignore_patterns(MANIFEST),
        )
        (share / "firmware-variables").write_bytes(
            firmware.variables(
                emulator_command(store.get(ours, progress) / "tree"),
                *(tree / FIRMWARE[1:], share / kernel.IMAGE, share / "initramfs.cpio.gz", work),
            )
        )
        _set_up_host(tree, out)
        with progress.step("compile the host's Python modules", 15):
            _compile_python(tree, work / "python", debian.family(stack.qemu.suite))
        tools.run(["mkfs.erofs", "-d1", "--all-root", "-T0", str(out / "root.erofs"), str(tree)])
        shutil.rmtree(tree)
        return {"packages": versions, "kernel": image.entry, "guest": guest.entry}

    return Recipe(
        "host",
        content_key(
            *("host 6", _key(stack.qemu, "arm64"), HOST_PACKAGES, _LEFT_OUT, _host_init()),
            *(image.key, guest.key, tests.key, ours.key),
        ),
        build,
        needs_bytes=2 << 30,
        expected_seconds=40,
    )


def _set_up_host(tree: Path, out: Path) -> None:
    """Do as much of the work of the packages' maintainer scripts as SSH needs. The private key that
    opens the host, and the host's public key, go to `out`."""
    etc = tree / "etc"
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\n"
        "sshd:x:100:65534:sshd:/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (etc / "group").write_text("root:x:0:\ntty:x:5:\nkvm:x:100:\nnogroup:x:65534:\n")
    (etc / "shadow").write_text("root:*:1::::::\n")
    (etc / "hostname").write_text("vgrace\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (etc / "hosts").write_text("127.0.0.1 localhost vgrace\n")
    (tree / "usr/bin/sh").unlink(missing_ok=True)
    (tree / "usr/bin/sh").symlink_to("dash")
    init = tree / "usr/lib/hil/init"
    init.parent.mkdir()
    init.write_bytes(_host_init())
    init.chmod(0o755)

    user, host = (_ed25519_key(out / name) for name in ("user_key", "host_key"))
    ssh = etc / "ssh"
    shutil.move(out / "host_key", ssh / "ssh_host_ed25519_key")
    (ssh / "authorized_keys").write_text(f"{user}\n")
    (out / "host_key.pub").write_text(f"{host}\n")
    (ssh / "sshd_config").write_text(
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "AuthorizedKeysFile /etc/ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\n"
        "UseDNS no\n"
        "PrintLastLog no\n"
        "MaxSessions 100\n"
        "MaxStartups 50\n"
        "Subsystem sftp /usr/lib/openssh/sftp-server\n"
    )


def _compile_python(tree: Path, scratch: Path, suites: tuple[str, ...]) -> None:
    """Byte-compile the tree's modules, as python3's maintainer script does: under emulation a
    program that has to compile what it imports takes four seconds to start. The same Python for
    this machine compiles them, because byte code is the same for all architectures."""
    shutil.rmtree(scratch, ignore_errors=True)
    debian.extract(scratch, architecture.here().name, ("python3-minimal",), suites)
    tools.run(
        [
            *("env", f"PYTHONHOME={scratch / 'usr'}"),
            *debian.program(scratch, "python3"),
            *("-m", "compileall", "-q", "-s", str(tree)),
            # Sources need no check: on a read-only file system none is newer than its byte code.
            *("--invalidation-mode", "unchecked-hash"),
            str(tree / "usr/lib"),
        ]
    )
    shutil.rmtree(scratch)


def _ed25519_key(path: Path) -> str:
    """Make a key pair: put the private key into `path` and return the public key's line."""
    tools.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hil", "-f", str(path)])
    public = path.with_suffix(".pub")
    line = public.read_text().strip()
    public.unlink()
    path.chmod(0o600)
    assert paramiko.PKey.from_path(path).get_base64() in line
    return line
