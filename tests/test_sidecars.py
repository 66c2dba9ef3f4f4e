"""prompts.csv and the text files beside it: complete, safe, and the same whoever writes them and however often."""

import csv
import io
import os

import pytest
from PIL import Image
from runs import SMALL, Runner, make_pictures

from ph2p.errors import UserError
from ph2p.evaluation.metrics import shown_in
from ph2p.files import as_csv
from ph2p.report.records import read_results
from ph2p.report.sheet import write_sheet
from ph2p.run.sidecars import check_sidecars, sidecar_name, write_sidecar


@pytest.fixture(scope="module")
def runner(tmp_path_factory, model_overrides) -> Runner:
    place = tmp_path_factory.mktemp("sidecars")
    folder = make_pictures(place / "pictures", 2)
    for name in ("sub/deep er/a.b.png", "sub/=cmd.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "0.png").rotate(90 if "cmd" in name else 180).save(folder / name, "PNG")
    (folder / "broken.png").write_bytes(b"no picture")
    return Runner([*SMALL, *model_overrides, f"output={place}/out", f"data.path={folder}"])


def texts(folder) -> dict[str, str]:
    """Every text file by its path inside captions/."""
    root = folder / "captions"
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_each_picture_has_its_line_and_its_text_file_whichever_rank_finished_it(runner, tmp_path):
    assert set(runner.ranks(2, f"output={tmp_path}", "name=two", "sidecars=true", "batch_size=1")) == {0, 1}
    folder = tmp_path / "two"
    prompts = {record["image_id"]: record.get("prompt") for record in read_results(folder)}
    assert texts(folder) == {
        sidecar: f"{prompts[name]}\n"
        for name, sidecar in {
            **{"0.png": "0.txt", "1.png": "1.txt"},
            **{"sub/deep er/a.b.png": "sub/deep er/a.b.txt", "sub/=cmd.PNG": "sub/=cmd.txt"},
        }.items()
    }
    lines = list(csv.DictReader(io.StringIO((folder / "prompts.csv").read_text())))
    assert len(lines) == 5 and {line["file"]: line["prompt"] or None for line in lines} == prompts
    assert [*lines[0]] == ["file", "prompt", *(metric.key for metric in shown_in("card")), "note", "alternatives"]
    for record, line in zip(read_results(folder), lines, strict=True):
        if record["status"] == "ok":
            assert float(line["loss"]) == record["loss"] and float(line["gap_closed"]) == record["gap_closed"]
        else:
            assert line["file"] == "broken.png" and line["note"].startswith("failed: ") and not line["loss"]


def test_text_files_are_completed_and_follow_their_pictures(runner, tmp_path):
    words = (f"output={tmp_path}", "name=later", "data.count=null")
    folder = tmp_path / "later"
    assert runner.run(*words) == 1 and not (folder / "captions").exists()
    done = {record["image_id"]: record for record in read_results(folder)}
    assert runner.run(*words, "sidecars=true") == 1  # nothing is inverted for it
    assert {record["image_id"]: record for record in read_results(folder)} == done
    before = texts(folder)
    assert before["1.txt"] == f"{done['1.png']['prompt']}\n" and len(before) == 4
    stamp = (folder / "captions" / "0.txt").stat().st_mtime_ns
    (folder / "captions" / "1.txt").write_text("torn")
    assert runner.run(*words, "sidecars=true") == 1
    assert texts(folder) == before and (folder / "captions" / "0.txt").stat().st_mtime_ns == stamp


def test_a_disk_that_refuses_a_text_file_is_one_line(tmp_path):
    (tmp_path / "captions").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be written \(.*\); choose another output="):
        write_sidecar(tmp_path, "a.png", "red")
    (tmp_path / "captions").unlink()
    write_sidecar(tmp_path, "../../up/./a.png", "red")
    assert texts(tmp_path) == {"up/a.txt": "red\n"}


def test_no_two_pictures_share_a_text_file():
    assert [str(sidecar_name(name)) for name in ("v1.5", "/etc/a.jpg", "..", "b.tar/c.webp")] == [
        *("v1.5.txt", "etc/a.txt", "image.txt", "b.tar/c.txt")
    ]
    check_sidecars(["a.png", "sub/a.png", "a.png.png"])
    with pytest.raises(UserError, match=r"^sidecars=true: a\.png and a\.jpg would both have captions/a\.txt; rename"):
        check_sidecars(["a.png", "b.png", "a.jpg"])


def test_no_cell_of_text_is_a_formula_and_numbers_stay_numbers(tmp_path):
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1"]
    records = [
        {"image_id": text, "status": "ok", "prompt": text, "loss": 1.0, "gap_closed": -0.25, "warnings": [text]}
        for text in evil
    ]
    records.append({"image_id": 'a,"b"\nc', "status": "failed", "error": "=no"})
    write_sheet(tmp_path, records)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "prompts.csv").read_text(encoding="utf-8"), newline="")))
    assert [row["file"] for row in rows] == [*(f"'{text}" for text in evil), 'a,"b"\nc']
    assert all(row["prompt"] == row["note"] == f"'{text}" for row, text in zip(rows, evil, strict=False))
    assert {row["gap_closed"] for row in rows[:-1]} == {"-0.25"} and {row["loss"] for row in rows[:-1]} == {"1"}
    assert rows[-1]["note"] == "failed: =no"
    assert as_csv([["\ud800", None, 0.5, 3]]) == b"\\ud800,,0.5,3\n"
    assert os.listdir(tmp_path) == ["prompts.csv"]
