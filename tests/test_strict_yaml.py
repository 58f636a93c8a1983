"""A file that people write is a value, or an error that names file, line, field and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from harness import strict_yaml
from harness.errors import HarnessError, HilError, LabError
from harness.lab import inventory
from harness.report import behaviours, defects

ROOT = Path(__file__).parents[1]


class Part(strict_yaml.Strict):
    name: str = ""
    parts: tuple[Part, ...] = ()
    more: dict[str, str] = Field(default={})


def refused(path: Path, content: bytes | str) -> str:
    """Return the error of a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LabError) as caught:
        strict_yaml.load(path, Part, what="file", error=LabError, fix="correct it", none="make it")
    assert caught.value.fix
    return caught.value.message


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: x\nmore: {}\n# caf\xe9\n", "file.yaml:3: not UTF-8: byte 0xe9"),
        ("name: x\n".encode("utf-16"), "file.yaml:1: not UTF-8: byte 0xff"),
        ("name: x\nmore: {a: \x07}\n", "file.yaml:2: not valid YAML: character U+0007 is not"),
        ("name: x\x00\n", "file.yaml:1: not valid YAML: character U+0000 is not allowed"),
        ("more:\n  a: b\n  c: d\x85\x9f\n", "file.yaml:3: not valid YAML: character U+009F"),
        (
            'parts:\n  - name: "\\x07"\n',
            "file.yaml:2: not valid YAML: parts[0].name has the control",
        ),
        ('name: "\\uD800"\n', "file.yaml:1: not valid YAML: name has the control character U+D800"),
        ('more:\n  "a\\0": b\n', "more has the control character U+0000"),
        ("[" * 500, "file.yaml:1: not valid YAML: nested more than 20 deep"),
        ("{a: " * 50 + "}" * 50, "file.yaml:1: not valid YAML: nested more than 20 deep"),
        ("name: x\nmore: {a: 2, " + "[" * 4000, "file.yaml:2: not valid YAML: nested more than"),
        ("[" * 100_000, "file.yaml:1: not valid YAML: nested more than 20 deep"),
        ("&a\nparts:\n  - *a\n", "file.yaml:2: not valid YAML: nested more than 20 deep"),
        ("name: !!int many\n", "file.yaml:1: not valid YAML: a value cannot be read: ValueError("),
        ("name: 2026-13-45\n", "file.yaml:1: not valid YAML: a value cannot be read: ValueError("),
        ("name: x\nname: y\n", 'file.yaml:2: not valid YAML: found duplicate key "name"'),
        ("name: *none\n", "file.yaml:1: not valid YAML: found undefined alias 'none'"),
        ("--- {}\n--- {}\n", "file.yaml:2: not valid YAML: but found another document"),
        (
            "name: [" + "1, " * 1000 + "]",
            "file.yaml:1: name: found [1, 1, 1, 1, 1, 1, ...]; allowed",
        ),
    ],
)
def test_an_error_says_where_and_what(tmp_path: Path, content: bytes | str, said: str) -> None:
    assert said in refused(tmp_path / "file.yaml", content)


def test_aliases_are_what_they_stand_for(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("name: &n x\nmore: &m {a: b}\nparts:\n  - {name: *n, more: *m}\n  - <<: *m\n")
    assert "parts[1].a: unknown field" in refused(file, file.read_text())
    file.write_text("name: &n x\nmore: &m {a: b}\nparts:\n  - {name: *n, more: *m}\n")
    read = strict_yaml.load(file, Part, what="file", error=LabError, fix="", none="")
    assert read == Part(name="x", more={"a": "b"}, parts=(Part(name="x", more={"a": "b"}),))


@pytest.mark.timeout(60)
def test_aliases_of_aliases_take_no_time(tmp_path: Path) -> None:
    """Written out, this would be nine to the power of 15 texts."""
    lines = ["more: &a0 [x]"]
    for level in range(1, 16):
        lines.append(f"n{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    assert "more: found ['x']" in refused(tmp_path / "file.yaml", "\n".join(lines))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError, match=r"file .*none\.yaml cannot be read: No such file"
    ) as one:
        strict_yaml.load(
            tmp_path / "none.yaml", Part, what="file", error=HarnessError, fix="", none="make it"
        )
    assert one.value.fix == "make it"


# -- the files of this project -------------------------------------------------------------------

INVENTORY = (ROOT / "lab-inventory/grace.example.yaml").read_bytes()
SNIPPETS = st.sampled_from(
    [b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/name:os.system ", b"\xff", b"\0", b"[" * 400,
     b'"\\uD800"', b"~nouser/x", b"a..b", b"2026-99-99", b"? ", b"- ", b"{", b"%", b"\t", b"| "]
)  # fmt: skip


def load(path: Path, content: bytes) -> None:
    """Read an inventory. Raises whatever `load` does not document."""
    path.write_bytes(content)
    refused = None
    try:
        inventory.load(path)
    except LabError as problem:
        refused = problem
    if refused:
        assert refused.fix
        assert str(path) in refused.message
        refused.message.encode()


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_foreign_bytes_raise_only_what_is_documented(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    load(tmp_path_factory.getbasetemp() / "foreign.yaml", content)


@given(st.data())
def test_damaged_inventories_raise_only_what_is_documented(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = INVENTORY
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 20))
        content = content[:at] + data.draw(SNIPPETS | st.binary(max_size=4)) + content[at + cut :]
    load(tmp_path_factory.getbasetemp() / "damaged.yaml", content)


@pytest.mark.parametrize(("catalogue", "name"), [(behaviours, "BEHAVIOURS"), (defects, "DEFECTS")])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"VEQ: {title: caf\xe9}\n", "yaml:1: not UTF-8"),
        (b"VEQ: 5\n", "yaml:1: VEQ: found 5; allowed: a mapping"),
        (
            b"VEQ:\n  titel: x\n",
            "yaml:2: VEQ.titel: unknown field; did you mean title?; allowed: one of",
        ),
        (None, "yaml cannot be read: No such file"),
    ],
)
def test_the_catalogues_are_read_as_strictly(
    catalogue: object, name: str, content: bytes | None, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "catalogue.yaml"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(catalogue, name, file)
    defects.catalogue.cache_clear()
    try:
        with pytest.raises(HarnessError) as caught:
            catalogue.catalogue()  # type: ignore[attr-defined]
    finally:
        defects.catalogue.cache_clear()
    assert said in caught.value.message
    assert isinstance(caught.value, HilError)
