"""What can be known of a model before any work is found out at load; what was asked for and came to nothing is told."""

import json
import shutil
import warnings

import diffusers
import pytest
import torch
from checkpoints import prediction, save_lora
from diffusers import AutoencoderTiny, DDIMScheduler, LCMScheduler, PNDMScheduler
from pipelines import WORDS, save_family, save_pipeline
from safetensors.torch import load_file, save_file

from ph2p.errors import UserError
from ph2p.models.counter import Spent
from ph2p.models.generators import load_generator
from ph2p.models.generators.base import lay_out
from ph2p.models.microbatch import MicroBatch

TEXT_WEIGHTS = "text_encoder/model.safetensors"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checks")
    made = {name: save_family(root / name, name) for name in ("sd3", "flux_schnell")}
    return made | {"sd": save_pipeline(root / "sd")}


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders["sd"], tmp_path / "copy")


def complaint(*words, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_generator(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(file, edit) -> None:
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, {"format": "pt"})


def edit_json(file, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- what a library passes over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [TEXT_WEIGHTS, UNET_WEIGHTS])
def test_weights_that_the_file_lacks_or_has_too_many_are_named(copy, file):
    def lose(weights):
        weights.pop(sorted(weights)[0])

    name = sorted(load_file(copy / file))[0]
    change(copy / file, lambda weights: weights.update({"odd.weight": torch.zeros(2)}))
    assert "holds more than of the model's weights (1, such as odd.weight)" in complaint(copy)
    change(copy / file, lambda weights: weights.pop("odd.weight"))
    load_generator(copy)
    change(copy / file, lose)
    line = complaint(copy)
    assert "lacks some of the model's weights (1, such as" in line and name.removeprefix("text_model.") in line


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_lora_weights_that_fit_in_part_are_refused_and_named(folders, tmp_path, share):
    pytest.importorskip("peft")
    lora = save_lora(folders["sd"], tmp_path / "lora")
    file = lora / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    keys = sorted(weights)
    odd = set(keys[: round(share * len(keys))])
    renamed = {
        key.replace("attn", "other").replace("self_other", "other") if key in odd else key: v
        for key, v in weights.items()
    }
    save_file(renamed, file, {"format": "pt"})
    line = complaint(folders["sd"], lora=lora)
    assert f"{lora}: {len(odd)} of {len(keys)} weights fit nothing in this model (" in line
    assert ".other" in line


def test_lora_weights_without_their_counterparts_are_refused(folders, tmp_path):
    pytest.importorskip("peft")
    lora = save_lora(folders["sd"], tmp_path / "lora")
    change(lora / "pytorch_lora_weights.safetensors", lambda weights: weights.pop(sorted(weights)[0]))
    assert str(lora) in complaint(folders["sd"], lora=lora)


def test_options_that_a_scheduler_ignores_are_refused_where_they_matter(copy):
    file = copy / "scheduler" / "scheduler_config.json"
    edit_json(file, skip_prk_steps=True)  # of another scheduler: such files are common, and nothing changes
    load_generator(copy)
    edit_json(file, prediction_typ="v_prediction")
    assert "DDIMScheduler has no option prediction_typ; take it out" in complaint(copy)
    config = json.loads(file.read_text())
    config.pop("prediction_typ")
    file.write_text(json.dumps(config | {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}))
    edit_json(copy / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    assert "PNDMScheduler has no option rescale_betas_zero_snr" in complaint(copy)


def test_an_allowlist_of_which_no_word_exists_is_named(folders):
    assert "none of the allowlist's words (unheard, zebra, ...)" in complaint(
        folders["sd"], allowlist=["zebra", "unheard"]
    )
    load_generator(folders["sd"], allowlist=["zebra", WORDS[1]])


# --- files -------------------------------------------------------------------------------------------------------


def test_a_folder_of_one_variant_says_which(copy):
    for file in list(copy.glob("*/*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert complaint(copy).endswith("only weights of the variant fp16; give generator.variant=fp16")
    load_generator(copy, variant="fp16")


def test_quantised_weights_without_their_package_say_what_to_install(copy):
    edit_json(copy / "text_encoder" / "config.json", quantization_config={"quant_method": "nonesuch_4bit"})
    assert complaint(copy).endswith("weights quantised by nonesuch, and its package is missing; pip install nonesuch")


def test_a_single_file_without_its_configuration_says_what_to_give(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"cond_stage_model.transformer.text_model.x": torch.zeros(2)}, file)
    assert "generator.config" in complaint(file, local_files_only=True, cache_dir=tmp_path)


# --- parts that do not fit ---------------------------------------------------------------------------------------


def test_a_unet_for_inpainting_is_refused(copy):
    unet = diffusers.UNet2DConditionModel.from_pretrained(copy, subfolder="unet")
    diffusers.UNet2DConditionModel(**dict(unet.config) | {"in_channels": 9}).save_pretrained(copy / "unet")
    assert "takes 9 channels and the VAE gives 4; take a text-to-image model" in complaint(copy)


def test_texts_of_another_width_are_refused_when_loaded(copy, folders, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(copy, subfolder="unet")
    width = unet.config.cross_attention_dim
    diffusers.UNet2DConditionModel(**dict(unet.config) | {"cross_attention_dim": 2 * width}).save_pretrained(
        copy / "unet"
    )
    assert f"takes texts of width {2 * width} and the text encoder gives {width} (encoder_hidden" in complaint(copy)
    flux = shutil.copytree(folders["flux_schnell"], tmp_path / "flux")
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(flux, subfolder="transformer")
    pooled = transformer.config.pooled_projection_dim
    options = dict(transformer.config) | {"pooled_projection_dim": pooled + 1}
    diffusers.FluxTransformer2DModel(**options).save_pretrained(flux / "transformer")
    assert f"takes texts of width {pooled + 1} and the text encoder gives {pooled} (pooled_proj" in complaint(flux)


def test_a_tiny_autoencoder_encodes_and_decodes_as_its_own(copy):
    torch.manual_seed(0)
    sizes = dict(block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        **{key: value for key, value in sizes.items() if key != "block_out_channels"},
    ).eval()
    shutil.rmtree(copy / "vae")
    tiny.save_pretrained(copy / "vae")
    edit_json(copy / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    generator = load_generator(copy)
    pictures = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latents = tiny.encode(2 * pictures - 1).latents
        decoded = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(generator.encode_images(pictures), latents)
    torch.testing.assert_close(generator.decode_latents(latents), decoded)


@pytest.mark.parametrize("size", [0, [16], [16, 24, 3], [16, -8], "big"])
def test_sizes_that_are_none_are_refused(folders, size):
    assert f"generator.image_size={size}: give [height, width] in pixels" in complaint(folders["sd"], image_size=size)


def test_sizes_that_a_model_cannot_paint_are_refused(folders):
    assert "generator.image_size=[16, 20]: this model needs a multiple of 8" in complaint(
        folders["sd"], image_size=[16, 20]
    )
    assert "at most 32 pixels" in complaint(folders["sd3"], image_size=40)


@pytest.mark.parametrize(("scheduler", "possible", "impossible"), [(LCMScheduler, 50, 51), (DDIMScheduler, 30, 1000)])
def test_steps_that_a_scheduler_cannot_paint_in_are_refused_before_the_work(tmp_path, scheduler, possible, impossible):
    generator = load_generator(save_pipeline(tmp_path / "sd", scheduler=scheduler))
    generator.check_sampling({"generator.steps": possible}, 0.0)
    with pytest.raises(UserError, match=rf"method.selection.steps={impossible}: {scheduler.__name__} cannot paint in"):
        generator.check_sampling({"generator.steps": possible, "method.selection.steps": impossible}, 0.0)


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_usual_steps_pass_in_flow_matching(folders, name):
    load_generator(folders[name], image_size=16).check_sampling({"generator.steps": 28, "x": 4}, 0.0)


# --- costs -------------------------------------------------------------------------------------------------------


def test_the_counter_counts_what_really_goes_through_the_denoiser(folders, tmp_path):
    generator = load_generator(folders["sd"])
    prediction(generator)
    prediction(generator, gradient=True)
    before = generator.counter.read()
    assert before == Spent(2, 1)
    generator.sample(["red", "dog"], [0, 1], steps=3, guidance_scale=4.0)
    assert generator.counter.read() - before == Spent(2 * 2 * 3)
    before = generator.counter.read()
    generator.sample(["red", "dog"], [0, 1], steps=3, guidance_scale=1.0)
    assert generator.counter.read() - before == Spent(2 * 3)
    pndm = load_generator(save_pipeline(tmp_path / "pndm", scheduler=PNDMScheduler, skip_prk_steps=True))
    pndm.sample(["red"], [0], steps=3, guidance_scale=4.0)
    assert pndm.counter.read() == Spent(2 * 4)  # it takes one step twice
    flux = load_generator(folders["flux_schnell"], image_size=16)
    flux.sample(["red"], [0], steps=3, guidance_scale=4.0)
    assert flux.counter.read() == Spent(3)  # guidance is not a row of its own


# --- memory and precision ----------------------------------------------------------------------------------------


def test_the_autoencoder_and_its_pictures_go_through_in_parts_when_memory_runs_out(folders):
    generator = load_generator(folders["sd"])
    pictures = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = generator.encode_images(pictures)
    decoded = generator.decode_latents(latents)

    def small(module, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for part in (generator.pipeline.vae.encoder, generator.pipeline.vae.decoder):
        part.register_forward_pre_hook(small)
    torch.testing.assert_close(generator.encode_images(pictures), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(generator.decode_latents(latents), decoded, atol=1e-5, rtol=1e-5)
    assert generator.microbatch.used == {"encode": 5, "decode": 5}
    assert generator.microbatch.learned == {"encode": 2, "decode": 2}
    generator.microbatch = MicroBatch(1)
    generator.encode_images(pictures)
    assert generator.microbatch.used == {"encode": 1}


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_mixed_precision_is_autocast_without_its_casts_and_spares_the_autoencoder(folders, name):
    exact, mixed = load_generator(folders[name]), load_generator(folders[name]).mix(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [prediction(exact, gradient) for gradient in (False, True)]
    found = [prediction(mixed, gradient) for gradient in (False, True)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0)
    assert (found[0].float() - prediction(exact)).abs().max() > 0
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        latents = mixed.encode_images(pictures)
    torch.testing.assert_close(latents, exact.encode_images(pictures), rtol=0, atol=0)
    layers = [layer for layer in mixed.denoiser.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    assert layers and all(layer.weight.dtype == torch.bfloat16 for layer in layers)
    assert mixed.sample(["red"], [0], steps=1).dtype == torch.float32


def test_convolutions_lie_channels_last_on_a_gpu_and_compute_the_same(folders):
    generator = load_generator(folders["sd"])
    expected = prediction(generator)
    lay_out(generator.denoiser, torch.device("cpu"))
    assert not generator.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(generator.denoiser, torch.device("cuda"))
    assert generator.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(prediction(generator), expected, atol=1e-5, rtol=1e-5)


def test_texts_are_prepared_at_once_and_not_encoded_again(folders):
    generator = load_generator(folders["sd3"], offload=True)
    calls = []
    generator.pipeline.text_encoder_3.register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0])), with_kwargs=False
    )
    ids = generator.vocabulary.random(2 * 70, torch.Generator().manual_seed(0)).view(70, 2)
    distinct = len({generator.vocabulary.decode(row) for row in ids})
    fresh = load_generator(folders["sd3"]).condition(ids)
    generator.prepare(ids)
    assert sum(calls) == distinct
    parts = [generator.condition(some)["encoder_hidden_states"] for some in ids.split(16)]
    assert sum(calls) == distinct
    torch.testing.assert_close(torch.cat(parts), fresh["encoder_hidden_states"], atol=1e-5, rtol=1e-5)


# --- what libraries say ------------------------------------------------------------------------------------------


def test_loading_and_painting_say_nothing_and_leave_the_settings_of_others_alone(folders, capfd):
    def settings():
        logs = diffusers.logging, __import__("transformers").logging
        return [*warnings.filters], [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]

    before = settings()
    generator = load_generator(folders["sd"])
    generator.sample(["red dog " * 20], [0], steps=1)  # far too long: diffusers warns of what it cuts off
    assert settings() == before
    assert capfd.readouterr() == ("", "")
