"""COCO, captioned folders and tar shards: what is read, what fails alone, what stops a run, and runs of the command."""

import csv
import io
import json
import math
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
from ph2p.data.shard_index import INDEX_SUFFIX
from ph2p.data.shards import expand_braces
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


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_reads_what_the_archives_hold(tmp_path):
    write_coco(tmp_path, 6, size=32)
    annotations = tmp_path / "annotations" / "captions_val2017.json"
    truth = json.loads(annotations.read_text())
    truth["images"].reverse()  # COCO's own order is no order
    truth["annotations"].sort(key=lambda annotation: annotation["caption"])
    annotations.write_text(json.dumps(truth))
    targets = CocoTargets(tmp_path, image_size=SIZE)
    assert targets.ids == [f"{k:012d}.jpg" for k in range(1, 7)]
    for k in range(6):
        target, path = targets.load(k), tmp_path / "val2017" / targets.ids[k]
        said = {a["caption"] for a in truth["annotations"] if a["image_id"] == k + 1}
        assert set(target.references) == said and target.caption is None
        assert torch.equal(target.image, load_image(path, SIZE)) and target.source == str(path)
    some = CocoTargets(tmp_path, image_size=SIZE, count=2, seed=1)
    assert some.load(1).references == targets.load(targets.ids.index(some.ids[1])).references
    (tmp_path / "val2017" / targets.ids[2]).unlink()
    (tmp_path / "val2017" / targets.ids[3]).write_bytes(b"\xff\xd8broken")
    for k in (2, 3):  # they fail alone
        with pytest.raises(TargetError, match=targets.ids[k]):
            targets.load(k)
    assert CocoTargets(tmp_path, image_size=SIZE).load(4).references


def test_coco_says_what_is_missing_and_where_to_get_it(tmp_path):
    refused(
        lambda: CocoTargets(tmp_path, image_size=SIZE),
        "captions_val2017.json",
        "annotations_trainval2017.zip",
        "cocodataset",
    )
    write_coco(tmp_path, 1)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    refused(lambda: CocoTargets(tmp_path, image_size=SIZE), f"{tmp_path}/val2017: missing", "val2017.zip")
    refused(lambda: CocoTargets(tmp_path, image_size=SIZE, split="train2017"), "captions_train2017.json")
    refused(lambda: CocoTargets(tmp_path, image_size=SIZE, split="test"), "data.split=test", "val2017")
    (tmp_path / "elsewhere").rename(tmp_path / "val2017")
    annotations = tmp_path / "annotations" / "captions_val2017.json"
    instances = {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1}]}
    for content in (b"", b"[1]", b"\xff", json.dumps(instances).encode(), b'{"annotations": [{}]}', b"[" * 9999):
        annotations.write_bytes(content)
        refused(lambda: CocoTargets(tmp_path, image_size=SIZE), "captions_val2017.json: ")


