"""What language models, text embedders and image models say of prompts, each against an independent computation."""

import math
import random
import re
import shutil
from dataclasses import replace

import pytest
import torch
from pipelines import save_pipeline, save_tokenizer
from safetensors.torch import save_model
from transformers import Dinov2Config, Dinov2Model, GPT2Config, GPT2LMHeadModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ph2p.config.compose import load_config
from ph2p.data.world import training_captions
from ph2p.errors import UserError
from ph2p.evaluation.backbones import Backbones, check_transfer, load_painter, make_backbones
from ph2p.evaluation.likeness import bertscore, nearest_similarity
from ph2p.evaluation.measurement import Measurement
from ph2p.evaluation.metrics import METRICS
from ph2p.evaluation.result import as_record
from ph2p.evaluation.wording import reads_back
from ph2p.inversion.batch import Batch
from ph2p.inversion.fluency import Fluency
from ph2p.inversion.selection import Candidate
from ph2p.models.generators import load_generator
from ph2p.models.judges import load_dino, load_language_model, load_lpips
from ph2p.models.language import TrigramModel
from ph2p.models.painting import guidance_options
from ph2p.run.build import load_inverter

CPU = torch.device("cpu")
KEY = "evaluation.language_model"


# --- language -----------------------------------------------------------------------------------------------------


def witten_bell(corpus: list[list[str]], word: str, context: list[str]) -> float:
    """By counting anew in the corpus for every question, from the longest context down."""
    known = {w for text in corpus for w in text if w != "<s>"}
    orders = [context[k:] for k in range(len(context) + 1)]
    value = 1 / (len(known) + 1)
    for history in reversed(orders):
        n = len(history)
        after = [t[k] for t in corpus for k in range(2, len(t)) if t[k - n : k] == history]
        if after:
            kinds = len(set(after))
            value = (after.count(word) + kinds * value) / (len(after) + kinds)
    return value


def test_the_trigram_model_is_witten_bells():
    texts = ["a red dog", "a red cat, a dog", "the red dog", "A blue cat"]
    model = TrigramModel(texts)
    corpus = [["<s>", "<s>", *re.findall(r"\w+|,", text.lower()), "</s>"] for text in texts]
    words = sorted({w for text in corpus for w in text} - {"<s>"})
    for context in (["a", "red"], ["<s>", "<s>"], ["red", "zebra"], ["cat", ","], ["never", "seen"]):
        found = {word: model.probability(word, context) for word in [*words, "zebra"]}
        assert found == pytest.approx({word: witten_bell(corpus, word, context) for word in found})
        assert sum(found.values()) == pytest.approx(1)  # what was never seen counts as one word
    logs = [math.log(witten_bell(corpus, w, c)) for w, c in [("a", ["<s>", "<s>"]), ("cat", ["<s>", "a"])]]
    logs.append(math.log(witten_bell(corpus, "</s>", ["a", "cat"])))
    assert model("A cat") == pytest.approx(math.exp(-sum(logs) / 3))
    assert math.isnan(model("  "))


def test_the_worlds_language_knows_captions_from_the_same_words_shuffled():
    model, chance = TrigramModel(training_captions(200)), random.Random(0)
    unseen = list(training_captions(240))[200:]
    shuffled = [" ".join(chance.sample(words := text.split(), len(words))) for text in unseen]
    worse = [model(other) > model(text) for text, other in zip(unseen, shuffled, strict=True)]
    assert sum(worse) > 0.85 * len(worse)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The folder of a small random causal language model; its words are `pipelines.WORDS`."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=12, n_embd=16, n_layer=2, n_head=2, initializer_range=0.8
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_the_perplexity_of_a_language_model_is_the_product_of_its_steps(language_model):
    model = load_language_model(str(language_model), CPU, KEY)
    raw, tokenizer = GPT2LMHeadModel.from_pretrained(language_model).eval(), model.tokenizer
    text = "a small red dog above a circle"
    ids = tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in text.split()])
    given, product = [tokenizer.bos_token_id], 1.0
    for token in ids:
        with torch.no_grad():
            product *= float(raw(torch.tensor([given])).logits[0, -1].softmax(0)[token])
        given.append(token)
    assert model(text) == pytest.approx(product ** (-1 / 7), rel=1e-4)
    assert model(text) != pytest.approx(model("a small red dog above a dog"), rel=1e-2)
    assert math.isnan(model("")) and math.isfinite(model("red " * 40))  # longer than it reads
    assert load_language_model(str(language_model), CPU, KEY) is model
    assert load_language_model(str(language_model), CPU, "method.language_model") is model


