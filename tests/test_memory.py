"""How the frozen model computes: rows at once, precision, what is kept for the gradient. The prompt stays float32."""

from collections import Counter

import pytest
import torch
from runs import QUICK, make_pictures

from ph2p import load_config, load_inverter
from ph2p.data import Target, load_image
from ph2p.errors import UserError
from ph2p.evaluation.texts import text_losses
from ph2p.inversion.draws import make_draws
from ph2p.inversion.lbfgs import BatchedLBFGS
from ph2p.models.microbatch import MicroBatch, parts

WORDS = [
    *QUICK,
    "method.budget=150",
    "method.judge_draws=1",
    "method.optimizer.max_eval=4",
    "method.draws=3",
    "method.search.draws=3",
]
WORDS += ["method.search.race=[[12,1],[3,1],[2,3]]", "evaluation.draws=5", "generator.steps=2", "data.path=x"]


# --- rows at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "draws", "size"), [(1, 1, 1), (5, 3, 15), (5, 3, 7), (5, 3, 3), (4, 5, 2), (2, 3, 1)])
def test_parts_cover_every_sample_once_and_fit(rows, draws, size):
    count, weight = torch.zeros(rows, draws), torch.zeros(rows)
    for some, columns, share in parts(rows, draws, size):
        count[some, columns] += 1
        assert count[some, columns].numel() <= size
        weight[some] += share
    assert (count == 1).all()
    torch.testing.assert_close(weight, torch.ones(rows))


class SmallDevice:
    """A denoiser that runs out of memory beyond so many rows; fewer where a gradient is kept."""

    def __init__(self, predict, forward: int, gradient: int) -> None:
        self.predict, self.limits, self.failures = predict, {False: forward, True: gradient}, Counter()

    def __call__(self, noisy, timesteps, conditioning):
        grows = any(value.requires_grad for value in conditioning.values())
        if len(noisy) > self.limits[grows]:
            self.failures[grows] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.predict(noisy, timesteps, conditioning)


def figures(results) -> list[list[float]]:
    return [[*r.loss_curve, r.loss, r.loss_empty, *(c.loss for c in r.candidates)] for r in results]


def test_results_do_not_depend_on_the_rows_at_once(inverter_of, targets):
    """In double precision the split changes nothing that can be seen, whether asked for or found out."""
    inverter = inverter_of(*WORDS)
    generator = inverter.generator
    whole = inverter(targets)
    predict = generator.predict
    try:
        for rows in (7, 2):  # 2: less than the draws of one image
            generator.microbatch = MicroBatch(rows)
            generator.predict = SmallDevice(predict, rows, rows)
            split = inverter(targets)
            assert [r.prompt for r in split] == [r.prompt for r in whole]
            for ours, theirs in zip(figures(split), figures(whole), strict=True):
                assert ours == pytest.approx(theirs, rel=1e-3)  # L-BFGS magnifies the last bits
            assert not generator.predict.failures
        generator.microbatch = MicroBatch()
        generator.predict = SmallDevice(predict, 3, 2)
        found_out, learned = inverter(targets), generator.microbatch.learned
        failures = generator.predict.failures
        assert (
            failures[True] == 1 and 1 <= failures[False] <= 3
        )  # as often as there is something to halve, and never again
        assert (
            learned["gradient"] == 1 and 1 <= learned["forward"] <= 3
        )  # of a prompt's 3 draws, of a chunk of candidates
        assert [r.prompt for r in found_out] == [r.prompt for r in whole]
        assert all(r.microbatch == learned for r in found_out)
        assert all("memory ran out" in r.notes[0] and "gradient 1" in r.notes[0] for r in found_out)
        assert all(not r.microbatch and not r.notes for r in whole) and split[0].microbatch == {"all": 2}
        assert [r.forward_samples for r in found_out] == [r.forward_samples for r in whole]
    finally:
        generator.predict, generator.microbatch = predict, MicroBatch()


@pytest.mark.parametrize(("rows", "advice"), [(8, "method.microbatch=8: out of memory"), (None, "free the device")])
def test_too_little_memory_for_one_row_gives_one_line(rows, advice):
    def fail(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=advice):
        MicroBatch(rows).run("gradient", 64, fail)


