"""Captions in the place of an inversion: templates filled by CLIP, image-to-text models, and what becomes of them."""

from itertools import product

import pytest
import torch
from pipelines import save_tokenizer
from transformers import BlipConfig, BlipForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ph2p import load_config
from ph2p.config.budget import plan
from ph2p.data.templates import TEMPLATES, Template
from ph2p.errors import UserError
from ph2p.inversion.batch import Batch
from ph2p.inversion.captioning import TemplateCaptioner, caption_tokens
from ph2p.inversion.prompts import present
from ph2p.inversion.session import Session
from ph2p.models.captioner import load_captioner
from ph2p.models.vocabulary import Vocabulary
from ph2p.world.captions import canonical_caption
from ph2p.world.scenes import Thing, scene

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """The folder of a small random captioner."""
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = sizes | ids | dict(vocab_size=len(tokenizer), encoder_hidden_size=16, projection_dim=16, is_decoder=True)
    text |= dict(eos_token_id=tokenizer.eos_token_id, sep_token_id=tokenizer.eos_token_id, initializer_range=0.6)
    vision = sizes | dict(image_size=16, patch_size=4, initializer_range=0.6)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


# --- templates ----------------------------------------------------------------------------------------------------


def test_templates_make_the_worlds_own_captions():
    for index in range(30):
        one = scene("test", index)
        words = {"where": one.relation or one.place, "background": one.background}
        for k, thing in enumerate(one.things):
            parts = ("size", "fill", "colour", "shape") if isinstance(thing, Thing) else ("size", "noun")
            words |= {f"{k} {name}": getattr(thing, name) for name in parts}
        template = Template(tuple("drawn" if isinstance(thing, Thing) else "pictured" for thing in one.things))
        assert template in TEMPLATES and template.caption(words) == canonical_caption(one)
        assert all(words[place] in options for place, options in template.slots().items())


class Letters:
    """A scorer of texts whose features are fixed for each word: similarity to a text is how many words it shares."""

    def text_features(self, texts):
        rows = torch.stack([sum(map(self.of, text.split()), torch.zeros(4000)) for text in texts])
        return torch.nn.functional.normalize(rows, dim=-1)

    def of(self, word: str):
        return torch.nn.functional.one_hot(torch.tensor(sum(map(ord, word)) * 7 % 4000), 4000).float()


class Known(Vocabulary):
    """A vocabulary of which nothing but its words is asked."""

    def __init__(self, words: list[str]) -> None:
        torch.nn.Module.__init__(self)
        self.words, self.allowed_ids = words, torch.arange(len(words))

    def decode(self, ids) -> str:
        return self.words[int(ids[0])]


def test_the_captions_of_templates_are_climbed_to_and_use_allowed_words_alone():
    words = ["small", "large", "solid", "striped", "red", "blue", "square", "circle", "left", "above", "below"]

    captioner = TemplateCaptioner(Letters(), Known(words))
    assert {template.kinds for template in captioner.slots} == {("drawn",), ("drawn", "drawn")}
    wanted = "a large striped red circle above a small solid blue square on a red background"
    other = "a small solid blue square at the left on a red background"
    pictures = torch.zeros(2, 3, 16, 16)
    found = captioner(pictures, Letters().text_features([wanted, other]), 3)
    assert sorted(found[1][0].split()) == sorted(other.split())  # this scorer does not see the order
    assert sorted(found[0][0].split()) == sorted(wanted.split()) and len(set(found[0])) == 3
    template = Template(("drawn",))
    slots = captioner.slots[template]
    every = [template.caption(dict(zip(slots, choice, strict=True))) for choice in product(*slots.values())]
    likeness = Letters().text_features(every) @ Letters().text_features([other])[0]
    assert likeness[every.index(found[1][0])] == likeness.max()  # as good as trying all of them
    with pytest.raises(UserError, match=r"^method\.captioner=world: this model's vocabulary lacks the world's words"):
        TemplateCaptioner(Letters(), Known(["zebra", "red", "small"]))


# --- image-to-text models -----------------------------------------------------------------------------------------


