"""Folders of pretrained weights: what the libraries find out late or never, checked before they read them."""

import json
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from ph2p.errors import UserError

TOKENIZER_FILES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Of a quant_method the package and its module, where they are not called like it.
PACKAGES = {"quanto": ("optimum-quanto", "optimum"), "gptq": ("gptqmodel", "gptqmodel"), "awq": ("autoawq", "awq")}
WHOLE_MODEL = "copy or download the whole model"
UNSAFE = "pickled weights are unsafe; convert or download them as safetensors"
ONLY_PICKLES = f"only pickled weights, and {UNSAFE}"
NO_VARIANT = "no weights of the variant {}; check the variant, or leave it out"
ONLY_VARIANT = "only weights of the variant {0}; give generator.variant={0}"
UNFILLED = ("missing_keys", "mismatched_keys", "unexpected_keys")  # of the libraries' loading info
HARMLESS = ("position_ids",)  # counts from 0 up, which older files hold


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object; `advice` tells the user what to do if it cannot be read.

    Raises:
        UserError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {advice}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; {advice}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {advice}")
    return content


def components(index: dict[str, Any], skipped: tuple[str, ...]) -> list[str]:
    """The names of the components that `model_index.json` says the pipeline has."""
    named = (name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None)
    return [name for name in named if name not in skipped]


def check_components(
    folder: Path, index: dict[str, Any], skipped: tuple[str, ...], variant: str | None = None, weights: bool = True
) -> None:
    """Every component that `model_index.json` names has its files; without `weights`, but for those.

    Raises:
        UserError: a folder is missing, or without safetensors or a tokenizer's tables; no weights of the variant.
    """
    if weights and variant and not any(folder.glob(f"*/*.{variant}*.safetensors")):
        raise UserError(f"{folder}: {NO_VARIANT.format(variant)}")
    for name in components(index, skipped):
        part = folder / name
        if not part.is_dir() or not _names(part):
            raise UserError(f"{part}: the component is missing; copy or download the whole pipeline")
        if weights and (part / "config.json").exists():
            check_weights(part, variant)
        if name.startswith("tokenizer"):
            check_tokenizer(part)


def check_tokenizer(folder: Path) -> None:
    """The folder holds a tokenizer's tables: without them transformers builds one of two tokens and says nothing.

    Raises:
        UserError: it does not.
    """
    if not any(files <= _names(folder) for files in TOKENIZER_FILES):
        raise UserError(f"{folder}: the tokenizer's tables are missing; {WHOLE_MODEL}")


def check_weights(folder: Path, variant: str | None = None) -> None:
    """The folder holds safetensors, all shards of them; pickled weights are refused: loading a pickle runs its code.

    Raises:
        UserError: it does not, or a package that reads them is missing.
    """
    names = {file.name for file in folder.glob("*.safetensors")}
    if names:
        if variant is None and (only := only_variant(names)):
            raise UserError(f"{folder}: {ONLY_VARIANT.format(only)}")
        _check_shards(folder, variant)
        _check_package(folder)
    elif any(map(is_pickle, folder.iterdir())):
        raise UserError(f"{folder}: {ONLY_PICKLES}")
    else:
        raise UserError(f"{folder}: no .safetensors file; {WHOLE_MODEL}")


def only_variant(names: set[str]) -> str | None:
    """The variant, such as fp16, that all safetensors of these names are of; None if there are others too."""
    variants = {PurePath(name.removesuffix(".safetensors").partition("-0")[0]).suffix.lstrip(".") for name in names}
    return min(variants) if variants and "" not in variants else None


def _check_shards(folder: Path, variant: str | None) -> None:
    """All files that the index of sharded weights names are there, as both libraries find them out late or never."""
    has_variant = variant and any(folder.glob(f"*.{variant}*.safetensors"))  # else the plain weights stand in for it
    for index in folder.glob(f"*.safetensors.index.{variant}.json" if has_variant else "*.safetensors.index.json"):
        if index.name.startswith("model.") and (folder / "model.safetensors").exists() and not has_variant:
            continue  # an index that was left behind: transformers reads the single file
        shards = read_json(index, WHOLE_MODEL).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{index}: it names no shards; {WHOLE_MODEL}")
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard}: this shard of the weights is missing; {WHOLE_MODEL}")


def _check_package(folder: Path) -> None:
    """Quantised weights are read by a package of their own."""
    file = folder / "config.json"
    quantised = read_json(file, WHOLE_MODEL).get("quantization_config") if file.exists() else None
    method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
    method = method.partition("_")[0]  # bitsandbytes_4bit
    package, module = PACKAGES.get(method, (method, method))
    if method and find_spec(module) is None:
        raise UserError(f"{folder}: weights quantised by {method}, and its package is missing; pip install {package}")


def check_filled(folder: Path, found: dict[str, Any]) -> None:
    """What a library says of the weights it has loaded: each of the model's was in the file, and no other.

    Raises:
        UserError: some were not, or are of another model; the line names one.
    """
    for kind, complaint in zip(UNFILLED, ("lacks some", "has another shape for some", "holds more than"), strict=True):
        names = sorted(str(name) for name in found.get(kind) or ())
        names = [name for name in names if not name.endswith(HARMLESS)]
        if names:
            raise UserError(
                f"{folder}: the weights file {complaint} of the model's weights ({len(names)}, such as {names[0]}); "
                "copy or download it again, together with its config.json"
            )


def is_pickle(file: PurePath) -> bool:
    """Whether a file's name is one of pickled weights."""
    return file.suffix in PICKLES


def check_safe(file: Path) -> None:
    """A file of weights is no pickle.

    Raises:
        UserError: its name does not end in .safetensors.
    """
    if is_pickle(file):
        raise UserError(f"{file}: {UNSAFE}")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: no .safetensors file; give one, or the folder of a model")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
