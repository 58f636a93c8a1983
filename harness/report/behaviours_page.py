"""Draw the page of a run's behaviours: the text of each, its tests, and their outcomes.

Tests on Allure's page link to their behaviours on this page (`#VEQ-07`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.report import behaviours
from harness.report.markup import xml
from harness.report.run import FAILED, FIXED, KNOWN, PASSED

_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 0 auto; max-width: 60em; padding: 8px 16px; color: #222;
  background: #fff }
section { border-top: 1px solid #e3e6ea; padding: 6px 0 } :target { background: #fff6d6 }
h3 { font-size: 15px; margin: 4px 0 } ul { margin: 4px 0; padding-left: 1.2em }
li { overflow-wrap: anywhere; font-family: monospace; font-size: 13px }
.passed { color: #2b7a3d } .failed { color: #c0262d } .known { color: #a8620a }
.other { color: #777 }
"""
_CLASSES = {PASSED: "passed", FAILED: "failed", FIXED: "failed", KNOWN: "known"}


def html(title: str, result: Mapping[str, Any]) -> str:
    """Return the page; `title` is the run's, `result` its result.json."""
    known = behaviours.catalogue().values()
    groups = dict.fromkeys((one.group, one.feature) for one in known)
    body = [_flaky(result.get("flaky", {}))]
    for group, feature in groups:
        body.append(f"<h2>{xml(group)}: {xml(feature)}</h2>")
        for behaviour in known:
            if behaviour.group == group:
                body.append(
                    f'<section id="{behaviour.id}"><h3>{behaviour.id}: {xml(behaviour.text)}'
                    f"</h3><ul>{''.join(_tests(behaviour.id, result))}</ul></section>"
                )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Behaviours: {xml(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Behaviours</h1><p><a href="index.html">{xml(title)}</a></p>'
        f"{''.join(body)}</body></html>\n"
    )


def _flaky(rates: Mapping[str, str]) -> str:
    """Return the list of flaky tests, each with its rate; empty if there is none."""
    if not rates:
        return ""
    tests = "".join(
        f'<li>{xml(test.removeprefix("suites/"))}: <span class="known">{xml(rate)}</span></li>'
        for test, rate in rates.items()
    )
    return f'<section id="flaky"><h2>Flaky, on this software</h2><ul>{tests}</ul></section>'


def _tests(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    mine = [test for test in result["tests"] if name in test["covers"]]
    for test in mine:
        outcome = test["outcome"]
        shown, kind = xml(test["id"].removeprefix("suites/")), _CLASSES.get(outcome, "other")
        yield f'<li>{shown}: <span class="{kind}">{xml(outcome)}</span></li>'
    if not mine:
        yield '<li class="other">no test of this run</li>'