def test_a_captioner_writes_what_its_model_finds_most_likely_word_by_word(blip):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    captioner = load_captioner(str(blip), CPU)
    raw, tokenizer = BlipForConditionalGeneration.from_pretrained(blip).eval(), captioner.tokenizer
    processor = CLIPImageProcessorPil.from_pretrained(blip)
    found = captioner(images, 1)
    for image, (text,) in zip(images, found, strict=True):
        array = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        ids = [tokenizer.bos_token_id]
        with torch.no_grad():
            seen = raw.vision_model(processor(array, return_tensors="pt").pixel_values).last_hidden_state
            while len(ids) <= 40 and (len(ids) == 1 or ids[-1] != tokenizer.eos_token_id):
                step = raw.text_decoder(torch.tensor([ids]), encoder_hidden_states=seen)
                ids.append(int(step.logits[0, -1].argmax()))
        assert text == " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    assert found[0] != found[1] and load_captioner(str(blip), CPU) is captioner
    assert captioner(images[1:], 3)[0] == captioner(images, 3)[1] and len(set(captioner(images, 3)[0])) > 1


def test_other_models_are_refused_in_one_line(blip, inverter_of, tmp_path, model_overrides):
    clip = model_overrides[1].partition("=")[2]
    with pytest.raises(UserError, match=r"^method\.captioner=.*: a model of type clip; give an image-to-text model"):
        inverter_of("method=caption", f"method.captioner={clip}")
    with pytest.raises(UserError, match=r"^method\.captioner=no/such: "):
        load_captioner("no/such", CPU)
    for words in (["method=ph2p", "method.captioner=world"], ["method=ph2p", "method.init=caption"]):
        with pytest.raises(
            UserError, match=r"^method\.captioner=.*: give it with method\.init=caption, and only there"
        ):
            load_config(words)
    assert plan(load_config(["method=caption"]).method) == plan(load_config(["method=caption", "seed=1"]).method)


# --- what becomes of them -----------------------------------------------------------------------------------------


def test_a_caption_is_taken_as_it_is_written_and_costs_no_sample(blip, inverter_of, targets):
    inverter = inverter_of("method=caption", f"method.captioner={blip}", "evaluation.draws=2", "generator.steps=1")
    batch = Batch(targets, inverter.generator, inverter.scorer)
    written = load_captioner(str(blip), CPU)(batch.images, 5)
    vocabulary, room = inverter.generator.vocabulary, inverter.generator.max_prompt_length
    results = inverter(targets)
    for row, result in enumerate(results):
        assert result.forward_samples == result.backward_samples == 0 < result.evaluation_samples
        texts = [vocabulary.decode(caption_tokens(vocabulary, text, room)) for text in written[row]]
        texts = [text for text in texts if vocabulary.encode(text) == caption_tokens(vocabulary, text, room)]
        features = inverter.scorer.text_features(texts) @ batch.features[row]
        assert result.prompt == texts[int(features.argmax())]
    assert len({result.prompt for result in results}) > 1
    (alone,) = inverter(targets[1:2])
    assert alone.prompt == results[1].prompt


def test_a_caption_starts_other_methods_with_its_allowed_words(blip, inverter_of, targets):
    words = ("method.init=caption", f"method.captioner={blip}", "method.restarts=2", "method.prompt_length=6")
    inverter = inverter_of("method=sgd", *words)
    batch = Batch(targets, inverter.generator, inverter.scorer)
    pool, _, _ = inverter.optimise(batch, Session())
    vocabulary = inverter.generator.vocabulary
    visits = pool.token_ids.shape[1] // 2
    captions = load_captioner(str(blip), CPU)(batch.images, 2)
    for row in range(len(targets)):
        for restart in range(2):
            start = present(pool.token_ids[row, restart * visits]).tolist()
            tokens = caption_tokens(vocabulary, captions[row][restart], inverter.generator.max_prompt_length)
            known = [token for token in tokens if vocabulary.allowed[token]][:6]
            assert start[: len(known)] == known and len(start) == 6 and vocabulary.allowed[start].all()


def test_a_captions_words_are_kept_whole(generator):
    vocabulary = generator.vocabulary
    ids = caption_tokens(vocabulary, "a red dog, square", 9)
    assert ids == vocabulary.encode("a red dog, square") and len(ids) == 5
    assert caption_tokens(vocabulary, "a red dog, square", 4) == ids[:4]
    assert caption_tokens(vocabulary, "a red dog, square", 3) == ids[:2]  # not "dog" without its comma
    assert caption_tokens(vocabulary, "", 5) == []
    assert caption_tokens(vocabulary, "a <|endoftext|> dog", 5) == [ids[0], ids[2]]  # no word of a prompt
