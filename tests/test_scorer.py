"""The scorer against transformers' own processor and model, for CLIP and SigLIP; what is wrong with a model."""

import io
import json
import shutil
from functools import partial

import pytest
import sentencepiece
import torch
from PIL import Image
from pipelines import save_clip
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.models.conv_tower import ConvTowerConfig
from ph2p.models.scorer import load_scorer, pixels_of
from ph2p.run.build import load_inverter

SENTENCES = ["a red dog", "a small blue circle above the green square", "dogs below a red circle", "red square"]
TEXTS = ["red dog", "A small blue circle", "red " * 100]


def save_siglip(folder):
    """A SiglipModel folder for 16-pixel images and 64 tokens, with a sentencepiece tokenizer of its own."""
    torch.manual_seed(2)
    folder.mkdir()
    table = io.BytesIO()
    options = dict(vocab_size=40, hard_vocab_limit=False, minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 5), model_writer=table, **options)
    (folder / "spiece.model").write_bytes(table.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_input_names=["input_ids"])
    tower = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    text = tower | dict(vocab_size=len(tokenizer), max_position_embeddings=64)
    vision = tower | dict(image_size=16, patch_size=4)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_dual(folder):
    """A dual encoder for 16-pixel images: CLIP's text tower, tokenizer and processor with a convolutional tower."""
    clip = CLIPModel.from_pretrained(save_clip(folder))
    (folder / "config.json").unlink()
    vision = ConvTowerConfig(widths=(8, 16), image_size=16)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, clip.config.text_config, projection_dim=12)
    VisionTextDualEncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("scorers")
    kinds = {"clip": save_clip, "siglip": save_siglip, "dual": save_dual}
    return {kind: save(place / kind) for kind, save in kinds.items()}


@pytest.fixture(scope="module", params=["clip", "siglip", "dual"])
def pair(request, folders):
    """The scorer and what transformers makes of the same folder: its model and its processor."""
    folder = folders[request.param]
    kinds = {"clip": (CLIPModel, CLIPProcessor), "siglip": (SiglipModel, SiglipProcessor)}
    kinds["dual"] = (VisionTextDualEncoderModel, CLIPProcessor)
    model, processor = kinds[request.param]
    parts = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return load_scorer(folder), model.from_pretrained(folder).eval(), processor(*parts)


def expected(model, processor, picture, texts):
    """Unit features by the model's own forward."""
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding="max_length", truncation=True)
    with torch.no_grad():
        output = model(**inputs)
    unit = torch.nn.functional.normalize
    return unit(output.image_embeds, dim=-1), unit(output.text_embeds, dim=-1)


@pytest.mark.parametrize("shape", [(16, 16), (37, 50), (60, 41), (9, 16), (3, 40)])
def test_features_equal_those_of_the_processor_and_model(pair, shape):
    scorer, model, processor = pair
    levels = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
    image_features, text_features = expected(model, processor, picture, TEXTS)
    noise = 0.4 * torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)) - 0.2  # of a level
    for image in (levels.float(), levels + noise):
        found = scorer.image_features((image / 255).clamp(0, 1)[None])
        torch.testing.assert_close(found, image_features, atol=1e-6, rtol=0)
    found = scorer.text_features(TEXTS)
    torch.testing.assert_close(found, text_features, atol=1e-6, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("shape", [(512, 512), (300, 700), (60, 32)])
def test_pixels_equal_those_of_the_processors_at_true_size(shape):
    levels = torch.randint(256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]
    for processor in (CLIPImageProcessorPil(), SiglipImageProcessorPil(), SiglipImageProcessorPil(resample=2)):
        theirs = processor(pictures, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels_of(processor, levels / 255), theirs)


def test_the_two_shape_pictures_in_different_ways(folders):
    wide = torch.rand(1, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    clip, siglip = (load_scorer(folders[kind]) for kind in ("clip", "siglip"))
    torch.testing.assert_close(clip.image_features(wide), clip.image_features(wide[..., 12:28]))  # the centre
    assert (siglip.image_features(wide) - siglip.image_features(wide[..., 12:28])).abs().max() > 1e-3  # all of it


def test_text_features_from_embeddings(folders):
    for kind in ("clip", "siglip", "dual"):
        scorer = load_scorer(folders[kind]).double()
        ids = scorer.tokenizer(["red dog", "red dog"], add_special_tokens=False, return_tensors="pt").input_ids
        embeddings = scorer.embeddings[ids].clone().requires_grad_()
        features = scorer.text_features_from(ids, embeddings)
        torch.testing.assert_close(features, scorer.text_features(["red dog", "red dog"]))
        torch.autograd.gradcheck(partial(scorer.text_features_from, ids), embeddings, fast_mode=True)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_end(folder):
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["eos_token_id"] = 49_407  # transformers' default, whatever the vocabulary
    (folder / "config.json").write_text(json.dumps(content))


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lacking(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def untabled(folder):
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)


BAD = {
    pickled: "only pickled weights",
    other_end: "eos_token_id of config.json and tokenizer differ",
    truncated: "cannot be loaded",
    lacking: "lacks some of the model's weights",
    untabled: "the tokenizer's tables are missing",
    lambda folder: (folder / "config.json").unlink(): "config.json: .*give the folder or hub id of a CLIP",
    lambda folder: edit(folder / "config.json", model_type="bert"): "a model of type bert",
    lambda folder: (folder / "preprocessor_config.json").unlink(): "preprocessor_config.json is missing",
    lambda folder: edit(folder / "preprocessor_config.json", crop_size=8): "does not make 16 x 16 pixels",
}


@pytest.mark.parametrize(("damage", "message"), BAD.items(), ids=BAD.values())
def test_a_bad_folder_gives_one_line(folders, tmp_path, damage, message):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_scorer(folder)
    assert "\n" not in str(caught.value)


def test_a_dual_encoder_has_clips_text_tower(folders, tmp_path):
    folder = shutil.copytree(folders["dual"], tmp_path / "dual")
    content = json.loads((folder / "config.json").read_text())
    edit(
        folder / "config.json",
        text_config=BertConfig().to_dict() | {"vocab_size": content["text_config"]["vocab_size"]},
    )
    with pytest.raises(UserError, match="its text tower is a bert, not CLIP's; give the folder"):
        load_scorer(folder)


def test_the_clip_objective_needs_the_generators_tokens(folders, model_overrides, targets, tmp_path):
    words = [*model_overrides, "method=pez", "method.prompt_length=2", "trainer=cpu", "debug=quick"]
    load_inverter(load_config(words))
    swapped = shutil.copytree(folders["clip"], tmp_path / "clip")
    ids = json.loads((swapped / "vocab.json").read_text())
    ids["red</w>"], ids["dog</w>"] = ids["dog</w>"], ids["red</w>"]  # the same words and shape, other numbers
    (swapped / "vocab.json").write_text(json.dumps(ids))
    for other in (swapped, folders["siglip"]):
        with pytest.raises(UserError, match=r"method.objective=clip: .*scorer.path"):
            load_inverter(load_config([*words, f"scorer.path={other}"]))


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(UserError, match=r"scorer\.revision=v1: .* is no model on the hub"):
        load_scorer(tmp_path, revision="v1")
