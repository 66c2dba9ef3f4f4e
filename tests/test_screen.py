"""What a run says: a line a batch in a log, and nothing that a screen does can fail or change a run."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ph2p.run.screen import Screen


class Narrow(io.TextIOWrapper):
    """A stream in an encoding that lacks most letters."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)


def test_names_are_shown_as_they_stand_in_any_encoding():
    stream = Narrow()
    screen = Screen(stream)
    screen.say("[final] run; results in out[/b]/")
    screen.fail("żaba.png: not a picture; \udcff [/red]")
    said = stream.buffer.getvalue().decode("ascii").splitlines()
    assert said[0] == "[final] run; results in out[/b]/"
    assert said[1] == "failed \\u017caba.png: not a picture; \\udcff [/red]"


def test_a_log_gets_a_line_a_batch_and_other_ranks_only_fail():
    stream = io.StringIO()
    with Screen(stream).progress(5) as progress:
        for images in (2, 3):
            progress.begin(images)
            progress.report(0.5, "optimising")
            progress.finish()
    first, last = stream.getvalue().splitlines()
    assert first.startswith("2 of 5 images done, 3 left, about ") and last == "5 of 5 images done, none left"
    stream = io.StringIO()
    quiet = Screen(stream, quiet=True)
    quiet.say("nothing")
    with quiet.progress(1) as progress:
        progress.begin(1)
        progress.finish()
    quiet.fail("a.png: broken")
    assert stream.getvalue() == "failed a.png: broken\n"


@pytest.mark.parametrize("where", ["pipe", "full"])
def test_nobody_need_be_listening(where):
    """A pipe whose reader has gone, a disk that is full: the process ends as if nothing had happened."""
    if where == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    code = "from ph2p.run.screen import Screen; s = Screen(); [s.say('x' * 200) for _ in range(2000)]; print('late')"
    if where == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    command, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=root, timeout=100)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_screen_that_is_closed_takes_everything():
    code = "from ph2p.cli import main; from ph2p.run.screen import Screen; Screen().say('x'); exit(main(['--version']))"
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1], timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
