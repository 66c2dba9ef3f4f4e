"""Ways to load a generator: single files, LoRA weights, parts left out."""

import json
import re
import shutil

import diffusers
import pytest
import torch
from checkpoints import prediction, save_checkpoint, save_lora
from pipelines import save_family, save_pipeline
from safetensors.torch import load_file, save_file

from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.models.generators import load_generator
from ph2p.run.build import load_inverter

TEXT = "red dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("loading")
    made = {name: save_family(root / name, name) for name in ("sdxl", "sd3", "pixart")}
    return made | {"sd": save_pipeline(root / "sd")}


# --- single files ------------------------------------------------------------------------------------------------


def test_a_single_file_is_the_folder_it_was_made_of(folders, tmp_path):
    file, config = tmp_path / "model.safetensors", tmp_path / "config"
    save_checkpoint(folders["sd"], file)
    shutil.copytree(folders["sd"], config, ignore=shutil.ignore_patterns("*.safetensors"))
    generator, expected = load_generator(file, config=config), load_generator(folders["sd"])
    torch.testing.assert_close(prediction(generator), prediction(expected))
    pictures = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(generator.encode_images(pictures), expected.encode_images(pictures))
    half = load_generator(file, config=config, dtype=torch.bfloat16)
    assert (half.pipeline.unet.dtype, half.pipeline.vae.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("suffix", ["ckpt", "bin", "pt"])
def test_pickled_files_are_refused(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"whatever")
    with pytest.raises(UserError, match=f"model.{suffix}: pickled weights are unsafe; convert"):
        load_generator(file)


def test_bad_single_files_give_one_line(folders, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"something.else": torch.zeros(2)}, file)
    for config in (folders["sd"], folders["pixart"], tmp_path / "nowhere", None):
        with pytest.raises(UserError) as caught:
            load_generator(file, config=config, local_files_only=True, cache_dir=tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"notes.txt: no .safetensors file; give one"):
        (tmp_path / "notes.txt").write_text("words")
        load_generator(tmp_path / "notes.txt")


# --- LoRA --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(folders, tmp_path_factory):
    pytest.importorskip("peft")
    return save_lora(folders["sd"], tmp_path_factory.mktemp("lora"))


def test_lora_weights_are_those_that_diffusers_loads(folders, lora):
    plain = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    plain.load_lora_weights(str(lora))
    plain.set_adapters(plain.get_active_adapters(), 0.5)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = plain.encode_prompt([TEXT], "cpu", 1, False)[0]
        expected = plain.unet(noisy, torch.tensor([700]), text).sample
    for place in (lora, lora / "pytorch_lora_weights.safetensors"):
        generator = load_generator(folders["sd"], lora=place, lora_scale=0.5)
        torch.testing.assert_close(prediction(generator), expected, atol=1e-5, rtol=1e-4)
    assert (prediction(load_generator(folders["sd"])) - expected).abs().max() > 1e-3
    assert not any(weight.requires_grad for weight in generator.parameters())


