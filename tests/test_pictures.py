"""Pictures as they come: colour profiles, long texts, other formats, shapes, and what Python hands over."""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from ph2p.data import Target, TargetError, from_pil, load_image
from ph2p.data.formats import formats, suffixes
from ph2p.data.images import read_image

SIZE = 16
RED, BLUE = (230, 30, 20), (20, 30, 230)


def colour_of(image: torch.Tensor) -> list[int]:
    return (image.mean((1, 2)) * 255).round().int().tolist()


def swapped_profile() -> bytes:
    """sRGB with the names of the red and the blue primary exchanged: its red is what sRGB calls blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for k in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * k
        profile[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(
            bytes(profile[at : at + 4]), profile[at : at + 4]
        )
    return bytes(profile)


# --- colour profiles ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_an_embedded_profile_counts(tmp_path, mode, suffix):
    Image.new("RGB", (20, 20), RED).convert(mode).save(
        tmp_path / f"a.{suffix}", icc_profile=swapped_profile(), lossless=True
    )
    assert colour_of(load_image(tmp_path / f"a.{suffix}", SIZE)) == pytest.approx(BLUE, abs=4)


def test_the_profile_of_srgb_changes_nothing(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise.save(tmp_path / "a.png", icc_profile=plain)
    assert (load_image(tmp_path / "a.png", SIZE) - from_pil(noise, SIZE)).abs().max() * 255 < 1.5


def test_alpha_outlives_a_profile(tmp_path):
    Image.new("RGBA", (20, 20), (*RED, 0)).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert colour_of(load_image(tmp_path / "a.png", SIZE)) == [255, 255, 255]


def test_lab_is_a_colour_as_any_other(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (20, 20), RED), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "a.tif")
    assert colour_of(load_image(tmp_path / "a.tif", SIZE)) == pytest.approx(RED, abs=4)


@pytest.mark.parametrize(
    ("mode", "profile"), [("RGB", b"nonsense"), ("CMYK", swapped_profile()), ("RGB", swapped_profile()[:200])]
)
def test_a_profile_that_cannot_be_used_is_left_aside_and_said(tmp_path, mode, profile):
    Image.new("RGB", (20, 20), RED).convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
    picture = read_image(tmp_path / "a.tif", "a.tif", SIZE)
    assert colour_of(picture.image) == pytest.approx(RED, abs=8)
    (note,) = picture.notes
    assert "colour profile" in note and "sRGB" in note and "\n" not in note


# --- sound pictures and what is wrong with others ---------------------------------------------------


def png_with(chunk: bytes, content: bytes) -> bytes:
    """A red PNG with one more chunk before its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(buffer, "PNG")
    head, tail = buffer.getvalue()[:33], buffer.getvalue()[33:]
    return (
        head + struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content)) + tail
    )


@pytest.mark.parametrize(
    ("chunk", "head"), [(b"zTXt", b"prompt\0\0"), (b"iTXt", b"workflow\0\1\0\0\0"), (b"iCCP", b"profile\0\0")]
)
def test_long_texts_and_profiles_do_not_damage_a_png(tmp_path, chunk, head):
    before = PngImagePlugin.MAX_TEXT_CHUNK
    (tmp_path / "a.png").write_bytes(png_with(chunk, head + zlib.compress(b"long" * 2**20)))
    assert colour_of(load_image(tmp_path / "a.png", SIZE)) == list(RED)
    assert before == PngImagePlugin.MAX_TEXT_CHUNK  # Pillow's own setting is that of the whole process
    (tmp_path / "b.png").write_bytes(png_with(chunk, head + zlib.compress(b"long" * 2**25)))
    with pytest.raises(TargetError, match=r"b\.png: holds more than 64 MB of text or profile"):
        load_image(tmp_path / "b.png", SIZE)


@pytest.mark.skipif(bool(importlib.util.find_spec("pillow_heif")), reason="then it is read")
def test_a_renamed_heic_says_what_it_needs(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    with pytest.raises(TargetError, match=r"a\.jpg: is a HEIC picture: pip install pillow-heif"):
        load_image(tmp_path / "a.jpg", SIZE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><html>not found", "a web page"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''/>", "a drawing"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "a film"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a drawing"),  # nor is Ghostscript started
    ],
)
def test_other_files_called_png_are_named(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(TargetError, match=rf"a\.png: is {words}|{words}"):
        load_image(tmp_path / "a.png", SIZE)


def test_pillow_decides_what_is_read(tmp_path):
    image = Image.new("RGB", (20, 20), RED)
    Image.init()
    written = 0
    for suffix in sorted(suffixes()):
        name = Image.registered_extensions()[suffix]
        try:
            image.save(tmp_path / f"a{suffix}")
        except (KeyError, OSError, ValueError):  # Pillow writes not all that it reads
            continue
        written += 1
        if name not in ("XBM", "MSP"):  # two colours
            assert colour_of(load_image(tmp_path / f"a{suffix}", SIZE)) == pytest.approx(RED, abs=12), suffix
    assert written > 25 and {".jfif", ".jp2", ".avif"} <= suffixes()
    assert not {".eps", ".ps", ".wmf", ".mpg", ".h5"} & suffixes() and "EPS" not in formats()


# --- shapes ---------------------------------------------------------------------------------------


def test_fits():
    image = Image.new("RGB", (60, 30), RED)
    image.paste(BLUE, (0, 0, 15, 30))  # the left quarter
    crop, pad, resize = (from_pil(image, (20, 20), fit) for fit in ("crop", "pad", "resize"))
    assert crop.shape == pad.shape == resize.shape == (3, 20, 20)
    assert colour_of(crop[:, :, 2:]) == list(RED)
    assert torch.equal(pad[:, :5], torch.ones(3, 5, 20)) and torch.equal(pad[:, 15:], torch.ones(3, 5, 20))
    assert colour_of(pad[:, 6:14, 1:3]) == pytest.approx(BLUE, abs=3) and colour_of(pad[:, 6:14, 8:]) == list(RED)
    assert colour_of(resize[:, :, :3]) == pytest.approx(BLUE, abs=3) and colour_of(resize[:, :, 8:]) == list(RED)


@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (500, 2), (2, 500), (1, 1)])
def test_pictures_that_are_no_squares(shape):
    for fit in ("crop", "pad", "resize"):
        assert from_pil(Image.new("RGB", shape, RED), (24, 40), fit).shape == (3, 24, 40)
    assert colour_of(from_pil(Image.new("RGB", shape, RED), (24, 40))) == list(RED)
    same = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    for fit in ("crop", "pad", "resize"):  # of the model's own shape: nothing is lost
        assert torch.equal((from_pil(same, (24, 40), fit) * 255).permute(1, 2, 0).byte(), torch.tensor(np.array(same)))


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_is_what_the_model_sees_and_nothing_else():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))

    def key(picture: Image.Image, size=SIZE, fit="crop", name="x") -> str:
        return Target(name, name, from_pil(picture, size, fit)).key

    assert key(image) == key(image.convert("RGBA"), name="another") and int(key(image), 16)
    others = [key(image), key(image, fit="pad"), key(image, (SIZE, 8)), key(image.rotate(90))]
    assert len(set(others)) == 4 and {len(one) for one in others} == {16}


def test_a_picture_without_pixels_is_none():
    with pytest.raises(ValueError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 4)), SIZE)
