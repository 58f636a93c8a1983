"""The commit hooks run the same commands as `make lint`."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


def test_hooks_call_what_lint_calls() -> None:
    config = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    # A command that prints when it succeeds is wrapped: `said=$(COMMAND) || { … }`.
    called = [
        re.sub(r"^said=\$\$\((.*)\) \|\| .*$", r"\1", line.removeprefix("\t@"))
        for line in lint[1].splitlines()
    ]
    assert hooks == [line.replace("$(BIN)", ".venv/bin") for line in called]
