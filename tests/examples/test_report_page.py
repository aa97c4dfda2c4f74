"""The reports in a browser: one file each, that opens offline and can be read by everyone."""

import pytest

from examples.train.compare import main as compare
from examples.train.run import main as train
from tests.support import browser

SMALL = """--clips 40 --size 24 --frames 4 --batch-size 20 --epochs 1 --device cpu --workers 1"""


@pytest.fixture(scope="module")
def chromium():
    with browser.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(chromium, tmp_path_factory):  # no run without a browser
    root = tmp_path_factory.mktemp("runs")
    for name, more in (("full", []), ("plain", ["--attention", "none"])):
        train(["--output", str(root / name), *SMALL.split(), *more])
    compare([str(root / "plain"), str(root / "full"), "--output", str(root / "compared.html")])
    return {"run": root / "full/report.html", "comparison": root / "compared.html"}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_nothing_is_wrong_and_nothing_is_loaded(chromium, pages, name, width):
    url = pages[name].as_uri()
    with browser.page(chromium, url, width) as (shown, said, asked):
        for closed in shown.query_selector_all("summary"):
            closed.click()
        assert browser.troubles(shown, said) == []
        assert [each for each in asked if not each.startswith("data:")] == [url]


def test_the_run_says_how_it_was_made_and_what_came_out(chromium, pages):
    with browser.page(chromium, pages["run"].as_uri()) as (shown, _, _):
        heads = shown.locator("h2, h3").all_inner_texts()
        assert {"By source", "Calibration", "How it was run", "How to read it"} <= set(heads)
        assert any("predicted at" in head for head in heads)  # gates over a clip, one at least
        text = shown.inner_text("main")
        assert "python -m examples.train --output" in text
        assert "--size 24" in text
        for row in ("device", "torch", "plain", "tinted", "calibration error"):
            assert row in text
        link = shown.get_attribute("a[href*=evidence]", "href")
    assert (pages["run"].parent / link).is_file()


def test_the_keyboard_reaches_all_that_scrolls_or_opens(chromium, pages):
    with browser.page(chromium, pages["run"].as_uri(), 390) as (shown, _, _):
        wanted = shown.locator(".scroll:visible, a, summary").count()
        reached = browser.by_keyboard(shown)
        assert len(reached) == wanted
        shown.locator("summary").first.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("details[open] table").count() == 1
