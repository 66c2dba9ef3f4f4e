"""The live page in a real browser, on the embedded model; it skips where Chromium, playwright or Gradio is missing."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from browsers import opened, skip_without_chromium

from ph2p import load_config
from ph2p.models.tokens import read_words

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
PATIENCE = 300_000  # milliseconds; a model is loaded on a machine that may be busy
HOSTILE = "<img/src=x/onerror=window.hacked=1>${window.hacked=2}{{7*7}}"
LONG = "method.budget=1000000"  # nothing ends but by the clock or the button

skip_without_chromium()
if not os.environ.get("PH2P_REQUIRE_CHROMIUM"):
    pytest.importorskip("gradio")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The command as a user starts it: its address, and its results folder."""
    place = tmp_path_factory.mktemp("served")
    words = ["debug=quick", "trainer=cpu", LONG, f"output={place}"]
    command = [sys.executable, "-m", "ph2p.cli", "ui", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = re.match(r"Open (http://127\.0\.0\.1:\d+/); results in (.+)/; Ctrl-C ends it", process.stdout.readline())
    yield said[1], Path(said[2])
    process.terminate()
    assert process.wait(60) in (0, 143)


@pytest.fixture(scope="module")
def pictures(root, tmp_path_factory) -> list[Path]:
    """Two example pictures, one under a hostile name, and a file that is none."""
    place, examples = tmp_path_factory.mktemp("pictures"), sorted((root / "ph2p/examples").glob("*.png"))
    hostile = place / "<img src=x onerror=window.hacked=3> ${window.hacked=4} 'q'.png"
    shutil.copy(examples[0], hostile)
    (place / "broken.png").write_text("no picture")
    return [hostile, place / "broken.png", examples[1]]


class Visit:
    """A tab, and all that went wrong or out."""

    def __init__(self, browser, address: str, size=WIDE, scheme="light") -> None:
        rights = ["clipboard-read", "clipboard-write"]
        self.context = browser.new_context(
            viewport=size, color_scheme=scheme, accept_downloads=True, permissions=rights
        )
        self.errors, self.requests, self.tab = [], [], self.context.new_page()
        self.tab.set_default_timeout(PATIENCE)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address)
        self.tab.wait_for_selector("#now .live", state="attached")

    def drop(self, *pictures: Path) -> None:
        self.tab.set_input_files("#pictures input[type=file]", list(pictures))
        self.tab.wait_for_selector("#pictures .file-preview")

    def start(self, minutes: float = 0, require: str = "", forbid: str = "") -> None:
        self.tab.fill("#minutes input", str(minutes))
        self.tab.fill("#require textarea, #require input", require)
        self.tab.fill("#forbid textarea, #forbid input", forbid)
        self.tab.keyboard.press("Tab")
        self.tab.click("#start")

    def save(self, kind: str, folder: Path) -> Path:
        with self.tab.expect_download() as download:
            self.tab.click(f"#results a[href='/download/{kind}']")
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        return file

    def shoot(self, name: str) -> None:
        if shots := os.environ.get("PH2P_SCREENSHOTS"):
            self.tab.screenshot(path=f"{shots}/live-{name}.png", full_page=True)

    def fits(self) -> bool:
        return self.tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def close(self) -> None:
        own = ("http://127.0.0.1:", "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(own)] == [] and self.errors == []
        assert self.tab.evaluate("window.hacked") is None
        self.context.close()


def test_from_pictures_to_prompts(browser, served, pictures, tmp_path):
    (address, folder), known = served, read_words(load_config([]).generator.allowlist)
    required = next(word for word in ("red", "circle", *known) if word in known)
    visit = Visit(browser, address)
    visit.tab.click("#start")
    visit.tab.wait_for_selector("#said :text('Drop a picture first')")
    visit.drop(*pictures)
    visit.start(require=HOSTILE, forbid=HOSTILE)  # refused beside the button, and the pictures stay
    visit.tab.wait_for_selector("#said :text('is forbidden by method.forbid too')")
    assert HOSTILE.casefold() in visit.tab.inner_text("#said")
    visit.start(require=required)
    visit.tab.wait_for_selector("#now .queue li")
    visit.tab.wait_for_selector("#now .facts :text('loss')")  # it has found something already
    assert required in visit.tab.inner_text("#now .prompt").split()
    visit.shoot("working")
    visit.tab.click("#early")
    visit.tab.wait_for_selector("#results .warning:has-text('it was asked to finish early')")
    visit.tab.wait_for_selector("#results .wrong:has-text('broken.png')")
    visit.tab.wait_for_selector("#now .facts :text('loss')")
    visit.tab.click("#early")
    visit.tab.wait_for_function("document.querySelectorAll('#results .card').length == 3")
    prompts = visit.tab.eval_on_selector_all("#results .copy", "all => all.map(one => one.dataset.prompt)")
    assert len(prompts) == 2 and all(required in prompt.split() for prompt in prompts)
    visit.tab.click("#results .copy >> nth=0")
    visit.tab.wait_for_selector("#results .copy:text('copied')")
    assert visit.tab.evaluate("navigator.clipboard.readText()") == prompts[0]
    assert visit.tab.evaluate("[...document.querySelectorAll('#results img')].every(one => one.naturalWidth > 0)")
    visit.shoot("done")
    records = [json.loads(line) for line in visit.save("jsonl", tmp_path).read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok", "failed", "ok"]
    assert [record["prompt"] for record in records if record["status"] == "ok"] == prompts[::-1]
    names = zipfile.ZipFile(visit.save("zip", tmp_path)).namelist()
    assert "index.html" in names and not [name for name in names if "uploads" in name]
    assert len(list((folder / "uploads").rglob("*.png"))) == 3  # they are here and nowhere else
    visit.close()


def test_a_wrong_word_and_a_time_limit_end_a_picture_of_their_own(browser, served, pictures):
    visit = Visit(browser, served[0])
    visit.drop(pictures[2])
    visit.start(require=HOSTILE)  # the model does not have it, as only the model knows
    visit.tab.wait_for_selector("#results .wrong:has-text('method.require')")
    assert HOSTILE in visit.tab.inner_text("#results")
    visit.drop(pictures[2])
    visit.start(minutes=0.01)
    visit.tab.wait_for_selector("#results .warning:has-text('its time limit of 0.01 min was reached')")
    visit.close()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_fits_every_screen_light_and_dark(browser, served, size):
    colours = []
    for scheme in ("light", "dark"):
        visit = Visit(browser, served[0], size, scheme)
        assert visit.fits()
        visit.shoot(f"{size['width']}-{scheme}")
        colours.append(visit.tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        visit.close()
    assert colours[0] != colours[1]


def test_only_this_machine_under_its_own_name_is_answered(served):
    address = served[0]
    with urllib.request.urlopen(address) as answer:
        assert "connect-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):  # a name that a stranger has pointed here
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
    port = int(address.rstrip("/").rpartition(":")[2])
    for other in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if not other.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((other, port), 5).close()
