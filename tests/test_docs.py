"""The documentation: it builds without a warning, asks no other host for anything, and says what the code does."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ph2p.applications.request import APPLICATIONS
from ph2p.applications.settings import load_settings, split_words
from ph2p.cli import COMMANDS
from ph2p.config.compose import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OTHER_HOST = re.compile(r"^\s*(https?:)?//")
FETCHED = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


class _Fetches(HTMLParser):
    """Collects what a browser fetches of itself when it shows a page; a link to click on is none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") != "canonical":
            self.found.append(values.get("href") or "")
        self.found += [values.get(name) or "" for name in ("src", "srcset", "data", "poster") if name in values]


def test_a_page_asks_no_other_host(site: Path) -> None:
    seen = 0
    for page in site.rglob("*.html"):
        parser = _Fetches()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in parser.found if OTHER_HOST.match(address)], page
        seen += len(parser.found)
    assert seen > 100
    for style in site.rglob("*.css"):
        assert not FETCHED.findall(style.read_text(encoding="utf-8")), style


def test_the_reference_holds_every_public_name_and_module(site: Path) -> None:
    stub = (ROOT / "ph2p" / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r" as (\w+)$", stub, re.MULTILINE)
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert len(names) > 20
    assert not [name for name in names if f'id="ph2p.{name}"' not in page]
    modules = [file.stem for file in (ROOT / "ph2p" / "inversion").glob("[!_]*.py")]
    page = (site / "reference" / "algorithm.html").read_text(encoding="utf-8")
    assert not [name for name in modules if f'id="ph2p.inversion.{name}"' not in page]


def test_the_comment_behind_a_key_is_its_text(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    source = "".join((ROOT / "ph2p" / "config" / name).read_text() for name in ("method.py", "schema.py"))
    keys = re.findall(r"^    (\w+): .*  # ", source, re.MULTILINE)
    assert len(keys) > 50
    assert not [key for key in keys if f".{key}" not in page]
    assert "forward plus backward, everything but the final evaluation" in page


def commands(page: Path) -> list[list[str]]:
    """The words of every `ph2p` command that a page shows in full; no sweeps."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for _, kind, block in BLOCK.findall(text) if kind == "bash" for line in block.splitlines()]
    some = [shlex.split(line, comments=True) for line in lines if "..." not in line]
    return [words[1:] for words in some if words[:1] == ["ph2p"] and "-m" not in words]


def given(words: list[str]) -> list[str]:
    """What of a command's words stands before its options."""
    return words[: next((k for k, word in enumerate(words) if word.startswith("--")), len(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_there(page: Path) -> None:
    for words in commands(page):
        keys = words[1:] if words[:1] and words[0] in COMMANDS else words
        own, keys = split_words([word for word in keys if "=" in word])
        load_config(keys)
        if words[:1] == ["apply"]:
            assert APPLICATIONS[words[1]].accepts(len(given(words[2:]))) and load_settings(words[1], own)
    for _, kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            compile(textwrap.dedent(block), str(page), "exec")


def test_every_method_has_its_line() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert not [file.stem for file in (ROOT / "configs/method").glob("*.yaml") if f"`{file.stem}`" not in page]


def test_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 25
