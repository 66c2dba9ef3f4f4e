"""The layers: a module imports only from modules below it. Imports are parsed, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRONT_DOOR = "__init__"  # ph2p/__init__.py: gives out names of every layer, and no module imports it
LAYERS = (  # from the ground up
    "tiny",
    "errors",
    "stopping",
    "memory",
    "schedule",
    "tiny.world",
    "tiny.drawing",
    "tiny.captions",
    "tiny.coco",
    "pretrained",
    "hub",
    "tokens",
    "vocabulary",
    "line_search",
    "optim",
    "metrics",
    "frozen",
    "scorer",
    "generators.schedules",
    "generators.base",
    "generators.encoders",
    "generators.stable_diffusion",
    "generators.stable_diffusion_xl",
    "generators.stable_diffusion_3",
    "generators.flux",
    "generators.pixart",
    "generators.families",
    "generators.loading",
    "generators",
    "data.images",
    "data.targets",
    "data.folder",
    "data.captioned",
    "data.coco",
    "data.shards",
    "data.scenes",
    "data.draws",
    "data.module",
    "data",
    "objectives",
    "inversion",
    "search",
    "results",
    "checkpoint",
    "callbacks",
    "logs",
    "schema",
    "config",
    "help",
    "evaluation",
    "batch",
    "measurement",
    "strategy",
    "inverter",
    "formatting",
    "chart",
    "records",
    "page",
    "report",
    "cluster",
    "loading",
    "engine",
    "tiny.bars",
    "tiny.recipe",
    "tiny.recipe.scenes",
    "tiny.recipe.stage",
    "tiny.recipe.tokenizer",
    "tiny.recipe.clip",
    "tiny.recipe.vae",
    "tiny.recipe.unet",
    "tiny.recipe.image_tower",
    "tiny.pretrain",
)
LIGHTNING = {
    "inversion",
    "checkpoint",
    "callbacks",
    "logs",
    "data.module",
    "strategy",
    "inverter",
    "cluster",
    "loading",
}
LIGHTNING |= {"tiny.recipe.stage", "tiny.pretrain"}
LIGHTNING_PARTS = {"pytorch_lightning", "lightning_fabric"}  # older names of what `lightning` holds
READERS = {"formatting", "chart", "records", "page", "report"}  # they read results folders only
MODEL_LIBRARIES = {"torch", "torchmetrics", "lightning", "transformers", "diffusers", "accelerate"}

PLACES = {name: place for place, name in enumerate(LAYERS)}
FILES = sorted(path for path in (ROOT / "ph2p").rglob("*.py") if path != ROOT / "ph2p" / "__init__.py")


def module_name(path: Path) -> str:
    """The name below ph2p: ph2p/tiny/world.py is `tiny.world`, ph2p/tiny/__init__.py is `tiny`."""
    return ".".join(path.relative_to(ROOT / "ph2p").with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all imports, in functions too; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own_module(name: str) -> str:
    """The module of this package that an imported name belongs to: `ph2p.optim.BatchedLBFGS` is `optim`."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in PLACES:
            return ".".join(parts[:end])
    stem = ROOT / "ph2p" / parts[0] if parts else ROOT
    is_module = bool(parts) and (stem.is_dir() or stem.with_suffix(".py").exists())
    return parts[0] if is_module else FRONT_DOOR


def objection(module: str, name: str) -> str | None:
    """Why `module`, a name of `LAYERS`, may not import the full dotted `name`; None when it may."""
    root = name.split(".")[0]
    if root == "ph2p":
        target = own_module(name)
        if target == FRONT_DOOR:
            return "import from the module that defines the name"
        if target not in PLACES:
            return f"{target} has no layer: place it in LAYERS of {Path(__file__).name}"
        if PLACES[target] >= PLACES[module]:
            return f"{target} is not below {module}"
        if module in READERS and target not in READERS | {"errors"}:
            return "what reads results folders imports no module that does anything else"
    if root in LIGHTNING_PARTS:
        return "import lightning instead"
    if root == "lightning" and module not in LIGHTNING:
        return f"Lightning stays in {', '.join(sorted(LIGHTNING))}"
    if root in MODEL_LIBRARIES and module in READERS:
        return "what reads results folders loads no model"
    return None


def violations(source: str, module: str, package: str = "ph2p") -> list[str]:
    if module not in PLACES:
        return [f"{module} has no layer: place it in LAYERS of {Path(__file__).name}"]
    found = ((line, name, objection(module, name)) for line, name in imports(source, package))
    return [f"line {line}: {module} imports {name}: {why}" for line, name, why in found if why]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_from_below(path):
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert not violations(path.read_text(), module_name(path), package)


def test_the_package_was_found():
    assert {"errors", "optim", "tiny.world"} <= {module_name(path) for path in FILES}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("optim", "from ph2p.engine import run"),
        ("optim", "def f():\n    import ph2p.engine"),
        ("optim", "from ph2p import engine"),
        ("optim", "from .engine import run"),
        ("optim", "from . import engine"),
        ("optim", "from ph2p.optim import BatchedLBFGS"),
        ("engine", "import ph2p"),
        ("engine", "from ph2p import invert"),
        ("data", "from ph2p.tiny.pretrain import parse"),
        ("data", "from ph2p.tiny import pretrain"),
        ("report", "from ph2p.data import slug"),
        ("report", "import torch"),
        ("report", "from torch import Tensor"),
        ("optim", "import lightning as L"),
        ("engine", "from pytorch_lightning import Trainer"),
        ("of_no_layer", "import math"),
    ],
)
def test_a_bad_import_is_caught(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize("source", ["from ..engine import run", "from .pretrain import parse"])
def test_a_relative_import_of_a_subpackage_is_caught(source):
    assert len(violations(source, "tiny.world", "ph2p.tiny")) == 1


def test_good_imports_pass():
    source = "import lightning as L\nimport torch\nfrom ph2p import report\nfrom ph2p.optim import Point\n"
    assert violations(source + "from .tiny import world\nfrom .errors import UserError\n", "loading") == []
