"""A blind study: what its page may not say, and what is found from simulated raters whose agreement is known."""

import base64
import csv
import importlib.util
import io
import json
import re
from functools import cache
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.stats import rankdata
from studies import answers, results, save

from ph2p import cli
from ph2p.errors import UserError
from ph2p.study.agreement import agreement, alpha
from ph2p.study.analyse import analyse_study, write_analysis
from ph2p.study.build import Plan, build_study
from ph2p.study.comparison import holm, mean_ratings, pairs_of, spearman, wilcoxon
from ph2p.study.key import key_file, read_key
from ph2p.study.questions import QUESTIONS, choose
from ph2p.study.ratings import read_raters

HOSTILE = """</script><script>alert("x")</script> 'quoted' & {{ 7 * 7 }} | *bold* \u2028 🌟"""
METHODS = ("ph2p", "pez", "random", "soft", "ph2p_released")
IMAGES = [f"cat {k}.png" for k in range(24)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Three runs on 24 images; the methods' losses get worse from one to the next."""
    place = tmp_path_factory.mktemp("secret-folder")
    return [
        results(
            place / method,
            method,
            {image: f"prompt {k} by number {row}" for k, image in enumerate(IMAGES)},
            loss=[row + k / 100 for k in range(24)],
            clip_similarity=[0.9 - row / 10 - k / 1000 for k in range(24)],
            samples=[100.0] * 24,
        )
        for row, method in enumerate(("ph2p", "pez", "random"))
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    return build_study(runs, tmp_path_factory.mktemp("study") / "study.html", Plan(choose([]))).page


def key_of(page: Path):
    return read_key(key_file(page))


def data_of(page: Path) -> dict:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    return json.loads(found[1])


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_is_blind(tmp_path):
    folders = [results(tmp_path / f"by-{m}", m, {"moon-by-hand.png": f"words {k}"}) for k, m in enumerate(METHODS)]
    noted = PngInfo()
    noted.add_text("method", "pez_diffusion")
    target = folders[0] / "images/0/target.png"
    Image.open(target).save(target, pnginfo=noted)
    page = build_study(folders, tmp_path / "study.html", Plan(choose([]))).page
    text = page.read_text("utf-8")
    for word in (*METHODS, "pez_diffusion", "sgd", "adam_delayed"):
        assert not re.search(rf"(?<![a-z]){word}(?![a-z])", text, re.I), word
    for word in ("moon", "by-", "secret", str(tmp_path), "loss", "clip_sim"):
        assert word not in text
    (address,) = data_of(page)["pictures"].values()
    assert b"pez" not in base64.b64decode(address.partition(",")[2])
    key = key_of(page)
    assert set(key.runs) == set(METHODS) and len(key.items) == 5
    shown = {row["id"]: row["prompt"] for row in data_of(page)["items"] if not row.get("check")}
    assert shown == {name: item.prompt for name, item in key.items.items()}


def test_neither_names_nor_places_in_the_page_follow_the_runs(page):
    """Which of two runs an item is from cannot be told from where it stands, nor from its name."""
    key, rows = key_of(page), data_of(page)["items"]
    places = {row["id"]: place for place, row in enumerate(rows)}
    for one, other in permutations(key.runs, 2):
        first = {i.picture: name for name, i in key.items.items() if one in i.runs}
        second = {i.picture: name for name, i in key.items.items() if other in i.runs}
        before = sum(places[first[picture]] < places[second[picture]] for picture in key.pictures)
        smaller = sum(first[picture] < second[picture] for picture in key.pictures)
        assert 4 < before < 20 and 4 < smaller < 20  # of 24; outside by chance once in 2,000


def test_the_page_is_self_contained_and_runs_one_script(page):
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|src=\"(?!data:)|<link|@import|url\(", text)
    assert "default-src 'none'" in text and "script-src 'sha256-" in text
    assert all(address.startswith("data:image/webp;base64,") for address in data_of(page)["pictures"].values())


def test_hostile_texts_are_shown_and_not_run(tmp_path):
    run = results(tmp_path / "run", "ph2p", {HOSTILE: HOSTILE, "b": ""})
    rows = tmp_path / "own.yaml"
    rows.write_text(json.dumps([{"key": "own", "ask": HOSTILE, "low": "<b>", "high": "&amp;"}]))
    page = build_study([run], tmp_path / "study.html", Plan(choose([str(rows)]))).page
    text = page.read_text("utf-8")
    assert text.count("<script") == 2 and "<b>" not in text and "&amp;amp;" in text
    shown = {row["prompt"] for row in data_of(page)["items"] if not row.get("check")}
    assert shown == {HOSTILE.replace("\u2028", "\\u2028"), ""}


def test_the_same_seed_gives_the_same_study(runs, tmp_path, page):
    again = build_study(runs, tmp_path / "again.html", Plan(choose([]))).page
    other = build_study(runs, tmp_path / "other.html", Plan(choose([]), seed=1)).page
    assert again.read_bytes() == page.read_bytes() and key_of(again) == key_of(page)
    assert key_of(other).study != key_of(page).study and not set(key_of(other).items) & set(key_of(page).items)
    few = [key_of(build_study(runs, tmp_path / f"{s}.html", Plan(choose([]), s, pictures=5)).page) for s in (0, 1)]
    assert [len(key.pictures) for key in few] == [5, 5]
    assert set(few[0].pictures.values()) != set(few[1].pictures.values()) < set(IMAGES)


def test_only_what_all_runs_finished_is_rated_and_equal_prompts_once(tmp_path):
    a = results(tmp_path / "a", "ph2p", {"1": "same", "2": "two", "3": "three", "4": "four"}, loss=[1, 2, 3, 4])
    b = results(tmp_path / "b", "pez", {"1": "same", "2": "zwei", "3": "drei"}, loss=[5, 6, 7])
    with (b / "results" / "part-00000.jsonl").open("a") as file:
        file.write(json.dumps({"image_id": "3", "status": "failed", "error": "no"}) + "\n")
    (a / "images/1/target.png").write_bytes(b"broken")
    built = build_study([a, b], tmp_path / "s.html", Plan(choose([]), checks=0))
    key = key_of(built.page)
    assert list(key.pictures.values()) == ["1"] and not key.checks
    (item,) = key.items.values()
    assert item.prompt == "same" and {label: row["loss"] for label, row in item.runs.items()} == {"ph2p": 1, "pez": 5}
    assert any("2 left out" in note for note in built.notes) and any("1 left out" in note for note in built.notes)


def test_an_equal_prompt_counts_for_each_run_that_found_it(tmp_path):
    runs = [results(tmp_path / m, m, {"1": "same", "2": f"by {m}"}) for m in ("pez", "sgd")]
    key = key_of(build_study(runs, tmp_path / "s.html", Plan(choose(["relevance"]))).page)
    assert len(key.items) == 3
    file = save(
        tmp_path / "r.csv", key, "r", answers(key, lambda image, run, _: 5 if image == "1" or run == "pez" else 1)
    )
    table = mean_ratings(read_raters([file], key), key, "relevance")
    assert table[[list(key.pictures.values()).index(image) for image in "12"]].tolist() == [[5, 5], [5, 1]]


def test_runs_of_one_method_are_called_by_their_folders(tmp_path):
    folders = [results(tmp_path / name, "ph2p", {"1": name}) for name in ("seed-0", "seed-1")]
    assert list(key_of(build_study(folders, tmp_path / "s.html", Plan(choose([]))).page).runs) == ["seed-0", "seed-1"]


def test_checks_ask_for_different_answers(runs, tmp_path):
    page = build_study(runs, tmp_path / "s.html", Plan(choose([], points=7), checks=7)).page
    key = key_of(page)
    assert sorted(key.checks.values()) == list(range(1, 8))
    texts = {row["id"]: row["prompt"] for row in data_of(page)["items"] if row.get("check")}
    assert all(f"choose {answer} for" in texts[name] for name, answer in key.checks.items())


def test_the_key_of_another_study_is_never_overwritten(runs, tmp_path, page):
    before = key_file(page).read_bytes()
    with pytest.raises(UserError, match=r"study\.key\.json: the key of another study"):
        build_study(runs, page, Plan(choose([]), seed=1))
    build_study(runs, page, Plan(choose([])))
    assert key_file(page).read_bytes() == before


# --- agreement ----------------------------------------------------------------------------------------------------


def slow_alpha(rows: list[list[int]], level: str) -> float:
    """Krippendorff's alpha by its definition: all pairs of ratings within items, and all pairs of all of them.

    `rows`: the ratings of each item. Ordinal distance: ratings passed on the way, with half of either end, squared.
    """
    rows = [row for row in rows if len(row) > 1]
    every = [value for row in rows for value in row]

    @cache
    def distance(a: int, b: int) -> float:
        if level == "interval":
            return float((a - b) ** 2)
        low, high = min(a, b), max(a, b)
        passed = sum(low <= value <= high for value in every) - (every.count(a) + every.count(b)) / 2
        return float(passed**2) if a != b else 0.0

    observed = sum(sum(distance(a, b) for a, b in permutations(row, 2)) / (len(row) - 1) for row in rows) / len(every)
    expected = sum(distance(a, b) for a, b in permutations(every, 2)) / (len(every) * (len(every) - 1))
    return 1 - observed / expected


def counted(rows: list[list[int]], points: int = 5) -> np.ndarray:
    return np.array([[row.count(value) for value in range(1, points + 1)] for row in rows])


PUBLISHED = [  # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section D; a row a unit
    *([1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1]),
    *([2, 2, 2, 2], [5, 5, 5], [1, 1], [3]),
]


def test_alpha_of_the_published_example():
    assert round(alpha(counted(PUBLISHED), "ordinal"), 3) == 0.815
    assert round(alpha(counted(PUBLISHED), "interval"), 3) == 0.849


def simulated(certainty: float, items: int = 120, raters: int = 4, seed: int = 0) -> list[list[int]]:
    """Ratings of which a part `certainty` is the item's own value and the others are drawn: alpha is certainty squared.

    Two ratings of an item are the same draw with probability certainty², else independent of each other.
    """
    draw = np.random.default_rng(seed)
    true = draw.integers(1, 6, (items, 1))
    noise = draw.integers(1, 6, (items, raters))
    return np.where(draw.random((items, raters)) < certainty, true, noise).tolist()


@pytest.mark.parametrize("level", ["ordinal", "interval"])
@pytest.mark.parametrize("certainty", [0.0, 0.5, 0.8, 1.0])
def test_alpha_of_raters_with_known_agreement(certainty, level):
    rows = simulated(certainty)
    found = agreement({str(k): counted(rows[3 * k : 3 * k + 3]) for k in range(40)}, level)
    assert found.value == pytest.approx(slow_alpha(rows, level), abs=1e-12)
    assert found.value == pytest.approx(certainty**2, abs=0.08) and found.count == 120
    assert found.low - 1e-9 <= certainty**2 <= found.high + 1e-9 and found.high - found.low < 0.3
    assert certainty < 1 or found.value == found.low == found.high == 1


def test_alpha_without_ratings_to_compare_is_not_known():
    for rows in ([[3], [4], []], [[2, 2], [2, 2, 2]]):
        assert np.isnan(agreement({"a": counted(rows)}, "ordinal").value)


def test_the_interval_of_alpha_resamples_pictures_not_prompts():
    """Three prompts of a picture that are rated alike are one piece of evidence, so the interval is wider."""
    rows = [row for row in simulated(0.7, items=40) for _ in range(3)]
    together = agreement({str(k): counted(rows[3 * k : 3 * k + 3]) for k in range(40)}, "interval")
    apart = agreement({str(k): counted(rows[k : k + 1]) for k in range(120)}, "interval")
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 1.4 * (apart.high - apart.low)


# --- comparison ---------------------------------------------------------------------------------------------------


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, float("nan"), 0.9])[::2] == [1.0, 1.0] and np.isnan(holm([0.6, float("nan"), 0.9])[1])


