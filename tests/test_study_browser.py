"""The page of a study in a real browser, from a file; it skips where no Chromium is installed."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from browsers import NARROW, WIDE, Tab, opened, skip_without_chromium
from studies import results

from ph2p.study.build import Plan, build_study
from ph2p.study.key import key_file, read_key
from ph2p.study.questions import choose
from ph2p.study.ratings import read_raters

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> 'q' & {{ 7 * 7 }}"""
LONG = "supercalifragilistic" * 12

skip_without_chromium()


@pytest.fixture(scope="module")
def browser():
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A study of two runs on four pictures, with texts that would break a careless page."""
    place = tmp_path_factory.mktemp("study")
    first = {"a": HOSTILE, "b": "a red square", "c": LONG, "d": ""}
    second = {image: f"another try at {image}" for image in first}
    runs = [results(place / "one", "ph2p", first), results(place / "two", "pez", second)]
    return build_study(runs, place / "study.html", Plan(choose([]), checks=2)).page


RATE_ALL = """() => {
  const press = (key, at) => at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const [trial, picture, prompt] = ["trial", "picture", "prompt"].map((id) => document.getElementById(id));
  const seen = [];
  while (!trial.hidden && seen.length < 50) {
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    seen.push([picture.src, prompt.innerText, wide <= 0]);
    for (let k = 0; k < 3; k++) press("1", document.activeElement);
    press("Enter", document.body);
  }
  return seen;
}"""


class Visit(Tab):
    """A rater's browser."""

    def begin(self, name: str) -> None:
        self.tab.fill("#rater", name)
        self.tab.keyboard.press("Enter")

    def prompt(self) -> str:
        return self.tab.inner_text("#prompt")

    def picture(self) -> str:
        return self.tab.get_attribute("#picture", "src")

    def asked(self) -> str:
        """The answer that an attention check asks for, or else 3."""
        found = re.search(r"please choose (\d) for", self.prompt())
        return found[1] if found else "3"

    def rate_all(self) -> list[tuple[str, str, bool]]:
        """Rate everything with 1, in one go; the picture and the prompt of each, and whether it fits the screen."""
        return [tuple(row) for row in self.tab.evaluate(RATE_ALL)]

    def save(self, kind: str, folder: Path) -> Path:
        with self.tab.expect_download() as download:
            self.tab.click(f"[data-save={kind}]:visible")
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        return file


@pytest.fixture
def visit(browser, page):
    """Open the page as a new person, on a screen of some kind."""
    contexts = []

    def open_page(size=WIDE, scheme="light") -> Visit:
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True))
        return Visit(contexts[-1], page)

    yield open_page
    for context in contexts:
        context.close()


def test_a_study_is_rated_by_keyboard_kept_and_saved(visit, page, tmp_path):
    key, rater = read_key(key_file(page)), visit()
    rater.begin("=1+1")
    assert rater.tab.is_visible("#start") and "Please give a name" in rater.tab.inner_text("#rater-wrong")
    rater.begin("Zoë K.")
    assert rater.tab.inner_text("#where") == "Prompt 1 of 10"
    seen, pictures = [], []
    for place in range(10):
        seen.append(rater.prompt())
        pictures.append(rater.picture())
        if place == 0:
            rater.press("Enter")
            assert "answer each question" in rater.tab.inner_text("#wrong")
            rater.press("9")  # no such answer
        if place == 4:  # stop, and go on another time
            rater.tab.reload()
            rater.press("Enter")
            assert rater.tab.inner_text("#where") == "Prompt 5 of 10" and rater.prompt() == seen[4]
        if place == 6:  # look back, and change an answer
            rater.press("Backspace")
            assert rater.prompt() == seen[5] and rater.tab.is_checked("input[name=usefulness]:checked")
            rater.press("Enter")
        rater.press(*(3 * rater.asked()), "Enter")
    assert rater.tab.is_visible("#done")
    prompts, checks = ([text for text in seen if ("but a check" in text) is kind] for kind in (False, True))
    assert sorted(prompts) == sorted(item.prompt or "(no words)" for item in key.items.values())
    assert len(checks) == 2 and len(set(checks)) == 2
    shown = [picture for prompt, picture in zip(seen, pictures, strict=True) if prompt in prompts]
    assert all(one != other for one, other in pairwise(shown))

    csv, found = rater.save("csv", tmp_path), rater.save("json", tmp_path)
    assert csv.name == f"ratings-{key.study}-Zoë-K-.csv"
    assert csv.read_bytes().startswith(b"study,rater,item,question,rating\r\n")
    (read,) = read_raters([csv, found], key)
    assert (read.name, read.rated, read.asked, read.wrong, read.out) == ("Zoë K.", 8, 2, 0, "")
    assert set(read.answers.values()) == {3} and len(read.answers) == 24
    assert json.loads(found.read_text())["study"] == key.study
    assert rater.errors == [] and all(url.startswith(("file:", "data:", "blob:")) for url in rater.requests)
    assert rater.tab.evaluate("window.hacked") is None


