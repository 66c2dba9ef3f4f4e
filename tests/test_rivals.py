"""The rivals against independent re-implementations, and prompts of words that CLIP finds."""

import pytest
import torch
from torch import Tensor

from ph2p import load_config, load_inverter
from ph2p.errors import UserError
from ph2p.inversion.batch import Batch
from ph2p.inversion.retrieval import retrieve
from ph2p.inversion.session import Session
from ph2p.inversion.starts import starting_tokens
from ph2p.inversion.steps import InversionData
from ph2p.models.vocabulary import Vocabulary


def visited(inverter, targets) -> tuple[Batch, list[list[int]], list[list[list[int]]]]:
    """The batch, the starting tokens of each image, and the tokens at each of its evaluations."""
    batch = Batch(targets, inverter.generator, inverter.scorer)
    pool, _, _ = inverter.optimise(batch, Session())
    tokens = pool.token_ids.tolist()
    return batch, [row[0] for row in tokens], [row[1:] for row in tokens]


def embedded(layer: torch.nn.Module, vectors: Tensor):
    """Put vectors (M, D) into the places behind the begin of text of what an embedding layer gives."""

    def put(module, args, output):
        return torch.cat([output[:, :1], vectors[None].to(output), output[:, 1 + len(vectors) :]], 1)

    return layer.register_forward_hook(put)


def framed(tokenizer, ids: list[int]) -> Tensor:
    text = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor([text + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(text))])


# --- trajectories -------------------------------------------------------------------------------------------------


def released(pipeline, allowed: list[int], start: list[int], latent: Tensor, draws) -> list[list[int]]:
    """The published loop for one picture, from its description alone.

    The parameter is overwritten by the tokens nearest to a shadow copy; the gradient of a hundred times the loss at
    these tokens moves the shadow by 0.8.
    """
    layer = pipeline.text_encoder.get_input_embeddings()
    table, seen = layer.weight.detach().float(), []
    shadow = table[start].clone()
    for t, noise in draws:
        ids = [min(allowed, key=lambda v: float((shadow[m] - table[v]).norm())) for m in range(len(shadow))]
        parameter = table[ids].clone().requires_grad_()
        handle = embedded(layer, parameter)
        try:
            hidden = pipeline.text_encoder(framed(pipeline.tokenizer, ids))[0]
        finally:
            handle.remove()
        noisy = pipeline.scheduler.add_noise(latent[None], noise[None], t[None])
        wanted = pipeline.scheduler.get_velocity(latent[None], noise[None], t[None])
        loss = 100 * (pipeline.unet(noisy, t, hidden).sample - wanted).square().mean()
        (gradient,) = torch.autograd.grad(loss, parameter)
        shadow -= 0.8 * gradient
        seen.append(ids)
    return seen


def test_the_released_code_is_what_its_description_computes(inverter_of, targets):
    inverter = inverter_of("method=ph2p_released", "method.budget=104")
    method, generator = inverter.cfg.method, inverter.generator
    batch, starts, found = visited(inverter, targets)
    data = InversionData(batch.latents, batch.keys, 0, 1, 1, tuple(method.timesteps))
    allowed = generator.vocabulary.allowed.nonzero().flatten().tolist()
    for row in range(len(targets)):
        steps = [data.batch(epoch, 0)[1] for epoch in range(len(found[row]))]
        draws = [(d.timesteps[row, 0], d.noise[row, 0].double()) for d in steps]
        assert all(500 <= int(t) < 900 for t, _ in draws)
        assert found[row] == released(generator.pipeline, allowed, starts[row], batch.latents[row], draws)
    assert len(found[0]) >= 20
    assert len({tuple(ids) for row in found for ids in row}) > 10  # or the tokens hardly moved