def test_a_wrong_entry_of_coco_costs_its_image_or_caption_alone(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": "2", "file_name": "b.png"}, {"id": 3, "file_name": 7}]
    images += [{"id": 4}, None]
    said = [(1, "one"), (1, None), ("1", "text id"), (2, "number for a text id"), (9, "nobody's"), (3, "lost"), (2, 5)]
    captions = [{"id": k, "image_id": i, "caption": text} for k, (i, text) in enumerate(said)] + [{"id": 99}, 3]
    for name in ("a", "b"):
        paint(tmp_path / "val2017" / f"{name}.png")
    (tmp_path / "annotations").mkdir()
    content = json.dumps({"images": images, "annotations": captions})
    (tmp_path / "annotations" / "captions_val2017.json").write_text(content, encoding="utf-8-sig")
    targets = CocoTargets(tmp_path, image_size=SIZE)
    assert targets.ids == ["7", "a.png", "b.png"]
    assert targets.load(1).references == ("one", "text id")
    assert targets.load(2).references == ("number for a text id",)
    with pytest.raises(TargetError, match=r"^7: its file_name .* is no text"):
        targets.load(0)
    passed = [reason for file, reason in targets.skipped if file == "captions_val2017.json"]
    assert passed == [
        "2 images that have no file_name",
        "1 captions of a.png that are no text",
        "4 captions of images that it does not list",
        "1 captions of b.png that are no text",
    ]


def test_coco_of_2014(tmp_path):
    write_coco(tmp_path, 2, split="val2014")
    targets = CocoTargets(tmp_path, split="val2014", image_size=SIZE)
    assert targets.ids == [f"COCO_val2014_{k:012d}.jpg" for k in (1, 2)]
    assert len(targets.load(1).references) > 1
    refused(lambda: CocoTargets(tmp_path, split="train2014"), "annotations_trainval2014.zip")


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
        targets = CaptionedTargets(tmp_path, captions, image_size=SIZE, images="pictures", **keys)
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
    (tmp_path / "y" / "3.txt").write_bytes(b"\xff\xff")
    targets = CaptionedTargets(tmp_path, ".", image_size=SIZE)
    assert targets.ids == ["x/1.jpg", "y/1.jpg", "y/2.jpg", "y/3.jpg"]
    assert [targets.load(k).references for k in range(3)] == [("one", "two"), ("other",), ()]
    with pytest.raises(TargetError, match=r"3\.txt"):
        targets.load(3)


BAD_TABLES = {
    "c.csv": [
        (b"", "names no image"),
        (b"file,caption\na,b", "line 2 has no 'file_name' but file, caption: give data.file_key"),
    ],
    "d.csv": [(b"file_name,text\na,b", "data.caption_key"), (b"\xff\xfe\x00", "UTF-8"), (b"a\0,\0b\0", "UTF-8")],
    "e.csv": [
        (b'file_name,caption\na,b\nc,"d\ne,f\n', "line 3: a quotation mark is never closed"),
        (b'file_name,caption\na,"b\nc,"d\n', "line 2: "),  # one that another line's closes
        (b'file_name,caption\na.png,"b\nc.png,d"\n', "line 2: a quotation mark takes in the next lines, such as c.png"),
        (b"file_name,caption,caption\na,b,c\n", "line 1 names caption twice"),
        (b"file_name,caption\na,b\n\nc\n", "line 4 has 1 columns, the first line 2"),
        (
            b"file_name,caption\na,red, round\n",
            "line 2 has 3 columns, the first line 2: a caption",
        ),
    ],
    "e.tsv": [(b"file_name\tcaption\na\tb\nc d\n", "line 3 has 1 columns")],
    "c.jsonl": [(b'{"file_name": "a"', "line 1 is no JSON object"), (b"\n[1]", "line 2 is no JSON object")],
    "d.jsonl": [(b'{"file_name": 3}', "line 1: 3 is no file name"), (b'{"file_name": "a"}', "data.caption_key")],
    "e.jsonl": [(b'{"file_name": "a", "caption": 4}', "line 1: 4 is no caption"), (b"[" * 9999, "line 1 is no JSON")],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_give_one_line(tmp_path, name):
    for content, words in BAD_TABLES[name]:
        (tmp_path / name).write_bytes(content)
        refused(lambda: CaptionedTargets(tmp_path, name, image_size=SIZE), f"{name}: ", words)
    refused(lambda: CaptionedTargets(tmp_path, "none.csv", image_size=SIZE), "none.csv: No such file", "data.captions")


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
    targets = ShardTargets(shards(tmp_path), image_size=SIZE)
    assert targets.ids == [f"{k:03d}/{name}" for k in range(3) for name in ("1.png", "sub/2.png")]
    last = targets.load(5)
    assert last.references == ("second of 2",) and last.image[0].mean() == pytest.approx(102 / 255, abs=0.01)
    assert targets.load(2).references == ("first of 1", "more")
    with pytest.raises(TargetError, match=r"^001/sub/2\.png: is not a picture"):
        targets.load(3)
    assert ShardTargets(shards(tmp_path), image_size=SIZE, caption_key="text").load(0).references == ("other",)
    some = ShardTargets(f"{tmp_path}/*.tar", image_size=SIZE, count=3)
    assert set(some.ids) < set(targets.ids)
    for k, name in enumerate(some.ids):
        if name != "001/sub/2.png":
            assert torch.equal(some.load(k).image, targets.load(targets.ids.index(name)).image)


def test_ids_are_those_of_shard_and_member(tmp_path):
    for folder in ("a", "b"):
        write_shard(tmp_path / folder / "0.tar", [("./x/1.png", picture_bytes(1)), ("1.png", picture_bytes(2))])
    ids = ShardTargets(f"{tmp_path}/{{a,b}}/0.tar", image_size=SIZE).ids
    assert ids == ["a/0/x/1.png", "a/0/1.png", "b/0/x/1.png", "b/0/1.png"]
    assert ShardTargets(f"{tmp_path}/*/0.tar", image_size=SIZE).ids == ids
    unsafe = ["../../etc/x.png", "/abs.png", "new\nline.png"]
    members = [(name, picture_bytes(3 + k)) for k, name in enumerate(unsafe)]
    write_shard(tmp_path / "c.tar", members)  # nothing is unpacked, so these are names like any other
    targets = ShardTargets(f"{tmp_path}/c.tar", image_size=SIZE)
    assert len(set(targets.ids)) == 3 and all("\n" not in name for name in targets.ids)
    assert targets.load(2).image[0].mean() == pytest.approx(5 / 255, abs=0.01)


def test_the_index_is_kept_and_follows_the_shard(tmp_path):
    pattern = shards(tmp_path, 1)
    first = ShardTargets(pattern, image_size=SIZE)
    index = tmp_path / f"000.tar{INDEX_SUFFIX}"
    kept = index.read_text(encoding="utf-8")
    index.write_text(kept.replace("sub/2.png", "sub/of-the-index.png"), encoding="utf-8")
    again = ShardTargets(pattern, image_size=SIZE)  # the shard itself is not gone through again
    assert again.ids[1] == "000/sub/of-the-index.png"
    assert torch.equal(again.load(1).image, first.load(1).image)
    index.write_text('{"stamp": ')  # damaged
    assert ShardTargets(pattern, image_size=SIZE).ids == first.ids
    write_shard(tmp_path / "000.tar", [("new.png", picture_bytes(9))])
    os.utime(tmp_path / "000.tar", ns=(1, 1))
    assert ShardTargets(pattern, image_size=SIZE).ids == ["000/new.png"]
    index.unlink()
    index.mkdir()  # where nothing can be written it goes without
    assert ShardTargets(pattern, image_size=SIZE).ids == ["000/new.png"]
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
        refused(lambda name=name: ShardTargets(f"{tmp_path}/{name}.tar", image_size=SIZE), f"{name}.tar: ", words)
    for kind, tool in (("gz", "gzip -d"), ("bz2", "bzip2 -d"), ("xz", "xz -d")):
        write_shard(tmp_path / "packed.tar", members, f"w:{kind}")
        refused(lambda: ShardTargets(f"{tmp_path}/packed.tar", image_size=SIZE), "is compressed", tool)
    write_shard(tmp_path / "none.tar", [("a.txt", b"a")])
    refused(lambda: ShardTargets(f"{tmp_path}/none.tar", image_size=SIZE), "no pictures in these 1 shards")
    for pattern in (f"{tmp_path}/{{0..3}}.tar", f"{tmp_path}/no*.zip", str(tmp_path)):
        refused(lambda pattern=pattern: ShardTargets(pattern, image_size=SIZE), "no such shard")


def test_members_that_cannot_be_used_fail_alone(tmp_path):
    good = picture_bytes(1)
    members = [("a.png", good), ("b.png", good), ("b.json", b"{"), ("c.png", b""), ("d.txt", b"alone")]
    members += [("e.png", good), ("e.json", b"[1]"), ("f.png", good), ("f.txt", b"\xff")]
    targets = ShardTargets(str(write_shard(tmp_path / "0.tar", members)), image_size=SIZE)
    assert targets.ids == [f"0/{name}.png" for name in "abcef"]
    for k in range(1, 5):
        with pytest.raises(TargetError) as caught:
            targets.load(k)
        assert targets.ids[k] in str(caught.value) and "\n" not in str(caught.value)
    assert targets.load(0).references == ()
    (tmp_path / "0.tar").unlink()
    with pytest.raises(TargetError, match=r"0\.tar"):
        targets.load(0)


def test_members_with_dots_links_and_others(tmp_path):
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            header = tarfile.TarInfo(name)
            header.size, header.type, header.linkname = len(content), kind, link
            tar.addfile(header, io.BytesIO(content))

        add("sub", kind=tarfile.DIRTYPE)
        add("sub/22.05.png", picture_bytes(10))
        add("sub/22.05.txt", b"\xef\xbb\xbfin May\r\n")
        add("1.png", picture_bytes(20))
        add("1.mask.png", picture_bytes(21))
        add("1.jpg", picture_bytes(22, "JPEG"))
        add("1.JSON", '{"caption": "one"}'.encode("utf-16"))
        add("1.cls", b"3")
        add("hard.png", kind=tarfile.LNKTYPE, link="./1.png")
        add("sub/soft.png", kind=tarfile.SYMTYPE, link="../hard.png")
        add("lost.png", kind=tarfile.SYMTYPE, link="nowhere.png")
        add("circle.png", kind=tarfile.SYMTYPE, link="circle.png")
        add("pipe.png", kind=tarfile.FIFOTYPE)
        add("2.heic", b"x")
        add("alone.txt", b"x")
        add("._1.png", b"x")
        add("7.crop.png", picture_bytes(30))
        add("7.txt", b"seven")
        add("8.a.png", picture_bytes(40))
        add("8.b.png", picture_bytes(40))
        add("8.txt", b"whose?")
    for targets in (
        ShardTargets(str(shard), image_size=SIZE),
        ShardTargets(str(shard), image_size=SIZE),
    ):  # and its index
        dotted = ["0/7.crop.png", "0/8.a.png", "0/8.b.png"]
        assert targets.ids == ["0/sub/22.05.png", "0/1.png", "0/1.jpg", "0/hard.png", "0/sub/soft.png", *dotted]
        shades = [round(float(targets.load(k).image[0].mean() * 255)) for k in range(5)]
        assert shades == pytest.approx([10, 20, 22, 20, 20], abs=2)
        references = [targets.load(k).references for k in range(8)]
        assert references == [("in May",), ("one",), ("one",), (), (), ("seven",), (), ()]
        passed = dict(targets.skipped)
        assert set(passed) == {
            f"0/{name}"
            for name in ("1.mask.png", "lost.png", "circle.png", "pipe.png", "2.heic", "alone.txt", "._1.png", "8.txt")
        }
        words = {
            "1.mask.png": "a further part of 1",
            "lost.png": "link",
            "2.heic": "pillow-heif",
            "alone.txt": "no picture",
            "8.txt": "a text of several pictures",
        }
        assert all(word in passed[f"0/{name}"] for name, word in words.items())


def test_quotation_marks_where_tables_have_none(tmp_path):
    for name, between in (("c.tsv", "\t"), ("c.csv", "|")):
        rows = [("file_name", "caption"), ("a.png", 'a 5" nail'), ("b.png", '"alone'), ("c.png", "last")]
        (tmp_path / name).write_text("\n".join(between.join(row) for row in rows), encoding="utf-16")
        targets = CaptionedTargets(str(tmp_path), name, delimiter="|")
        assert targets.references == [('a 5" nail',), ('"alone',), ("last",)]


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
    coco = [*base, "data=coco", f"data.root={place}/coco", "name=coco", "batch_size=2"]
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
    targets = CocoTargets(place / "coco", image_size=SIZE)
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
        assert all(math.isfinite(loss) for loss in content["search_curve"])  # each on draws of its own
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
