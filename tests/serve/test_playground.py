"""The playground in real Chromium: desktop and phone, mouse and keyboard, with nothing from elsewhere."""

import os
import re
import shutil
from importlib import resources
from pathlib import Path

import pytest
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, save, serving, wait_for

from foreword.serve.tenants import Keyring

NAMES = ("alpha", "beta", "gamma", "delta")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser_here = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
SHOTS = os.environ.get("FOREWORD_SHOTS")
"""A directory for pictures of what the tests saw, for people to look at."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    backbone, store = make("llama"), tmp_path_factory.mktemp("store")
    for seed, name in enumerate(NAMES):
        save(backbone, store / name, seed=seed)
    with serving(backbone, store, FakeEngine(backbone, token_sec=0.03), FakePool()) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield playwright, browser
        browser.close()


@pytest.fixture(params=["desktop", "phone"])
def page(request, chromium, server):
    """The page, loaded, on a desktop and on a phone; every word of complaint and every foreign address is a failure."""
    playwright, browser = chromium
    phone = {k: v for k, v in playwright.devices["Pixel 7"].items() if k != "default_browser_type"}
    options = phone if request.param == "phone" else {"viewport": {"width": 1360, "height": 860}}
    context = browser.new_context(**options)
    made, said = context.new_page(), []
    made.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    made.said = said
    made.on("pageerror", lambda error: said.append(str(error)))
    own = (server.url, "data:")
    made.on("request", lambda asked: None if asked.url.startswith(own) else said.append(asked.url))
    made.goto(server.url)
    made.wait_for_selector("#forewords li")
    made.kind = request.param
    yield made
    if SHOTS:
        made.screenshot(path=Path(SHOTS) / f"{request.node.name}.png", full_page=request.param == "phone")
    context.close()
    assert said == []


def texts(page) -> dict[str, str]:
    return {c.get_attribute("data-model"): c.locator(".text").inner_text() for c in page.locator(".answer").all()}


def done(page, count: int) -> None:
    wait_for(lambda: (page.wait_for_timeout(20), page.locator(".answer.done").count() == count)[1], 20)


@browser_here
def test_several_forewords_answer_side_by_side_as_they_do_alone(page, server):
    for name in ("alpha", PLAIN):  # one off, one on
        page.locator("#forewords .name", has_text=name).click()
    page.fill("#prompt", "abc")
    page.fill("#max_tokens", "80")  # longer than the page takes to look (a second)
    page.click("#go")
    page.wait_for_selector(".answer .text:not(:empty)")
    wait_for(lambda: (page.wait_for_timeout(20), page.inner_text("#running") == "4")[1])  # one batch, live
    assert page.locator("#cells i.hued").count() == 4
    grown = texts(page)
    done(page, 4)
    found = texts(page)
    assert sorted(found) == sorted([PLAIN, "beta", "gamma", "delta"])
    assert all(found[name].startswith(text) for name, text in grown.items())
    with server.client() as http:
        for name, text in found.items():
            body = {"model": name, "prompt": "abc", "max_tokens": 80, "temperature": 0}
            assert text == http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "80 tokens" in page.locator(".answer footer").first.inner_text()
    wait_for(lambda: (page.wait_for_timeout(50), page.inner_text("#running") == "0")[1])
    assert int(page.inner_text("#resident")) >= 3 and page.locator("#pool i").count() >= 3


@browser_here
def test_all_of_it_works_with_the_keyboard_alone(page, server):
    page.keyboard.press("/")
    page.keyboard.type("gam")
    assert page.locator("#forewords li").count() == 1
    page.keyboard.press("Enter")  # to the list
    page.keyboard.press("Space")  # gamma off
    assert not page.get_by_label("gamma").is_checked()
    page.keyboard.press("Space")
    page.locator("#prompt").focus()
    page.keyboard.type("abc")
    page.fill("#max_tokens", "2000")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer .text:not(:empty)")
    assert page.inner_text("#go") == "Stop"
    page.keyboard.press("Escape")
    done(page, 4)
    assert {end.inner_text() for end in page.locator(".answer .end").all()} == {"stopped"}
    wait_for(lambda: not server.engine.live)  # the rows are free again
    assert page.inner_text("#go") == "Run"


@browser_here
def test_the_page_fits_its_screen_and_its_buttons_fit_a_thumb(page):
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    for element in (*page.locator("#forewords label").all(), page.locator("#go")):
        box = element.bounding_box()
        assert box["height"] >= (40 if page.kind == "phone" else 28)
    nameless = page.evaluate("""[...document.querySelectorAll('input,textarea,button')].filter(
        e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).length""")
    assert nameless == 0


@browser_here
def test_a_refused_run_says_why_on_the_page(page):
    page.fill("#prompt", "abc")
    page.evaluate("document.getElementById('max_tokens').value = 3.5; document.getElementById('ask').noValidate = true")
    with page.expect_response(lambda answer: answer.url.endswith("/v1/compare")):
        page.click("#go")
    page.wait_for_selector("#fault:not([hidden])")
    assert "max_tokens = 3.5" in page.inner_text("#fault") and page.locator(".answer").count() == 0
    assert all("400" in line for line in page.said)  # Chromium's own note of the refusal, nothing of the page's
    page.said.clear()


@browser_here
def test_a_server_with_keys_asks_for_one(chromium, tmp_path):
    backbone = make("llama")
    save(backbone, tmp_path / "tenants" / "ann" / "mine")
    key = Keyring(tmp_path).add("ann")
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running:
        page = chromium[1].new_page()
        page.goto(running.url)
        page.wait_for_selector("#keybox:not([hidden])")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#forewords li")
        assert [n.inner_text() for n in page.locator("#forewords .name").all()] == [PLAIN, "mine"]
        page.fill("#prompt", "abc")
        page.click("#go")
        done(page, 1)
        assert list(texts(page)) == ["mine"]
        page.close()


def test_the_page_allows_nothing_from_elsewhere(server):
    with server.client() as http:
        page = http.get("/")
        parts = [page, *(http.get("/playground/" + name) for name in ("app.js", "style.css"))]
        assert http.get("/playground/nothing.js").status_code == 404
        assert http.get("/playground/..%2Fapp.py").status_code == 404
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for part in parts:
        assert part.status_code == 200
        assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", part.text.replace("// ", ""))


def test_the_page_s_files_are_in_the_package():
    folder = resources.files("foreword.serve.playground")
    assert {"index.html", "style.css", "app.js"} <= {entry.name for entry in folder.iterdir()}