def test_texts_of_different_lengths_surprise_together_as_alone(language_model):
    causal, trigram = load_language_model(str(language_model), CPU, KEY), TrigramModel(["a red dog", "a dog"])
    texts = ["a small red dog", "red", "", *["a dog above a circle"] * 40, "red " * 40]
    for model in (causal, trigram):
        found = model.surprises(texts)
        assert found == pytest.approx([model.surprises([text])[0] for text in texts], rel=1e-4, abs=1e-6)
    assert causal.surprises(texts[:1]) == pytest.approx([4 * math.log(causal(texts[0]))], rel=1e-4)
    assert trigram.surprises(texts[:1]) == pytest.approx([5 * math.log(trigram(texts[0]))])  # and the end
    rest = -math.log(trigram.probability("</s>", ["red", "dog"]))
    assert trigram.surprises(["a red dog"], ended=False)[0] + rest == pytest.approx(trigram.surprises(["a red dog"])[0])


# --- texts --------------------------------------------------------------------------------------------------------


def test_bertscore_matches_tokens_greedily():
    chance = torch.Generator().manual_seed(3)
    prompt, reference = torch.randn(4, 6, generator=chance), torch.randn(3, 6, generator=chance)

    def cosine(a, b):
        return float((a * b).sum() / a.norm() / b.norm())

    precision = sum(max(cosine(a, b) for b in reference) for a in prompt) / 4
    recall = sum(max(cosine(a, b) for a in prompt) for b in reference) / 3
    found = bertscore(prompt, reference)
    assert found == pytest.approx((precision, recall, 2 * precision * recall / (precision + recall)), abs=1e-6)
    assert bertscore(reference, prompt)[:2] == pytest.approx((recall, precision), abs=1e-6)
    assert bertscore(prompt, prompt) == pytest.approx((1, 1, 1))
    assert all(map(math.isnan, bertscore(prompt[:0], reference)))
    assert nearest_similarity(prompt[0], reference) == pytest.approx(max(cosine(prompt[0], b) for b in reference))


def test_token_features_are_those_of_the_words_alone(inverter_of):
    scorer = inverter_of().scorer
    text = "small red dog"
    ids = scorer.tokenizer(text).input_ids  # with begin and end
    hidden = scorer.model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert torch.allclose(scorer.token_features(text), hidden[1:-1], atol=1e-5)
    assert scorer.token_features("").shape == (0, 16) and len(scorer.token_features("dog " * 30)) == 10