def test_paired_tests_know_a_difference_from_none():
    draw = np.random.default_rng(0)
    base = draw.integers(1, 5, 40).astype(float)
    table = np.stack([base + 1, base, base + draw.permutation([-1, 1] * 20)], 1)
    table[5, 0] = np.nan
    better, *_ = pairs_of({"q": table}, ["a", "b", "c"])
    assert (better.one, better.other, better.difference.value, better.difference.count) == ("a", "b", 1.0, 39)
    assert better.p_holm < 1e-6 and better.p_holm == pytest.approx(3 * better.p)
    assert wilcoxon(table[:, 1] - table[:, 2]) > 0.3
    assert wilcoxon(np.zeros(9)) == 1 and np.isnan(wilcoxon(np.full(9, np.nan)))


def test_zeros_have_their_ranks_in_wilcoxons_test():
    """By all ways to give the values a sign, each as likely as any other where neither run is better."""
    values = np.array([0, 0, 0.25, -0.25, 0.5, 0.75, 1, 1, 2])
    signed = rankdata(abs(values)) * (values != 0)
    sums = [float(np.dot(signs, signed[2:])) for signs in product([-1, 1], repeat=7)]
    p = np.mean(np.abs(sums) >= abs(np.dot(np.sign(values), signed)) - 1e-9)
    assert wilcoxon(values) == pytest.approx(p)


