"""The page and the table from a small results folder, also a hostile and an incomplete one."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ph2p.errors import UserError
from ph2p.report import chart as charts
from ph2p.report.page import SHRUNK_SIDE
from ph2p.report.records import read_results
from ph2p.report.table import summary_table, write_report

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
        "samples": [picture(folder, f"images/{slug}/sample-{i}.png", (0, 0, 60 * i)) for i in range(3)],
        "caption_samples": [picture(folder, f"images/{slug}/caption-0.png", (0, 90, 0))],
        "candidates": f"candidates/{slug}.json",
    }
    figures = {"loss": 0.34, "loss_empty": 0.8, "loss_caption": 0.3, "regret": 0.08, "word_recall": 0.75}
    cost = {"forward_samples": 1200, "backward_samples": 800, "seconds": 75.5, "seed": 0}
    scores = {"clip_similarity": 0.91, "clip_similarity_caption": 0.95}
    known = {"image_id": image_id, "source": image_id, "status": "ok", "error": None, "method": "ph2p_plus"}
    text = {"prompt": "large red square", "token_ids": [1, 2, 3], "caption": "a large red square"}
    return {**known, **text, **figures, **scores, **cost, "files": files, **changes}


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
    """Collects tags, attributes and text, and checks that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_self_contained(folder):
    path = write_report(folder)
    assert path == folder / "index.html" and not list(folder.glob(".index*"))
    page = page_of(folder)
    assert not {"script", "link", "iframe", "object", "style src"} & set(page.tags)
    assert not page.values("href", "srcset", "action", "onerror", "onload", "onclick")
    sources = page.values("src")
    assert len(sources) == 10 and all(source.startswith("data:image/png;base64,") for source in sources)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|//cdn", text)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as image:
        assert image.size == (16, 16)


def test_hostile_text_is_only_text(folder):
    page = page_of(folder)
    # Its name, prompt, caption, error, configuration, and the prompt of two candidates.
    assert page.text.count('<script>alert("x")</script>') == 7
    assert "49" not in page.text.split("alert")[1][:60]
    assert any(HOSTILE in alt for alt in page.values("alt"))


def test_it_shows_what_was_found(folder):
    page = page_of(folder)
    for words in (
        "large red square",
        "0.3400",
        "+0.080",
        "0.910",
        "75%",
        "1,200 + 800",
    ):
        assert words in page.text
    assert "1 min 16 s" in page.text and "2 min 31 s" in page.text  # of one image, and the sum
    assert page.tags.count("article") == 2 and page.tags.count("svg") == 2
    assert "empty prompt 0.8000" in page.text and "true caption 0.3000" in page.text
    assert "demo" in page.text and "tiny/weights" in page.text and "ph2p_plus" in page.text
    assert "1 image could not be read back" in page.text and "bad.png: <script>" in page.text


def test_what_people_wrote_and_pictures_of_the_caption(tmp_path):
    figures = {"loss_reference": 0.31, "reference_similarity": 0.77, "reference_rouge1": 0.5, "regret": None}
    told = {"references": [HOSTILE, "a red thing"], "notes": ["reference 1 cut"], "loss_caption": None, "caption": None}
    first = record(tmp_path, "a.png", "a", **figures, **told)
    (tmp_path / "candidates" / "a.json").write_text('{"loss_curve": [0.9, 0.5], "search_curve": [0.6, 0.4, 0.4]}')
    write(tmp_path, [first])
    page = page_of(tmp_path)
    for words in (HOSTILE, "a red thing", "reference 1 cut", "0.770", "0.500", "best reference 0.3100"):
        assert words in page.text
    assert "2 epochs" in page.text and "2 rounds of the search" in page.text
    assert any("true caption, number 1" in alt for alt in page.values("alt"))
    table = printed(read_results(tmp_path))
    assert "CLIP text" in table and "0.770" in table and "ROUGE-1 0.500" in table
    assert "regret" not in table  # no image has one


