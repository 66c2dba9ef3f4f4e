"""Every family against the plain pipeline of diffusers: random small weights, saved to disk, loaded by our code."""

import math

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from pipelines import FAMILY_BUILDERS, SD_SCHEDULE, save_family
from torch.overrides import TorchFunctionMode

from ph2p.errors import UserError
from ph2p.inversion.draws import Draws, make_draws
from ph2p.inversion.objectives import DenoisingObjective, denoising_loss
from ph2p.models.generators import load_generator
from ph2p.models.generators.schedules import stable_diffusion_alphas

T5_LENGTHS = {"pixart": 300, "flux": 512, "flux_schnell": 256}
FLOWS = ("sd3", "flux", "flux_schnell")
TEXTS = ["red square above a dog", "small blue circle below dogs"]
TIMES = torch.tensor([[500, 731], [999, 600]])  # (B, N)
SIZE = HEIGHT, WIDTH = 16, 24  # wider than high: what swaps the two is noticed
LATENT = (4, 8, 12)


@pytest.fixture(scope="module", params=FAMILY_BUILDERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("families") / family, family)


@pytest.fixture(scope="module")
def generator(folder):
    return load_generator(folder, image_size=SIZE)


@pytest.fixture(scope="module")
def plain(folder):
    """The same pipeline, loaded by diffusers itself."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded(generator, texts=TEXTS):
    return torch.tensor([generator.vocabulary.encode(text) for text in texts])


@torch.no_grad()
def own_conditioning(family, pipeline, texts):
    """What the pipeline itself makes of texts, under the names of the denoiser's arguments."""
    if family == "sd2":
        return {"encoder_hidden_states": pipeline.encode_prompt(texts, "cpu", 1, False)[0]}
    if family == "sdxl":
        states, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        sizes = pipeline._get_add_time_ids(SIZE, (0, 0), SIZE, states.dtype, 8)
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": sizes.repeat(len(texts), 1)}
    if family == "pixart":
        states, mask, *_ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        length = int(mask.sum(1).max())  # what it reads of the rest is nothing: the transformer gets the mask
        states, mask = states[:, :length], mask[:, :length]
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    if family == "sd3":
        states, _, pooled, _ = pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
    else:
        states, pooled, _ = pipeline.encode_prompt(texts, max_sequence_length=T5_LENGTHS[family])
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def own_prediction(family, pipeline, noisy, time, conditioning):
    """The pipeline's denoiser, called as its own loop does; `time` is a timestep, or a sigma for flow matching."""
    if family == "sd2":
        return pipeline.unet(noisy, time, **conditioning).sample
    if family == "sdxl":
        states = conditioning["encoder_hidden_states"]
        return pipeline.unet(noisy, time, states, added_cond_kwargs=conditioning).sample
    if family == "pixart":
        sizes = dict(resolution=None, aspect_ratio=None)
        time = time.expand(len(noisy))
        return pipeline.transformer(noisy, timestep=time, added_cond_kwargs=sizes, **conditioning).sample.chunk(2, 1)[0]
    if family == "sd3":
        return pipeline.transformer(noisy, timestep=1000 * time.expand(len(noisy)), **conditioning).sample
    packed = noisy.view(-1, 4, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 24, 16)
    _, places = pipeline.prepare_latents(1, 4, HEIGHT, WIDTH, noisy.dtype, "cpu", torch.Generator())
    output = pipeline.transformer(
        packed,
        timestep=time.expand(len(noisy)),
        guidance=torch.ones(len(noisy)) if pipeline.transformer.config.guidance_embeds else None,
        img_ids=places,
        txt_ids=torch.zeros(conditioning["encoder_hidden_states"].shape[1], 3),
        **conditioning,
    ).sample
    return pipeline._unpack_latents(output, HEIGHT, WIDTH, pipeline.vae_scale_factor)


def own_noise(family, pipeline, latents, noise, timestep):
    """Noisy latents, the target and the denoiser's time for one of SD's timesteps, by the scheduler's own methods."""
    reference = DDIMScheduler(**SD_SCHEDULE)
    signal = reference.alphas_cumprod[timestep].double()
    if family in FLOWS:
        sigma = (1 / (1 + (signal / (1 - signal)).sqrt())).float()  # where (1 - s) / s = sqrt(a / (1 - a))
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[sigma.item()])
        return scheduler.scale_noise(latents, scheduler.timesteps, noise), noise - latents, sigma
    if family == "pixart":
        ratios = (pipeline.scheduler.alphas_cumprod / (1 - pipeline.scheduler.alphas_cumprod)).double().log()
        timestep = (ratios - (signal / (1 - signal)).log()).abs().argmin()
        reference = DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    times = timestep[None]
    noisy = reference.add_noise(latents, noise, times)
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        return noisy, reference.get_velocity(latents, noise, times), timestep
    return noisy, noise, timestep


