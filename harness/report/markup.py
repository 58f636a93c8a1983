"""Put any text into Markdown, XML and HTML, so that the page stays well-formed.

What a guest printed, or another program wrote into a file of results, may have any character.
"""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

#: What XML 1.0 cannot have (section 2.2, Char), and no reader of a page sees. Lone surrogates stand
#: for bytes that are no UTF-8, and have no encoding.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    r"""Return the text with a control character or lone surrogate written as its escape, \x1b."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def xml(text: str) -> str:
    """Return the text as the content of an XML or HTML element."""
    return escape(printable(text))


def code(text: str) -> str:
    """Return the text as code within a line of Markdown. Nothing in it is markup."""
    line = " ".join(printable(text).split())
    ticks = _fence(line, 1)
    # A space on either side is not shown, and parts the text from the ticks.
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def cell(text: str) -> str:
    """Return the text as code in a cell of a Markdown table, in which a bar would end the cell even
    within code."""
    return code(text).replace("|", r"\|")


def block(text: str) -> list[str]:
    """Return the lines of a block of code in Markdown, with a fence that the text does not have."""
    fence = _fence(text, 3)
    return [fence, printable(text), fence]


def _fence(text: str, least: int) -> str:
    """Return more backticks than follow each other anywhere in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