def test_tokens_that_read_back_are_those_that_typing_gives(generator):
    vocabulary = generator.vocabulary
    ids = vocabulary.tokenizer.convert_tokens_to_ids(["red</w>", "dog", "dog</w>", "s</w>", "<|endoftext|>"])
    # "dog" without its end is typed as "dog</w>", and the end of text as nothing
    assert reads_back(ids, vocabulary.decode, vocabulary.encode) == 3 / 5
    assert math.isnan(reads_back([], vocabulary.decode, vocabulary.encode))


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    Dinov2Model(Dinov2Config(**sizes, initializer_range=0.5)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def test_dinos_features_are_those_of_the_first_token(dino):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    processor, raw = CLIPImageProcessorPil.from_pretrained(dino), Dinov2Model.from_pretrained(dino).eval()
    arrays = [(image.permute(1, 2, 0) * 255).round().byte().numpy() for image in images]
    with torch.no_grad():
        wanted = raw(processor(arrays, return_tensors="pt").pixel_values).pooler_output
    assert torch.allclose(load_dino(str(dino), CPU)(images), wanted, atol=1e-4)


def test_lpips_is_the_weighted_distance_of_normalised_features(tmp_path):
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    net = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    for lin in net.lins:
        torch.nn.init.uniform_(lin.model[1].weight)
    file = tmp_path / "lpips.safetensors"
    save_model(net, file)
    one, other = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    distance = load_lpips(str(file), CPU)(one, other)
    # arXiv 1801.03924, equation 1, on the trunk's own layers
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    sides = [((2 * x - 1) - shift[:, None, None]) / scale[:, None, None] for x in (one, other)]
    wanted = torch.zeros(2)
    for k, lin in enumerate(net.lins, 1):
        sides = [getattr(net.net, f"slice{k}")(x) for x in sides]
        unit = [x / x.square().sum(1, keepdim=True).sqrt() for x in sides]
        wanted += (lin.model[1].weight * (unit[0] - unit[1]).square()).sum(1).mean((1, 2)).detach()
    assert torch.allclose(distance, wanted, rtol=1e-3) and (distance > 0).all()
    assert torch.allclose(load_lpips(str(file), CPU)(one, one), torch.zeros(2), atol=1e-6)


# --- what is asked for ---------------------------------------------------------------------------------------------


def test_a_causal_model_weighs_and_rewords_prompts(language_model):
    model = load_language_model(str(language_model), CPU, KEY)
    found = Fluency(0.01, model, ("a",)).rewordings("red dog small", 4)
    assert len(found) > 3 and all(set(text.split()) & {"red", "dog", "small"} for text in found)
    assert max(len(text.split()) for text in found) == 4
    again = model.surprises([*found, found[0]])
    assert again[0] == again[-1] and again[:-1] == pytest.approx([model.surprises([text])[0] for text in found])


def test_what_cannot_be_loaded_says_how_to_fix_it(tmp_path, language_model, dino, monkeypatch):
    with pytest.raises(UserError, match=r"^evaluation\.language_model=no/such: .*"):
        load_language_model("no/such", CPU, KEY)
    with pytest.raises(UserError, match=r"^evaluation\.dinov2=.*: a model of type gpt2; give a DINOv2 model"):
        load_dino(str(language_model), CPU)
    with pytest.raises(UserError, match=r"give a causal language model of transformers$|tables are missing"):
        load_language_model(str(dino), CPU, KEY)
    file = tmp_path / "lpips.safetensors"
    with pytest.raises(UserError, match=r"^evaluation\.lpips=.*: no such file; docs/data\.md says how to make it$"):
        load_lpips(str(file), CPU)
    file.write_bytes(b"{}")
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)  # as where it is not installed
    with pytest.raises(UserError, match=r'^evaluation\.lpips: it needs .*: pip install "ph2p\[metrics\]"$'):
        load_lpips(str(file), CPU)


def test_a_result_has_what_its_backbones_say(inverter_of, targets, dino):
    words = ("evaluation.renders=2", "evaluation.draws=1", "generator.steps=1", f"evaluation.dinov2={dino}")
    inverter = inverter_of(*words, "evaluation.language_model=world")
    own = replace(targets[1], caption=None, words=None, references=("blue circle", "a dog"))
    batch = Batch([targets[0], own], inverter.generator, inverter.scorer)
    encode, texts = inverter.generator.vocabulary.encode, ["small red dog", "blue circle"]
    found = [[Candidate(tuple(encode(text)), text, 0, 0.0)] for text in texts]

    def measured(backbones=None):
        measure = Measurement(inverter.generator, inverter.scorer, inverter.cfg, backbones)
        return measure(batch, found, None, torch.zeros(2, 0), 1.0)

    first, second = measured()
    features = inverter.scorer.text_features([first.prompt, targets[0].caption])
    assert first.caption_similarity == pytest.approx(float(features[0] @ features[1]), abs=1e-5)
    assert second.caption_similarity is None and second.bertscore == pytest.approx(1, abs=1e-5)
    assert second.reference_similarity == pytest.approx(1, abs=1e-5) and first.bertscore < 1
    see, painted = load_dino(str(dino), CPU), first.renderings
    wanted = torch.cosine_similarity(see(painted), see(targets[0].image[None]), dim=-1).mean()
    assert first.dino_similarity == pytest.approx(float(wanted), abs=1e-5) and first.lpips is None
    assert first.reads_back == 1 and first.perplexity > 1
    assert first.measured_with["dinov2"] == str(dino) and first.measured_with["language_model"] == "world"
    keys = {"caption_similarity", "bertscore", "dino_similarity", "lpips", "perplexity", "reads_back"}
    assert keys <= METRICS.keys() and keys <= as_record(first).keys()

    passed_in = Backbones(
        lambda texts: torch.eye(len(texts), 3),
        lambda text: torch.eye(len(text.split()), 9),
        lambda text: float(len(text)),
        lambda pictures: torch.ones(len(pictures), 2),
        lambda pictures, others: (pictures - others).abs().flatten(1).mean(1),
    )
    (first, _) = measured(passed_in)
    assert first.caption_similarity == 0 and first.perplexity == len(first.prompt)
    assert first.bertscore == pytest.approx(2 * (3 / 5) / (1 + 3 / 5))  # 3 tokens, all of them in the caption's 5
    assert first.dino_similarity == pytest.approx(1)
    distance = (painted - targets[0].image).abs().mean()
    assert first.lpips == pytest.approx(float(distance), abs=1e-6)
    plain = make_backbones(inverter_of().cfg.evaluation, inverter.scorer, CPU)
    assert plain.perplexity is plain.pictures is plain.distance is plain.painter is None


