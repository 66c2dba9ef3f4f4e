"""Lengths and rates mean the same on a model whose embeddings are larger or smaller, as long as it reads them so."""

import copy

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from ph2p import load_config
from ph2p.errors import UserError
from ph2p.inversion.lbfgs import BatchedLBFGS
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import DenoisingObjective
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.session import PLAIN
from ph2p.inversion.steps import InversionData
from ph2p.inversion.units import Units, units_of
from ph2p.models.generators.stable_diffusion import StableDiffusion
from ph2p.models.vocabulary import Vocabulary

OPTIMIZERS = {
    "lbfgs": lambda p: BatchedLBFGS(p, max_eval=6, first_step=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.6, weight_decay=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=10.0),
}
CLIP_LIKE, T5_LIKE = 0.014, 1.0  # deviations of their tables


class Tokens(L.Callback):
    """Note the tokens at the start and after each epoch, and each step's prompt in units of the vocabulary."""

    def __init__(self) -> None:
        self.tokens, self.moved = [], []

    def on_train_start(self, trainer, module) -> None:
        self.tokens.append(module.token_ids.tolist())

    def on_train_batch_end(self, trainer, module, *rest) -> None:
        spread = units_of("deviation", module.vocabulary)
        self.moved.append(spread.coordinates(module.prompt.detach()))

    def on_train_epoch_end(self, trainer, module) -> None:
        self.tokens.append(module.token_ids.tolist())


def trajectory(objective, vocabulary: Vocabulary, data: InversionData, optimizer: str, units: str = "deviation"):
    start = torch.stack([vocabulary.random(4, torch.Generator().manual_seed(row)) for row in range(len(data.keys))])
    module = PromptInversion(objective, vocabulary, start, OPTIMIZERS[optimizer], units_of(units, vocabulary))
    tokens = Tokens()
    callbacks = [DelayedProjection(snap=True), tokens]
    L.Trainer(accelerator="cpu", max_epochs=3, callbacks=callbacks, **PLAIN).fit(module, data)
    return tokens


def assert_the_same(ours: Tokens, theirs: Tokens) -> None:
    assert ours.tokens == theirs.tokens
    assert len({str(tokens) for tokens in ours.tokens}) > 1  # or the comparison would prove nothing
    for one, other in zip(ours.moved, theirs.moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


# --- a toy: tokens in a plane that is bent, read in units of the table ---------------------------------------------


def toy(tokenizer, scale: float):
    """A table of deviation `scale` and the objective that reads prompts as multiples of it; its rows are not round."""
    random = torch.Generator().manual_seed(7)
    table = torch.randn(len(tokenizer), 16, generator=random) * torch.linspace(0.5, 2, 16) + 0.3
    goal = torch.randn(3, 4, 16, generator=random)

    def objective(prompt: Tensor, token_ids: Tensor, latents: Tensor, draws) -> Tensor:
        far = (prompt / scale - goal[: len(prompt)] - latents[:, 0]).square()
        return (far + far.square() / 8 + (prompt / scale).roll(1, -1) * far / 4).mean((1, 2))

    return objective, Vocabulary(tokenizer, scale * table)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scale", [CLIP_LIKE, 0.1, 10.0])
def test_a_toy_is_optimised_alike_whatever_the_scale_of_its_table(generator, optimizer, scale):
    tokenizer, data = generator.vocabulary.tokenizer, InversionData(torch.zeros(3, 1, 4, 16), ["a", "b", "c"], 0, 1, 2)
    runs = [trajectory(*toy(tokenizer, some), data, optimizer) for some in (T5_LIKE, scale)]
    assert_the_same(*runs)
    other = trajectory(*toy(tokenizer, scale), data, optimizer, "embedding")
    assert other.tokens != runs[0].tokens


# --- a diffusers pipeline -----------------------------------------------------------------------------------------


def rescaled(generator, scale: float) -> StableDiffusion:
    """The same model: its tables of tokens and positions times `scale`, and their sum divided by it again."""
    pipeline = copy.deepcopy(generator.pipeline)
    embeddings = pipeline.text_encoder.get_input_embeddings()
    layer = next(m for m in pipeline.text_encoder.modules() if embeddings in m.children())
    with torch.no_grad():
        for table in (layer.token_embedding.weight, layer.position_embedding.weight):
            table.mul_(scale)
    layer.register_forward_hook(lambda module, args, output: output / scale)
    return StableDiffusion(pipeline, words={})


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
@pytest.mark.parametrize("scale", [0.1, 10.0, "CLIP", "T5"])
def test_a_pipeline_is_optimised_alike_whatever_the_scale_of_its_table(generator, optimizer, scale):
    spread = float(generator.vocabulary.deviation().square().mean().sqrt())
    factor = {"CLIP": CLIP_LIKE / spread, "T5": T5_LIKE / spread}.get(scale, scale)
    other = rescaled(generator, factor)
    assert float(other.vocabulary.deviation().square().mean().sqrt()) == pytest.approx(factor * spread)
    latents = 2 * torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(3))
    runs = []
    for model in (rescaled(generator, 1.0), other):
        shift = model.vocabulary.deviation().expand(4, -1)
        data = InversionData(latents.double(), ["a", "b"], 0, 2, 1 if optimizer == "lbfgs" else 4, deviation=shift)
        runs.append(trajectory(DenoisingObjective(model), model.vocabulary, data, optimizer))
    assert_the_same(*runs)