def pez(scorer, vocabulary, start: list[int], features: Tensor, steps: int) -> list[list[int]]:
    """PEZ for one picture, from its description alone: AdamW on the continuous prompt, gradient at its projection."""
    layer, allowed = scorer.model.text_model.get_input_embeddings(), vocabulary.allowed.nonzero().flatten().tolist()
    table, seen = vocabulary.embeddings, []  # the random models' tables differ: the generator's is what is searched
    unit = table / table.norm(dim=1, keepdim=True)
    prompt = torch.nn.Parameter(table[start].clone())
    optimizer = torch.optim.AdamW([prompt], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        with torch.no_grad():
            angles = prompt / prompt.norm(dim=1, keepdim=True) @ unit.T
        ids = [max(allowed, key=lambda v: float(angles[m, v])) for m in range(len(prompt))]
        hard = table[ids].clone().requires_grad_()
        handle = embedded(layer, hard)
        try:
            text = scorer.model.get_text_features(input_ids=framed(scorer.tokenizer, ids))
        finally:
            handle.remove()
        text = getattr(text, "pooler_output", text)[0]
        (prompt.grad,) = torch.autograd.grad(-(text @ features) / text.norm(), hard)
        optimizer.step()
        seen.append(ids)
    return seen


def test_pez_is_what_its_description_computes(inverter_of, targets):
    inverter = inverter_of("method=pez", "method.budget=360")
    batch, starts, found = visited(inverter, targets)
    vocabulary = inverter.generator.vocabulary
    for row in range(len(targets)):
        assert found[row] == pez(inverter.scorer, vocabulary, starts[row], batch.features[row], len(found[row]))
    assert len(found[0]) >= 20
    assert len({tuple(ids) for row in found for ids in row}) > 10


# --- starts -------------------------------------------------------------------------------------------------------


def test_a_padded_start_has_the_words_there_are_and_random_ones_behind_them(inverter_of):
    inverter = inverter_of("method=ph2p_released", "method.init=A red zzz ☃ dog .", "method.prompt_length=6")
    vocabulary = inverter.generator.vocabulary
    options = (vocabulary, inverter.scorer, inverter.cfg.method)
    first, second = starting_tokens(*options, 0, ["a", "b"], torch.zeros(2, 8)).tolist()
    words = vocabulary.tokenizer.convert_tokens_to_ids(["a</w>", "red</w>", "dog</w>", ".</w>"])
    assert first[:4] == second[:4] == words
    assert first[4:] != second[4:] and vocabulary.allowed[[*first[4:], *second[4:]]].all()
    assert starting_tokens(*options, 0, ["b"], torch.zeros(1, 8)).tolist() == [second]
    with pytest.raises(UserError, match=r"^method\.pad_init=True: it needs words"):
        load_config(["method=ph2p", "method.pad_init=true"])


@pytest.fixture(scope="module")
def embedded_model():
    return load_inverter(load_config(["method=retrieval", "trainer=cpu"]))


def test_retrieval_without_a_beam_is_plain_matching_pursuit(embedded_model):
    """Against a search of all words one by one, on features made of a text."""
    scorer, vocabulary = embedded_model.scorer, embedded_model.generator.vocabulary
    (picture,) = scorer.text_features(["large striped red square"])
    (prompt,) = retrieve(scorer, vocabulary, picture[None], 3, 1)[0].tolist()
    words, said = {v: vocabulary.decode([v]) for v in vocabulary.allowed_ids.tolist()}, []
    for place in range(3):
        if said:
            text = scorer.text_features([" ".join(words[v] for v in said)])[0]
            residual = picture - (picture @ text) * text
        else:
            residual = picture
        left = [v for v in words if v not in said]
        near = sorted(left, key=lambda v: -float(scorer.text_features([words[v]])[0] @ residual))[:32]
        longer = [" ".join(words[v] for v in [*said, v]) for v in near]
        said.append(near[int((scorer.text_features(longer) @ picture).argmax())])
        assert prompt[place] == said[place]
    assert len(set(prompt)) == 3


def test_a_wider_beam_is_no_worse_and_rows_stand_alone(embedded_model):
    scorer, vocabulary = embedded_model.scorer, embedded_model.generator.vocabulary
    pictures = scorer.text_features(["small blue star", "green cup below a fish"])
    wide, narrow = (retrieve(scorer, vocabulary, pictures, 4, beams) for beams in (6, 1))
    assert wide.shape == (2, 6, 4) and vocabulary.allowed[wide].all()
    texts = [[vocabulary.decode(prompt) for prompt in row] for row in wide]
    for row in range(2):
        likeness = scorer.text_features(texts[row]) @ pictures[row]
        assert (likeness.diff() <= 1e-6).all()  # the best first
        assert likeness[0] >= scorer.text_features([vocabulary.decode(narrow[row, 0])])[0] @ pictures[row] - 1e-6
        assert len({frozenset(prompt) for prompt in wide[row].tolist()}) == 6
    assert torch.equal(retrieve(scorer, vocabulary, pictures[1:], 4, 6)[0], wide[1])


def test_retrieval_starts_any_method_and_needs_no_denoiser(inverter_of, targets):
    inverter = inverter_of("method=retrieval", "method.restarts=3", "method.prompt_length=9")
    counter = inverter.generator.counter
    batch, before = Batch(targets, inverter.generator, inverter.scorer), counter.read()
    pool, _, _ = inverter.optimise(batch, Session())
    assert counter.read() == before and pool.token_ids.shape == (3, 3, 9)
    started = inverter_of("method=sgd", "method.init=retrieval", "method.restarts=2").optimise(batch, Session())[0]
    wanted = retrieve(inverter.scorer, inverter.generator.vocabulary, batch.features, 4, 1)[:, 0]
    visited = len(started.epochs[0]) // 2  # of each restart, the start first
    assert torch.equal(started.token_ids[:, 0], wanted)
    assert not torch.equal(wanted[0], wanted[1])  # each image has words of its own
    for row, other in enumerate(started.token_ids[:, visited].tolist()):  # another start, not the beam's next one
        assert len(set(other) & set(wanted[row].tolist())) < 3


# --- the distance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_the_nearest_token_by_cosine_equals_brute_force(generator, scale):
    vocabulary = generator.vocabulary.projecting("cosine")
    table = vocabulary.embeddings.double() * torch.linspace(0.5, 3, len(vocabulary.embeddings))[:, None].double()
    stretched = Vocabulary(vocabulary.tokenizer, table.float()).projecting("cosine")
    prompt = scale * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    for some in (vocabulary, stretched):
        angles = torch.cosine_similarity(prompt.double()[..., None, :], some.embeddings.double(), dim=-1)
        angles[..., ~some.allowed] = -torch.inf
        assert torch.equal(some.nearest(prompt), angles.argmax(-1))
        assert torch.equal(some.nearest(5 * prompt), some.nearest(prompt))
        assert torch.equal(some.nearest(some.embed(some.allowed_ids)), some.allowed_ids)
    plain = Vocabulary(vocabulary.tokenizer, table.float())
    assert not torch.equal(plain.nearest(prompt), stretched.nearest(prompt))  # the lengths count for Euclid alone
    assert generator.vocabulary.distance == "euclid"
    assert vocabulary.allowed[vocabulary.nearest(torch.full((2, 16), torch.nan))].all()


def test_the_distance_is_a_key_with_two_values():
    assert load_config(["method=pez"]).method.projection == "cosine"
    with pytest.raises(UserError, match=r"^method\.projection=dot: choose one of euclid, cosine$"):
        load_config(["method=pez", "method.projection=dot"])


# --- their choices ------------------------------------------------------------------------------------------------


def chosen(inverter, targets):
    """Each image's candidates by the rule, the winner first; what was visited; and the samples that the choice took."""
    batch = Batch(targets, inverter.generator, inverter.scorer)
    pool, _, _ = inverter.optimise(batch, Session())
    before = inverter.generator.counter.read()
    found, failed = inverter.select(batch, pool, Session())
    after = inverter.generator.counter.read()
    assert not failed and after.backward == before.backward
    return batch, pool, found, after.forward - before.forward


def texts_of(vocabulary, rows: Tensor) -> list[str]:
    """The distinct texts of prompts (K, M) that read back, in their order."""
    known = [vocabulary.repair(ids) for ids in rows.tolist()]
    return list(dict.fromkeys(vocabulary.decode(ids) for ids in known if ids))


def test_pez_keeps_the_prompt_of_all_steps_that_clip_likes_best(inverter_of, targets):
    inverter = inverter_of("method=pez", "method.selection.rule=clip_text", "method.budget=360")
    batch, pool, found, spent = chosen(inverter, targets)
    assert spent == 0
    for row in range(len(targets)):
        texts = texts_of(inverter.generator.vocabulary, pool.token_ids[row])
        likeness = {text: float(inverter.scorer.text_features([text])[0] @ batch.features[row]) for text in texts}
        assert [c.text for c in found[row]] == sorted(likeness, key=lambda text: -likeness[text])[:6]
        assert len(texts) > 3
    steps = pool.token_ids.shape[1] - 1
    assert steps == 360 // (2 * inverter.cfg.method.draws)  # all of the budget is the optimiser's


def test_the_released_code_keeps_the_most_similar_of_one_rendering_each(inverter_of, targets):
    words = ("method=ph2p_released", "method.selection.rule=released", "method.selection.steps=2", "method.budget=104")
    inverter = inverter_of(*words, "method.selection.shortlist=5", "generator.guidance_scale=2")
    generator = inverter.generator
    batch, pool, found, spent = chosen(inverter, targets)
    assert spent == sum(2 * 2 * len(row) for row in found.values())
    assert pool.token_ids.shape[1] - 1 == (104 - 5 * 2 * 2) // 2  # the renderings are paid for by the same budget
    for row in range(len(targets)):
        texts = texts_of(generator.vocabulary, pool.token_ids[row])
        stride = -(-len(texts) // 5)
        some = [text for k, text in enumerate(texts) if (len(texts) - 1 - k) % stride == 0]
        assert some[-1] == texts[-1] and 2 < len(some) <= 5
        painted = [
            generator.sample([text], [inverter.cfg.seed + 2000 + k], 2, guidance_scale=7.5)
            for k, text in enumerate(some)
        ]
        likeness = [float(inverter.scorer.image_features(p)[0] @ batch.features[row]) for p in painted]
        ranking = [some[k] for k in sorted(range(len(some)), key=lambda k: -likeness[k])]
        assert [c.text for c in found[row]] == ranking
        assert [c.clip_similarity for c in found[row]] == pytest.approx(sorted(likeness, reverse=True), abs=1e-4)
