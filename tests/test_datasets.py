"""COCO, captioned folders and tar shards: what is read, what fails alone, what stops a run, and runs of the command."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_train import DRIVER, SMALL, environment

from ph2p.data import CaptionedTargets, CocoTargets, ShardTargets, TargetError, load_image
from ph2p.data.shards import INDEX_SUFFIX, expand_braces
from ph2p.data.targets import chosen
from ph2p.errors import UserError
from ph2p.report.records import read_results
from ph2p.world.coco import write_coco

SIZE = 16


def paint(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (shade, 40, 200)).save(path)
    return path


def refused(make, *words: str) -> None:
    """Check that `make` gives one line with all words."""
    with pytest.raises(UserError) as caught:
        make()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


# --- samples --------------------------------------------------------------------------------------


def test_a_larger_sample_holds_every_smaller_one():
    ids = [f"{k}.png" for k in range(300)]
    samples = [chosen(ids, count, 3) for count in (1, 10, 100, 300)]
    for smaller, larger in pairwise(samples):
        assert set(smaller) < set(larger) and smaller == sorted(smaller)
    assert chosen(ids, None, 3) == samples[-1] == list(range(300))
    assert set(chosen(ids, 100, 4)) != set(samples[2])
    places = chosen(ids, 150, 0)  # of every part of the list, and not the first ones
    assert 50 < sum(place < 150 for place in places) < 100
    refused(lambda: chosen(ids, 301, 0), "data.count=301", "300")
    refused(lambda: chosen(ids, 3, -1), "data.seed=-1")


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_reads_what_the_archives_hold(tmp_path):
    write_coco(tmp_path, 6, size=32)
    annotations = tmp_path / "annotations" / "captions_val2017.json"
    truth = json.loads(annotations.read_text())
    truth["images"].reverse()  # COCO's own order is no order
    truth["annotations"].sort(key=lambda annotation: annotation["caption"])
    annotations.write_text(json.dumps(truth))
    targets = CocoTargets(tmp_path, SIZE)
    assert targets.ids == [f"{k:012d}.jpg" for k in range(1, 7)]
    for k in range(6):
        target, path = targets.load(k), tmp_path / "val2017" / targets.ids[k]
        said = {a["caption"] for a in truth["annotations"] if a["image_id"] == k + 1}
        assert set(target.references) == said and target.caption is None
        assert torch.equal(target.image, load_image(path, SIZE)) and target.source == str(path)
    some = CocoTargets(tmp_path, SIZE, count=2, seed=1)
    assert some.load(1).references == targets.load(targets.ids.index(some.ids[1])).references
    (tmp_path / "val2017" / targets.ids[2]).unlink()
    (tmp_path / "val2017" / targets.ids[3]).write_bytes(b"\xff\xd8broken")
    for k in (2, 3):  # they fail alone
        with pytest.raises(TargetError, match=targets.ids[k]):
            targets.load(k)
    assert CocoTargets(tmp_path, SIZE).load(4).references


def test_coco_says_what_is_missing_and_where_to_get_it(tmp_path, monkeypatch):
    refused(lambda: CocoTargets(tmp_path, SIZE), "captions_val2017.json", "annotations_trainval2017.zip", "cocodataset")
    write_coco(tmp_path, 1)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    refused(lambda: CocoTargets(tmp_path, SIZE), f"{tmp_path}/val2017: missing", "val2017.zip")
    refused(lambda: CocoTargets(tmp_path, SIZE, split="train2017"), "captions_train2017.json")
    refused(lambda: CocoTargets(tmp_path, SIZE, split="test"), "data.split=test", "val2017")
    (tmp_path / "elsewhere").rename(tmp_path / "val2017")
    annotations = tmp_path / "annotations" / "captions_val2017.json"
    instances = {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1}]}
    for content in (b"", b"[1]", b"\xff", json.dumps(instances).encode(), b'{"annotations": [{}]}'):
        annotations.write_bytes(content)
        refused(lambda: CocoTargets(tmp_path, SIZE), "captions_val2017.json: ")
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    refused(lambda: CocoTargets(tmp_path, SIZE), "pip install pycocotools")


# --- captioned folders ----------------------------------------------------------------------------


def test_tables_of_captions(tmp_path):
    names = ["b/1.png", "a/1.png", "ü 星.png", "none.png"]
    for k, name in enumerate(names[:3]):
        paint(tmp_path / "pictures" / name, 60 * k)
    rows = [(names[0], 'two, "quoted"'), (names[1], "one"), ("./" + names[0], "second"), (names[2], "星\nin two lines")]
    rows += [(names[3], ""), (names[0], " second ")]
    with (tmp_path / "c.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", "more"), *((*row, 1) for row in rows)])
    lines = [{"file": name, "said": [text] if k % 2 else text} for k, (name, text) in enumerate(rows)]
    (tmp_path / "c.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for captions, keys in (("c.csv", {}), ("c.jsonl", {"file_key": "file", "caption_key": "said"})):
        targets = CaptionedTargets(tmp_path, captions, SIZE, images="pictures", **keys)
        assert targets.ids == names  # each once, the two of one name apart, in the order of the file
        assert targets.load(0).references == ('two, "quoted"', "second")
        assert targets.load(2).references == ("星 in two lines",) and targets.references[3] == ()
        assert targets.load(1).image[0].mean() == pytest.approx(60 / 255, abs=0.01)
        with pytest.raises(TargetError, match=r"none\.png: does not exist"):
            targets.load(3)


def test_a_folder_of_texts(tmp_path):
    for name in ("x/1.jpg", "y/1.jpg", "y/2.jpg", "y/3.jpg"):
        paint(tmp_path / name)
    (tmp_path / "x" / "1.txt").write_text("one\n\n two \n")
    (tmp_path / "y" / "1.txt").write_text("other")
    (tmp_path / "y" / "3.txt").write_bytes(b"\xff\xfe")
    targets = CaptionedTargets(tmp_path, ".", SIZE)
    assert targets.ids == ["x/1.jpg", "y/1.jpg", "y/2.jpg", "y/3.jpg"]
    assert [targets.load(k).references for k in range(3)] == [("one", "two"), ("other",), ()]
    with pytest.raises(TargetError, match=r"3\.txt"):
        targets.load(3)


BAD_TABLES = {
    "c.csv": [(b"", "names no image"), (b"file,caption\na,b", "line 2 has no 'file_name' but file, caption")],
    "d.csv": [(b"file_name,text\na,b", "data.caption_key"), (b"\xff\xfe\x00", "UTF-8")],
    "c.jsonl": [(b'{"file_name": "a"', "line 1 is no JSON object"), (b"\n[1]", "line 2 is no JSON object")],
    "d.jsonl": [(b'{"file_name": 3}', "3 is no file name"), (b'{"file_name": "a", "caption": 4}', "data.caption_key")],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_give_one_line(tmp_path, name):
    for content, words in BAD_TABLES[name]:
        (tmp_path / name).write_bytes(content)
        refused(lambda: CaptionedTargets(tmp_path, name, SIZE), f"{name}: ", words)
    refused(lambda: CaptionedTargets(tmp_path, "none.csv", SIZE), "none.csv: No such file", "data.captions")


# --- tar shards -----------------------------------------------------------------------------------


def picture_bytes(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 40, 200)).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def shards(folder: Path, count: int = 3) -> str:
    """Shards 000, 001, ... of two images each, the second broken in 001; returns their pattern."""
    for k in range(count):
        second = b"broken" if k == 1 else picture_bytes(100 + k)
        fields = json.dumps({"caption": [f"first of {k}", "more"], "text": "other"}).encode()
        members = [("1.png", picture_bytes(k)), ("1.json", fields), ("sub/2.v1.txt", b"no"), ("sub/2.png", second)]
        write_shard(folder / f"{k:03d}.tar", [*members, ("sub/2.txt", f"second of {k}\n".encode())])
    return f"{folder}/{{000..{count - 1:03d}}}.tar"


def test_shards_are_read_by_random_access(tmp_path):
    targets = ShardTargets(shards(tmp_path), SIZE)
    assert targets.ids == [f"{k:03d}/{name}" for k in range(3) for name in ("1.png", "sub/2.png")]
    last = targets.load(5)
    assert last.references == ("second of 2",) and last.image[0].mean() == pytest.approx(102 / 255, abs=0.01)
    assert targets.load(2).references == ("first of 1", "more")
    with pytest.raises(TargetError, match=r"^001/sub/2\.png: is not a picture"):
        targets.load(3)
    assert ShardTargets(shards(tmp_path), SIZE, caption_key="text").load(0).references == ("other",)
    some = ShardTargets(f"{tmp_path}/*.tar", SIZE, count=3)
    assert set(some.ids) < set(targets.ids)
    for k, name in enumerate(some.ids):
        if name != "001/sub/2.png":
            assert torch.equal(some.load(k).image, targets.load(targets.ids.index(name)).image)


def test_ids_are_those_of_shard_and_member(tmp_path):
    for folder in ("a", "b"):
        write_shard(tmp_path / folder / "0.tar", [("./x/1.png", picture_bytes(1)), ("1.png", picture_bytes(2))])
    ids = ShardTargets(f"{tmp_path}/{{a,b}}/0.tar", SIZE).ids
    assert ids == ["a/0/x/1.png", "a/0/1.png", "b/0/x/1.png", "b/0/1.png"]
    assert ShardTargets(f"{tmp_path}/*/0.tar", SIZE).ids == ids
    unsafe = ["../../etc/x.png", "/abs.png", "new\nline.png"]
    members = [(name, picture_bytes(3 + k)) for k, name in enumerate(unsafe)]
    write_shard(tmp_path / "c.tar", members)  # nothing is unpacked, so these are names like any other
    targets = ShardTargets(f"{tmp_path}/c.tar", SIZE)
    assert len(set(targets.ids)) == 3 and all("\n" not in name for name in targets.ids)
    assert targets.load(2).image[0].mean() == pytest.approx(5 / 255, abs=0.01)


def test_the_index_is_kept_and_follows_the_shard(tmp_path, monkeypatch):
    pattern = shards(tmp_path, 1)
    first = ShardTargets(pattern, SIZE)
    index = tmp_path / f"000.tar{INDEX_SUFFIX}"
    monkeypatch.setattr("ph2p.data.shards._scan", lambda shard: pytest.fail("read again"))
    assert torch.equal(ShardTargets(pattern, SIZE).load(1).image, first.load(1).image)
    monkeypatch.undo()
    index.write_text('{"stamp": ')  # damaged
    assert ShardTargets(pattern, SIZE).ids == first.ids
    write_shard(tmp_path / "000.tar", [("new.png", picture_bytes(9))])
    os.utime(tmp_path / "000.tar", ns=(1, 1))
    assert ShardTargets(pattern, SIZE).ids == ["000/new.png"]
    index.unlink()
    index.mkdir()  # where nothing can be written it goes without
    assert ShardTargets(pattern, SIZE).ids == ["000/new.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.tar", index.name]


def test_shards_that_cannot_be_used_give_one_line(tmp_path):
    members = [(f"{k}.png", picture_bytes(k)) for k in range(5)]
    whole = write_shard(tmp_path / "whole.tar", members).read_bytes()
    flipped = bytearray(whole)
    flipped[1024 + 10] ^= 0xFF  # in the second member's header
    bad = {
        "cut": (whole[:3000], "cut off"),
        "header": (whole[: 1024 + 300], "cut off"),
        "flipped": (bytes(flipped), "no header at byte 1024"),
        "text": (b"hello", "no tar file"),
        "empty": (b"", "no tar file"),
        "html": (b"<html>" * 500, "no tar file"),
    }
    for name, (content, words) in bad.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        refused(lambda name=name: ShardTargets(f"{tmp_path}/{name}.tar", SIZE), f"{name}.tar: ", words)
    for kind, tool in (("gz", "gzip -d"), ("bz2", "bzip2 -d"), ("xz", "xz -d")):
        write_shard(tmp_path / "packed.tar", members, f"w:{kind}")
        refused(lambda: ShardTargets(f"{tmp_path}/packed.tar", SIZE), "is compressed", tool)
    write_shard(tmp_path / "none.tar", [("a.txt", b"a")])
    refused(lambda: ShardTargets(f"{tmp_path}/none.tar", SIZE), "no pictures in these 1 shards")
    for pattern in (f"{tmp_path}/{{0..3}}.tar", f"{tmp_path}/no*.zip", "", str(tmp_path)):
        refused(lambda pattern=pattern: ShardTargets(pattern, SIZE), "no such shard")


def test_members_that_cannot_be_used_fail_alone(tmp_path):
    good = picture_bytes(1)
    members = [("a.png", good), ("b.png", good), ("b.json", b"{"), ("c.png", b""), ("d.txt", b"alone")]
    members += [("e.png", good), ("e.json", b"[1]"), ("f.png", good), ("f.txt", b"\xff")]
    targets = ShardTargets(str(write_shard(tmp_path / "0.tar", members)), SIZE)
    assert targets.ids == [f"0/{name}.png" for name in "abcef"]
    for k in range(1, 5):
        with pytest.raises(TargetError) as caught:
            targets.load(k)
        assert targets.ids[k] in str(caught.value) and "\n" not in str(caught.value)
    assert targets.load(0).references == ()
    (tmp_path / "0.tar").unlink()
    with pytest.raises(TargetError, match=r"0\.tar"):
        targets.load(0)


def test_braces():
    assert list(expand_braces("a/{08..11}.tar")) == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert list(expand_braces("{a,b}-{0..1}")) == ["a-0", "a-1", "b-0", "b-1"]
    refused(lambda: list(expand_braces("{3..1}")), "{3..1}")


# --- runs of the command --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_overrides) -> Path:
    """Runs on each kind of data set, then COCO's once more with one image more, all in one process."""
    place = tmp_path_factory.mktemp("datasets")
    write_coco(place / "coco", 4, size=24)
    (place / "coco" / "val2017" / "000000000002.jpg").write_bytes(b"broken")
    long = " ".join(["small red dog above a green circle"] * 4)
    paint(place / "faces" / "images" / "0.jpg")
    for name, text in {"text/0.txt": f"{long}\na <|endoftext|> dog\nred dog\n"}.items():
        (place / "faces" / name).parent.mkdir(exist_ok=True)
        (place / "faces" / name).write_text(text)
    pattern = shards(place / "shards", 2)
    base = [*SMALL, *model_overrides, f"output={place}/out"]
    coco = [*base, "data=coco", f"data.root={place}/coco", "name=coco", "data.batch_size=2"]
    commands = [
        [*coco, "data.count=3"],
        [*coco, "data.count=4"],
        [*base, "data=celeba", f"data.root={place}/faces", "name=faces"],
        [*base, "data=webdataset", f"data.shards='{pattern}'", "name=shards"],
        [*base, "data=coco", f"data.root={place}/nowhere", "name=nowhere"],
    ]
    driver = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    done = subprocess.run(driver, capture_output=True, text=True, cwd=place, env=environment(), timeout=300)
    (place / "err").write_text(done.stderr)
    return place