def test_gradient_checkpointing_recomputes_and_finds_the_same(model_overrides, targets):
    words = [*WORDS, *model_overrides]
    plain, recomputed = (
        load_inverter(load_config([*words, f"generator.gradient_checkpointing={on}"])) for on in ("false", "true")
    )
    calls = Counter()
    for name, inverter in (("plain", plain), ("recomputed", recomputed)):
        block = inverter.generator.pipeline.unet.up_blocks[-1].resnets[-1]
        block.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    ours, theirs = (inverter(targets[:1])[0] for inverter in (recomputed, plain))
    assert ours.prompt == theirs.prompt and ours.loss_curve == pytest.approx(theirs.loss_curve, rel=1e-5)
    assert calls["recomputed"] == calls["plain"] + ours.backward_samples / 3  # once more for every backward pass


# --- precision ----------------------------------------------------------------------------------------------------


class Spy:
    """Notes the types that meet in a run: of the denoiser's convolutions and of all that the optimiser holds."""

    def __init__(self, monkeypatch) -> None:
        self.denoiser, self.prompt = set(), set()
        step = BatchedLBFGS.step

        def spied(optimizer, closure):
            loss = step(optimizer, closure)
            (parameter,) = optimizer.param_groups[0]["params"]
            held = [parameter, parameter.grad, loss, *optimizer.state[parameter].values()]
            self.prompt |= {value.dtype for value in held}
            return loss

        monkeypatch.setattr(BatchedLBFGS, "step", spied)

    def watch(self, inverter) -> None:
        layer = inverter.generator.pipeline.unet.conv_in
        layer.register_forward_hook(lambda module, args, output: self.denoiser.add(output.dtype))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_model_computes_in_its_precision_and_the_prompt_in_float32(
    precision, model_overrides, targets, monkeypatch
):
    inverter, spy = (
        load_inverter(load_config([*WORDS, *model_overrides, f"trainer.precision={precision}"])),
        Spy(monkeypatch),
    )
    spy.watch(inverter)
    (result,) = inverter(targets[:1])
    assert spy.prompt == {torch.float32}
    assert spy.denoiser == {torch.float32 if precision == "32-true" else torch.bfloat16}  # in every phase
    weights = {value.dtype for value in inverter.generator.pipeline.unet.parameters()}
    half, whole = torch.bfloat16, torch.float32
    assert weights == {"32-true": {whole}, "bf16-mixed": {half, whole}, "bf16-true": {half}}[precision]
    assert {value.dtype for value in inverter.generator.pipeline.vae.parameters()} == {whole}
    assert result.peak_memory > 100  # MiB: Python and torch alone take more


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16"])
def test_float16_is_refused_with_the_reason(precision):
    with pytest.raises(UserError, match=r"trainer\.precision=16.*float16 gradients underflow.*bf16-mixed"):
        load_config([f"trainer.precision={precision}"])


def test_bf16_finds_prompts_as_good_as_float32(model_overrides, tmp_path):
    """Eight pictures: the change of the loss, measured in float32 on other draws, is zero within its 95 % interval."""
    pictures = [load_image(path, 16) for path in sorted(make_pictures(tmp_path / "pictures", 8).iterdir())]
    targets = [Target(f"picture-{k}", "", picture) for k, picture in enumerate(pictures)]
    words = [*WORDS, *model_overrides, "method.prompt_length=4"]
    inverters = [load_inverter(load_config([*words, f"trainer.precision={p}"])) for p in ("32-true", "bf16-mixed")]
    results = [inverter(targets) for inverter in inverters]
    assert [r.loss_curve for r in results[0]] != [r.loss_curve for r in results[1]]  # or nothing was compared
    generator = inverters[0].generator
    latents = generator.encode_images(torch.stack(pictures))
    draws = make_draws(0, [t.image_id for t in targets], ("test",), 64, (500, 1000), generator.latent_shape)
    before, after, empty = (
        torch.tensor(text_losses(generator, latents, texts, draws))
        for texts in ([r.prompt for r in results[0]], [r.prompt for r in results[1]], [""] * len(targets))
    )
    change, gain = after - before, empty - before
    error = change.std() / len(change) ** 0.5
    assert 2.4 * error < gain.mean() / 5, "too noisy to tell"
    assert abs(change.mean()) <= 2.4 * error + 1e-6  # Student's t with 7 degrees of freedom
