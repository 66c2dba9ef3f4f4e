"""Measure the house: rooms, the arrows between them, and the sizes of functions and files; exit code 1 for too much.

A room is a folder or a single file of `ph2p/`, an arrow says that one room imports from another. Which arrows may be
is the contract in pyproject.toml (`lint-imports`).
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
ROOMS, ARROWS, FILE_LINES, FUNCTION_LINES, PARAMETERS = 16, 68, 300, 40, 7


def arrows(graph: grimp.ImportGraph) -> tuple[set[str], set[tuple[str, str]]]:
    """The rooms, and the pairs of rooms of which the first imports from the second."""
    rooms = {name: name.split(".")[1] for name in graph.modules if "." in name}
    pairs = {(rooms[a], rooms[b]) for a in rooms for b in graph.find_modules_directly_imported_by(a) if b in rooms}
    return set(rooms.values()), {(one, other) for one, other in pairs if one != other}


def detours(graph: grimp.ImportGraph) -> Iterator[str]:
    """Who takes a name from the front door, ph2p/__init__.pyi, which is for users."""
    for name in sorted(graph.find_modules_that_directly_import("ph2p")):
        for found in graph.get_import_details(importer=name, imported="ph2p"):
            if "__version__" not in found["line_contents"]:
                yield f"{name}:{found['line_number']}: {found['line_contents']}: import from the module that defines it"


def sizes(file: Path) -> Iterator[str]:
    """What is too long in a file."""
    name, text = file.relative_to(ROOT), file.read_text(encoding="utf-8")
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{name}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"
        some = node.args
        given = [*some.posonlyargs, *some.args, *some.kwonlyargs, *filter(None, [some.vararg, some.kwarg])]
        number = sum(argument.arg not in ("self", "cls") for argument in given)
        if number > PARAMETERS:
            yield f"{name}:{node.lineno}: {node.name} has {number} parameters, at most {PARAMETERS}"


def main() -> int:
    sys.path.insert(0, str(ROOT))  # this house, whatever else is installed
    graph = grimp.build_graph("ph2p", cache_dir=None)
    found, pairs = arrows(graph)
    wrong = [line for file in sorted((ROOT / "ph2p").rglob("*.py")) for line in sizes(file)]
    wrong += detours(graph)
    if len(found) > ROOMS:
        wrong.append(f"{len(found)} rooms, at most {ROOMS}: {', '.join(sorted(found))}")
    if len(pairs) > ARROWS:
        wrong.append(f"{len(pairs)} arrows, at most {ARROWS}: {', '.join(f'{a} -> {b}' for a, b in sorted(pairs))}")
    print("\n".join([*wrong, f"{len(found)} rooms, {len(pairs)} arrows"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
