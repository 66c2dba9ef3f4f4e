"""The results page and the comparison in a real browser, from files; it skips where no Chromium is installed."""

import json
import shlex
from pathlib import Path

import pytest
from browsers import NARROW, WIDE, Tab, opened, skip_without_chromium
from test_report import TRAIL, commands_of, record, write

from ph2p.report.card import anchor_of
from ph2p.report.comparison import write_comparison
from ph2p.report.table import write_report

skip_without_chromium()

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> 'q' & {{ 7 }} \u202ex"""
LONG = "supercalifragilistic" * 12
# name, gap closed, words found, prompt, warned
ROWS = [
    ("10.png", 0.9, 0.5, "large red square", False),
    ("9.png", 0.2, 0.75, "small blue circle", True),
    (HOSTILE, 0.5, None, HOSTILE, False),
    ("ÄTNA.png", -0.1, 0.25, LONG, True),
]


@pytest.fixture(scope="module")
def browser():
    with opened() as browser:
        yield browser


def fill(folder: Path, lift: float = 0.0) -> Path:
    """A results folder of the four pictures and one that failed, with texts that would break a careless page."""
    folder.mkdir(exist_ok=True)
    records = []
    for k, (name, gap, words, prompt, warned) in enumerate(ROWS):
        known = {"gap_closed": gap + lift, "word_recall": words, "prompt": prompt, "loss": 0.5 - gap / 10}
        known |= {"warnings": ["no better than no words"] if warned else [], "caption": None, "method": folder.name}
        records.append(record(folder, name, str(k), **known))
        steps = {
            "trail": TRAIL,
            "search_curve": [0.7, 0.6, 0.6],
            "candidates": [{"prompt": prompt, "loss": 0.4, "epoch": 1}],
        }
        (folder / "candidates" / f"{k}.json").write_text(json.dumps(steps))
    write(
        folder, [*records, {"image_id": "bad.png", "status": "failed", "error": f"cannot be read: {HOSTILE}"}], part=1
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("report") / "run"
    _, known = commands_of(place, "data=folder", "data.path=/pictures")
    (place / "results" / "part-00000.jsonl").unlink()
    fill(place)
    part = place / "results" / "part-00001.jsonl"
    lines = [json.loads(line) for line in part.read_text("utf-8").splitlines()]
    lines = [line | {"settings": known["settings"], "source": f"/it's/{line['image_id']}"} for line in lines]
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_report(place)
    return place


class Visit(Tab):
    """Somebody who looks at a results page."""

    def names(self) -> list[str]:
        """The names of the cards that are shown, in their order."""
        return self.tab.evaluate(
            "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.name)"
        )

    def count(self) -> str:
        return self.tab.inner_text("#count")

    def shows(self, name: str | None) -> bool:
        """Whether the details of that picture come up, or close; a browser follows links and keys when it likes."""
        if name is None:
            self.tab.wait_for_selector("#detail:not([open]) #detail-body:empty", state="attached")
        else:
            self.tab.wait_for_function(
                "name => document.getElementById('detail').open"
                " && document.getElementById('detail-title').textContent === name",
                arg=name,
            )
        return True

    def focused(self) -> str:
        return self.tab.evaluate("document.activeElement.getAttribute('href') ?? document.activeElement.id")

    def cut(self) -> list[str]:
        """Texts that stick out of their card or of the dialog."""
        return self.tab.evaluate("""[...document.querySelectorAll('.card, #detail-body, .row > *')]
          .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.innerText.slice(0, 80))""")


@pytest.fixture
def visit(browser, folder):
    """Open a page, the gallery if no other is given, on a screen of some kind."""
    contexts = []

    def open_page(page: Path | None = None, size=WIDE, anchor="", **options) -> Visit:
        contexts.append(browser.new_context(viewport=size, **options))
        return Visit(contexts[-1], page or folder / "index.html", anchor)

    yield open_page
    for context in contexts:
        context.close()


FIRST, SECOND, THIRD, FOURTH = (name for name, *_ in ROWS)


def test_cards_are_sorted(visit):
    visitor = visit()
    assert visitor.names() == [FIRST, SECOND, THIRD, FOURTH, "bad.png"] and visitor.count() == "5 pictures"
    orders = {
        "name": [THIRD, SECOND, FIRST, FOURTH, "bad.png"],  # 9 before 10, whatever the script
        "gap": [FIRST, THIRD, SECOND, FOURTH, "bad.png"],
        "words": [SECOND, FIRST, FOURTH, THIRD, "bad.png"],  # those not known last
        "loss": [FIRST, THIRD, SECOND, FOURTH, "bad.png"],
    }
    for key, order in orders.items():
        visitor.tab.select_option("#sort", key)
        shown = visitor.names()
        if key == "name":
            assert shown.index(SECOND) < shown.index(FIRST) < shown.index("bad.png")
        else:
            assert shown == order, key
    visitor.tab.select_option("#sort", "words")
    visitor.tab.click("#direction")
    assert visitor.names() == [FOURTH, FIRST, SECOND, THIRD, "bad.png"]  # still last
    assert visitor.tab.get_attribute("#direction", "aria-label") == "order: ascending"
    visitor.tab.click("button[type=reset]")
    visitor.tab.wait_for_function("document.querySelector('.card').dataset.name === '10.png'")
    assert visitor.names() == [FIRST, SECOND, THIRD, FOURTH, "bad.png"] and visitor.errors == []


def test_cards_are_filtered_by_keyboard(visit):
    visitor = visit()
    visitor.press("/")
    assert visitor.focused() == "find"
    for text, names in {"RED  square": [FIRST], "ätna": [FOURTH], "<script>": [THIRD], "no such": []}.items():
        visitor.tab.fill("#find", text)
        assert visitor.names() == names and visitor.count() == f"{len(names)} of 5 pictures"
    visitor.tab.fill("#find", "")
    visitor.press("Tab", "w")  # the select behind it, by its first letter
    assert visitor.names() == [SECOND, FOURTH]
    visitor.tab.select_option("#kind", "failed")
    assert visitor.names() == ["bad.png"]
    visitor.tab.select_option("#kind", "all")
    visitor.tab.fill("#least", "50")
    assert visitor.names() == [FIRST, THIRD]
    visitor.tab.fill("#least", "-20")
    assert visitor.names() == [FIRST, SECOND, THIRD, FOURTH] and visitor.errors == []


def test_details_open_turn_and_close_by_keyboard(visit):
    visitor = visit()
    visitor.tab.focus(f"a[href='#{anchor_of(FIRST)}']")
    visitor.press("Enter")
    assert visitor.shows(FIRST) and visitor.focused() == "detail-title"
    assert visitor.tab.inner_text("#where") == "1 of 4" and visitor.tab.is_disabled("#previous")
    for name in (SECOND, THIRD, FOURTH, FOURTH, FOURTH):
        visitor.press("ArrowRight")
        assert visitor.shows(name)
    assert visitor.tab.is_disabled("#next")
    visitor.press("ArrowLeft")
    assert visitor.shows(THIRD) and visitor.tab.url.endswith(f"#{anchor_of(THIRD)}")
    shown = visitor.tab.evaluate("[...document.querySelectorAll('#detail-body img')].map((i) => i.naturalWidth)")
    assert len(shown) == 5 and set(shown) == {16}  # those of the card too
    for text in ("optimisation, by evaluation", "projection 1", "round 2", "1 candidate"):
        assert text in visitor.tab.text_content("#detail-body")
    visitor.press("Escape")
    assert visitor.shows(None) and visitor.focused() == f"#{anchor_of(THIRD)}"
    assert anchor_of(THIRD) not in visitor.tab.url and visitor.errors == []


def test_details_follow_order_and_filter_and_have_an_address(visit):
    visitor = visit(anchor=f"#{anchor_of(SECOND)}")
    assert visitor.shows(SECOND) and visitor.tab.inner_text("#where") == "2 of 4"
    visitor.tab.click("#close")
    visitor.tab.select_option("#sort", "gap")
    visitor.tab.fill("#least", "20")
    visitor.tab.click(f"a[href='#{anchor_of(FIRST)}']")
    visitor.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert visitor.shows(SECOND) and visitor.tab.inner_text("#where") == "3 of 3"
    visitor.tab.go_back()
    assert visitor.shows(None)
    visitor.tab.evaluate("window.location.hash = '#nothing'")
    assert visitor.shows(None) and visitor.errors == []


def test_prompt_and_command_are_copied(visit):
    visitor = visit(anchor=f"#{anchor_of(THIRD)}", permissions=["clipboard-read", "clipboard-write"])
    for element, button in (("detail-prompt", "Copy the prompt"), ("detail-command", "Copy the command")):
        visitor.tab.click(f"text={button}")
        visitor.tab.wait_for_selector(f"[data-clip={element}]:has-text('Copied')")
        copied = visitor.tab.evaluate("navigator.clipboard.readText()")
        if element == "detail-prompt":
            assert copied == HOSTILE
    program, *words = shlex.split(copied)
    assert program == "ph2p" and f"data.path=/it's/{HOSTILE}" in words and visitor.errors == []


def test_where_the_clipboard_is_closed_the_text_is_selected(visit):
    visitor = visit(anchor=f"#{anchor_of(FIRST)}")
    visitor.tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    visitor.tab.click("text=Copy the prompt")
    assert visitor.tab.evaluate("window.getSelection().toString()").strip() == "large red square"


def test_nothing_runs_or_goes_out(visit):
    visitor = visit(anchor=f"#{anchor_of(THIRD)}")
    assert visitor.shows(HOSTILE)
    assert visitor.tab.evaluate("window.hacked") is None and visitor.errors == []
    assert all(url.startswith(("file:", "data:")) for url in visitor.requests)
    assert visitor.tab.locator("#detail-body script, .card script").count() == 0


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pages_fit_every_screen_light_and_dark(visit, folder, size):
    """No sideways scrolling with the longest word; colours follow the system. Pictures go to $PH2P_SCREENSHOTS."""
    other = fill(folder.parent / "other", 0.05)
    compared = write_comparison([folder, other], folder.parent / "comparison.html")
    colours = []
    for scheme in ("light", "dark"):
        for name, page in (("gallery", folder / "index.html"), ("comparison", compared)):
            visitor = visit(page, size, color_scheme=scheme, reduced_motion="reduce")
            assert visitor.fits() and visitor.cut() == [], (name, scheme)
            visitor.shoot(f"{name}-{size['width']}-{scheme}")
            if name == "gallery":
                visitor.tab.click(f"a[href='#{anchor_of(FOURTH)}']")
                assert visitor.shows(FOURTH) and visitor.fits() and visitor.cut() == [], scheme
                visitor.shoot(f"detail-{size['width']}-{scheme}")
                colours.append(visitor.tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert visitor.errors == [] and visitor.tab.evaluate("window.hacked") is None
    assert colours == ["rgb(246, 246, 243)", "rgb(18, 19, 23)"]


def test_everything_has_a_name_for_those_who_do_not_see_it(visit):
    visitor = visit(anchor=f"#{anchor_of(FIRST)}")
    unnamed = visitor.tab.evaluate("""[...document.querySelectorAll('img, button, a, input, select, [role=img]')]
      .filter((one) => !(one.alt || one.ariaLabel || one.textContent.trim() || one.labels?.length))
      .map((one) => one.outerHTML)""")
    assert unnamed == []
    assert "projected from 0.9000" in visitor.tab.get_attribute("#detail-body svg[role=img]", "aria-label")
