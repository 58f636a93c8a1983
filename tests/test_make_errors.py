"""Of what a failed make printed, a person is shown what is wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.artifacts import tools
from harness.artifacts.make_errors import errors
from harness.errors import LabError

#: From builds of Linux 7.3 that were made to fail.
COMPILER = """\
  CC      drivers/iommu/iommufd/eventq.o
  CC      kernel/panic.o
../drivers/iommu/iommufd/eventq.c: In function 'iommufd_veventq_alloc':
../drivers/iommu/iommufd/eventq.c:470:9: error: 'rcx' undeclared (first use in this function)
  470 |         rcx = 5;
      |         ^~~
      |         rc
../drivers/iommu/iommufd/eventq.c:470:9: note: each undeclared identifier is reported only once
  CC      kernel/cpu.o
make[6]: *** [/root/linux/scripts/Makefile.build:290: drivers/iommu/iommufd/eventq.o] Error 1
make[5]: *** [/root/linux/scripts/Makefile.build:549: drivers/iommu/iommufd] Error 2
make[5]: *** Waiting for unfinished jobs....
  CC      kernel/exit.o
  CC      kernel/softirq.o
  CC      kernel/resource.o
  CC      kernel/sysctl.o
  CC      kernel/capability.o
  CC      kernel/ptrace.o
  CC      kernel/user.o
  CC      kernel/signal.o
  CC      kernel/sys.o
  CC      kernel/umh.o
  CC      kernel/workqueue.o
  CC      kernel/pid.o
make[4]: *** [/root/linux/scripts/Makefile.build:549: drivers/iommu] Error 2
make: *** [Makefile:248: __sub-make] Error 2
""".splitlines()


def test_a_compilers_error_is_shown_with_its_source_line_and_nothing_else() -> None:
    assert errors(COMPILER) == COMPILER[2:8]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "  LD      .tmp_vmlinux1\n"
            "aarch64-linux-gnu-ld: vmlinux.o: in function `f':\n"
            "/root/linux/a.c:3:(.text+0x8): undefined reference to `g'\n"
            "make[2]: *** [scripts/Makefile.vmlinux:72: vmlinux] Error 1\n",
            [1, 2],
        ),
        (
            "In file included from ../a.c:1:\n"
            "../a.h:1:10: fatal error: missing.h: No such file or directory\n"
            "    1 | #include <missing.h>\n"
            "      |          ^~~~~~~~~~~\n"
            "compilation terminated.\n"
            "make[3]: *** [../Makefile:3: a.o] Error 1\n",
            [0, 1, 2, 3],
        ),
        ("/bin/sh: 1: flex: not found\nmake[1]: *** [a] Error 127\n", [0]),
        ('init/Kconfig:12: syntax error\ninit/Kconfig:11: unknown statement "foo"\n', [0]),
        (
            "  CC      a.o\n"
            "make[3]: *** No rule to make target 'lib/b.o', needed by 'lib/built-in.a'.  Stop.\n"
            "make[2]: *** [x: lib] Error 2\n",
            [0, 1],
        ),
        ("one\ntwo\n", [0, 1]),
        # A warning, or a file of that name, is no error.
        ("a.c:1:1: warning: unused\n  CC      lib/error.o\nbad\n", [0, 1, 2]),
    ],
    ids=["linker", "include", "tool", "kconfig", "rule", "unknown", "no-error"],
)
def test_other_errors(text: str, shown: list[int]) -> None:
    lines = text.splitlines()
    assert errors(lines) == [lines[at] for at in shown]


def test_of_many_errors_the_first_are_shown() -> None:
    many = [f"a.c:{line}:1: error: wrong" for line in range(100)]
    assert errors(many) == [*many[:40], "… and 60 more lines"]


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_what_a_real_compiler_and_make_say(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int f(void)\n{\n\treturn x;\n}\n")
    (tmp_path / "Makefile").write_text(
        'all: a.o b\nb:\n\t@for n in $$(seq 30); do echo "  CC      $$n.o"; done; false\n'
    )
    with pytest.raises(LabError) as told:
        tools.run(
            ["make", "-k", "-C", str(tmp_path)],
            log=tmp_path / "log",
            what="compiling x",
            excerpt=errors,
            fix="so",
        )
    shown = told.value.message.splitlines()
    assert shown[0] == "compiling x failed with status 2:"
    assert "error: " in shown[2]
    assert "'x' undeclared" in shown[2]
    assert "return x;" in shown[3]
    assert "CC" not in told.value.message
    said = subprocess.run(["grep", "-c", "CC", tmp_path / "log"], capture_output=True, check=True)
    assert int(said.stdout) == 30