def test_without_ground_truth(tmp_path):
    keys = ("caption", "loss_caption", "regret", "word_recall", "clip_similarity_caption")
    write(tmp_path, [record(tmp_path, "a.png", "a", **dict.fromkeys(keys))])
    page = page_of(tmp_path)
    assert "median regret" not in page.text and "truth" not in page.values("class")
    assert "None" not in page.text and "empty prompt" in page.text


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
        "samples": ["none.png", "broken.png"],
        "candidates": "../x.json",
    }
    (tmp_path / "x.json").write_text('{"loss_curve": [1.0]}')
    (tmp_path / "out" / "broken.png").write_bytes(b"\x89PNG broken")
    bare = {"image_id": "b.png", "status": "ok", "loss": float("nan"), "files": {"target": None}}
    write(tmp_path / "out", [bad, bare])
    page = page_of(tmp_path / "out")
    assert page.values("src") == [] and page.text.count("no picture") == 4
    assert "svg" not in page.tags and "nan" not in page.text


def test_large_pictures_are_shrunk(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    one = record(tmp_path, "a.png", "a")
    Image.fromarray(noise).save(tmp_path / one["files"]["target"])
    write(tmp_path, [one])
    target = page_of(tmp_path).values("src")[0]
    assert target.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(target.split(",")[1]))) as image:
        assert max(image.size) == SHRUNK_SIDE


def test_many_candidates_are_cut(tmp_path):
    one = record(tmp_path, "a.png", "a")
    rows = [{"prompt": f"word-{i}-", "loss": i / 100, "clip_similarity": None, "epoch": i} for i in range(200)]
    (tmp_path / "candidates" / "a.json").write_text(json.dumps({"loss_curve": [1.0], "candidates": rows}))
    write(tmp_path, [one])
    page = page_of(tmp_path)
    assert "200 candidates, the best 50" in page.text
    assert "word-49-" in page.text and "word-50-" not in page.text


def test_a_page_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    old = write_report(folder).read_text(encoding="utf-8")

    def full(self, content):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"index\.html: No space left on device"):
        write_report(folder)
    assert (folder / "index.html").read_text(encoding="utf-8") == old and not list(folder.glob(".index*"))


# --- the loss curve -------------------------------------------------------------------------------


CURVES = [[1.0], [1.0, 1.0], [2.0, 1.0, 3.0, 0.5], [0.0], [None, 1.0, float("nan"), 2.0]]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("search", [[], [1.5], [4.0, 2.0, None]])
@pytest.mark.parametrize("bounds", [(None, None), (1.0, None), (2.5, 0.1)])
def test_the_curves_stay_inside_their_box(curve, search, bounds):
    chart = charts.place_curves(curve, search, [("upper", "a", bounds[0]), ("lower", "b", bounds[1])])
    names = ("each", "best", "search")
    parts = {name: [tuple(map(float, p.split(","))) for p in chart[name].split()] for name in names}
    points = [point for part in parts.values() for point in part]
    assert all(charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.FLOOR for x, y in points)
    assert all(charts.TOP <= bound["y"] <= charts.FLOOR for bound in chart["bounds"])
    heights = [y for _, y in parts["best"]]
    assert heights == sorted(heights)  # the best so far never gets worse; y grows downwards
    assert len(parts["search"]) == sum(value is not None for value in search)
    if search:  # it lies right of the epochs, and the border between them
        assert max(x for x, _ in parts["each"]) < chart["border"] < min(x for x, _ in parts["search"])


def test_no_curve_without_a_loss():
    assert charts.place_curves([]) is None
    assert charts.place_curves([float("nan"), "0.1"], [None]) is None
    only = charts.place_curves([], [2.0, 1.0])  # a method that only searches
    assert (only["each"], only["best"], only["border"]) == ("", "", None) and only["search"]


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


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such results folder"):
        read_results(tmp_path / "nowhere")


def printed(records: list[dict]) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(summary_table(records))
    return console.file.getvalue()


def test_summary_table(folder):
    text = printed(read_results(folder))
    for words in (
        "a.png",
        "large red square",
        "0.3400",
        "+0.080",
        "0.910",
        "2,000",
        "75.5",
        "failed: bad.png",
    ):
        assert words in text
    assert "2 ok, 1 failed" in text and "median regret +0.080" in text
    assert "[red]bold[/red]" in text  # no markup
    assert "0 ok, 0 failed" in printed([])
