"""What users get: a wheel that works elsewhere, names that type checkers see, imports that load nothing heavy."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

HEAVY = ("torch", "lightning", "transformers", "diffusers", "torchmetrics")
USER = """
import numpy as np
from ph2p import (
    BatchedLBFGS, Candidate, DelayedProjection, InversionResult, PromptInversion, Target, TargetError, Vocabulary,
    invert, load_generator, load_inverter, read_results,
)

one: InversionResult = invert("star.png", method="ph2p")
several: list[InversionResult | TargetError] = invert([np.zeros((8, 8, 3)), "star.png"], progress=True)
reveal_type(one.prompt)
reveal_type(load_generator("model").vocabulary)
reveal_type(load_inverter(generator="sd15", device="cuda", prompt_length=8).generator)
reveal_type(read_results("outputs/a"))
invert(5)
invert("star.png", progress="yes")
"""


def python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names(root, tmp_path):
    listed = python("import ph2p\nprint(*dir(ph2p))", tmp_path, PYTHONPATH=str(root)).split()
    import ph2p

    for name in listed:
        assert getattr(ph2p, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = ph2p.nothing


@pytest.mark.parametrize(
    "module",
    [
        *("ph2p", "ph2p.cli", "ph2p.config", "ph2p.config.compose", "ph2p.evaluation", "ph2p.run", "ph2p.run.stopping"),
        *("ph2p.report", "ph2p.report.table", "ph2p.report.page", "ph2p.report.records"),
        *("ph2p.study.build", "ph2p.study.analyse", "ph2p.study.plot", "ph2p.applications.request"),
    ],
)
def test_an_import_loads_nothing_heavy(module, root, tmp_path):
    code = f"import sys, {module}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    assert python(code, tmp_path, PYTHONPATH=str(root)) == "\n"


@pytest.mark.slow
def test_a_type_checker_sees_the_names(root, tmp_path):
    file = tmp_path / "user.py"
    file.write_text(USER)
    # With the cache of `make lint`, and as there without the largest libraries' own types: reading those takes minutes.
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")]
    command += ["--cache-dir", str(root / ".mypy_cache"), str(file)]
    environment = os.environ | {"MYPYPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    found = [line.partition("user.py:")[2] for line in done.stdout.splitlines() if line.startswith("user.py")]
    types = [line.rpartition('Revealed type is "')[2].rstrip('"') for line in found if "Revealed" in line]
    assert [kind.removeprefix("builtins.").rpartition(".")[2] for kind in types[:3]] == [
        "str",
        "Vocabulary",
        "Generator",
    ]
    assert "list" in types[3] and "Any" not in types[:3]
    errors = [line for line in found if "error" in line]
    assert errors and {line.partition(":")[0] for line in errors} == {"14", "15"}, done.stdout


def test_every_extra_is_known_to_the_doctor(root):
    from ph2p.run.doctor import EXTRAS

    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev"}


def test_the_places_that_contributing_names_are_there(root):
    table = (root / "CONTRIBUTING.md").read_text().partition("## Where it happens")[2].partition("\n## ")[0]
    places = re.findall(r"((?:`\w+` and )*`\w+`) in `([\w/]+\.py)`", table)
    assert len(places) > 12
    for names, file in places:
        for name in re.findall(r"\w+(?=`)", names):
            assert re.search(rf"^(def|class) {name}\b", (root / "ph2p" / file).read_text(), re.MULTILINE), (name, file)


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory) -> Path:
    """The wheel in an environment of its own, which finds the tested libraries but nothing of the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    built = [*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", str(place), str(root)]
    subprocess.run(built, check=True, timeout=300, cwd=place)
    (wheel,) = place.glob("ph2p-*.whl")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    (site,) = (place / "venv").glob("lib/python*/site-packages")
    (site / "tested.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python_there = str(place / "venv" / "bin" / "python")
    subprocess.run(
        [*pip, "--python", python_there, "install", *options, str(wheel)], check=True, timeout=300, cwd=place
    )
    return place / "venv" / "bin"


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(installed, root, tmp_path):
    where = run([installed / "python", "-c", "import ph2p; print(ph2p.__file__)"], tmp_path).stdout.strip()
    assert Path(where).is_relative_to(installed.parent)
    home = Path(where).parent
    assert (home / "py.typed").exists() and (home / "__init__.pyi").exists()
    packed = ("report/templates/report.html.j2", "study/templates/study.html.j2", "study/templates/study.js")
    packed += ("applications/templates/base.html.j2", "configs/application/attention.yaml")
    for name in ("configs/train.yaml", "configs/method/ph2p.yaml", *packed):
        assert (home / name).exists()

    version = run([installed / "ph2p", "--version"], tmp_path)
    assert version.stdout == f"ph2p {python('import ph2p; print(ph2p.__version__)', root).strip()}\n"
    small = ["debug=quick", "method=random", "trainer=cpu", "evaluation.draws=2", "generator.steps=2", "name=a"]
    small += ["method.budget=60", "method.restarts=2", "method.selection.steps=2"]
    done = run([installed / "ph2p", *small], tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "outputs" / "a" / "index.html"
    assert page.exists()
    page.unlink()
    again = run([installed / "ph2p", "report", "outputs/a"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert page.exists() and "red-square.png" in again.stdout