# --- units --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_mean_and_so_many_deviations_of_the_allowed_tokens(generator):
    vocabulary = generator.vocabulary
    units, table = units_of("deviation", vocabulary), vocabulary.embeddings[vocabulary.allowed]
    inside = units.coordinates(table)
    torch.testing.assert_close(inside.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(16))
    torch.testing.assert_close(units.prompt(inside), table)
    assert torch.equal(units.scale, vocabulary.deviation()) and not vocabulary.allowed.all()
    plain = units_of("embedding", vocabulary)
    assert torch.equal(plain.prompt(table), table) and torch.equal(plain.coordinates(table), table)


def test_numbers_that_never_vary_and_a_single_token_have_units_too(generator):
    table = generator.vocabulary.embeddings.clone()
    table[:, 3] = 0.25
    units = units_of("deviation", Vocabulary(generator.vocabulary.tokenizer, table))
    assert (units.scale > 0).all() and units.scale[3] < 1e-4 * units.scale.mean()
    torch.testing.assert_close(units.prompt(units.coordinates(table)), table)
    one = Vocabulary(generator.vocabulary.tokenizer, table, allowlist=["red"])
    assert torch.equal(units_of("deviation", one).scale, torch.ones(16))


def test_the_optimiser_moves_coordinates_and_everybody_else_sees_the_prompt(generator):
    vocabulary = generator.vocabulary
    units = Units(torch.full((16,), 2.0), torch.linspace(0.5, 4, 16))
    start = vocabulary.allowed_ids[:8].view(2, 4)

    def objective(prompt, token_ids, latents, draws):
        return (weights * prompt).sum((1, 2))

    weights = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    module = PromptInversion(objective, vocabulary, start, None, units)
    torch.testing.assert_close(module.prompt, vocabulary.embed(start))
    module(torch.zeros(2), None).sum().backward()
    torch.testing.assert_close(module.coordinates.grad, weights * units.scale)
    module.move_to(weights)
    torch.testing.assert_close(module.prompt, weights)
    assert module.to("meta").prompt.device.type == "meta"  # where the trainer moves the module, the units go along
    assert isinstance(module.coordinates, nn.Parameter) and [p.shape for p in module.parameters()] == [(2, 4, 16)]


def test_others_code_has_the_units_of_its_model_and_the_key_two_values():
    for method in ("pez", "pez_diffusion", "ph2p_released"):
        assert load_config([f"method={method}"]).method.units == "embedding"
    for method in ("ph2p", "ph2p_plus", "fast", "adam_delayed", "adam_plus", "sgd", "soft"):
        assert load_config([f"method={method}"]).method.units == "deviation"
    with pytest.raises(UserError, match=r"^method\.units=inches: choose one of deviation, embedding$"):
        load_config(["method=ph2p", "method.units=inches"])
