"""Ways to load a generator: single files, LoRA weights, parts left out, and the options that save memory."""

import json
import re
import shutil

import diffusers
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from pipelines import save_family, save_pipeline
from safetensors.torch import load_file, save_file

from ph2p.config import load_config
from ph2p.engine import load_inverter
from ph2p.errors import UserError
from ph2p.generators import load_generator

TEXT = "red dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("loading")
    made = {name: save_family(root / name, name) for name in ("sdxl", "sd3", "pixart")}
    return made | {"sd": save_pipeline(root / "sd")}


def prediction(generator, gradient=False):
    """What the denoiser makes of a noisy latent under a prompt, or the prompt's gradient of its sum of squares."""
    ids = torch.tensor([generator.vocabulary.encode(TEXT)])
    noisy = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    prompt = generator.vocabulary.embed(ids).requires_grad_(gradient)
    output = generator.predict(noisy, torch.tensor([700]), generator.condition(ids, prompt))
    return torch.autograd.grad(output.square().sum(), prompt)[0] if gradient else output


# --- single files ------------------------------------------------------------------------------------------------

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {  # the small U-Net's parts under the names of the original code of Stable Diffusion
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.0\.downsamplers\.0", "down.0.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_q", "q"),
    (r"to_k", "k"),
    (r"to_v", "v"),
    (r"to_out\.0", "proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def save_checkpoint(folder, file):
    """One file as Stable Diffusion's original code writes it, of a small pipeline's folder."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights = {}
    for name, value in pipeline.unet.state_dict().items():
        part = next(part for part in UNET if name.startswith(part + "."))
        rest = name[len(part) + 1 :]
        if ".resnets." in part:
            layer = rest.rpartition(".")[0]
            rest = rest.replace(layer, RESNET[layer], 1)
        weights[f"model.diffusion_model.{UNET[part]}.{rest}"] = value
    for name, value in pipeline.vae.state_dict().items():
        attention = ".attentions." in name and "norm" not in name and name.endswith("weight")
        for pattern, original in VAE:
            name = re.sub(pattern, original, name)
        weights[f"first_stage_model.{name}"] = value[..., None, None] if attention else value
    for name, value in pipeline.text_encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{name}"] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, file)


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
    """LoRA weights of U-Net and text encoder, as training scripts save them."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    layers = {}
    for name, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        part = getattr(pipeline, name)
        part.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(part))
    pipeline.save_lora_weights(folder, **layers)
    return folder


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
        ("sd", tmp_path / "odd.safetensors", "odd.safetensors: cannot be loaded .*give LoRA weights of this model"),
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


# --- memory ------------------------------------------------------------------------------------------------------


def test_offloaded_parts_are_on_the_device_only_while_they_work(folders, monkeypatch):
    generator = load_generator(folders["sd3"], offload=True)
    moves = []
    for name in ("vae", "text_encoder_3"):
        part = generator.components[name]
        monkeypatch.setattr(part, "to", lambda *to, name=name: moves.append((name, str(to[0]))))
    monkeypatch.setattr(type(generator), "device", property(lambda self: torch.device("cpu", 0)))
    generator.encode_images(torch.rand(1, 3, 16, 16))
    assert moves == [("vae", "cpu:0"), ("vae", "cpu")]
    moves.clear()
    for _ in range(2):  # the second time the text is known
        generator.condition(torch.tensor([generator.vocabulary.encode(TEXT)]))
    assert moves == [("text_encoder_3", "cpu:0"), ("text_encoder_3", "cpu")]


def test_gradient_checkpointing_changes_no_gradient(folders):
    for name in ("sdxl", "sd3", "pixart"):
        saving, plain = (load_generator(folders[name], gradient_checkpointing=on) for on in (True, False))
        assert any(getattr(part, "gradient_checkpointing", False) for part in saving.denoiser.modules())
        torch.testing.assert_close(prediction(saving, gradient=True), prediction(plain, gradient=True))


def test_vae_tiling_is_the_pipelines(folders):
    generator = load_generator(folders["sd"], vae_tiling=True, image_size=32)
    plain = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    pictures, scale = torch.rand(1, 3, 32, 32), plain.vae.config.scaling_factor
    with torch.no_grad():
        whole = plain.vae.encode(2 * pictures - 1).latent_dist.mode() * scale
        plain.vae.enable_tiling()
        tiled = plain.vae.encode(2 * pictures - 1).latent_dist.mode() * scale
    torch.testing.assert_close(generator.encode_images(pictures), tiled)
    assert (whole - tiled).abs().max() > 1e-4


def test_compiling_compiles_the_denoiser(folders, monkeypatch):
    compiled = []
    monkeypatch.setattr(diffusers.SD3Transformer2DModel, "compile", lambda self: compiled.append(self))
    generator = load_generator(folders["sd3"], compile=True)
    assert compiled == [generator.pipeline.transformer]


# --- options that a family does not know -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sd", dict(omit=["vae"]), r"generator.omit=\['vae'\]: of StableDiffusionPipeline nothing may be left out"),
        ("sd3", dict(omit=["vae"]), "may be left out: text_encoder_3, tokenizer_3"),
        ("pixart", dict(clip_skip=1), "generator.clip_skip=1: PixArtSigmaPipeline has none"),
        ("sd", dict(image_size=20), "generator.image_size=20: this model needs a multiple of 8"),
    ],
)
def test_options_that_do_not_fit_give_one_line(folders, name, options, message):
    with pytest.raises(UserError, match=message):
        load_generator(folders[name], **options)


def test_guidance_that_cannot_be_rescaled_stops_before_the_run(folders, tmp_path):
    words = [f"generator.path={folders['sd3']}", "generator.allowlist=null", "trainer=cpu"]
    words += ["generator.guidance_rescale=0.7"]
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