@torch.no_grad()
def test_conditioning_is_the_pipelines_own(family, generator, plain):
    ids = encoded(generator)
    for texts, token_ids in ((TEXTS, ids), (["", ""], ids[:, :0])):
        expected = own_conditioning(family, plain, texts)
        for embeddings in (None, generator.vocabulary.embed(token_ids)):
            ours = generator.condition(token_ids, embeddings)
            assert ours.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_embeddings_stand_in_for_tokens(generator):
    ids = encoded(generator)
    swapped = generator.condition(ids.flip(0))
    ours = generator.condition(ids.flip(0), generator.vocabulary.embed(ids.flip(0)))
    for name, value in swapped.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5)
    mixed = generator.condition(ids, generator.vocabulary.embed(ids.flip(0)))["encoder_hidden_states"]
    own = generator.condition(ids)["encoder_hidden_states"]
    assert (mixed - own).abs().max() > 1e-2


@torch.no_grad()
def test_loss_equals_one_made_of_the_pipelines_parts(family, generator, plain):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *SIZE, generator=random)
    draws = Draws(TIMES, torch.randn(2, 2, *LATENT, generator=random))
    latents = generator.encode_images(images)
    config = plain.vae.config
    clean = (plain.vae.encode(2 * images - 1).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(latents, clean)
    conditioning = own_conditioning(family, plain, TEXTS)
    expected = torch.zeros(2)
    for row in range(2):
        for n in range(2):
            one = slice(row, row + 1)
            noisy, target, time = own_noise(family, plain, clean[one], draws.noise[one, n], TIMES[row, n])
            text = {name: value[one] for name, value in conditioning.items()}
            error = own_prediction(family, plain, noisy, time, text) - target
            expected[row] += error.square().mean() / 2
    ours = denoising_loss(generator, latents, generator.condition(encoded(generator)), draws)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


class KeepDouble(TorchFunctionMode):
    """Float64 stays float64 where a model casts to float32: finite differences need the digits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def test_gradients_reach_every_embedding_and_equal_finite_differences(folder):
    generator = load_generator(folder, dtype=torch.float64, image_size=SIZE)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *LATENT, generator=random, dtype=torch.float64)
    draws = Draws(TIMES[:, :1], torch.randn(2, 1, *LATENT, generator=random, dtype=torch.float64))
    ids = encoded(generator)
    embeddings = generator.vocabulary.embed(ids).double().requires_grad_()

    def losses(prompt):
        return denoising_loss(generator, latents, generator.condition(ids, prompt), draws)

    with KeepDouble():
        (gradient,) = torch.autograd.grad(losses(embeddings)[0], embeddings)
        assert (gradient[0].abs() > 0).all()  # every number of the prompt, those of both encoders
        assert not gradient[1].any()  # rows are separate problems
        torch.autograd.gradcheck(losses, embeddings, fast_mode=True)


@torch.no_grad()
def test_smoothing_is_the_mean_of_the_losses_of_shifted_prompts(folder):
    generator = load_generator(folder, dtype=torch.float64, image_size=SIZE)
    vocabulary, ids = generator.vocabulary, encoded(generator)
    deviation = vocabulary.deviation().expand(ids.shape[1], -1)
    single = make_draws(0, ["a", "b"], ("test",), 3, (500, 1000), generator.latent_shape, deviation)
    draws = Draws(single.timesteps, single.noise.double(), single.shifts.double())
    plain = Draws(draws.timesteps, draws.noise)
    latents = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompt, objective = vocabulary.embed(ids).double(), DenoisingObjective(generator)
    with KeepDouble():
        alone = [objective(prompt + draws.shifts[:, k], ids, latents, plain[:, k : k + 1]) for k in range(3)]
        smooth, rough = objective(prompt, ids, latents, draws), objective(prompt, ids, latents, plain)
    torch.testing.assert_close(smooth, torch.stack(alone).mean(0), atol=1e-10, rtol=0)
    assert (smooth - rough).abs().min() > 1e-8  # random models hardly read their text


def test_samples_are_the_pipelines_own(family, generator, plain):
    options = dict(num_inference_steps=3, guidance_scale=3.0, height=HEIGHT, width=WIDTH, output_type="pt")
    if family == "pixart":
        options |= dict(use_resolution_binning=False)
    if family == "flux_schnell":
        options |= dict(max_sequence_length=256)
    pictures = generator.sample(TEXTS, [5, 6], steps=3, guidance_scale=3.0)
    assert pictures.shape == (2, 3, *SIZE)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    for text, seed, picture in zip(TEXTS, [5, 6], pictures, strict=True):
        own = plain(text, generator=torch.Generator().manual_seed(seed), **options).images[0]
        torch.testing.assert_close(picture, own, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_found_text_means_the_found_tokens_to_the_plain_pipeline(family, generator, plain):
    vocabulary = generator.vocabulary
    ids = torch.stack([vocabulary.random(5, torch.Generator().manual_seed(seed)) for seed in range(3)])
    texts = [vocabulary.decode(row) for row in ids]
    assert all(vocabulary.round_trips(row) for row in ids)
    expected = own_conditioning(family, plain, texts)
    for name, value in generator.condition(ids, vocabulary.embed(ids)).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, check_dtype=False)


def test_reads_everything_from_the_pipeline(family, folder, generator):
    size = {"flux": 256, "flux_schnell": 256}.get(family, 16)  # FLUX.1 names no size: 128 latents of 2 pixels here
    own = load_generator(folder)
    assert (own.image_size, own.latent_shape) == ((size, size), (4, size // 2, size // 2))
    assert generator.image_size == SIZE and generator.latent_shape == LATENT
    assert own.context_length == T5_LENGTHS.get(family, 12)
    assert generator.num_timesteps == 1000
    with pytest.raises(UserError, match=f"{generator.max_prompt_length + 1} tokens, but .* at most"):
        generator.condition(torch.zeros(1, generator.max_prompt_length + 1, dtype=torch.long))
    assert not any(weight.requires_grad for weight in generator.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parts_keep_float32_latents_losses_and_gradients(folder, dtype):
    exact = load_generator(folder, image_size=SIZE)
    generator = load_generator(folder, dtype=dtype, image_size=SIZE)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, *SIZE, generator=random)
    draws = Draws(TIMES[:1], torch.randn(1, 2, *LATENT, generator=random))
    torch.testing.assert_close(generator.encode_images(images), exact.encode_images(images), atol=0.02, rtol=0.02)
    gradients, ids = [], encoded(generator)[:1]
    for model in (exact, generator):
        prompt = model.vocabulary.embed(ids).requires_grad_()
        loss = denoising_loss(model, exact.encode_images(images), model.condition(ids, prompt), draws)
        gradients.append(torch.autograd.grad(loss.sum() / 32, prompt)[0])  # so small that float16 alone loses some
        assert loss.dtype == gradients[-1].dtype == torch.float32
    cosine = torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    assert cosine > 0.98
    assert 0.9 < gradients[1].norm() / gradients[0].norm() < 1.1


# --- noise levels ------------------------------------------------------------------------------------------------


def test_a_timestep_means_the_same_noise_level_in_every_family(family, generator):
    alphas = DDIMScheduler(**SD_SCHEDULE).alphas_cumprod.double()
    torch.testing.assert_close(stable_diffusion_alphas(), alphas, atol=1e-6, rtol=1e-4)
    timesteps = torch.arange(500, 1000)
    signal, spread = generator.schedule.rates(timesteps, torch.zeros((), dtype=torch.float64))
    ratio = 2 * (signal / spread).flatten().log()  # log SNR
    tolerance = 1e-3 if family != "pixart" else 0.02  # it has but 1000 steps to choose from
    torch.testing.assert_close(ratio, torch.logit(alphas[timesteps]), atol=tolerance, rtol=0)


def test_the_window_of_sigmas_and_of_another_schedule(family, generator):
    ends = generator.schedule.denoiser_times(torch.tensor([500, 999])).tolist()
    if family in FLOWS:
        alphas = stable_diffusion_alphas()[[500, 999]].tolist()
        expected = [1000 * math.sqrt(1 - a) / (math.sqrt(a) + math.sqrt(1 - a)) for a in alphas]
        assert ends == pytest.approx(expected, abs=1e-3)
        assert ends == pytest.approx([618, 936], abs=1)
    elif family == "pixart":
        assert ends == pytest.approx([353, 727], abs=1)
    else:
        assert ends == [500, 999]