def test_exit_codes_and_one_line_for_what_stops_a_run(place):
    *codes, error, last = (place / "err").read_text().splitlines()
    assert codes[2:] == ["<0>", "<1>"] and last == "<2>"  # one member of a shard is broken
    assert codes[1] == "<1>" and codes[0] in ("<0>", "<1>")  # one picture of COCO is broken
    assert error.startswith("error: ") and "captions_val2017.json: missing" in error


def test_a_coco_run_compares_with_the_references(place):
    records = {record["image_id"]: record for record in read_results(place / "out" / "coco")}
    assert set(records) == {f"{k:012d}.jpg" for k in range(1, 5)}
    targets = CocoTargets(place / "coco", SIZE)
    for k, name in enumerate(targets.ids):
        record = records[name]
        if name == "000000000002.jpg":
            assert record["status"] == "failed"
            continue
        assert record["references"] == list(targets.load(k).references)
        assert record["loss_reference"] > 0 and -1 <= record["reference_similarity"] <= 1
        assert 0 <= record["reference_rouge_l"] <= record["reference_rouge1"] <= 1
        assert all(record[key] is None for key in ("caption", "regret", "word_recall", "loss_caption"))
    page = (place / "out" / "coco" / "index.html").read_text(encoding="utf-8")
    assert "best reference" in page and "ROUGE-1" in page


