import shutil

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from pipelines import LENGTH, save_pipeline
from safetensors.torch import load_file, save_file

from ph2p.errors import UserError
from ph2p.models.frozen import soft_prompt
from ph2p.models.generators import load_generator

ZERO_SNR = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "sd", **ZERO_SNR)


@pytest.fixture(scope="module")
def generator(folder):
    return load_generator(folder)


@pytest.fixture(scope="module")
def plain(folder):
    """The same pipeline, loaded by diffusers itself."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded(generator, texts):
    return torch.tensor([generator.vocabulary.encode(text) for text in texts])


def noisy_pair(count):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(count, 4, 8, 8, generator=random) for _ in range(2)]


def test_reads_everything_from_the_pipeline_and_freezes_it(generator):
    assert (generator.image_size, generator.latent_shape) == ((16, 16), (4, 8, 8))
    assert (generator.num_timesteps, generator.max_prompt_length) == (1000, LENGTH - 2)
    generator.train()
    assert not any(part.training for part in generator.modules())
    assert not any(weight.requires_grad for weight in generator.parameters())
    assert len(list(generator.parameters())) == sum(
        len(list(part.parameters()))
        for part in (generator.pipeline.unet, generator.pipeline.vae, generator.pipeline.text_encoder)
    )


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("use_attention_mask", [False, True])
def test_conditioning_is_the_pipelines_own(tmp_path, pad_token, use_attention_mask):
    generator = load_generator(save_pipeline(tmp_path / "sd", pad_token=pad_token))
    pipeline, texts = generator.pipeline, ["red square above a dog", "small blue circle below dogs"]
    pipeline.text_encoder.config.use_attention_mask = use_attention_mask
    expected, empty = pipeline.encode_prompt(texts, "cpu", 1, True)
    ids = encoded(generator, texts)
    for embeddings in (None, generator.vocabulary.embed(ids)):
        torch.testing.assert_close(generator.condition(ids, embeddings)["encoder_hidden_states"], expected)
    torch.testing.assert_close(generator.condition(ids[:, :0])["encoder_hidden_states"], empty)
    changed = generator.condition(ids, generator.vocabulary.embed(ids.flip(0)))["encoder_hidden_states"]
    torch.testing.assert_close(changed, generator.condition(ids.flip(0))["encoder_hidden_states"])


def test_gradients_equal_finite_differences(folder):
    generator = load_generator(folder, dtype=torch.float64)
    ids = encoded(generator, ["red dog", "blue circle"])
    latents, noise = (values[:2].double() for values in noisy_pair(2))
    times = torch.tensor([600, 999])
    noisy, target = generator.add_noise(latents, noise, times), generator.target(latents, noise, times)

    def losses(embeddings):
        prediction = generator.predict(noisy, times, generator.condition(ids, embeddings))
        return (prediction - target).square().mean((1, 2, 3))

    embeddings = generator.vocabulary.embed(ids).double().requires_grad_()
    torch.autograd.gradcheck(losses, embeddings, fast_mode=True)
    # Rows are separate problems: the loss of one has no gradient in the other's prompt.
    assert torch.autograd.grad(losses(embeddings)[0], embeddings)[0].flatten(1).any(1).tolist() == [
        True,
        False,
    ]


def test_the_hook_goes_away_even_after_an_error(generator):
    layer = generator.pipeline.text_encoder.get_input_embeddings()
    ids = encoded(generator, ["red dog"])
    with pytest.raises(ZeroDivisionError), soft_prompt(layer, torch.zeros(1, 2, 16)):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError):
        generator.condition(ids, torch.zeros(1, 2, 17))
    assert not layer._forward_hooks


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_equals_the_schedulers(tmp_path, scheduler, zero_snr):
    if zero_snr and scheduler is PNDMScheduler:
        pytest.skip("PNDM has no such schedule")
    generator = load_generator(save_pipeline(tmp_path / "sd", scheduler=scheduler, **ZERO_SNR if zero_snr else {}))
    generator.sample(["red"], [0], steps=4)  # leaves its traces in the scheduler's state
    reference = scheduler.from_config(generator.pipeline.scheduler.config)
    latents, noise = noisy_pair(4)
    times = torch.tensor([999, 0, 731, 999])
    expected = torch.cat([one_row(reference, *row) for row in zip(latents, noise, times, strict=True)])
    torch.testing.assert_close(generator.add_noise(latents, noise, times), expected, atol=1e-5, rtol=1e-5)
    if zero_snr:
        assert (generator.add_noise(latents, noise, times)[0] - noise[0]).abs().max() < 1e-3
    if scheduler in (DDIMScheduler, DDPMScheduler):
        wanted = reference.get_velocity(latents, noise, times) if zero_snr else noise
        torch.testing.assert_close(generator.target(latents, noise, times), wanted)


def one_row(scheduler, latents, noise, time):
    """The model's input for one row, by the scheduler's own methods."""
    if not isinstance(scheduler, EulerDiscreteScheduler):
        return scheduler.add_noise(latents[None], noise[None], time[None])
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    step = scheduler.timesteps[scheduler.timesteps == time]
    return scheduler.scale_model_input(scheduler.add_noise(latents[None], noise[None], step), step[0])


def test_target_of_a_model_that_predicts_the_sample(tmp_path):
    generator = load_generator(save_pipeline(tmp_path / "sd", prediction_type="sample"))
    latents, noise = noisy_pair(1)
    assert torch.equal(generator.target(latents, noise, torch.tensor([700])), latents)


def test_latents_are_the_pipelines_own(generator, plain):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = plain.vae.encode(2 * images - 1).latent_dist.mode() * plain.vae.config.scaling_factor
    torch.testing.assert_close(generator.encode_images(images), expected)
    options = dict(prompt="red", num_inference_steps=2, guidance_scale=3.0)
    latents, pictures = (
        plain(**options, output_type=kind, generator=torch.Generator().manual_seed(1)).images
        for kind in ("latent", "pt")
    )
    torch.testing.assert_close(generator.decode_latents(latents), pictures)


def test_samples_are_the_pipelines_own_and_do_not_depend_on_the_batch(generator, plain, capsys):
    options = dict(guidance_scale=4.0, guidance_rescale=0.5)
    pictures = generator.sample(["red dog", "a blue circle", "red dog"], [5, 6, 7], steps=3, **options)
    assert pictures.shape == (3, 3, 16, 16)
    assert (pictures.min() >= 0) and (pictures.max() <= 1)
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)
    for prompt, seed, picture in zip(["red dog", "a blue circle"], [5, 6], pictures, strict=False):
        random = torch.Generator().manual_seed(seed)
        own = plain(prompt, num_inference_steps=3, generator=random, output_type="pt", **options).images[0]
        torch.testing.assert_close(picture, own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            generator.sample([prompt], [seed], steps=3, **options)[0], picture, atol=1e-5, rtol=0
        )
    assert capsys.readouterr().err == ""


def test_half_precision_weights_give_float32_results(folder):
    generator = load_generator(folder, dtype=torch.bfloat16)
    ids, (latents, _), times = encoded(generator, ["red dog"]), noisy_pair(1), torch.tensor([700])
    prompt = generator.vocabulary.embed(ids).requires_grad_()
    prediction = generator.predict(latents, times, generator.condition(ids, prompt))
    prediction.sum().backward()
    images = generator.decode_latents(latents)
    assert {x.dtype for x in (prediction, prompt.grad, images, generator.encode_images(images))} == {torch.float32}
    assert prompt.grad.abs().sum() > 0


def test_loading_is_quiet(folder, capfd):
    load_generator(folder)
    assert capfd.readouterr() == ("", "")


def test_prompts_that_do_not_fit_are_refused(generator):
    generator.condition(torch.zeros(1, LENGTH - 2, dtype=torch.long))
    with pytest.raises(UserError, match=f"{LENGTH - 1} tokens, but .* at most {LENGTH - 2}"):
        generator.condition(torch.zeros(1, LENGTH - 1, dtype=torch.long))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_only(path):
    path.rename(path.with_suffix(".bin"))


def lose_a_weight(path):
    weights = load_file(path)
    weights.pop("conv_norm_out.weight")
    save_file(weights, path, metadata={"format": "pt"})


def other_class(path):
    path.write_text(path.read_text().replace("StableDiffusionPipeline", "MarigoldPipeline"))


UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (remove, "model_index.json", "model_index.json: .*give the folder of a diffusers pipeline"),
        (truncate, "model_index.json", "not valid JSON"),
        (
            other_class,
            "model_index.json",
            "MarigoldPipeline are not supported; known: FluxPipeline, .*StableDiffusionPipeline, ",
        ),
        (remove, "vae", "vae: the component is missing"),
        (remove, UNET, "unet: no .safetensors"),
        (truncate, UNET, "cannot be loaded .*copy or download it again"),
        (pickle_only, UNET, "unet: only pickled weights.* unsafe; convert"),
        (lose_a_weight, UNET, "unet: the weights file lacks"),
        (remove, "tokenizer/tokenizer.json", "tokenizer's tables are missing"),
    ],
)
def test_damaged_folders_give_one_line(folder, tmp_path, damage, file, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy / file)
    with pytest.raises(UserError, match=message) as caught:
        load_generator(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "/no/where", "no/where/at/all"])
def test_missing_folder(name):
    with pytest.raises(UserError, match="no such folder; give"):
        load_generator(name)
