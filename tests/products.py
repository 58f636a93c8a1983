"""Histories of a product whose commits behave as a test wants, what builds it, and what stands for
pytest.

The product's source is one word, which says what a test of it meets. Its configure and its ninja
file are real, and so are git and the exit statuses and results of the program that tests it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bisect.builder import QemuBuilder
from harness.bisect.question import Known, Question
from harness.bisect.search import search
from harness.bisect.state import StateFolder
from harness.progress import Progress

#: As QEMU's: config.status has the environment, and calls configure as it was called.
CONFIGURE = """#!/bin/sh
source=$(cd "$(dirname "$0")" && pwd)
echo configured >>configured
{
    echo '#!/bin/sh'
    echo "CC='a compiler'"
    echo 'export CC'
    printf exec
    for word in "$0" "$@"; do
        printf " '%s'" "$word"
    done
    echo ' "$@"'
} >config.status
cat >build.ninja <<END
rule compile
  command = sh $source/compile.sh \\$in \\$out
build qemu-system-aarch64: compile $source/behaviour | $source/compile.sh $source/number
END
"""
#: It logs the commits that it has compiled. The build that HANG names hangs, once.
COMPILE = """
word=$(cat "$1") number=$(cat "$(dirname "$1")/number")
if [ "$HANG" = "build $number" ] && mkdir "$CALLS/hung" 2>/dev/null; then
    sleep 1000
fi
if [ "$word" = breaks-build ]; then
    echo "behaviour:1: error: no such word"
    echo "1 error generated"
    exit 1
fi
if [ "$word" = fills-disk ]; then
    echo "behaviour:1: fatal error: error writing to $2: No space left on device"
    exit 1
fi
printf '#!/bin/sh\\necho %s %s\\n' "$word" "$number" >"$2" && chmod +x "$2"
git -C "$(dirname "$1")" rev-parse HEAD >>"$CALLS/built"
"""
#: It runs the product, and has the exit status and the results that pytest has then. It ends as
#: pytest does when it is told to.
TESTER = """#!/bin/sh
for word; do
    case $word in
        --qemu=*) product=${word#*=} ;;
        --out=*) out=${word#*=} ;;
        --collect-only) exit ${COLLECTED:-0} ;;
    esac
done
said=$("$product") || exit 10
behaviour=${said% *} number=${said#* } time=$(ls "$out" | wc -l)
if [ "$HANG" = "test $number" ] && mkdir "$CALLS/hung" 2>/dev/null; then
    trap 'kill $!; echo gave back >"$CALLS/ended"; exit 2' TERM
    sleep 1000 &
    wait
fi
case $behaviour in
    flaky-*)
        behaviour=${behaviour#flaky-}
        [ "$time" -gt 0 ] || behaviour=lab ;;
esac
[ ! -e "$CALLS/down" ] || behaviour=lab
blame= message= status=0
case $behaviour in
    passes) outcome=passed ;;
    fails) outcome=failed blame=product status=1 message='E   AssertionError: 3 records are lost' ;;
    fails-otherwise) outcome=failed blame=product status=1 message='E   a wrong StreamID' ;;
    lab) outcome=failed blame=lab status=11 message='E   LabError: no link' ;;
    harness) outcome=failed blame=harness status=10 message='E   KeyError' ;;
    skipped) outcome=skipped ;;
    none) echo "$product" >>"$CALLS/tested"; exit 5 ;;
esac
mkdir "$out/$time"
printf '{"lab": "none", "environment": {}, "broken": "", "tests": [{"id": "t", "outcome": "%s",
    "seconds": 1.0, "covers": [], "message": "%s", "blame": "%s"}]}' \\
    "$outcome" "$message" "$blame" >"$out/$time/result.json"
basename "$(dirname "$product")" >>"$CALLS/tested"
exit $status
"""


@dataclass(frozen=True)
class Product:
    """A repository of a product, the developer's build folder, and what was done with it. `commits`
    are hashes, the oldest first."""

    source: Path
    build: Path
    calls: Path
    tester: Path
    commits: list[str]

    def said(self, what: str) -> list[str]:
        """Return what was logged of a kind of call: which commits were `built` or `tested`."""
        log = self.calls / what
        return log.read_text().split() if log.exists() else []

    def git(self, *words: str) -> str:
        """Return what git prints in the developer's checkout."""
        return git(self.source, *words)

    def question(
        self, good: int = 0, bad: int = -1, *, find_fix: bool = False, symptom: str | None = None
    ) -> Question:
        """Return a question about two of the commits."""
        builder, folder = QemuBuilder(self.build), str(self.calls)
        ends = self.commits[good], self.commits[bad]
        return Question(
            builder.product, str(builder.repository), *ends, ("t",), folder, find_fix, symptom
        )

    def bisect(
        self,
        folder: Path,
        question: Question,
        *,
        said: list[str] | None = None,
        trust: bool = False,
    ) -> Known:
        """Answer a question. What is said of it goes to `said`."""
        return search(
            question,
            QemuBuilder(self.build),
            StateFolder(folder),
            Progress(enabled=False),
            (said if said is not None else []).append,
            trust_ends=trust,
            command=[str(self.tester)],
        )


def git(folder: Path, *words: str) -> str:
    """Return what git prints in a folder."""
    ended = subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, check=True
    )
    return ended.stdout


def product(folder: Path, behaviours: Sequence[str]) -> Product:
    """Make a repository in which each commit behaves as its word says, and configure it."""
    source, build, calls = folder / "source", folder / "developers-build", folder / "calls"
    for one in (source, build, calls):
        one.mkdir()
    git(source, "init", "--quiet", "--initial-branch=main")
    stream = "".join(_commit(number, word) for number, word in enumerate(behaviours))
    subprocess.run(
        ["git", "-C", source, "fast-import", "--quiet"], input=stream, text=True, check=True
    )
    git(source, "reset", "--quiet", "--hard")
    subprocess.run(
        ["sh", "../source/configure", "--disable-docs", "--cc=two words"], cwd=build, check=True
    )
    tester = folder / "tester"
    tester.write_text(TESTER)
    tester.chmod(0o755)
    commits = git(source, "rev-list", "--reverse", "main").split()
    return Product(source, build, calls, tester, commits)


def _commit(number: int, word: str) -> str:
    files = {"behaviour": f"{word}\n", "number": f"{number}\n"}
    if number == 0:
        files |= {"configure": CONFIGURE, "compile.sh": COMPILE, ".gitignore": "/subprojects/*/\n"}
    who, subject = f"Ada <ada@example.org> {1700000000 + number * 60} +0000", f"commit {number}"
    written = "".join(
        f"M 100{'755' if name == 'configure' else '644'} inline {name}\n{_data(text)}"
        for name, text in files.items()
    )
    return f"commit refs/heads/main\nauthor {who}\ncommitter {who}\n{_data(subject)}{written}\n"


def _data(text: str) -> str:
    return f"data {len(text)}\n{text}\n"
