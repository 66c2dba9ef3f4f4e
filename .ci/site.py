"""What the documentation site needs beside `mkdocs.yml`: the evidence in the menu, and comments behind fields as their text."""

import ast
from pathlib import Path
from typing import Any

import griffe

EVIDENCE = "Methods and evidence"


def on_config(config: Any) -> Any:
    """Put the pages that `make evidence` has written into the menu; mkdocs calls this as a hook."""
    pages = sorted(Path(config["docs_dir"]).glob("evidence*.md"))
    (section,) = (entry[EVIDENCE] for entry in config["nav"] if EVIDENCE in entry)
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
