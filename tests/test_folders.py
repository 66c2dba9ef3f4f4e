"""Which files of a folder are images, what is passed over and why; and the YAML file of each data set."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from PIL import Image

from ph2p import data
from ph2p.data import CaptionedTargets, FolderTargets, Targets
from ph2p.errors import UserError
from ph2p.files import label

SIZE = 16


def paint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (0, 40, 200)).save(path)
    return path


def make_results(folder: Path) -> Path:
    """What a run leaves: its configuration, its records and pictures."""
    paint(folder / "images" / "cat-0123456789" / "target.png")
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "part-00000.jsonl").write_text("{}\n")
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def reasons(targets: Targets) -> dict[str, str]:
    found = dict(targets.skipped)
    assert len(found) == len(targets.skipped)
    return found


# --- results are never inputs -----------------------------------------------------------------------


def test_results_in_the_folder_of_pictures_are_no_images(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png"):
        paint(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = FolderTargets(".").ids
    for k in range(3):
        make_results(tmp_path / "outputs" / f"run-{k}")
        targets = FolderTargets(".")
        assert targets.ids == before == ["a.png", "sub/b.png"]
    assert reasons(targets)["outputs/run-2"] == "a results folder of this program"
    (tmp_path / "latest").symlink_to(tmp_path / "outputs" / "run-0" / "images")
    assert FolderTargets(".").ids == before
    with pytest.raises(UserError, match=r"data\.path=outputs/run-1: is a results folder"):
        FolderTargets("outputs/run-1")
    with pytest.raises(UserError, match=r"no pictures found.*passed over 3, such as run-0: a results folder"):
        FolderTargets("outputs")
    assert FolderTargets("outputs/run-1/images").ids == ["cat-0123456789/target.png"]  # these are meant


def test_a_folder_that_becomes_one_of_results_while_it_is_listed(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")
    (tmp_path / "out" / "images").mkdir(parents=True)
    list_folder, waiting = os.scandir, [True]

    def listing(folder):  # another rank writes its folder when this one has already entered it
        if waiting and str(folder).endswith("images"):
            waiting.clear()
            make_results(tmp_path / "out")
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", listing)
    assert FolderTargets(str(tmp_path)).ids == ["a.png"] and not waiting


def test_a_project_of_ones_own_is_no_results_folder(tmp_path):
    paint(tmp_path / "results" / "a.png")
    (tmp_path / "config.yaml").write_text("mine: true\n")
    assert FolderTargets(str(tmp_path)).ids == ["results/a.png"]


# --- what is read and what is passed over -----------------------------------------------------------


def test_what_pillow_reads_is_read_and_the_rest_is_said(tmp_path):
    names = ["a.avif", "b.jfif", "c.JP2", "d.ico", "e.png"]
    for name in names:
        paint(tmp_path / name)
    for name in ("f.heic", "g.svg", "notes.txt", "README", ".h.png", "i.mp4"):
        (tmp_path / name).write_bytes(b"x")
    paint(tmp_path / ".cache" / "j.png")
    os.mkfifo(tmp_path / "pipe.png")
    targets = FolderTargets(str(tmp_path), image_size=SIZE)
    assert targets.ids == names
    for index in range(len(names)):
        assert targets.load(index).image.shape == (3, SIZE, SIZE)
    found = reasons(targets)
    assert list(found) == sorted(found) and set(found) == {
        *("f.heic", "g.svg", "notes.txt", "README", ".h.png", "i.mp4", ".cache", "pipe.png"),
    }
    words = {"f.heic": "pillow-heif", "g.svg": "PNG", "notes.txt": ".txt", "README": "suffix", ".cache": "hidden"}
    for name, word in words.items():
        assert word in found[name]


def test_linked_folders_are_followed_once(tmp_path):
    paint(tmp_path / "pics" / "a.png")
    paint(tmp_path / "pics" / "real" / "b.png")
    paint(tmp_path / "elsewhere" / "c.png")
    paint(tmp_path / "elsewhere" / "deep" / "d.png")
    links = {
        "aa": "real",  # sorts before what it names, which is read under its own name
        "far": "../elsewhere",
        "far-too": "../elsewhere/deep",
        "circle": ".",
        "real/up": "..",
        "gone": "../nowhere",
        "self.png": "self.png",
        "e.png": "../elsewhere/c.png",
    }
    for name, target in links.items():
        (tmp_path / "pics" / name).symlink_to(target)
    targets = FolderTargets(str(tmp_path / "pics"), image_size=SIZE)
    # links to no file fail alone, as the missing files that they are
    assert targets.ids == ["a.png", "e.png", "far/c.png", "far/deep/d.png", "real/b.png", "self.png"]
    double = [name for name, reason in targets.skipped if "read already" in reason]
    assert double == ["aa", "circle", "far-too", "real/up"] and "gone" in reasons(targets)


def test_a_sample_of_a_folder(tmp_path):
    for k in range(20):
        paint(tmp_path / f"{k:02d}.png")
    everything = FolderTargets(str(tmp_path)).ids
    some, more = (FolderTargets(str(tmp_path), count=count, seed=3, image_size=SIZE) for count in (4, 9))
    assert set(some.ids) < set(more.ids) < set(everything) and (len(some), len(more)) == (4, 9)
    assert some.load(1).image_id == some.ids[1] and some.ids[1] in some.load(1).source
    with pytest.raises(UserError, match=r"data\.count=21: give 1 to 20"):
        FolderTargets(str(tmp_path), count=21)


def test_captions_beside_pictures_are_not_passed_over(tmp_path):
    paint(tmp_path / "a.png")
    for name in ("a.txt", "other.txt"):
        (tmp_path / name).write_text("red\u2028cat\r\nblue dog\r\n", encoding="utf-16")
    targets = CaptionedTargets(str(tmp_path), ".", image_size=SIZE)
    assert targets.load(0).references == ("red cat", "blue dog")
    assert set(reasons(targets)) == {"other.txt"}


# --- keys -------------------------------------------------------------------------------------------


def test_paths_are_those_of_a_shell_and_never_empty(tmp_path, monkeypatch):
    paint(tmp_path / "my pics" / "a=1, [b].png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICS", str(tmp_path / "my pics"))
    for path in ("~/my pics", "$PICS", "${PICS}/", "$PICS/a=1, [b].png"):
        assert FolderTargets(path).ids == ["a=1, [b].png"]
    (tmp_path / "c.csv").write_text('file_name,caption\n"a=1, [b].png",words\n')
    for root, images in (("~", "$PICS"), ("$HOME", "my pics")):
        targets = CaptionedTargets(root, "~/c.csv", images=images, image_size=SIZE)
        assert targets.load(0).references == ("words",)
    with pytest.raises(UserError, match=r"data\.path=\$NOT_SET/x: no such file or folder"):
        FolderTargets("$NOT_SET/x")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (FolderTargets, {"path": ""}, r"data\.path is empty.*shell variable"),
        (FolderTargets, {"path": " "}, r"data\.path is empty"),
        (FolderTargets, {"path": None}, r"data\.path=None: give a text"),
        (FolderTargets, {"path": 1e3}, r"data\.path=1000\.0: give a text, quoted"),
        (FolderTargets, {"path": True}, r"data\.path=True: give a text, quoted"),
        (FolderTargets, {"path": "/nope"}, r"data\.path=/nope: no such file"),
        (FolderTargets, {"path": ".", "count": "abc"}, r"data\.count=abc: give a whole number or null"),
        (FolderTargets, {"path": ".", "count": True}, r"data\.count=True"),
        (FolderTargets, {"path": ".", "count": 0}, r"data\.count=0"),
        (FolderTargets, {"path": ".", "seed": None}, r"data\.seed=None: give a whole number$"),
        (FolderTargets, {"path": ".", "seed": -1}, r"data\.seed=-1"),
        (FolderTargets, {"path": ".", "fit": "cover"}, r"data\.fit=cover: choose one of crop, pad, resize"),
        (data.CocoTargets, {"root": ""}, r"data\.root is empty"),
        (data.ShardTargets, {"shards": ""}, r"data\.shards is empty"),
        (CaptionedTargets, {"root": ".", "captions": ""}, r"data\.captions is empty"),
        (CaptionedTargets, {"root": ".", "captions": "c.csv", "images": ""}, r"data\.images is empty"),
        (CaptionedTargets, {"root": ".", "captions": "c.csv", "delimiter": "||"}, r"data\.delimiter=\|\|: give one"),
    ],
)
def test_wrong_values_are_named_before_anything_is_read(kind, values, words):
    with pytest.raises(UserError, match=words) as caught:
        kind(**values)
    assert "\n" not in str(caught.value)


def test_a_number_may_be_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "2024" / "a.png")
    assert FolderTargets(2024).ids == ["a.png"]  # as YAML reads it


def test_a_wrong_path_is_answered_before_torch_is_loaded():
    code = (
        "import sys; from ph2p.data import FolderTargets; from ph2p.errors import UserError\n"
        "try: FolderTargets('/nope')\n"
        "except UserError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_size_may_come_later(tmp_path):
    paint(tmp_path / "a.png")
    targets = FolderTargets(str(tmp_path))
    with pytest.raises(ValueError, match="image_size"):
        targets.load(0)
    targets.image_size = (24, 32)
    assert targets.load(0).image.shape == (3, 24, 32)


OPTIONS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_yaml_file_is_a_constructor_call(root, option):
    OmegaConf.register_new_resolver("label", label, replace=True)
    OmegaConf.register_new_resolver("package", lambda path: str(root / "ph2p" / path), replace=True)
    node = OmegaConf.load(root / "configs" / "data" / f"{option}.yaml")
    if base := node.pop("defaults", None):
        node = OmegaConf.merge(OmegaConf.load(root / "configs" / "data" / f"{base[0]}.yaml"), node)
    required = {key for key in node if OmegaConf.is_missing(node, key)}
    parameters = {one.name: one for one in fields(get_class(node["_target_"])) if one.init}
    assert set(node) - {"_target_"} == parameters.keys() - {"image_size"}
    for key in parameters.keys() - required - {"image_size", "name"}:
        if not (base or option == "examples"):  # these fill in what others leave open
            assert node[key] == parameters[key].default
    assert required == set() if option in ("examples", "world") else required <= {"path", "root", "captions", "shards"}


def test_the_label_of_a_folder_is_its_name(root, tmp_path):
    OmegaConf.register_new_resolver("label", label, replace=True)
    node = OmegaConf.load(root / "configs" / "data" / "folder.yaml")
    names = {}
    for name in ("cats", "my dogs"):
        paint(tmp_path / name / "a.png")
        cfg = OmegaConf.create({"data": OmegaConf.merge(node, {"path": f"{tmp_path}/{name}/"})})
        names[name] = instantiate(cfg.data).name
    assert names == {"cats": "folder-cats", "my dogs": "folder-my-dogs"}
