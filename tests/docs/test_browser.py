"""The pages in a browser, wide and narrow, light and dark."""

import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support import browser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {path.stem for path in (ROOT / "docs").rglob("*.*") if path.suffix in (".md", ".ipynb")}
)


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def chromium():
    with browser.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(chromium, tmp_path_factory):  # nothing is built without a browser
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run([*command, "--site-dir", folder], cwd=ROOT, check=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        urls = {
            path.parent.name: path.parent.relative_to(folder)
            for path in folder.rglob("*/index.html")
        }
        yield f"http://127.0.0.1:{server.server_port}/", urls
        server.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_and_nothing_is_loaded_from_elsewhere(chromium, site, name, width, scheme):
    home, urls = site
    url = f"{home}{urls[name]}/" if name != "index" else home
    with browser.page(chromium, url, width, scheme) as (shown, said, asked):
        shown.wait_for_load_state("networkidle")
        assert browser.troubles(shown, said) == []
        assert [each for each in asked if not each.startswith((home, "data:", "blob:"))] == []


def test_the_keyboard_gets_to_the_text_and_through_it(chromium, site):
    home, urls = site
    with browser.page(chromium, f"{home}{urls['measured']}/", 390) as (shown, _, _):
        shown.wait_for_load_state("networkidle")
        wide = shown.locator("main .md-typeset__scrollwrap").count()
        reached = browser.by_keyboard(shown)
    assert reached[0].split() == ["A", "Skip", "to", "content"]
    assert sum("DIV" in each for each in reached) >= wide > 10
