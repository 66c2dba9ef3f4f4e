"""Draw the atlases anew from the icon sets that NOTICE names.

    npm install @iconify-json/fluent-emoji-flat @iconify-json/fluent-emoji @iconify-json/noto \
        @iconify-json/noto-v1 @iconify-json/twemoji @iconify-json/emojione @iconify-json/fxemoji emojibase-data
    pip install 'ph2p[sprites]'
    python -m ph2p.world.sprites.render --packages node_modules
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ph2p.world.sprites import COLUMNS, HELD_OUT_STYLE, HERE, SIDE, STYLES, table

DRAWN_AT = 256  # pixels, before a sprite is cropped and made small


def render_atlases(packages: Path, folder: Path) -> None:
    """Write one lossless WebP a style. Raises KeyError for an icon that a set lacks."""
    rows = table()
    check_synonyms(rows, json.loads((packages / "emojibase-data" / "en" / "data.json").read_text(encoding="utf-8")))
    for style in (*STYLES, HELD_OUT_STYLE):
        icons = json.loads((packages / "@iconify-json" / style / "icons.json").read_text(encoding="utf-8"))
        names = [row["fxemoji" if style == HELD_OUT_STYLE else "icon"] for row in rows]
        path = folder / f"{style}.webp"
        atlas([draw(svg(icons, name)) for name in names]).save(path, lossless=True, quality=100, method=6)
        print(f"{path}: {len(names)} sprites, {path.stat().st_size / 1e3:.0f} KB", flush=True)


def check_synonyms(rows: list[dict[str, str]], emojis: list[dict[str, Any]]) -> None:
    """Raise ValueError for a synonym that is not among emojibase's words for the same picture."""
    said = {_name(e["label"]): {_name(word) for word in [*e["tags"], e["label"]]} for e in emojis if "tags" in e}
    for row in rows:
        unknown = set(row["synonyms"].split()) - said[row["icon"]] - {row["icon"]}
        if unknown:
            raise ValueError(f"{row['noun']}: emojibase does not call it {', '.join(sorted(unknown))}")


def _name(label: str) -> str:
    return label.lower().replace("\u2019", "").replace("'", "").replace(" ", "-")


def svg(icons: dict[str, Any], name: str) -> str:
    """Return an icon of an Iconify set as an SVG document."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'


def draw(document: str) -> Image.Image:
    """Draw an SVG document: RGBA, 64x64, cropped to what is seen and as large as fits."""
    try:
        import resvg_py
    except ImportError as error:
        raise SystemExit("drawing the sprites needs resvg-py: pip install 'ph2p[sprites]'") from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=document, width=DRAWN_AT))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    seen = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    image = image.crop(seen).convert("RGBa")  # premultiplied: transparent pixels lend no colour to their neighbours
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (SIDE, SIDE))
    sprite.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return sprite


def atlas(sprites: list[Image.Image]) -> Image.Image:
    """Put sprites into rows of 12."""
    rows = -(-len(sprites) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for number, sprite in enumerate(sprites):
        sheet.paste(sprite, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="node_modules, where npm put the icon sets")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the atlases are written")
    options = parser.parse_args()
    render_atlases(options.packages, options.folder)