def test_bad_lora_weights_give_one_line(folders, lora, tmp_path):
    (tmp_path / "lora.bin").write_bytes(b"whatever")
    save_file({"unet.nothing.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    for name, file, message in (
        ("sd", tmp_path / "lora.bin", "lora.bin: pickled weights are unsafe"),
        ("sd", tmp_path / "none", "no such file or folder"),
        ("pixart", lora, "PixArtSigmaPipeline takes no LoRA weights"),
        (
            "sd",
            tmp_path / "odd.safetensors",
            "odd.safetensors: 1 of 1 weights fit nothing in this model .*give LoRA weights of this",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_generator(folders[name], lora=file)
        assert "\n" not in str(caught.value)


# --- parts left out, layers passed over --------------------------------------------------------------------------


def test_stable_diffusion_3_without_t5(folders, tmp_path):
    full = folders["sd3"]
    copy = tmp_path / "copy"
    shutil.copytree(full, copy, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    plain = diffusers.StableDiffusion3Pipeline.from_pretrained(full, text_encoder_3=None, tokenizer_3=None)
    plain.set_progress_bar_config(disable=True)
    states, _, pooled, _ = plain.encode_prompt([TEXT], None, None, do_classifier_free_guidance=False)
    options = dict(num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(3))
    picture = plain(TEXT, guidance_scale=3.0, **options).images
    for generator in (load_generator(copy), load_generator(full, omit=["text_encoder_3"])):
        ids = torch.tensor([generator.vocabulary.encode(TEXT)])
        ours = generator.condition(ids)
        torch.testing.assert_close(ours["encoder_hidden_states"], states)
        torch.testing.assert_close(ours["pooled_projections"], pooled)
        ours = generator.sample([TEXT], [3], steps=2, guidance_scale=3.0)
        torch.testing.assert_close(ours, picture, atol=1e-5, rtol=1e-5)


def test_t5_follows_the_projected_text(folders):
    generator = load_generator(folders["sd3"])
    ids = torch.tensor([generator.vocabulary.encode(text) for text in ("red dog", "blue circle")])
    soft = torch.zeros(2, 2, 28)  # whatever the prompt is, T5 reads the tokens
    states = generator.condition(ids, soft)["encoder_hidden_states"][:, 12:]
    torch.testing.assert_close(states, generator.condition(ids)["encoder_hidden_states"][:, 12:])
    alone = generator.condition(ids[1:])["encoder_hidden_states"][:, 12:]
    torch.testing.assert_close(states[1:], alone)
    assert (states[0] - states[1]).abs().max() > 1e-2
    fresh = load_generator(folders["sd3"]).condition(ids[1:])["encoder_hidden_states"][:, 12:]
    torch.testing.assert_close(alone, fresh)  # what was kept is what would be computed


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_clip_skip_is_the_pipelines(folders, name):
    generator = load_generator(folders[name], clip_skip=1)
    plain = diffusers.DiffusionPipeline.from_pretrained(folders[name], safety_checker=None)
    if name == "sd":  # diffusers reaches for an attribute that newer text encoders lack
        object.__setattr__(plain.text_encoder, "text_model", plain.text_encoder)
    more = dict(prompt_2=None, prompt_3=None) if name == "sd3" else {}
    options = dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=1)
    with torch.no_grad():
        expected = plain.encode_prompt([TEXT], **more, **options)[0]
    ids = torch.tensor([generator.vocabulary.encode(TEXT)])
    torch.testing.assert_close(generator.condition(ids)["encoder_hidden_states"], expected, atol=1e-5, rtol=1e-5)
    other = load_generator(folders[name]).condition(ids)["encoder_hidden_states"]
    assert (other - expected).abs().max() > 1e-2
    assert generator.sample([TEXT], [0], steps=1).shape == (1, 3, 16, 16)


def test_a_tokenizer_of_sentencepiece_alone_will_do(folders, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    copy = tmp_path / "copy"
    shutil.copytree(folders["pixart"], copy)
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    (tmp_path / "text").write_text("red dog above a small blue circle\n" * 20)
    special = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>")
    options = dict(vocab_size=60, hard_vocab_limit=False, model_type="unigram", minloglevel=2, **special)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(copy / "tokenizer" / "spiece"), **options
    )
    (copy / "tokenizer" / "spiece.vocab").unlink()
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"}
    (copy / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    generator = load_generator(copy)
    ids = generator.vocabulary.encode(TEXT)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(copy / "tokenizer" / "spiece.model"))
    assert ids == reference.encode(TEXT)


# --- options that a family does not know -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sd", dict(omit=["vae"]), r"generator.omit=\['vae'\]: of StableDiffusionPipeline nothing may be left out"),
        ("sd3", dict(omit=["vae"]), "may be left out: text_encoder_3, tokenizer_3"),
        ("pixart", dict(clip_skip=1), "generator.clip_skip=1: PixArtSigmaPipeline has none"),
        ("sd", dict(clip_skip=9), "generator.clip_skip=9: the text encoder has fewer layers"),
        ("sdxl", dict(clip_skip=9), "generator.clip_skip=9: the text encoder has fewer layers"),
        ("sd", dict(config="owner/model"), "generator.config=owner/model: is for a single file"),
        ("sd", dict(revision="v1"), "generator.revision=v1: .*/sd is no model on the hub"),
        ("sd", dict(image_size=20), "generator.image_size=20: this model needs a multiple of 8"),
    ],
)
def test_options_that_do_not_fit_give_one_line(folders, name, options, message):
    with pytest.raises(UserError, match=message):
        load_generator(folders[name], **options)


def test_guidance_that_cannot_be_rescaled_stops_before_the_run(folders, tmp_path):
    words = [f"generator.path={folders['sd3']}", "generator.allowlist=null", "trainer=cpu", "method.prompt_length=3"]
    words += ["generator.guidance_rescale=0.7", "method.prompt_length=8"]
    with pytest.raises(UserError, match=r"generator.guidance_rescale=0.7: StableDiffusion3Pipeline has none; give 0"):
        load_inverter(load_config(words))


def test_text_encoders_of_different_vocabularies_are_refused(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["sdxl"], copy)
    file = copy / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text())
    table = content["model"]["vocab"]
    table["a"], table["b"] = table["b"], table["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer_2: other tokens than tokenizer"):
        load_generator(copy)


def test_every_configured_model_is_of_a_known_shape():
    for name in ("sd15", "sd21", "sdxl", "sdxl_turbo", "sd3", "sd35", "flux", "pixart"):
        cfg = load_config([f"generator={name}"]).generator
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", cfg.path) and cfg.allowlist is None and cfg.guidance_rescale == 0


def test_weights_of_the_wrong_shape_give_one_line(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["sdxl"], copy)
    file = copy / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    save_file({name: value[..., :-1].contiguous() for name, value in weights.items()}, file, {"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_generator(copy)
    assert "\n" not in str(caught.value)
