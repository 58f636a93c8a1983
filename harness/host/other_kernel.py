"""How a host is known that a run has brought to another kernel by kexec, and how that is undone."""

from __future__ import annotations

#: A word `hil.kexec=…` on a kernel's command line tells that a run has booted that kernel by kexec.
KEXEC_MARK = "hil.kexec"
#: Where a host has the modules of its kernels, in a folder for each release.
MODULES = "/lib/modules"
#: A folder of modules that has this file was brought by a run.
BROUGHT = ".hil"
#: Reboot a host. It takes effect a moment later, so that whoever asked is answered.
REBOOT = (
    "if [ -d /run/systemd/system ]; then systemctl reboot; else env -u HIL_SESSION setsid sh -c "
    "'sleep 2; sync; echo b >/proc/sysrq-trigger' </dev/null >/dev/null 2>&1 & fi"
)


def removal(release: str) -> str:
    """Return the command that removes the modules that a run has brought for a release, which is a
    word for a shell."""
    return f"folder={MODULES}/{release}; [ ! -e $folder/{BROUGHT} ] || rm -rf $folder"
