"""Configure and compile a Linux source tree in a folder elsewhere; nothing is written to the tree.

What was built there before makes the next build fast, and so does what an interrupted one left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import architecture, tools
from harness.artifacts.kconfig import why_not_taken
from harness.artifacts.kernel_name import kernel_version
from harness.artifacts.kernel_options import is_taken, options, settings
from harness.artifacts.make_errors import errors
from harness.errors import HarnessError, LabError
from harness.progress import Progress

#: How many lines make prints for a kernel with our options, as counted: most are about one object.
#: Only the progress bar depends on it.
_LINES = 1950
#: What one changed file takes, in seconds, most of it for linking.
AGAIN_SECONDS = 20.0
#: What the Makefile of Linux takes for a tree that was built in place.
_BUILT_IN_PLACE = (".config", "include/config", "arch/arm64/include/generated")
#: What it does not take in a path.
_UNUSABLE = re.compile(r"[\s:]")


@dataclass(frozen=True)
class Overlay:
    """Options that are laid over ours, and where they are from. The build fails if the tree does
    not take one. `selects` is an option that nobody can choose in the tree: it is selected."""

    origin: str
    settings: Mapping[str, str]
    selects: str = ""

    @classmethod
    def read(cls, path: Path) -> Overlay:
        """Read a fragment of a .config. Raises HarnessError for a file that has no options."""
        try:
            found = settings(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as problem:
            raise HarnessError(f"--config: {path} cannot be read: {problem}") from None
        if not found:
            raise HarnessError(
                f"--config: {path} sets no option",
                fix="write lines such as CONFIG_SLUB_DEBUG_ON=y, or CONFIG_CMA=n",
            )
        return cls(str(path), found)


@dataclass(frozen=True)
class KernelTree:
    """A source tree, the folder in which it is built, and what to do when a step fails."""

    source: Path
    build: Path
    fix: str

    @property
    def image(self) -> Path:
        return self.build / "arch/arm64/boot/Image"

    @property
    def config(self) -> Path:
        return self.build / ".config"

    @property
    def _kconfig(self) -> Path:
        """Return the file that stands for the tree's Kconfig while overlays select options."""
        return self.build / "Kconfig.selects"

    @property
    def release(self) -> str:
        """Return what `uname -r` says where the Image runs that was built last."""
        return (self.build / "include/config/kernel.release").read_text().strip()

    def check(self) -> None:
        """Raise HarnessError for a folder that is no Linux source tree, or one that cannot be built
        elsewhere."""
        kernel_version(self.source)
        if not (self.source / "arch/arm64/Kconfig").exists():
            raise HarnessError(
                f"{self.source} is no Linux source tree for arm64",
                fix="name the top folder of a tree, which has Makefile, Kconfig and arch/arm64",
            )
        if _UNUSABLE.search(str(self.source)):
            raise HarnessError(
                f"the tree {str(self.source)!r} has a space or a colon in its path",
                fix="move it, or add a worktree elsewhere: Linux cannot be built there",
            )
        left = [name for name in _BUILT_IN_PLACE if (self.source / name).exists()]
        if left:
            raise HarnessError(
                f"{self.source} was built in place (it has {left[0]}), and Linux does not build "
                "such a tree in another folder",
                fix=f"keep its .config if you need it, and run `make -C {self.source} ARCH=arm64 "
                f"mrproper`; or leave it and add a clean one: `git -C {self.source} worktree add "
                "--detach ../hil-tree`",
            )

    def configure(self, overlays: Sequence[Overlay], progress: Progress) -> None:
        """Configure the build with our options and with these. Of an option that is given twice the
        last value counts. A note tells which useful options the tree does not take.

        Raises LabError if it does not take one that is needed, or one of an overlay.
        """
        self.build.mkdir(parents=True, exist_ok=True)
        self._select([one.selects for one in overlays if one.selects])
        wanted = {option.name: option.value for option in options()}
        for overlay in overlays:
            wanted |= overlay.settings
        fragment = self.build / "fragment"
        lines = "".join(f"{name}={value}\n" for name, value in wanted.items())
        fragment.write_text(lines, encoding="utf-8")
        self._make(f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig", what="configuring")
        got = settings(self.config.read_text(encoding="utf-8", errors="replace"))
        refused = {
            name: value for name, value in wanted.items() if not is_taken(value, got.get(name))
        }
        if refused:
            self._tell(refused, got, overlays, progress)

    def _select(self, names: Sequence[str]) -> None:
        """Have the configuration select these options, which nobody can choose."""
        if not names:
            self._kconfig.unlink(missing_ok=True)
            return
        # The tree's own cannot be sourced: it names the main menu, which only the first file may.
        own = (self.source / "Kconfig").read_text(encoding="utf-8")
        selects = "".join(f"\tselect {name}\n" for name in names)
        self._kconfig.write_text(
            f"{own}\nconfig HIL_SELECTS\n\tdef_bool y\n{selects}", encoding="utf-8"
        )

    def _tell(
        self,
        refused: Mapping[str, str],
        got: Mapping[str, str],
        overlays: Sequence[Overlay],
        progress: Progress,
    ) -> None:
        """Tell which options the tree does not take. Raises LabError if something needs one."""
        asked = {name: one.origin for one in overlays for name in one.settings}
        ours = {option.name: option for option in options() if option.name not in asked}
        needed = {name: f" (from {origin})" for name, origin in asked.items() if name in refused}
        useful = []
        for option in ours.values():
            if option.name in refused and option.needed_by:
                needed[option.name] = f" (needed by {_names(option.needed_by)}: {option.purpose})"
            elif option.name in refused and option.useful_to:
                useful.append(option)
        names = [*needed, *(one.name for one in useful)]
        why = self._why({name: refused[name] for name in names}, got)
        if needed:
            listed = "".join(f"\n  {why[name]}{whose}" for name, whose in needed.items())
            raise LabError(
                f"{self.source} does not take options that are needed:{listed}",
                fix="add what they depend on with --config FILE, or to "
                "harness/guest/payload/kernel.config if the lab's kernel lacks it; to build "
                "without such an option, set it to n with --config",
            )
        for option in useful:
            progress.note(
                f"{why[option.name]}; it is useful to {_names(option.useful_to)}: {option.purpose}"
            )

    def _why(self, refused: Mapping[str, str], got: Mapping[str, str]) -> dict[str, str]:
        """Return, for each of these options, what it was to be and why it is not."""
        on = {name for name, value in got.items() if value != "n"}
        reasons = why_not_taken(self.source, refused, on)
        return {
            name: f"{name}=n: other options select it"
            if value == "n"
            else f"{name}={value} {reasons[name]}"
            for name, value in refused.items()
        }

    def compile(
        self,
        name: str,
        what: str,
        seconds: float,
        progress: Progress,
        *,
        again: float = AGAIN_SECONDS,
    ) -> None:
        """Compile the Image. `name` is added to its release. `what` is shown meanwhile; a build
        from the start takes so many seconds, one that goes on from another `again`. Raises LabError
        with the compiler's errors."""
        jobs, named = f"-j{os.cpu_count() or 1}", f"LOCALVERSION={name}"
        if (self.build / "vmlinux").exists():
            # How much has to be compiled again is not known.
            with progress.step(what, again):
                self._make(jobs, named, "Image", what="compiling")
            return
        before = sum(1 for _ in self.build.rglob("*.o"))
        with progress.step(what, seconds) as report:
            self._make(
                *(jobs, named, "Image"),
                what="compiling",
                each_line=lambda count: report(min(0.99, (before + count) / _LINES)),
            )

    def _make(self, *words: str, what: str, each_line: tools.EachLine | None = None) -> None:
        log = self.build / "make.log"
        tools.run(
            [
                "make",
                "-C",
                str(self.source),
                f"O={self.build}",
                "ARCH=arm64",
                f"CROSS_COMPILE={architecture.CROSS_COMPILE}",
                # Whoever builds kernels may have another one in the environment.
                f"KCONFIG_CONFIG={self.config.name}",
                f"KBUILD_KCONFIG={self._kconfig if self._kconfig.exists() else 'Kconfig'}",
                "KBUILD_BUILD_TIMESTAMP=1970-01-01",
                "KBUILD_BUILD_USER=hil",
                "KBUILD_BUILD_HOST=hil",
                *words,
            ],
            folder=self.build,
            each_line=each_line,
            log=log,
            what=f"{what} {self.source}",
            excerpt=errors,
            fix=f"{self.fix}; {log} has all that was printed",
        )


def _names(users: Iterable[str]) -> str:
    return ", ".join(sorted(users))
