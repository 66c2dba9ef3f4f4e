"""The pages and the terminal's table from a small results folder, also a hostile, an incomplete and a large one."""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from ph2p.config.compose import load_config
from ph2p.config.settings import settings
from ph2p.errors import UserError
from ph2p.report import chart as charts
from ph2p.report.card import anchor_of
from ph2p.report.chart import Series
from ph2p.report.command import Commands
from ph2p.report.comparison import lines_of, write_comparison
from ph2p.report.page import EMBEDDED, TEMPLATES, Run, write_pages
from ph2p.report.pictures import LARGEST, SIDE
from ph2p.report.records import read_results
from ph2p.report.table import ROWS, summary_table, write_report
from ph2p.report.trail import series_of, steps_of
from ph2p.run.results import ResultsFolder

HOSTILE = """<script>alert("x")</script> 'quoted' & "double" </p> {{ 7 * 7 }} [red]bold[/red] 🌟"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


def picture(folder: Path, name: str, colour: tuple[int, int, int] = (200, 30, 30), size: int = 16) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return name


def record(folder: Path, image_id: str, slug: str, **changes) -> dict:
    """Make a finished record with ground truth, and the files it names."""
    best = {"prompt": HOSTILE, "loss": 0.35, "epoch": 3}
    curve = {"loss_curve": [0.9, 0.5, 0.6, 0.35], "candidates": [best]}
    (folder / "candidates").mkdir(exist_ok=True)
    (folder / "candidates" / f"{slug}.json").write_text(json.dumps(curve))
    files = {
        "target": picture(folder, f"images/{slug}/target.png"),
        "renderings": [picture(folder, f"images/{slug}/rendering-{i}.png", (0, 0, 60 * i)) for i in range(3)],
        "caption_renderings": [picture(folder, f"images/{slug}/caption-rendering-0.png", (0, 90, 0))],
        "candidates": f"candidates/{slug}.json",
    }
    losses = {"loss": 0.34, "loss_empty": 0.8, "loss_caption": 0.3, "regret": 0.08, "word_recall": 0.75}
    losses |= {"gap_closed": 0.92, "warnings": []}
    cost = {"forward_samples": 1200, "backward_samples": 800, "samples": 2000, "seconds": 75.5, "seed": 0}
    scores = {"clip_similarity": 0.91, "clip_similarity_caption": 0.95}
    known = {"image_id": image_id, "source": image_id, "status": "ok", "error": None, "method": "ph2p_plus"}
    text = {"prompt": "large red square", "token_ids": [1, 2, 3], "caption": "a large red square"}
    return {**known, **text, **losses, **scores, **cost, "files": files, **changes}


def write(folder: Path, records: list[dict], part: int = 0, tail: str = "") -> None:
    (folder / "results").mkdir(exist_ok=True)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    (folder / "results" / f"part-{part:05d}.jsonl").write_text(lines + tail, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    config = f"name: demo\ngenerator:\n  path: ph2p/tiny/weights\nnote: {HOSTILE!r}\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    hostile = record(tmp_path, HOSTILE, "b", prompt=HOSTILE, caption=HOSTILE)
    failed = {"image_id": "bad.png", "status": "failed", "error": f"bad.png: {HOSTILE}"}
    write(tmp_path, [record(tmp_path, "a.png", "a"), hostile, failed], tail='{"image_id": "torn.p')
    return tmp_path


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed where it should be.

    `details` are the detail views, each as such a page of its own; `script` is what a browser runs.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.details, self.script = {}, ""
        self.feed(text)
        assert self.open == []

    @property
    def every(self) -> str:
        """The text of the page and of all details."""
        return self.text + "".join(detail.text for detail in self.details.values())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.last = dict(attrs)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["script"]:
            self.text += data
        elif "data-detail" in self.last:
            self.details[self.last["data-detail"]] = Page(data)
        else:
            self.script += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_self_contained(folder):
    path = write_report(folder)
    assert path == folder / "index.html" and not list(folder.glob(".index*"))
    page = page_of(folder)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert not page.values("srcset", "action", "onerror", "onload", "onclick")
    anchors = [anchor_of("a.png"), anchor_of(HOSTILE)]
    assert page.values("href") == [f"#{anchor}" for anchor in anchors] and list(page.details) == anchors
    sources = page.values("src")
    assert len(sources) == 8 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.script == (TEMPLATES / "report.js").read_text(encoding="utf-8")
    (policy,) = [value for value in page.values("content") if "script-src" in value]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|//cdn", text)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as image:
        assert image.size == (16, 16)


def test_hostile_text_is_only_text(folder):
    page = page_of(folder)
    # Its name, prompt and caption on the card, its error, the configuration; in the detail also where it was read.
    assert page.text.count('<script>alert("x")</script>') == 5
    details = [detail.text.count('<script>alert("x")</script>') for detail in page.details.values()]
    assert details == [1, 5]  # a candidate of each; of the hostile one name, prompt, caption and source as well
    assert "49" not in page.text.split("alert")[1][:60]
    assert any(HOSTILE in alt for alt in page.values("alt")) and HOSTILE in page.values("data-name")


def test_it_shows_what_was_found(folder):
    page = page_of(folder)
    for words in ("large red square", "0.3400", "0.910", "75%", "92%", "2,000", "2 min 31 s", "a large red square"):
        assert words in page.text
    detail = page.details[anchor_of("a.png")]
    for words in ("+0.080", "2,000 backward 800", "1 min 16 s", "caption 0.3000", "large red square"):
        assert words in detail.text
    assert page.tags.count("article") == 3 and detail.tags.count("article") == 0 and "path" in detail.tags
    assert "empty prompt 0.8000" in detail.text and "true caption 0.3000" in detail.text
    for draws in ("each epoch’s own draws", "validation draws", "evaluation draws"):  # noqa: RUF001
        assert draws in detail.text
    assert "demo" in page.text and "tiny/weights" in page.text and "ph2p_plus" in page.text
    assert "1 image could not be read back" in page.text and "bad.png: <script>" in page.text


def test_the_gap_comes_first_on_a_card(folder):
    card = page_of(folder).text.split("of the gap closed")
    assert [part.split()[-1] for part in card[:-1]] == ["92%", "92%"]
    assert "large red square" in card[1] and "a.png" not in card[0]


def test_what_people_wrote_and_pictures_of_the_caption(tmp_path):
    figures = {"loss_reference": 0.31, "reference_similarity": 0.77, "reference_rouge1": 0.5, "regret": None}
    told = {"references": [HOSTILE, "a red thing"], "notes": ["reference 1 cut"], "loss_caption": None, "caption": None}
    first = record(tmp_path, "a.png", "a", **figures, **told)
    (tmp_path / "candidates" / "a.json").write_text('{"loss_curve": [0.9, 0.5], "search_curve": [0.6, 0.4, 0.4]}')
    write(tmp_path, [first])
    (detail,) = page_of(tmp_path).details.values()
    for words in (HOSTILE, "a red thing", "reference 1 cut", "0.770", "0.500", "best reference 0.3100"):
        assert words in detail.text
    assert "each round’s own draws" in detail.text and "validation draws" not in detail.text  # noqa: RUF001
    assert any("true caption, number 1" in alt for alt in detail.values("alt"))
    table = printed(read_results(tmp_path))
    assert "CLIP text" in table and "0.770" in table and "ROUGE-1 0.500" in table
    assert "regret" not in table  # no image has one


def test_without_ground_truth(tmp_path):
    keys = ("caption", "loss_caption", "regret", "word_recall", "clip_similarity_caption")
    write(tmp_path, [record(tmp_path, "a.png", "a", **dict.fromkeys(keys))])
    page = page_of(tmp_path)
    assert "median regret" not in page.text and "truth" not in page.values("class")
    assert "median gap closed" in page.text and "data-words" not in {name for _, name, _ in page.attributes}
    assert "None" not in page.every and "empty prompt" in page.every


@pytest.mark.parametrize("records", [None, []])
def test_a_folder_without_results(tmp_path, records):
    if records is not None:
        write(tmp_path, records)
    assert "no results yet" in page_of(tmp_path).text


def test_missing_damaged_and_foreign_files(tmp_path):
    (tmp_path / "out").mkdir()
    secret = picture(tmp_path, "secret.png")
    bad = record(tmp_path / "out", "a.png", "a")
    bad["files"] = {
        "target": f"../{secret}",
        "renderings": ["none.png", "broken.png"],
        "candidates": "../x.json",
    }
    (tmp_path / "x.json").write_text('{"loss_curve": [1.0]}')
    (tmp_path / "out" / "broken.png").write_bytes(b"\x89PNG broken")
    bare = {"image_id": "b.png", "status": "ok", "loss": float("nan"), "files": {"target": None}}
    write(tmp_path / "out", [bad, bare])
    page = page_of(tmp_path / "out")
    assert page.values("src") == [] and page.text.count("no picture") == 4
    assert "chart" not in page.details[anchor_of("b.png")].values("class") and "nan" not in page.every


def test_large_pictures_are_shrunk(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    one = record(tmp_path, "a.png", "a")
    Image.fromarray(noise).save(tmp_path / one["files"]["target"])
    write(tmp_path, [one])
    target = page_of(tmp_path).values("src")[0]
    assert target.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(target.split(",")[1]))) as image:
        assert max(image.size) == SIDE


def test_many_candidates_are_cut(tmp_path):
    one = record(tmp_path, "a.png", "a")
    rows = [{"prompt": f"word-{i}-", "loss": i / 100, "clip_similarity": None, "epoch": i} for i in range(200)]
    (tmp_path / "candidates" / "a.json").write_text(json.dumps({"loss_curve": [1.0], "candidates": rows}))
    write(tmp_path, [one])
    page = page_of(tmp_path)
    assert "200 candidates, the best 50" in page.every
    assert "word-49-" in page.every and "word-50-" not in page.every


def test_a_page_that_cannot_be_written_leaves_the_old_one(folder):
    old = write_report(folder).read_text(encoding="utf-8")
    write(folder, [record(folder, "new.png", "new")], part=1)
    (folder / "index.html").unlink()
    (folder / "index.html").mkdir()  # nothing can take its place
    (folder / "index.html" / "old").write_text(old)
    with pytest.raises(UserError, match="cannot be written"):
        write_report(folder)
    assert (folder / "index.html" / "old").read_text() == old and not list(folder.glob(".index*"))


# --- many images ----------------------------------------------------------------------------------


CARDS = 100


def paged(folder: Path) -> Path:
    return write_pages(Run(folder, read_results(folder)), CARDS)


@pytest.fixture
def many(tmp_path):
    """A folder of two and a half pages of `CARDS`: small pictures, and one large one."""
    shared = record(tmp_path, "0.png", "shared")
    records = [shared | {"image_id": f"{k}.png"} for k in range(2 * CARDS + CARDS // 2)]
    for k in (0, 150):
        records[k] = record(tmp_path, f"{k}.png", f"image-{k}")
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / records[0]["files"]["target"])
    write(tmp_path, [*records, {"image_id": "bad.png", "status": "failed", "error": "damaged"}])
    return tmp_path


def test_many_images_are_pages_with_pictures_beside_them(many):
    paged(many)
    names = ["index.html", "index-2.html", "index-3.html"]
    assert sorted(file.name for file in many.glob("*.html")) == sorted(names)
    pages = [Page((many / name).read_text(encoding="utf-8")) for name in names]
    assert [page.tags.count("article") for page in pages] == [CARDS + 1, CARDS, CARDS // 2]  # one has failed
    assert all((many / name).stat().st_size < 15_000 * CARDS for name in names)
    sources = [source for page in pages for source in page.values("src")]
    sources += [source for page in pages for detail in page.details.values() for source in detail.values("src")]
    assert len(sources) == 5 * len(read_results(many)) - 5
    assert not any(":" in source or source.startswith(("/", "..")) for source in sources)
    assert all((many / source).is_file() for source in sources)
    thumbnail = many / pages[0].values("src")[0]
    assert (
        thumbnail.is_relative_to(many / "thumbnails") and thumbnail.stat().st_size < 2 * LARGEST
    )  # of noise, the worst case
    links = [{link for link in page.values("href") if not link.startswith("#")} for page in pages]
    assert links[1] == {"index.html", "index-3.html"} and links[0] == set(names)
    assert "bad.png" in pages[0].text and "bad.png" not in pages[1].text + pages[2].text


def test_only_what_has_changed_is_written_again(many):
    def times() -> dict[str, int]:
        files = [*many.glob("*.html"), *(many / "thumbnails").rglob("*.webp")]
        return {file.relative_to(many).as_posix(): file.stat().st_mtime_ns for file in files}

    def changed(before: dict[str, int]) -> set[str]:
        after = times()
        return {name for name in after if before.get(name) != after[name]}

    paged(many)
    before = times()
    paged(many)
    assert changed(before) == set()
    write(many, [record(many, "late.png", "late")], part=1)
    paged(many)
    assert changed(before) == {"index.html", "index-3.html"}  # its totals, and its card
    before = times()
    target = "images/image-150/target.png"
    (many / target).unlink()
    noise = np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(many / target)  # painted anew
    paged(many)
    assert changed(before) == {"index-2.html", f"thumbnails/{target}.webp"}


def test_thumbnails_that_were_deleted_are_made_again(many):
    paged(many)
    thumbnails = sorted((many / "thumbnails").rglob("*.webp"))
    assert thumbnails
    shutil.rmtree(many / "thumbnails")
    paged(many)
    assert sorted((many / "thumbnails").rglob("*.webp")) == thumbnails


def test_pages_that_are_no_longer_needed_go(many):
    paged(many)
    (many / "results" / "part-00000.jsonl").unlink()
    write(many, [record(many, "a.png", "a")])
    paged(many)
    assert [file.name for file in many.glob("*.html")] == ["index.html"]


def test_processes_that_write_at_once_leave_whole_pages(many):
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                write_report(many)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    (page,) = (Page(file.read_text("utf-8")) for file in many.glob("*.html"))
    assert page.tags.count("article") == 5 * CARDS // 2 + 1
    assert not list(many.glob(".*"))


# --- warnings -------------------------------------------------------------------------------------


def test_warnings_stand_on_the_card_at_the_head_and_in_the_terminal(tmp_path):
    warning = "no better than no words: loss 0.9000"
    bad = record(tmp_path, "b.png", "b", gap_closed=-0.2, warnings=[warning])
    write(tmp_path, [record(tmp_path, "a.png", "a"), bad])
    page = page_of(tmp_path)
    assert page.text.count(warning) == 1 and page.details[anchor_of("b.png")].text.count(warning) == 1
    assert "1 of 2 prompts with a warning" in page.text and "-20%" in page.text
    for width in (60, 160):
        text = " ".join(printed(read_results(tmp_path), width).replace("│", " ").split())
        assert "warning: no better than no words" in text and "-20%" in text and "1 of 2 prompts" in text


def test_a_page_says_when_images_were_measured_in_different_ways(tmp_path):
    ways = [{"draws": 64, "scorer": "clip"}, {"draws": 16, "scorer": "clip"}]
    write(tmp_path, [record(tmp_path, f"{k}.png", str(k), measured_with=way) for k, way in enumerate(ways)])
    text = page_of(tmp_path).text
    assert "not all images were measured alike" in text.lower() and "draws 16, scorer clip" in text
    write(tmp_path, [record(tmp_path, f"{k}.png", str(k), measured_with=ways[0]) for k in range(2)])
    text = page_of(tmp_path).text
    assert "measured alike" not in text and "measured with draws 64, scorer clip" in text


# --- the loss chart -------------------------------------------------------------------------------


CURVES = [[1.0], [1.0, 1.0], [2.0, 1.0, 3.0, 0.5], [0.0], [None, 1.0, float("nan"), 2.0]]
NUMBER = r"-?[\d.]+"


def points(path: str) -> list[tuple[float, float]]:
    """Where the subpaths of squares, lines and dots begin, and where lines go on."""
    found = re.findall(rf"[ML]({NUMBER}) ({NUMBER})((?: {NUMBER})*)", path)
    return [(float(x), float(y)) for x, y, _ in found]


@pytest.mark.parametrize("values", CURVES)
@pytest.mark.parametrize("search", [[], [1.5], [4.0, 2.0, None]])
@pytest.mark.parametrize("levels", [(None, None), (1.0, None), (2.5, 0.1), (1.0, 1.0)])
def test_every_set_of_draws_has_a_panel_of_its_own(values, search, levels):
    series = [Series("soft", "a", soft=[list(enumerate(values))]), Series("search", "b", hard=list(enumerate(search)))]
    chart = charts.place(series, list(zip("ul", "ab", levels, strict=True)))
    box = [(panel.x0, panel.x1) for panel in chart.panels]
    assert box[0][0] >= charts.LEFT and box[-1][1] <= charts.RIGHT
    assert all(left[1] < right[0] for left, right in pairwise(box))  # nothing joins two
    assert [panel.hard.count("M") for panel in chart.panels if panel.hard] == [
        n for n in [len([v for v in search if v])] if n
    ]
    for panel in chart.panels:
        known = points(panel.soft) + [(x + 2.5, y + 2.5) for x, y in points(panel.hard)]
        assert all(panel.x0 <= x <= panel.x1 and charts.TOP <= y <= charts.FLOOR for x, y in known)
    assert all(charts.TOP <= level.y <= charts.FLOOR for level in chart.levels)
    places = [level.text_y for level in chart.levels]
    assert all(b - a > charts.LINE - 0.2 for a, b in pairwise(places))  # names can be read


TRAIL = {
    "losses": [0.9, 0.7, 0.5, 0.8, 9.0, 0.6],  # one trial of a line search is far off
    "ends": [3, 6],
    "projected": [["red", "dog"], ["red", "cat"], ["blue", "cat"]],
    "judged": [0.95, 0.7, 0.75],
    "rounds": [["blue", "cat"], ["blue", "cat"], ["blue", "big", "cat"]],
    "hard": "first of each epoch",
    "restarts": 1,
}


def test_soft_and_hard_losses_are_drawn_apart_and_no_line_joins_two_epochs():
    found = {"trail": TRAIL, "loss_curve": [0.5, 0.6], "search_curve": [0.7, 0.6, 0.5]}
    optimisation, projections, search, _ = series_of(found, [])
    assert optimisation.soft == [[(1, 0.9), (2, 0.7), (3, 0.5)], [(4, 0.8), (5, 9.0), (6, 0.6)]]
    assert optimisation.hard == [(1, 0.9), (4, 0.8)] and optimisation.marks == [3, 6]
    assert projections.best and not search.best and len(search.hard) == 3
    chart = charts.place([optimisation, projections, search], [("upper", "empty prompt", 1.2)])
    first, second, third, result = chart.panels
    assert first.soft.count("M") == 2 and first.hard.count("M") == 2 and first.marks.count("M") == 2
    assert second.best and not third.best and not third.soft and not (result.soft or result.hard)
    heights = [float(y) for y in re.findall(r"V(" + NUMBER + ")", second.best)]
    assert heights[0] == heights[1]  # what is worse than the best so far does not raise it
    assert chart.levels[0].y > charts.TOP  # the trial far off is cut, and flattens nothing


@pytest.mark.parametrize(("hard", "squares"), [("all", 6), ("first", 1), ("first of each epoch", 2)])
def test_what_is_hard_depends_on_the_method(hard, squares):
    optimisation = series_of({"trail": TRAIL | {"hard": hard}}, [])[0]
    assert len(optimisation.hard) == squares and bool(optimisation.soft) == (hard != "all")


def test_a_record_of_before_has_its_epochs_as_dots():
    optimisation = series_of({"loss_curve": [0.5, 0.6, None]}, [])[0]
    chart = charts.place([optimisation], [])
    assert chart.panels[0].soft.count("M") == 2 and "L" not in chart.panels[0].soft and not chart.panels[0].hard


def test_long_curves_are_thinned():
    losses = [1 / (k + 1) for k in range(9000)]
    trail = TRAIL | {"losses": losses, "ends": list(range(3, 9001, 3))}
    (panel,) = charts.place(series_of({"trail": trail}, [])[:1], []).panels
    assert len(panel.soft + panel.hard + panel.marks) < 20_000


def test_no_chart_without_a_loss():
    assert charts.place([], []) is None
    series = [Series("soft", "a", soft=[[(1, float("nan")), (2, "0.1")]]), Series("search", "b", hard=[(0, None)])]
    assert charts.place(series, [("u", "a", 1.0)]) is None


# --- how the words changed ------------------------------------------------------------------------


def test_words_are_compared_from_step_to_step():
    steps = steps_of({"trail": TRAIL, "search_curve": [0.7, 0.65, 0.6]})
    said = [(step.when, step.loss, step.words) for step in steps["optimisation"]]
    assert said == [
        ("start", "0.9500", [("red dog", "")]),
        ("projection 1", "0.7000", [("red", ""), ("dog", "gone"), ("cat", "new")]),
        ("projection 2", "0.7500", [("red", "gone"), ("blue", "new"), ("cat", "")]),
    ]
    last = steps["search"][-1]
    assert [step.when for step in steps["search"]] == ["start", "round 2"]  # round 1 changed nothing
    assert last.words == [("blue", ""), ("big", "new"), ("cat", "")]


@pytest.mark.parametrize("trail", [None, 3, {"projected": 3, "rounds": [None, ["a", 1]], "ends": ["x"], "losses": [1]}])
def test_a_damaged_trail_is_shown_as_far_as_it_goes(tmp_path, trail):
    one = record(tmp_path, "a.png", "a")
    (tmp_path / "candidates" / "a.json").write_text(json.dumps({"loss_curve": [0.5], "trail": trail}))
    write(tmp_path, [one])
    assert "each epoch’s own draws" in page_of(tmp_path).every  # noqa: RUF001


def test_words_on_the_way_are_only_text(tmp_path):
    one = record(tmp_path, "a.png", "a")
    (tmp_path / "candidates" / "a.json").write_text(json.dumps({"trail": TRAIL | {"projected": [[HOSTILE], ["a"]]}}))
    write(tmp_path, [one])
    (detail,) = page_of(tmp_path).details.values()
    assert detail.text.count(HOSTILE) == 2 and "ins" in detail.tags and "script" not in detail.tags


# --- the command ----------------------------------------------------------------------------------


def commands_of(folder: Path, *words: str) -> tuple[Commands, dict]:
    """A results folder as a run with these words leaves it, and its configuration."""
    cfg = load_config([*words, f"output={folder}", "name=x"])
    results = ResultsFolder(folder, cfg)
    results.append({"image_id": "a"})
    results.close()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return Commands(folder, config), {"settings": results.digest, "source": "/pictures/it's a cat,[1] $HOME.png"}


@pytest.mark.parametrize(
    "words",
    [
        ["data=folder", "data.path=/pictures"],
        ["data=folder", "data.path=/pictures", "data.fit=pad", "method=fast", "seed=3", "method.budget=3000"],
        ["data=folder", "data.path=/p", "method=ph2p", "method.timesteps=[400,900]", "method.optimizer.max_eval=9"],
        [
            "data=folder",
            "data.path=/p",
            "generator=folder",
            "generator.path=/my models/sd",
            "generator.tokens.protected=[a,b]",
        ],
        ["data=world", "data.seed=7", "data.count=3", "data.objects=1", "method=pez", "evaluation.draws=8"],
    ],
)
def test_the_command_makes_the_same_settings(tmp_path, words):
    command, one = commands_of(tmp_path / "run", *words)
    program, *given = shlex.split(command(one))
    again = load_config(given)
    assert program == "ph2p" and again.name == "x-again"
    if words[0] == "data=folder":
        assert again.data["path"] == one["source"]
        again.data["path"] = words[1].partition("=")[2]
    assert settings(again) == settings(load_config(words))


def test_no_command_where_nothing_says_how(tmp_path, folder):
    command, one = commands_of(tmp_path / "run", "data=folder", "data.path=/pictures")
    assert command(one | {"settings": "0" * 16}) == command({"source": "a.png"}) == ""
    assert command(one | {"settings": "../../secret"}) == command(one | {"source": None}) == ""
    assert "Copy the command" not in page_of(folder).every


# --- several runs ---------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two runs with four pictures in common, of which the second one is better by about 0.2."""
    folders = []
    for name, better in (("one", 0.0), ("two", 0.2)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        gaps = [0.3, 0.5, 0.6, 0.4]
        records = [
            record(
                folders[-1],
                f"{k}.png",
                str(k),
                method=name,
                gap_closed=gap + better + k * better / 50,
                word_precision=0.8,
                prompt=f"{name} {k}",
            )
            for k, gap in enumerate(gaps)
        ]
        write(folders[-1], [*records, record(folders[-1], f"{name}.png", "x", method=name, prompt=HOSTILE)])
    return folders


def test_runs_stand_side_by_side(runs, tmp_path):
    page = Page(write_comparison(runs, tmp_path / "deep" / "comparison.html").read_text(encoding="utf-8"))
    assert "2 runs, 6 pictures side by side" in page.text and "script" not in page.tags
    for words in ("one 0", "two 3", "45%", "66%", "+21% [+20%, +21%]", "not finished by this run", HOSTILE):
        assert words in page.text
    assert page.values("class").count("best") == 4 and page.text.count("words wrong20%") == 8
    assert all(source.startswith("data:") for source in page.values("src")) and len(page.values("src")) == 36
    assert "good" in {word for value in page.values("class") for word in value.split()}


def test_differences_are_paired_and_leave_out_what_is_not_known(runs):
    records = [{r["image_id"]: r for r in read_results(folder)} for folder in runs]
    records[1]["3.png"]["gap_closed"] = None
    (line,) = [line for line in lines_of({"one": records[0], "two": records[1]}) if line.name == "gap closed"]
    assert line.pictures == 3 and line.means == ["47%", "67%"]
    one, (low, high) = (
        re.findall(r"^\+(\d+)%", line.differences[0].text),
        re.findall(r"[\[ ]\+(\d+)%", line.differences[0].text),
    )
    assert one == ["20"] and low == "20" and high in ("20", "21") and line.differences[0].grade == "good"
    worse = lines_of({"two": records[1], "one": records[0]})[0].differences[0]
    assert worse.grade == "poor" and worse.text.startswith("−20%")  # noqa: RUF001


def test_a_large_comparison_has_its_pictures_beside_it(runs, tmp_path):
    shared = record(runs[0], "shared.png", "shared")
    write(runs[0], [shared | {"image_id": f"{k}.png"} for k in range(EMBEDDED)], part=1)
    place = tmp_path / "a page" / "comparison.html"
    page = Page(write_comparison(runs, place).read_text(encoding="utf-8"))
    assert all((place.parent / unquote(source)).is_file() for source in page.values("src"))
    assert len(page.values("src")) > 3 * EMBEDDED and place.stat().st_size < 5_000 * EMBEDDED


def test_runs_that_do_not_compare(runs, tmp_path):
    page = tmp_path / "comparison.html"
    for folders, what in (
        (runs[:1], "two or more"),
        ([runs[0], runs[0]], "each once"),
        ([runs[0], tmp_path / "none"], "no results folder"),
    ):
        with pytest.raises(UserError, match=what):
            write_comparison(folders, page)
    with pytest.raises(UserError, match=r"such as comparison\.html"):
        write_comparison(runs, tmp_path / "comparison.txt")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [record(tmp_path / "other", "elsewhere.png", "x")])
    with pytest.raises(UserError, match="no image that two runs finished"):
        write_comparison([runs[0], tmp_path / "other"], page)
    write(runs[1], [record(runs[1], "0.png", "0", content="b", measured_with={"draws": 3}, method="two")], part=1)
    write(runs[0], [record(runs[0], "0.png", "0", content="a", measured_with={"draws": 4}, method="one")], part=1)
    text = Page(write_comparison(runs, page).read_text(encoding="utf-8")).text
    assert "not measured alike" in text and "1 pictures differ" in text


