"""Text of every encoding, paths as a shell user writes them, files that several processes write at once."""

import json
import os
import subprocess
import sys

import pytest

from ph2p.errors import UserError
from ph2p.files import as_json, expand, label, read_text, write_whole

TEXT = "naïve\n星 cat\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_every_mark_and_line_end(tmp_path, encoding, end):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + TEXT.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfea", TEXT.encode("utf-16-le"), b"a\0b"])
def test_what_is_no_text_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "odd\nname.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\\nname\.txt: not UTF-8 text .*save it as UTF-8$") as caught:
        read_text(tmp_path / "odd\nname.txt")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.txt: No such file"):
        read_text(tmp_path / "no.txt")
    with pytest.raises(UserError, match="directory"):
        read_text(tmp_path)


def test_paths_are_expanded_as_by_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICS", str(tmp_path / "pics"))
    monkeypatch.delenv("NOT_SET", raising=False)
    assert expand("~/a.png") == tmp_path / "a.png"
    assert expand("$PICS/a.png") == expand("${PICS}/a.png") == tmp_path / "pics" / "a.png"
    assert str(expand("$NOT_SET/a.png")) == "$NOT_SET/a.png"
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$PICS.png"):  # files that are really called so
        (tmp_path / name).write_text(TEXT)
        assert str(expand(name)) == name
    assert read_text("$PICS.png") == TEXT


def test_labels_are_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert [label(path) for path in ("my/cats", "/x/My cats (2)/", "~", ".", "/", "")] == [
        *("cats", "My-cats-2", "somebody", label(tmp_path), "pictures", "pictures"),
    ]
    assert len(label("x" * 300)) == 40


def test_processes_of_one_number_do_not_spoil_each_other(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from ph2p.files import write_whole; os.getpid = lambda: 7\n"
        "for k in range(100): write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "a", letter]) for letter in "xy"]
    assert [writer.wait() for writer in writers] == [0, 0]  # as on two hosts of one file system
    assert (tmp_path / "a").read_bytes() in (b"x" * 5000, b"y" * 5000)
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_json_holds_bytes_that_are_no_text():
    content = {"path": os.fsdecode(b"caf\xe9 \xc3\xa9")}
    assert json.loads(as_json(content)) == content