# --- a second generator --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """The folder of another pipeline: its scheduler predicts the noise."""
    return save_pipeline(tmp_path_factory.mktemp("second") / "pipeline")


def test_a_second_generator_paints_the_same_prompt_by_the_same_seeds(inverter_of, targets, second):
    words = ("evaluation.renders=2", "evaluation.draws=1", "generator.steps=2")
    texts = ["small red dog", "blue circle", "red " * 10]
    passed_in = load_generator(second)
    passed_in.max_prompt_length = 4  # a model that reads less

    def measured(*more, painter=None):
        inverter = inverter_of(*words, *more)
        batch, encode = Batch(targets, inverter.generator, inverter.scorer), inverter.generator.vocabulary.encode
        found = [[Candidate(tuple(encode(text)), text.strip(), 0, 0.0)] for text in texts]
        judges = make_backbones(inverter.cfg.evaluation, inverter.scorer, CPU)
        measure = Measurement(
            inverter.generator, inverter.scorer, inverter.cfg, replace(judges, painter=painter) if painter else None
        )
        return inverter, measure(batch, found, None, torch.zeros(3, 0), 1.0)

    inverter, without = measured()
    _, results = measured(f"evaluation.transfer={second}")
    other, features = load_generator(second), inverter.scorer.image_features
    for text, target, result, plain in zip(texts, targets, results, without, strict=True):
        painted = other.sample([text.strip()] * 2, [1000, 1001], 2, **guidance_options(inverter.cfg.generator))
        similarity = torch.cosine_similarity(features(painted), features(target.image[None]), dim=-1).mean()
        assert result.transfer_similarity == pytest.approx(float(similarity), abs=1e-5)
        assert as_record(result)["transfer_similarity"] == result.transfer_similarity
        assert result.clip_similarity == plain.clip_similarity != result.transfer_similarity
        assert plain.transfer_similarity is None and "transfer" not in plain.measured_with
        assert result.measured_with["transfer"] == str(second)
        assert result.evaluation_samples - plain.evaluation_samples == 2 * 2 * 2  # renderings, steps, guidance
    _, short = measured(painter=passed_in)
    assert (
        short[0].transfer_similarity == pytest.approx(results[0].transfer_similarity, abs=1e-5) and not short[0].notes
    )
    assert short[2].notes == ["of the prompt the second generator reads 'red red red red'"]
    assert short[2].transfer_similarity != results[2].transfer_similarity


def test_a_second_generator_that_cannot_be_loaded_is_one_line_before_any_model(tmp_path, second):
    missing = load_config([f"evaluation.transfer={tmp_path}/none", f"generator.path={tmp_path}/neither"])
    with pytest.raises(UserError, match=rf"^evaluation\.transfer={tmp_path}/none: (?!.*\n)"):
        load_inverter(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^evaluation\.transfer=.*: .*give the folder of a diffusers pipeline"):
        check_transfer(load_config([f"evaluation.transfer={tmp_path}/empty"]).evaluation)
    broken = shutil.copytree(second, tmp_path / "broken")
    for file in (broken / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=rf"^evaluation\.transfer={broken}: .*tokenizer"):
        load_painter(str(broken), CPU)
    check_transfer(load_config([f"evaluation.transfer={second}"]).evaluation)
