"""One page: complete, self-contained, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from app.bench.page import page
from app.bench.report import Report, Row, Variant
from app.bench.verdict import Aim, judge

EVIL = "<script>alert('&')</script>"
_VOID = {"meta"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def _report(*faults: str) -> Report:
    rounds: list[dict[str, float | None]] = [{"a": 3.0, "b": None}, {"a": 1.0, "b": None}, {"a": 2.0, "b": 1.0}]
    variants = [Variant("v", f"v{EVIL}", rounds), Variant("w", "other", [{"c": 4.25}])]
    rows = [Row("a", f"first{EVIL}", "ms", 1), Row("b", "second"), Row("c", "third", "%", 2)]
    aims = [Aim("v", "a", "<=", 1), Aim("w", "c", ">=", 1)]
    judged = judge(aims, {one.name: one.rounds for one in variants})
    return Report("demo", f"title{EVIL}", {"x": EVIL}, rows, variants, judged, faults, [f"note{EVIL}"])


def _made(*faults: str) -> str:
    return page(
        "heading <1>", [_report(*faults), _report()], {"cpu": EVIL, "packages": {"p": EVIL}}, f"run {EVIL}"
    )


def test_it_is_whole_and_loads_nothing() -> None:
    text = _made()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert not {"script", "link", "img", "iframe"} & set(parser.seen)
    assert not re.search(r"https?://|url\(|@import|src=|href=", text)


def test_every_text_is_escaped() -> None:
    text = _made(f"fault {EVIL}")
    assert "<script" not in text
    # a report: title, row (caption, label, aim), variant (chart, aim), note, setting; once: fault, cpu, run …
    assert text.count("&lt;script&gt;") >= 2 * 8 + 4


def test_a_chart_for_each_figure_that_was_measured() -> None:
    text = page("t", [_report()], {}, "run")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert [caption[:5] for caption in captions] == ["first", "third"]
    assert "2.0 ms</text>" in text
    assert "4.25 %</text>" in text
    assert text.count('class="ends"') == 1, "one round has no interval"


def test_faults_and_missed_aims_stand_out() -> None:
    assert "Incomplete" not in page("t", [_report()], {}, "run")
    text = page("t", [_report("3 of 4")], {}, "run")
    assert "Incomplete, so not to be used" in text
    assert "<li>3 of 4</li>" in text
    assert text.count('<tr class="bad">') == 1