def test_correlation_follows_ranks_and_passes_over_what_is_not_known():
    ratings = np.arange(30.0).reshape(10, 3)
    assert spearman(ratings, -np.exp(ratings / 9)).value == pytest.approx(-1)
    values = ratings.copy()
    values[2:, :] = np.nan
    assert spearman(ratings, values).count == 6
    assert spearman(ratings, np.ones_like(ratings)).count == 0


# --- from files to tables -----------------------------------------------------------------------------------------


def planted(seed: int, noise: float = 0.6):
    """A rater who likes ph2p best and random least in relevance, and finds all equally readable."""
    draw = np.random.default_rng(seed)
    liked = {"ph2p": 4.2, "pez": 3.2, "random": 1.8}

    def rate(image: str, label: str, question: str) -> int:
        centre = liked[label] if question == "relevance" else 2.2 + (IMAGES.index(image) % 3) * 0.8
        return int(np.clip(round(centre + noise * draw.normal()), 1, 5))

    return rate


@pytest.fixture(scope="module")
def files(page, tmp_path_factory) -> list[Path]:
    """Four good raters, one of them as CSV and JSON, one who does not read, and one who stopped before any check."""
    key, tmp_path = key_of(page), tmp_path_factory.mktemp("ratings")
    given = [answers(key, planted(seed)) for seed in range(4)]
    saved = [save(tmp_path / f"r{k}.{'json' if k % 2 else 'csv'}", key, f"r{k}", row) for k, row in enumerate(given)]
    careless = answers(key, lambda *_: 5, attentive=False)
    short = {name: given[0][name] for name in list(key.items)[:3]}
    more = [("r0.json", "r0", given[0]), ("careless.csv", "careless", careless), ("short.csv", "[red]short", short)]
    return saved + [save(tmp_path / name, key, rater, row) for name, rater, row in more]


