"""Pages in headless Chromium: what a reader of them would stumble over."""

import os
import shutil
from collections import Counter
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)"
UNNAMED = "[...document.images].filter(i => !i.alt.trim()).length"
# Markup that nothing rendered, outside of code.
RAW = r"""() => {
  const copy = document.querySelector("main").cloneNode(true);
  copy.querySelectorAll("pre, code, script, style").forEach(each => each.remove());
  const raw = /:(class|func|meth):|\$[^$\n]+\$|^\s*(!!!|```|:::)|--8<--|\{%/gm;
  return copy.textContent.match(raw) || [];
}"""


def chromium():
    """Path of the browser. Without one the test is skipped; in CI, where CI=true, it fails."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    lacking = [name for name in ("playwright", "axe_playwright_python") if not find_spec(name)]
    if path and not lacking:
        return path
    reason = f"install {', '.join(lacking) or 'Chromium'}: make browser"
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@contextmanager
def opened():
    """A headless browser. Its event loop is this thread's: it is closed before other tests run."""
    path = chromium()
    playwright = import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # root, as in containers, has no sandbox
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page(browser, url, width=1280, scheme="light"):
    """The page as it is shown, and what it said and asked for meanwhile."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    shown, said, asked = context.new_page(), [], []
    shown.on("console", lambda line: line.type in ("error", "warning") and said.append(line.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(url)
    yield shown, said, asked
    context.close()


def troubles(shown, said):
    """What is wrong with a page, in words; empty if nothing is."""
    found = [f"console: {line}" for line in said]
    if over := shown.evaluate(OVERFLOW):
        found.append(f"the page is {over} pixels wider than its window")
    found += [f"broken picture: {alt}" for alt in shown.evaluate(BROKEN)]
    if unnamed := shown.evaluate(UNNAMED):
        found.append(f"{unnamed} pictures without a text")
    found += [f"raw markup: {text}" for text in shown.evaluate(RAW)]
    return found + accessibility(shown)


def accessibility(shown):
    """What axe finds against WCAG 2.1 AA, each thing once."""
    axe = import_module("axe_playwright_python.sync_playwright").Axe()
    options = {"resultTypes": ["violations"], "runOnly": RULES}
    found = Counter(
        (rule["id"], node["failureSummary"].split("\n")[1].strip(), node["html"][:90])
        for rule in axe.run(shown, options=options).response["violations"]
        for node in rule["nodes"]
    )
    return [f"{rule}: {what} in {html}, {count}×" for (rule, what, html), count in found.items()]


def by_keyboard(shown, limit=200):
    """What the Tab key reaches, in order."""
    reached = []
    for _ in range(limit):
        shown.keyboard.press("Tab")
        what = shown.evaluate(
            "(e => e === document.body ? '' : e.tagName + ' ' + (e.ariaLabel || e.textContent))"
            "(document.activeElement)"
        )
        if not what:
            return reached
        reached.append(what)
    return reached