def test_every_rater_has_an_order_that_spreads_pictures_and_checks(visit):
    rater, orders = visit(), []
    for name in ("anna", "ben", "cem", "dora", "eve", "finn", "anna"):
        rater.begin(name)
        seen = [row[:2] for row in rater.rate_all()]
        assert len(seen) == 10
        if len(orders) == 5:
            rater.tab.evaluate("localStorage.clear()")
        rater.tab.reload()
        orders.append(seen)
    assert orders[0] == orders[-1] and len({str(order) for order in orders}) == 6
    for order in orders:
        pictures = [picture for picture, prompt in order if "but a check" not in prompt]
        assert all(one != other for one, other in pairwise(pictures)) and len(set(pictures[:4])) == 4
        first, second = (place for place, (_, prompt) in enumerate(order) if "but a check" in prompt)
        assert 1 <= first <= 4 < second + 1 <= 8


def test_several_people_and_studies_share_a_browser(visit, page, tmp_path):
    run = results(tmp_path / "run", "ph2p", {"a": "one", "b": "two"})
    other = build_study([run], tmp_path / "other.html", Plan(choose([]))).page
    rater = visit()

    def come(name: str, to: Path = page) -> str | None:
        """What stands chosen for relevance."""
        rater.tab.goto(to.as_uri())
        rater.begin(name)
        chosen = rater.tab.query_selector("input[name=relevance]:checked")
        return chosen.get_attribute("value") if chosen else None

    assert come("anna") is None
    rater.tab.click("input[name=relevance][value='4']")  # by mouse
    assert come("ben") is None and come("anna", other) is None
    rater.tab.click("input[name=relevance][value='2']")
    assert come("anna") == "4"
    rows = rater.save("csv", tmp_path).read_text().splitlines()
    assert len(rows) == 2 and rows[1].endswith(",relevance,4")
    assert come("anna", other) == "2"


def test_what_the_browser_kept_is_not_trusted(visit, page, tmp_path):
    key, rater = read_key(key_file(page)), visit()
    item = next(iter(key.items))
    wrong = {"x": {"relevance": 3}, item: {"relevance": 6, "readability": "3", "beauty": 3}}
    for kept in ("{", "[1]", "null", '"text"', json.dumps(wrong)):
        rater.tab.evaluate("([name, text]) => localStorage.setItem(name, text)", [f"study/{key.study}/anna", kept])
        rater.tab.reload()
        rater.begin("anna")
        assert rater.tab.inner_text("#where") == "Prompt 1 of 10"
    rater.press(*"333")
    rows = rater.save("csv", tmp_path).read_text().splitlines()
    assert len(rows) == 4 and rater.errors == []
    rater.rate_all()
    saved = json.loads(rater.save("json", tmp_path).read_text())["ratings"]
    assert set(saved) == {*key.items, *key.checks} and set(saved[item]) == {"readability", "relevance", "usefulness"}


def test_a_browser_that_keeps_nothing_says_so(visit):
    rater = visit()
    rater.tab.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no') } })")
    rater.tab.reload()
    rater.begin("anna")
    assert "does not keep" in rater.tab.inner_text("#not-kept") and rater.tab.is_visible("#trial")
    assert rater.errors == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_fits_every_screen_light_and_dark(visit, size):
    """No sideways scrolling with the longest word; colours follow the system. Pictures go to $PH2P_SCREENSHOTS."""
    colours = []
    for scheme in ("light", "dark"):
        rater = visit(size, scheme)
        rater.shoot(f"start-{size['width']}-{scheme}")
        assert rater.fits()
        rater.begin("anna")
        rater.press("2")
        rater.shoot(f"trial-{size['width']}-{scheme}")
        seen = rater.rate_all()
        assert len(seen) == 10 and all(fits for *_, fits in seen)
        rater.shoot(f"done-{size['width']}-{scheme}")
        colours.append(rater.tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert rater.tab.is_visible("#done") and rater.fits()
    assert colours == ["rgb(245, 245, 242)", "rgb(18, 19, 23)"]