@pytest.fixture(scope="module")
def found(page, files):
    return analyse_study(key_file(page), files)


def test_an_analysis_finds_what_was_planted(page, found):
    assert {rater.name: rater.out for rater in found.raters if rater.out} == {
        "careless": "missed 6 of 6 attention checks",
        "[red]short": "reached no attention check",
    }
    assert [rater.rated for rater in found.kept] == [72] * 4
    means = found.means["relevance"]
    for run, liked in {"ph2p": 4.2, "pez": 3.2, "random": 1.8}.items():
        assert means[run].low < liked < means[run].high and means[run].count == 24
    tests = {(pair.question, pair.one, pair.other): pair for pair in found.pairs}
    assert len(tests) == 9 and tests["relevance", "ph2p", "random"].p_holm < 0.001
    assert tests["readability", "ph2p", "random"].p_holm > 0.05
    assert found.alpha["relevance"]["ordinal"].low > 0.5
    related = found.spearman["relevance"]
    assert related["loss"].value < -0.8 and related["clip_similarity"].value > 0.8
    assert related["loss"].low <= related["loss"].value <= related["loss"].high < -0.7
    assert abs(found.spearman["readability"]["loss"].value) < 0.3
    assert "samples" not in related and "word_recall" not in related  # the same everywhere, not known

    rows = [[row[name][q] for row in map(dict, [answers(key_of(page), planted(s)) for s in range(4)])]
            for q in ["relevance"] for name in key_of(page).items]  # fmt: skip
    assert found.alpha["relevance"]["ordinal"].value == pytest.approx(slow_alpha(rows, "ordinal"))


