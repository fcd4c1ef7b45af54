"""The page of an analysis: complete, well formed, with nothing from elsewhere, whatever layers are called."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests.analysis.analyses import NAME, layer, made_up
from tvm_int8.analysis import html
from tvm_int8.analysis.figures import MOST_LAYERS
from tvm_int8.errors import ConfigError

LAYERS = MOST_LAYERS + 3
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Refuses tags that are not closed in order, and collects headings, table cells and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> str:
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("page") / "report.html"
    made_up([layer(i, 0.001 * (i % 2)) for i in range(LAYERS)]).to_html(path)
    return path.read_text(encoding="utf-8")


def test_page_holds_what_the_analysis_says(content):
    page = Page(content)
    names = [f"{NAME}{i}" for i in range(LAYERS)]
    assert page.texts["h2"] == [
        "What to leave in FP32",
        "Noise through the network",
        "Which layers the noise comes from",
        "What is cut off",
        "Activations and weights",
        "All layers",
    ]
    assert [cell for cell in page.texts["td"] if cell.startswith(NAME)] == names[:2] + names
    assert page.texts["b"] == names[:MOST_LAYERS]  # the noisiest ones
    assert sum(f"the {MOST_LAYERS} noisiest of {LAYERS} are shown" in text for text in page.texts["p"]) == 2
    assert any("head is in FP32: excluded" in text for text in page.texts["p"])
    assert page.texts["code"][0].startswith('float_layers=["/block.0/<conv>')


def test_pictures(content):
    pictures = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
    assert len(pictures) == 4 + MOST_LAYERS
    texts = [{"".join(node.itertext()) for node in ElementTree.fromstring(each).iter() if node.tag.endswith("text")}
             for each in pictures]  # fmt: skip
    assert "what the layers in FP32 take longer, in % of the network in INT8; numbers count them" in texts[0]
    assert {"SQNR in dB", "the network's outputs"} <= texts[1]
    assert f"{NAME}0" in texts[2]
    assert "values outside of the range, in %" in texts[3]
    assert {"weight as int8", "−127"} <= texts[4]
    assert all("currentColor" in each for each in pictures)


def test_pictures_share_no_names(content):
    names = re.findall(r'\bid="([^"]+)"', content)
    assert len(names) == len(set(names)) > 100
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', content)
    assert used
    assert set(used) <= set(names)


def test_nothing_is_loaded(content):
    page = Page(content)
    addresses = {value for name, value in page.attributes if "://" in (value or "") and not name.startswith("xmlns")}
    assert addresses == set()
    assert not {name for name, _ in page.attributes} & {"src", "srcset", "onload"}
    assert not re.search(r"@import|url\((?!#)|<script|<link", content)


def test_nothing_to_propose_and_nothing_cut_off():
    pytest.importorskip("matplotlib")
    page = Page(html.page(made_up([layer(0, sqnr_db=None)], suggestions=0, unit="%")))
    assert any("No layer in FP32" in text for text in page.texts["p"])
    assert any("No layer reads a value outside" in text for text in page.texts["p"])
    assert "FP32 %" in page.texts["th"]


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed.*pip install 'tvm-int8\[report\]'"):
        made_up([layer(0)]).to_html(tmp_path / "report.html")


def test_paths_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    for path in (tmp_path, tmp_path / "missing" / "report.html"):
        with pytest.raises(ConfigError, match=r"cannot be written .* choose a path in a writable directory"):
            made_up([layer(0)]).to_html(path)


def test_old_page_stays_until_the_new_one_is_whole(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html, "page", lambda analysis: "new")
    monkeypatch.setattr(html.os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        made_up([layer(0)]).to_html(path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.html", "old")]
