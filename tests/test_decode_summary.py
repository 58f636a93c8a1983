"""A summary counts what events have in common, and says the first, the last and the range of it."""

from __future__ import annotations

import json

import pytest

from harness.smmu.decode.found import Explained, Sighting
from harness.smmu.decode.summary import Tally

TRANSLATION, RNW = 0x2108_0000_0010, 1 << 35 | 2 << 40


def tally(*found: Sighting | Explained) -> Tally:
    one = Tally()
    for each in found:
        one.add(each)
    return one


def write(
    line: int,
    address: int,
    time: float | None = None,
    *,
    client: str | None = None,
    smmu: str | None = None,
) -> Sighting:
    return Sighting(line, (TRANSLATION, 2 << 40, address, 0), smmu, client, time)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            (write(3, 0x1000),),
            "1 × F_TRANSLATION  sid 0x2108  bdf 21:01.0  write  iova 0x1000  line 3",
        ),
        (
            (write(3, 0x2000, 1.5), write(5, 0x1000, 2.0), write(9, 0x3000, 2.5)),
            "3 × F_TRANSLATION  sid 0x2108  bdf 21:01.0  write  iova 0x1000 … 0x3000  "
            "first 1.500000  last 2.500000  lines 3 to 9",
        ),
        (
            (write(1, 0x8000_0000_0000_0001), write(2, 0x8000_0000_0000_0000)),
            "2 × F_TRANSLATION  sid 0x2108  bdf 21:01.0  write  "
            "iova 0x8000000000000000 … 0x8000000000000001  lines 1 to 2",
        ),
        (
            (write(1, 0x1000), Sighting(2, (TRANSLATION, RNW, 0x1000, 0))),
            "2 × F_TRANSLATION  sid 0x2108  bdf 21:01.0  read and write  iova 0x1000  lines 1 to 2",
        ),
        (
            (write(1, 0, client="0000:21:01.0", smmu="smmu0"),),
            "1 × F_TRANSLATION  sid 0x2108  bdf 21:01.0  write  iova 0x0  client 0000:21:01.0  "
            "smmu smmu0  line 1",
        ),
        (
            (write(1, 0, client="platform"),),
            "1 × F_TRANSLATION  sid 0x2108  write  iova 0x0  client platform  line 1",
        ),
        (
            (Sighting(1, (0x7_0000_3808, 0, 5, 0)),),
            "1 × C_BAD_SUBSTREAMID  sid 0x7  bdf 00:00.7  ssid 0x3  line 1",
        ),
        ((Sighting(4, (0xE3, 1, 2, 3)),), "1 × IMPDEF_0xe3  line 4"),
        (
            (Sighting(4, (5, 0, 0x1FFF, 0)),),
            "1 × F_BAD_ATS_TREQ  sid 0x0  bdf 00:00.0  iova 0x1000  line 4",
        ),
        (
            (Explained(2, "GERROR", "text"), Explained(8, "GERROR", "text")),
            "2 × GERROR  lines 2 to 8",
        ),
        ((Explained(2, "GERROR", "text", "smmu0"),), "1 × GERROR  smmu smmu0  line 2"),
    ],
)
def test_a_group_is_a_line(found: tuple[Sighting | Explained, ...], said: str) -> None:
    assert [*tally(*found).text()] == [said]


def test_events_that_differ_in_what_groups_them_are_apart() -> None:
    lines = [
        *tally(
            write(1, 0),
            write(2, 0, smmu="smmu0"),
            write(3, 0, client="platform"),
            Sighting(4, (TRANSLATION | 1 << 11, 2 << 40, 0, 0)),
            Sighting(5, (TRANSLATION + (1 << 32), 2 << 40, 0, 0)),
            Sighting(6, (TRANSLATION + 1, 2 << 40, 0, 0)),
            Explained(7, "one", "text"),
            Explained(8, "one", "text", "smmu0"),
            Explained(9, "two", "text"),
        ).text()
    ]
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(1, 10)]
    assert all(line.startswith("1 × ") for line in lines)


def test_a_group_in_json_has_all_its_numbers() -> None:
    event, other, message = map(
        json.loads,
        tally(
            write(3, 0x2000, 1.5, client="0000:21:01.0", smmu="smmu0"),
            write(7, 0x1000, 2.5, client="0000:21:01.0", smmu="smmu0"),
            Sighting(8, (0xE3, 1, 2, 3)),
            Explained(9, "GERROR", "text"),
            Explained(11, "GERROR", "text"),
        ).json(),
    )
    assert event == {
        "kind": "events",
        "count": 2,
        "type": 0x10,
        "name": "F_TRANSLATION",
        "sid": 0x2108,
        "ssid": None,
        "bdf": "21:01.0",
        "directions": ["write"],
        "lowest_input_addr": 0x1000,
        "highest_input_addr": 0x2000,
        "client": "0000:21:01.0",
        "smmu": "smmu0",
        "first": 1.5,
        "last": 2.5,
        "first_line": 3,
        "last_line": 7,
    }
    assert (other["sid"], other["bdf"], other["directions"]) == (None, None, [])
    assert (other["lowest_input_addr"], other["highest_input_addr"]) == (None, None)
    assert message == {
        "kind": "messages",
        "count": 2,
        "name": "GERROR",
        "smmu": None,
        "first_line": 9,
        "last_line": 11,
    }
