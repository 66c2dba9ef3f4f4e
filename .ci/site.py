"""What the site of the documentation needs beside `mkdocs.yml`: pages that its menu lacks, comments as texts."""

import ast
from pathlib import Path
from typing import Any

import griffe

SECTION = "Methods and evidence"


def on_config(config: Any) -> Any:
    """Put pages that the menu does not name at the end of a section, as those of `make evidence`; a hook of mkdocs."""
    named = str(config["nav"])
    pages = [page for page in sorted(Path(config["docs_dir"]).glob("*.md")) if f"'{page.name}'" not in named]
    (section,) = (entry[SECTION] for entry in config["nav"] if SECTION in entry)
    section.extend({title(page): page.name} for page in pages)
    return config


def title(page: Path) -> str:
    """A page's first heading."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), page.stem)


class TrailingComments(griffe.Extension):
    """Takes the comment behind a field of a class for its docstring, as `ph2p --help` does."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, agent: Any, **kwargs: Any
    ) -> None:
        file = attr.filepath
        if attr.docstring or not isinstance(node, ast.AnnAssign) or not isinstance(file, Path):
            return
        line = attr.lines_collection[file][(node.end_lineno or node.lineno) - 1].encode()
        behind = line[node.end_col_offset :].decode().strip()
        if behind.startswith("# "):
            text = behind.removeprefix("# ").partition("  # ")[0]
            attr.docstring = griffe.Docstring(text, lineno=node.lineno, endlineno=node.lineno, parent=attr)
