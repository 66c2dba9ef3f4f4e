"""The pages and the terminal's table from a small results folder, also a hostile, an incomplete and a large one."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ph2p.errors import UserError
from ph2p.report import chart as charts
from ph2p.report.page import CARDS
from ph2p.report.pictures import LARGEST, SIDE
from ph2p.report.records import read_results
from ph2p.report.table import ROWS, summary_table, write_report

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
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
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
        "92%",
        "2,000 backward 800",
    ):
        assert words in page.text
    assert "1 min 16 s" in page.text and "2 min 31 s" in page.text  # of one image, and the sum
    assert page.tags.count("article") == 2 and page.tags.count("svg") == 2
    assert "empty prompt 0.8000" in page.text and "true caption 0.3000" in page.text
    for draws in ("each epoch’s draws", "validation draws", "evaluation draws"):  # noqa: RUF001
        assert draws in page.text
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
    assert "search draws" in page.text and "candidates validation draws" not in page.text
    assert any("true caption, number 1" in alt for alt in page.values("alt"))
    table = printed(read_results(tmp_path))
    assert "CLIP text" in table and "0.770" in table and "ROUGE-1 0.500" in table
    assert "regret" not in table  # no image has one


def test_without_ground_truth(tmp_path):
    keys = ("caption", "loss_caption", "regret", "word_recall", "clip_similarity_caption")
    write(tmp_path, [record(tmp_path, "a.png", "a", **dict.fromkeys(keys))])
    page = page_of(tmp_path)
    assert "median regret" not in page.text and "truth" not in page.values("class")
    assert "median gap closed" in page.text
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
        "renderings": ["none.png", "broken.png"],
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
        assert max(image.size) == SIDE


def test_many_candidates_are_cut(tmp_path):
    one = record(tmp_path, "a.png", "a")
    rows = [{"prompt": f"word-{i}-", "loss": i / 100, "clip_similarity": None, "epoch": i} for i in range(200)]
    (tmp_path / "candidates" / "a.json").write_text(json.dumps({"loss_curve": [1.0], "candidates": rows}))
    write(tmp_path, [one])
    page = page_of(tmp_path)
    assert "200 candidates, the best 50" in page.text
    assert "word-49-" in page.text and "word-50-" not in page.text


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


@pytest.fixture
def many(tmp_path):
    """A folder of two and a half pages: small pictures, and one large one."""
    shared = record(tmp_path, "0.png", "shared")
    records = [shared | {"image_id": f"{k}.png"} for k in range(2 * CARDS + CARDS // 2)]
    for k in (0, 150):
        records[k] = record(tmp_path, f"{k}.png", f"image-{k}")
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / records[0]["files"]["target"])
    write(tmp_path, [*records, {"image_id": "bad.png", "status": "failed", "error": "damaged"}])
    return tmp_path


def test_many_images_are_pages_of_a_hundred_with_pictures_beside_them(many):
    write_report(many)
    names = ["index.html", "index-2.html", "index-3.html"]
    assert sorted(file.name for file in many.glob("*.html")) == sorted(names)
    pages = [Page((many / name).read_text(encoding="utf-8")) for name in names]
    assert [page.tags.count("article") for page in pages] == [CARDS, CARDS, CARDS // 2]
    assert all((many / name).stat().st_size < 10_000 * CARDS for name in names)
    sources = [source for page in pages for source in page.values("src")]
    assert len(sources) == 5 * len(read_results(many)) - 5
    assert not any(":" in source or source.startswith(("/", "..")) for source in sources)
    assert all((many / source).is_file() for source in sources)
    thumbnail = many / pages[0].values("src")[0]
    assert (
        thumbnail.is_relative_to(many / "thumbnails") and thumbnail.stat().st_size < 2 * LARGEST
    )  # of noise, the worst case
    assert set(pages[1].values("href")) == {"index.html", "index-3.html"}
    assert set(pages[0].values("href")) == set(names)
    assert "bad.png" in pages[0].text and "bad.png" not in pages[1].text + pages[2].text


def test_only_what_has_changed_is_written_again(many):
    def times() -> dict[str, int]:
        files = [*many.glob("*.html"), *(many / "thumbnails").rglob("*.webp")]
        return {file.relative_to(many).as_posix(): file.stat().st_mtime_ns for file in files}

    def changed(before: dict[str, int]) -> set[str]:
        after = times()
        return {name for name in after if before.get(name) != after[name]}

    write_report(many)
    before = times()
    write_report(many)
    assert changed(before) == set()
    write(many, [record(many, "late.png", "late")], part=1)
    write_report(many)
    assert changed(before) == {"index.html", "index-3.html"}  # its totals, and its card
    before = times()
    target = "images/image-150/target.png"
    (many / target).unlink()
    noise = np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(many / target)  # painted anew
    write_report(many)
    assert changed(before) == {"index-2.html", f"thumbnails/{target}.webp"}


def test_thumbnails_that_were_deleted_are_made_again(many):
    write_report(many)
    thumbnails = sorted((many / "thumbnails").rglob("*.webp"))
    assert thumbnails
    shutil.rmtree(many / "thumbnails")
    write_report(many)
    assert sorted((many / "thumbnails").rglob("*.webp")) == thumbnails


def test_pages_that_are_no_longer_needed_go(many):
    write_report(many)
    (many / "results" / "part-00000.jsonl").unlink()
    write(many, [record(many, "a.png", "a")])
    write_report(many)
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
    assert sum(Page(file.read_text("utf-8")).tags.count("article") for file in many.glob("*.html")) == 5 * CARDS // 2
    assert not list(many.glob(".*"))


# --- warnings -------------------------------------------------------------------------------------


def test_warnings_stand_on_the_card_at_the_head_and_in_the_terminal(tmp_path):
    warning = "no better than no words: loss 0.9000"
    bad = record(tmp_path, "b.png", "b", gap_closed=-0.2, warnings=[warning])
    write(tmp_path, [record(tmp_path, "a.png", "a"), bad])
    page = page_of(tmp_path)
    assert page.text.count(warning) == 1 and "1 of 2 prompts with a warning" in page.text and "-20%" in page.text
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


# --- the loss curve -------------------------------------------------------------------------------


CURVES = [[1.0], [1.0, 1.0], [2.0, 1.0, 3.0, 0.5], [0.0], [None, 1.0, float("nan"), 2.0]]


def curve(name: str, values: list, joined: bool = True) -> charts.Series:
    return charts.Series(name, "draws", list(enumerate(values)), joined)


@pytest.mark.parametrize("values", CURVES)
@pytest.mark.parametrize("search", [[], [1.5], [4.0, 2.0, None]])
@pytest.mark.parametrize("levels", [(None, None), (1.0, None), (2.5, 0.1), (1.0, 1.0)])
def test_every_set_of_draws_has_a_panel_of_its_own(values, search, levels):
    chart = charts.place([curve("soft", values), curve("search", search)], list(zip("ul", "ab", levels, strict=True)))
    box = [(panel.x0, panel.x1) for panel in chart.panels]
    assert box[0][0] >= charts.LEFT and box[-1][1] <= charts.RIGHT
    assert all(left[1] < right[0] for left, right in pairwise(box))  # nothing joins two
    known = [sum(v is not None and v == v for v in some) for some in (values, search)]
    assert [len(panel.dots) for panel in chart.panels if panel.dots] == [count for count in known if count]
    for panel in chart.panels:
        assert all(panel.x0 <= x <= panel.x1 and charts.TOP <= y <= charts.FLOOR for x, y in panel.dots)
    assert all(charts.TOP <= level.y <= charts.FLOOR for level in chart.levels)
    places = [level.text_y for level in chart.levels]
    assert all(b - a > charts.LINE - 0.2 for a, b in pairwise(places))  # names can be read


def test_dots_are_joined_only_where_they_are_a_curve():
    chart = charts.place([curve("soft", [2, 1]), curve("candidates", [2, 1], joined=False)], [])
    assert [bool(panel.line) for panel in chart.panels] == [True, False]


def test_no_curve_without_a_loss():
    assert charts.place([], []) is None
    assert charts.place([curve("soft", [float("nan"), "0.1"]), curve("search", [None])], [("u", "a", 1.0)]) is None


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