# --- records and table ----------------------------------------------------------------------------


def test_the_last_record_of_an_image_wins(tmp_path):
    write(
        tmp_path,
        [{"image_id": "a", "status": "failed"}, {"image_id": "b", "loss": 1}, {"image_id": "a", "loss": 2}],
    )
    write(tmp_path, [{"image_id": "b", "loss": 3}, {"image_id": "c"}], part=1)
    records = read_results(tmp_path)
    assert [(r["image_id"], r.get("loss")) for r in records] == [("a", 2), ("b", 3), ("c", None)]
    assert "status" not in records[0]


def test_lines_that_are_no_record_are_passed_over(tmp_path):
    torn = '{"image_id": "t{"image_id": "b"}'  # a killed run, then the next one's record on the same line
    lines = ["", "[1, 2]", '{"no": "id"}', torn, '{"image_id": "c\u2028d"}', '{"image_id": "\xff']
    write(tmp_path, [{"image_id": "a"}], tail="\n".join(lines))
    part = tmp_path / "results" / "part-00000.jsonl"
    part.write_bytes(part.read_bytes()[:-1])  # cut inside a character
    assert [r["image_id"] for r in read_results(tmp_path)] == ["a", "c\u2028d"]


def test_a_part_that_is_nothing_but_damage_is_no_empty_one(tmp_path):
    part = tmp_path / "results" / "part-00000.jsonl"
    part.parent.mkdir()
    for content, known in (
        (b"", True),
        (b'{"image_id": "a', True),
        (bytes(9) + b"\n", False),
        (b"version 1\noid\n", False),
    ):
        part.write_bytes(content)
        if known:
            assert read_results(tmp_path) == []
        else:
            with pytest.raises(UserError, match=r"part-00000\.jsonl: holds no record, so it is damaged"):
                read_results(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such results folder"):
        read_results(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_part_that_cannot_be_read_is_said(tmp_path):
    write(tmp_path, [{"image_id": "a"}])
    (tmp_path / "results" / "part-00000.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"part-00000\.jsonl: cannot be read"):
        read_results(tmp_path)


def test_a_part_that_is_no_file_is_said(tmp_path):
    (tmp_path / "results" / "part-00000.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"part-00000\.jsonl: cannot be read"):
        read_results(tmp_path)


def printed(records: list[dict], width: int = 160, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width).print(summary_table(records))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_summary_table(folder):
    text = printed(read_results(folder))
    for words in (
        "a.png",
        "large red square",
        "0.3400",
        "+0.080",
        "0.910",
        "92%",
        "2,000",
        "1 min 16 s",
        "failed: bad.png",
    ):
        assert words in text
    assert "2 ok, 1 failed" in text and "median regret +0.080" in text
    assert "[red]bold[/red]" in text  # no markup
    assert "0 ok, 0 failed" in printed([])


@pytest.mark.parametrize("width", [46, 60, 80, 100, 130, 200])
def test_prompts_can_be_read_at_every_width(tmp_path, width):
    prompt = "large red square above the small blue circle"
    records = [record(tmp_path, f"some/folder/picture {k}.png", str(k), prompt=prompt) for k in range(3)]
    lines = printed(records, width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert sum("large red square above" in line for line in lines) == 3  # not a letter a line
    assert len(lines) <= 6 * len(records) + 6


def test_many_images_are_cut_and_what_went_wrong_comes_first(tmp_path):
    one = record(tmp_path, "a.png", "a")
    records = [one | {"image_id": f"{k:03}.png"} for k in range(200)]
    records[150]["warnings"] = ["holds no real word"]
    records[199] = {"image_id": "199.png", "status": "failed", "error": "damaged"}
    for width in (60, 200):
        text = printed(records, width)
        assert "150.png" in text and "failed: damaged" in text and "000.png" in text and "100.png" not in text
        assert f"... and {200 - ROWS} more, see the page" in text and "199 ok, 1 failed" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("width", [60, 200])
def test_nothing_in_a_text_steers_or_breaks_the_terminal(tmp_path, width, encoding):
    text = "żaba \x1b[2J\u202e [/b] \r\n 東京"
    failed = {"image_id": text, "status": "failed", "error": text}
    records = [record(tmp_path, text, "a", prompt=text, warnings=[text]), failed]
    out = printed(records, width, encoding)
    assert "\x1b" not in out and "\r" not in out and "\\x1b" in out and "[/b]" in out
    assert "\u202e" not in printed(records, width)