def test_more_misses_can_be_allowed(page, files):
    kept = {rater.name for rater in read_raters(files, key_of(page), misses=6) if not rater.out}
    assert kept == {"r0", "r1", "r2", "r3", "careless"}


def test_what_is_written_is_whole_and_repeatable(found, tmp_path):
    written = write_analysis(found, tmp_path / "out" / "study-analysis")
    assert [file.name for file in written] == [f"study-analysis.{kind}" for kind in ("json", "md", "svg")]
    content = json.loads(written[0].read_text())
    assert content["pairs"][0]["question"] == "readability" and len(content["raters"]) == 6
    assert content["alpha"]["relevance"]["ordinal"]["value"] == found.alpha["relevance"]["ordinal"].value
    text = written[1].read_text()
    assert r"\[red\]short" in text and "left out: missed 6 of 6" in text and "gap closed" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    drawn = written[2].read_bytes()
    assert drawn.startswith(b"<?xml") and b"</svg>" in drawn
    assert [file.read_bytes() for file in write_analysis(found, tmp_path / "again")] == [
        f.read_bytes() for f in written
    ]


def test_the_commands_say_what_they_did(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    page = tmp_path / "page.html"
    assert cli.main(["study", "build", *map(str, runs), "--output", str(page), "--points", "7", "--pictures", "6"]) == 0
    out = capsys.readouterr().out
    assert "6 pictures, 3 runs: ph2p, pez, random" in out and "page.key.json" in out
    key = key_of(page)
    assert {question.points for question in key.questions} == {7} and len(key.items) == 18
    same = answers(key, lambda image, *_: 1 + int(image[4:-4]) % 7)
    rated = [save(tmp_path / f"{rater}.csv", key, rater, same) for rater in ("[b]", "c")]
    assert cli.main(["study", "analyse", str(key_file(page)), *map(str, rated)]) == 0
    out = capsys.readouterr().out
    assert "[b]" in out and "1.00 [1.00, 1.00]" in out and "2 of 2 raters count" in out
    assert (tmp_path / "page-analysis.svg").exists()


# --- what is wrong ------------------------------------------------------------------------------------------------


def fails(argv: list[object], capsys) -> str:
    """Run a command that must end with one line; return it."""
    assert cli.main(["study", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["build"], "RUN"),
        (["build", "nowhere"], "nowhere: no results folder"),
        (["build", "RUN", "RUN"], "twice"),
        (["build", "RUN", "OTHER"], "no image that every run finished"),
        (["build", "RUN", "--output", "study"], "study.html"),
        (["build", "RUN", "--points", "6"], "--points"),
        (["build", "RUN", "--pictures", "0"], "--pictures 0"),
        (["build", "RUN", "--checks", "-1"], "--checks -1"),
        (["build", "RUN", "--questions", "beauty"], "beauty"),
        (["build", "RUN", "--questions", "relevance", "relevance"], "once"),
        (["build", "RUN", "--questions", "none.yaml"], "none.yaml"),
        (["analyse", "nokey.json", "r.csv"], "nokey.json"),
        (["analyse", "KEY"], "RATINGS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results(tmp_path / "RUN", "ph2p", {"1": "one"})
    results(tmp_path / "OTHER", "pez", {"2": "two"})
    assert said in fails(words, capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column study"),
        ("study,rater,item,question\n", "has no column rating"),
        ("study,rater,item,question,rating\n", "holds no ratings"),
        ("study,rater,item,question,rating\nother,r,ITEM,relevance,3\n", "ratings of the study other"),
        ("study,rater,item,question,rating\nSTUDY,,ITEM,relevance,3\n", "rating 1: no rater"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,3\nSTUDY,r,x,relevance,3\n", "rating 2: the item x"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,beauty,3\n", "the question beauty"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,6\n", "'6' is no rating from 1 to 5"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,3.5\n", "'3.5'"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,\n", "'' is no rating"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance\n", "'' is no rating"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,nan\n", "'nan'"),
        ("study,rater,item,question,rating\nSTUDY,r,ITEM,relevance,3\nSTUDY,r,ITEM,relevance,4\n", "as 3 and as 4"),
        ("\0\1", "not UTF-8"),
    ],
)
def test_a_wrong_table_is_one_line(page, tmp_path, capsys, text, said):
    key = key_of(page)
    file = tmp_path / "r.csv"
    file.write_text(text.replace("STUDY", key.study).replace("ITEM", next(iter(key.items))))
    line = fails(["analyse", key_file(page), file], capsys)
    assert said in line and "r.csv" in line


@pytest.mark.parametrize("text", ["", "[]", "{", '{"study": "x"}', '{"study": "x", "rater": "r", "ratings": [1]}'])
def test_a_wrong_json_file_is_one_line(page, tmp_path, capsys, text):
    file = tmp_path / "r.json"
    file.write_text(text)
    assert "r.json" in fails(["analyse", key_file(page), file], capsys)
    assert "not the key of a study" in fails(["analyse", file, file], capsys)


def test_a_torn_key_is_one_line(page, tmp_path, capsys):
    content = json.loads(key_file(page).read_text())
    content["runs"].pop("pez")
    file = tmp_path / "torn.key.json"
    file.write_text(json.dumps(content))
    assert "torn.key.json: a part of this key is missing" in fails(["analyse", file, "r.csv"], capsys)


def test_raters_that_cannot_be_used_are_one_line(page, tmp_path, capsys):
    key, given = key_of(page), answers(key_of(page), lambda *_: 3)
    other = {name: {"relevance": 2} for name in list(key.items)[:1]}
    files = [save(tmp_path / "a.csv", key, "anna", given), save(tmp_path / "b.csv", key, "anna", other)]
    line = fails(["analyse", key_file(page), *files], capsys)
    assert "a.csv" in line and "b.csv" in line and "a name of their own" in line
    careless = save(tmp_path / "c.csv", key, "c", answers(key, lambda *_: 3, attentive=False))
    assert "no rater is left of 1 (c: missed 6 of 6" in fails(["analyse", key_file(page), careless], capsys)
    assert ".csv or .json" in fails(["analyse", key_file(page), page], capsys)


def test_without_the_extra_the_line_says_how_to_install_it(page, files, capsys, monkeypatch):
    def find_spec(name: str, find=importlib.util.find_spec):
        return None if name == "krippendorff" else find(name)

    monkeypatch.setattr("ph2p.study.analyse.find_spec", find_spec)
    line = fails(["analyse", key_file(page), *files], capsys)
    assert "krippendorff" in line and "pip install 'ph2p[study]'" in line


def test_tables_from_a_spreadsheet_are_read(page, tmp_path):
    key = key_of(page)
    whole = save(tmp_path / "a.csv", key, "anna", answers(key, planted(0)))
    rows = list(csv.reader(io.StringIO(whole.read_text())))
    changed = [rows[0]] + [[*row[:-1], f"{row[-1]}.0"] for row in rows[1:]]
    excel = tmp_path / "excel.csv"
    excel.write_text("\n".join(";".join(f'"{cell}"' for cell in row) for row in changed), encoding="utf-16")
    assert read_raters([whole], key) == read_raters([excel], key)


def test_one_rater_has_means_but_no_agreement(runs, tmp_path):
    page = build_study(runs, tmp_path / "study.html", Plan(choose(["relevance"]), pictures=8)).page
    key = key_of(page)
    found = analyse_study(key_file(page), [save(tmp_path / "a.csv", key, "anna", answers(key, planted(0)))])
    assert found.means["relevance"]["ph2p"].count == 8 and np.isnan(found.alpha["relevance"]["ordinal"].value)
    text = write_analysis(found, tmp_path / "a")[1].read_text()
    assert "Agreement needs two" in text


def test_own_questions(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("- {key: beauty, ask: How beautiful, low: not, high: very, points: 7}\n")
    first, second = choose(["relevance", str(file)])
    assert (first.ask, first.points, second.key, second.points) == (QUESTIONS["relevance"][0], 5, "beauty", 7)
    for text in (
        "key: 1",
        "- {key: B, ask: a, low: b, high: c}",
        "- {key: b}",
        "- 1",
        "{",
        "- {key: b, ask: '', low: b, high: c}",
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=r"own\.yaml"):
            choose([str(file)])
