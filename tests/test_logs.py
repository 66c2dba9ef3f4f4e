"""The table of curves through kills and odd names, JSON without NaN, captions that a model cannot read whole."""

import csv
import json
import math
import time
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from pipelines import EOS

from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.evaluation.metrics import rouge
from ph2p.evaluation.result import as_record
from ph2p.evaluation.texts import readable
from ph2p.files import as_json
from ph2p.run.logs import VALUES, RunLog, make_loggers
from ph2p.run.results import ResultsFolder


def test_the_table_is_only_ever_added_to(tmp_path):
    table = tmp_path / "logs" / "part-00000.csv"
    names = ['a,"b"\n.png', "星/ü.png"]
    RunLog(table).write(0, {name: {"loss": 0.5, "evaluations": 17} for name in names})
    whole = table.read_bytes()
    table.write_bytes(whole + b"a.png,1,0.2")  # a kill in the middle of a line
    RunLog(table).write(1, {names[1]: {"loss": 0.1 + 0.2, "gradient_norm": math.inf}})
    assert table.read_bytes().startswith(whole)
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_id", "epoch", *VALUES]
    later = [names[1], "1", str(0.1 + 0.2), "", "", "", ""]
    assert rows == [[name, "0", "0.5", "", "", "17", ""] for name in names] + [later]
    older = table.read_bytes().replace(b",search_loss\n", b"\n", 1)
    table.write_bytes(older)  # begun by a version that knew fewer figures
    RunLog(table).write(2, {names[0]: {"search_loss": 0.25}})
    with table.open(newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    assert last["search_loss"] == "0.25"
    assert table.read_bytes().splitlines()[1:-2] == older.splitlines()[1:]  # the new row holds a line's end
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        RunLog(tmp_path / "file" / "logs" / "x.csv")


def test_a_logger_that_is_missing_says_how_to_get_it(monkeypatch):
    module = "lightning.pytorch.loggers.tensorboard"
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setattr(f"{module}._TENSORBOARD_AVAILABLE", False, raising=False)
    with pytest.raises(UserError, match=r"^logger=tensorboard: .*pip install 'ph2p\[tensorboard\]'$"):
        make_loggers(load_config(["logger=tensorboard"]))


def test_a_logger_that_fails_at_the_end_does_not_change_how_the_run_ended(tmp_path, caplog):
    class Unreachable(DummyLogger):
        def finalize(self, status: str) -> None:
            raise ConnectionError("nobody answers")

    RunLog(tmp_path / "logs" / "part-00000.csv", [Unreachable()]).close()
    assert "Unreachable: not all curves were written: nobody answers" in caplog.text


@pytest.fixture
def finished(inverter_of, targets):
    """A result with pictures, of a prompt with a sign that tables of Markdown take for their own."""
    (result,) = inverter_of("method=random", "method.budget=200", "method.restarts=2", "evaluation.renders=2")(
        targets[:1]
    )
    return replace(result, prompt="red | square")


def shown(folder, option: str, result) -> None:
    """A run's log of two epochs of two images, and of one finished image."""
    cfg = load_config(
        [f"logger={option}", f"output={folder}", "name=x", *["logger.offline=true"] * (option == "wandb")]
    )
    log = RunLog(folder / "x" / "logs" / "part-00000.csv", make_loggers(cfg), {"method.budget": 7, "data.path": "ü|x"})
    log.write(0, {"a.png": {"loss": 0.5, "evaluations": 17}, "b.png": {"loss": 1.5}})
    log.write(1, {"a.png": {"loss": 0.25}, "b.png": {"loss": math.inf}})
    log.show(result, 1)
    log.close()


def test_tensorboard_gets_pictures_prompts_a_table_and_the_configuration(tmp_path, finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown(tmp_path, "tensorboard", finished)
    events = EventAccumulator(str(tmp_path / "x" / "logs" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [(event.step, event.value) for event in events.Scalars("epochs/loss/part-00000")] == [(2, 1.0), (4, 0.25)]
    (loss,) = events.Scalars("images/loss/part-00000")
    assert loss.step == 1 and loss.value == pytest.approx(finished.loss, rel=1e-6)
    assert not any("a.png" in tag for tag in tags["scalars"])  # no chart for each image
    (event,) = events.Images("pictures/part-00000")
    assert (event.width, event.height) == (16 * 3, 16)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert f"{finished.image_id}: red | square" in texts["pictures/part-00000/words/text_summary"]
    assert '"method.budget": 7' in texts["configuration/text_summary"] and "ü|x" in texts["configuration/text_summary"]
    head, rule, row = texts["table/part-00000/text_summary"].splitlines()
    assert head.startswith("| image | prompt | loss |") and head.count("|") == rule.count("|") == row.count("|") - 1
    assert f"| {finished.image_id} | red \\| square | {finished.loss:.4g} |" in row


def written_by_wandb(path) -> list:
    """The records of a run; wandb's own process may still write them when `finish` comes back."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    until = time.monotonic() + 60
    while time.monotonic() < until:
        store, records = DataStore(), []
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            records.append(Record.FromString(data))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.2)
    pytest.fail("wandb has not written its run to the end")


def test_wandb_gets_pictures_prompts_a_table_and_the_configuration(tmp_path, finished, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    shown(tmp_path, "wandb", finished)
    (run,) = (tmp_path / "x" / "logs" / "wandb").glob("offline-run-*")
    (path,), config, logged = run.glob("*.wandb"), {}, {}
    for record in written_by_wandb(path):
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        logged |= {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    assert config["method.budget"] == 7 and logged["epochs/loss/part-00000"] == 0.25
    assert logged["pictures/part-00000/captions"] == [f"{finished.image_id}: red | square"]
    (picture,) = (run / "files" / "media" / "images" / "pictures").glob("*.png")
    assert Image.open(picture).size == (16 * 3, 16)
    (table,) = (run / "files" / "media" / "table" / "table").glob("*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:3] == ["image", "prompt", "loss"]
    assert content["data"][0][:3] == [finished.image_id, "red | square", pytest.approx(finished.loss)]


def test_what_is_no_number_is_null(tmp_path):
    record = {"image_id": "a", "regret": math.nan, "deep": [{"x": (1.0, -math.inf)}], "ü": True}
    assert json.loads(as_json(record)) == {"image_id": "a", "regret": None, "deep": [{"x": [1.0, None]}], "ü": True}
    folder = ResultsFolder(tmp_path / "out", load_config([f"output={tmp_path}", "name=out"]))
    folder.append(record)
    path = folder.write_candidates("a", {"loss_curve": [math.inf]})
    folder.close()
    for text in (folder.part.read_text(), (folder.folder / path).read_text()):
        assert json.loads(text, parse_constant=lambda word: pytest.fail(word))


def test_rouge_by_hand():
    assert rouge("red dog", ["a cat", "the dog is red"]) == pytest.approx((2 * 1 * 0.5 / 1.5, 1 / 3))
    assert rouge("Übung 星", ["übung", "星 übung"])[0] == 1.0
    assert rouge("", ["a"]) == rouge("dog", ["!?"]) == (0.0, 0.0)


def test_a_text_is_cut_after_the_last_word_that_fits(generator):
    room = generator.max_prompt_length
    assert room == 10
    assert readable(generator, "red dog") == ("red dog", "")
    assert readable(generator, "red " * room)[1] == ""
    text, note = readable(generator, "red " * 8 + "zzz blue")  # zzz takes three tokens, one too many
    assert text == " ".join(["red"] * 8) and "of 12 tokens this model reads 10" in note
    text, note = readable(generator, "z" * 50)  # no word fits: letters
    assert text == "z" * room and note
    assert readable(generator, f"red {EOS} dog")[0] == ""


def test_a_long_true_caption_does_not_stop_a_run(inverter_of, targets):
    inverter = inverter_of("method.budget=700", "evaluation.draws=4")
    long = replace(targets[0], caption="red dog above a green circle " * 5)
    strange = replace(targets[1], caption=f"a {EOS}", references=("small blue circle", "red", "blue " * 30))
    alone = replace(targets[2], caption=None)
    results = inverter([long, strange, alone])
    assert results[0].caption == long.caption and results[0].loss_caption > 0 and results[0].regret is not None
    assert results[0].notes == ["true caption cut for its loss: of 30 tokens this model reads 10"]
    cut = replace(long, caption=" ".join(long.caption.split()[:10]))
    assert inverter([cut])[0].loss_caption == pytest.approx(results[0].loss_caption, rel=1e-6)
    assert results[1].loss_caption is None and results[1].regret is None
    assert [note.split()[:2] for note in results[1].notes] == [["true", "caption"], ["reference", "3"]]
    assert not results[2].notes and results[2].loss_reference is None
    losses = [inverter([replace(strange, references=(text,))])[0].loss_reference for text in strange.references]
    assert results[1].loss_reference == pytest.approx(min(losses), rel=1e-6)
    features = inverter.scorer.text_features([results[1].prompt, *strange.references])
    assert results[1].reference_similarity == pytest.approx(float((features[1:] @ features[0]).max()), abs=1e-5)
    assert json.loads(as_json(as_record(results[1])))["references"] == list(strange.references)
    assert not any(isinstance(value, torch.Tensor) for value in as_record(results[1]).values())
