"""Weights in several files with an index, as those of large models come: from a folder and from the hub."""

import json
import shutil

import diffusers
import pytest
from checkpoints import prediction
from hub import connect, running_hub
from pipelines import save_clip, save_family, save_pipeline
from torch.testing import assert_close
from transformers import CLIPModel

from ph2p.errors import UserError
from ph2p.models.generators import load_generator
from ph2p.models.scorer import load_scorer

SHARDS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pipelines, and the same ones (`-cut`) with denoiser and text encoders in shards of 15 kB."""
    root = tmp_path_factory.mktemp("shards")
    made = {name: save_family(root / name, name) for name in ("sdxl", "sd3", "flux")}
    made["sd"] = save_pipeline(root / "sd")
    for name, folder in list(made.items()):
        made[f"{name}-cut"] = shutil.copytree(folder, root / f"{name}-cut")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        for part in SHARDS:
            if (folder / part).is_dir():
                cut(getattr(pipeline, part), root / f"{name}-cut" / part)
    return made


def cut(model, folder, **options):
    """Save in shards, in the place of what was there."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="15KB", **options)
    assert len(list(folder.glob("*-00001-of-*.safetensors"))) == 1 and len(list(folder.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_shards_are_the_whole(folders, monkeypatch, tmp_path, name):
    expected = prediction(load_generator(folders[name]))
    assert_close(prediction(load_generator(folders[f"{name}-cut"])), expected)
    with running_hub() as hub:
        hub.add("owner/model", folders[f"{name}-cut"])
        connect(monkeypatch, hub, tmp_path)
        assert_close(prediction(load_generator("owner/model")), expected)
    assert_close(prediction(load_generator("owner/model", local_files_only=True)), expected)


@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
def test_a_missing_shard_gives_one_line(folders, monkeypatch, tmp_path, part):
    copy = shutil.copytree(folders["sdxl-cut"], tmp_path / "copy")
    shard = sorted((copy / part).glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    message = f"{part}/{shard.name}: this shard of the weights is missing; copy or download the whole model$"
    with pytest.raises(UserError, match=message):
        load_generator(copy)
    with running_hub() as hub:
        hub.add("owner/model", copy)
        connect(monkeypatch, hub, tmp_path / "home")
        with pytest.raises(UserError, match=message):
            load_generator("owner/model")


def test_only_the_index_of_the_variant_counts(folders, tmp_path):
    copy = shutil.copytree(folders["sd-cut"], tmp_path / "copy")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(copy, safety_checker=None)
    pipeline.unet.half().save_pretrained(copy / "unet", variant="fp16", max_shard_size="15KB")
    plain, half = (sorted((copy / "unet").glob(f"*model{dot}*00002-of*.safetensors"))[0] for dot in ("-", ".fp16-"))
    kept = half.read_bytes()
    half.unlink()
    load_generator(copy)
    with pytest.raises(UserError, match=f"{half.name}: this shard"):
        load_generator(copy, variant="fp16")
    half.write_bytes(kept)
    plain.unlink()
    load_generator(copy, variant="fp16")
    with pytest.raises(UserError, match=f"{plain.name}: this shard"):
        load_generator(copy)


def test_a_bad_index_gives_one_line(folders, tmp_path):
    copy = shutil.copytree(folders["sd-cut"], tmp_path / "copy")
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    maps = ("{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ["b"]}}')
    for content, message in ({"{": "not valid JSON"} | dict.fromkeys(maps, "it names no shards")).items():
        index.write_text(content)
        with pytest.raises(UserError, match=f"index.json: .*{message}.*; copy or download the whole model$"):
            load_generator(copy)


def test_a_scorer_in_shards(monkeypatch, tmp_path):
    folder = save_clip(tmp_path / "clip")
    expected = load_scorer(folder).text_features(["red dog"])
    single = (folder / "model.safetensors").read_bytes()
    cut(CLIPModel.from_pretrained(folder), folder)
    with running_hub() as hub:
        hub.add("owner/clip", folder)
        connect(monkeypatch, hub, tmp_path / "home")
        for place in (folder, "owner/clip"):
            assert_close(load_scorer(place).text_features(["red dog"]), expected)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / sorted(set(index["weight_map"].values()))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: this shard of the weights is missing"):
        load_scorer(folder)
    (folder / "model.safetensors").write_bytes(single)  # an index that was left behind beside the whole
    assert_close(load_scorer(folder).text_features(["red dog"]), expected)