def test_the_table_of_curves_holds_every_batch_of_both_runs(place):
    folder = place / "out" / "coco"
    with (folder / "logs" / "part-00000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = [record for record in read_results(folder) if record["status"] == "ok"]
    for record in records:
        content = json.loads((folder / record["files"]["candidates"]).read_text())
        fit = len(content["loss_curve"])
        both = [row for row in rows if row["image_id"] == record["image_id"]]
        mine, rounds = both[:fit], both[fit:]
        assert [int(row["epoch"]) for row in both] == list(range(fit + len(content["search_curve"])))
        assert [float(row["loss"]) for row in mine] == content["loss_curve"]
        counts = [int(row["evaluations"]) for row in mine]
        assert counts == sorted(set(counts)) and all(float(row["gradient_norm"]) > 0 for row in mine)
        assert all(float(row["candidate_loss"]) > 0 for row in mine)
        assert [float(row["search_loss"]) for row in rounds] == content["search_curve"]
        assert len(content["search_curve"]) >= 2
        assert content["search_curve"] == sorted(content["search_curve"], reverse=True)
    assert {row["image_id"] for row in rows} == {record["image_id"] for record in records}


def test_captions_beyond_the_context_are_cut_and_said_to_be(place):
    (record,) = read_results(place / "out" / "faces")
    assert record["status"] == "ok" and len(record["references"]) == 3 and record["loss_reference"] > 0
    assert len(record["notes"]) == 2
    assert "reference 1 cut for its loss: of 28 tokens this model reads 10" in record["notes"]
    assert record["notes"][1].startswith("reference 2 not measured")


def test_a_run_on_shards(place):
    records = {record["image_id"]: record for record in read_results(place / "out" / "shards")}
    assert {name: record["status"] for name, record in records.items()} == {
        "000/1.png": "ok",
        "000/sub/2.png": "ok",
        "001/1.png": "ok",
        "001/sub/2.png": "failed",
    }
    assert records["001/1.png"]["references"] == ["first of 1", "more"]
