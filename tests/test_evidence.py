"""The evidence: its designs are sound, its smallest size runs and continues, its digest says what the lines say."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ph2p import load_config
from ph2p.config.compose import config_dir
from ph2p.data import WorldTargets
from ph2p.errors import UserError
from ph2p.evaluation.metrics import METRICS, regret
from ph2p.inversion.batch import Batch
from ph2p.inversion.objectives import candidate_losses
from ph2p.inversion.starts import starting_tokens
from ph2p.world import scenes as world

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import digest
import evidence
import probes
from design import SAMPLES_A_SECOND, SIZES, experiments, samples
from material import loaded, targets_of
from picking import others, picks
from plots import MEASURED, steps
from watch import Watch


@pytest.mark.parametrize("experiment", experiments("small"), ids=lambda experiment: experiment.name)
def test_a_design_is_sound(experiment, tmp_path):
    labels = [variant.label for variant in experiment.variants]
    assert experiment.reference in labels and len(labels) == len(set(labels))
    assert set(experiment.columns) <= METRICS.keys() | digest.OWN.keys()
    assert (experiment.measure or "regret") in MEASURED
    for arguments in experiment.scenes.values():
        assert len(targets_of(arguments | {"count": 3}, tmp_path)) == 3
        assert (arguments.get("split") == "val") == (experiment.name == "tuning")  # nothing is tuned on test scenes
    cells = [cell for cell in experiment.cells() if cell.seed == 0 and cell.scenes == next(iter(experiment.scenes))]
    assert len(cells) == len(labels)
    budgets = {load_config(cell.words).method.budget for cell in cells}  # every word is known
    assert budgets == {2000} or experiment.own_budgets
    assert any("method=retrieval" in cell.words for cell in cells)
    assert set(experiment.probes or {}) <= probes.PROBES.keys()


def test_the_main_table_has_every_method():
    (main,) = experiments("full", "main")
    methods = {load_config(variant.words).method.name for variant in main.variants}
    every = {path.stem for path in (config_dir() / "method").glob("*.yaml")}
    assert methods == every - {"best"}  # which is the default with more samples: at equal cost it is no other method
    counts = {size: sum(cell.world["count"] for cell in experiments(size, "main")[0].cells()) for size in SIZES}
    assert counts == {"smoke": 15, "small": 15 * (32 + 4), "full": 15 * 2 * 3 * 64}
    with pytest.raises(UserError, match=r"^experiment=none: choose one of prompts, main, timesteps, "):
        experiments("small", "none")


def test_the_small_size_takes_three_hours_at_most(capsys):
    together = sum(samples(experiment) for experiment in experiments("small"))
    assert together / SAMPLES_A_SECOND <= 3 * 3600
    evidence.main(["--size", "small", "--estimate"])
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["together", f"{together:,}"]
    (ablation,) = experiments("small", "ablation")  # all but one spend the budget, retrieval 8 x 16 + 90 samples
    scenes, variants = sum(ablation.content["small"]["count"].values()), len(ablation.variants)
    assert samples(ablation) == scenes * ((variants - 1) * 2000 + 218 + variants * (3 * 32 + 2 * 2 * 2 * 15))


@pytest.mark.slow
def test_the_smallest_size_runs_and_continues(tmp_path):
    words = ["--size", "smoke", "--output", str(tmp_path)]
    evidence.main([*words, "--", "trainer=cpu"])
    folder = tmp_path / "smoke"
    text = (folder / "evidence.md").read_text(encoding="utf-8")
    for experiment in experiments("smoke"):
        assert experiment.title in text and f"EXPERIMENT={experiment.name}\n" in text
    assert "Not run" not in text and text.count("\n| ph2p_plus |") == 4
    plots = sorted((folder / "evidence").glob("*.svg"))
    assert {"main", "main-curves", "timesteps-probes", "projection-trace", "length-sweeps"} <= {p.stem for p in plots}
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag.endswith("svg") and f"evidence/{plot.name}" in text
    parts = {path: path.read_bytes() for path in folder.glob("*/part-*.jsonl")}
    assert sum(len(evidence.lines(path.parent)) for path in parts) > 20
    # Half of a line, as a process that is killed leaves it: that image is made again, and nothing else.
    (broken,) = (folder / "projection").glob("part-*.jsonl")
    whole = broken.read_bytes().splitlines()
    broken.write_bytes(b"\n".join([*whole[:-1], whole[-1][:40], b""]))
    evidence.main([*words, "--experiment", "projection", "--", "trainer=cpu"])
    again = [json.loads(line) for line in broken.read_bytes().splitlines() if line[-1:] == b"}"]
    for ours, theirs in zip(again, map(json.loads, whole), strict=True):
        assert ours["cell"] == theirs["cell"] and ours["record"]["prompt"] == theirs["record"]["prompt"]
    assert all(path.read_bytes() == content for path, content in parts.items() if path != broken)


# --- the digest ---------------------------------------------------------------------------------------------------


@pytest.fixture
def made():
    """Lines of two variants, six scenes and two seeds, one of them without a regret, with what they should give."""
    random, lines = np.random.default_rng(1), []
    for variant in ("ph2p", "sgd"):
        for seed in (0, 1):
            for scene in range(6):
                known = None if (variant, seed, scene) == ("sgd", 1, 0) else float(random.normal(variant == "sgd", 0.1))
                record = {"regret": known, "word_recall": scene / 6, "status": "ok", "samples": 2000 + scene}
                lines.append({"image_id": f"s{scene}", "variant": variant, "seed": seed, "record": record})
    return lines


def test_a_row_is_the_scenes_means_over_seeds(made):
    values = digest.by_scene(made, "sgd", "regret")
    for scene in range(6):
        own = [line["record"]["regret"] for line in made if (line["variant"], line["image_id"]) == ("sgd", f"s{scene}")]
        assert values[f"s{scene}"] == pytest.approx(np.mean([value for value in own if value is not None]))


def test_differences_are_paired_by_scene_and_seed(made):
    known = {(line["variant"], line["seed"], line["image_id"]): line["record"]["regret"] for line in made}
    expected = []
    for scene in sorted({line["image_id"] for line in made}):
        pairs = [(known["sgd", seed, scene], known["ph2p", seed, scene]) for seed in (0, 1)]
        expected.append(np.mean([ours - theirs for ours, theirs in pairs if ours is not None]))
    assert digest.paired(made, "sgd", "ph2p") == pytest.approx(expected)
    assert digest.interval(digest.paired(made, "ph2p", "ph2p"), np.mean, str) == "0.0"


def test_the_table_and_the_sentence_say_who_stands_apart(made):
    (main,) = experiments("small", "main")
    head, rule, first, second = digest.table(main, made)
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| ph2p | 2,0") and second.startswith("| sgd | ") and "+1." in second
    assert "CLIP" in head and "–" in first  # noqa: RUF001 - what nobody has measured
    assert digest.answer(main, made).endswith("Intervals apart, worse than ph2p: sgd.")
    same = [{**line, "record": {**line["record"], "regret": 0.5}} for line in made]
    assert digest.answer(main, same).endswith("Nothing stands apart from ph2p.")
    assert "one scene" in digest.answer(main, [line for line in made if line["image_id"] == "s1"])


def test_what_the_seeds_decide_and_how_many_are_as_good(made):
    known = {(line["image_id"], line["seed"]): line["record"]["regret"] for line in made if line["variant"] == "ph2p"}
    for scene in range(6):
        first, second = (known[f"s{scene}", seed] for seed in (0, 1))
        spread = digest.by_scene(made, "ph2p", "spread")[f"s{scene}"]
        assert spread == pytest.approx(abs(first - second) / 2**0.5)
        assert digest.by_scene(made, "ph2p", "as_good")[f"s{scene}"] == ((first <= 0) + (second <= 0)) / 2
    assert "s0" not in digest.by_scene(made, "sgd", "spread")  # one seed is known


def test_prompts_stand_side_by_side(made):
    for line in made:
        line["record"] |= {"prompt": f"{line['variant']} | {line['seed']}", "caption": line["image_id"]}
    said, _, head, rule, *rows, _ = digest.examples(made, 4)
    assert said == "The first 4 pictures, seed 0:" and head == "| true caption | ph2p | sgd |"
    assert rows == [rf"| s{scene} | ph2p \| 0 | sgd \| 0 |" for scene in range(4)] and rule.count("---") == 3


def test_a_picture_is_picked_by_its_own_prompt_and_not_by_anothers():
    """Drawn pictures in the place of renderings: the judge and a reader find nearly all, and no foreign ones."""
    targets = WorldTargets(count=24, seed=5, objects=None, split="test", image_size=(64, 64))
    pictures = loaded(targets)
    own = [picks(targets, k, p.caption, p.image[None]) for k, p in enumerate(pictures)]
    assert np.mean([found["picked_by_judge"] for found in own]) > 0.85
    assert np.mean([found["picked_by_reader"] for found in own]) == 1
    other = [pictures[k - 1] for k in range(24)]
    foreign = [picks(targets, k, p.caption, p.image[None]) for k, p in enumerate(other)]
    assert max(np.mean([found[key] for found in foreign]) for key in foreign[0]) < 0.3
    for index in range(3):
        scene, rest = world.scene("test", index, 5), others(targets, index)
        assert len(rest) == 7 and all(len(one.things) == len(scene.things) for one in rest) and scene not in rest


def test_what_has_not_been_run_is_named(made):
    (main,) = experiments("small", "main")
    said = digest.not_run(main, made)
    assert said.startswith("Not run yet: ") and said.endswith(".")
    assert set(said[13:-1].split(", ")) == {variant.label for variant in main.variants} - {"ph2p", "sgd"}
    every = [{"variant": variant.label} for variant in main.variants]
    assert digest.not_run(main, every) == ""


def test_a_curve_is_a_step_function():
    grid = np.array([0, 10, 15, 20, 99])
    found = steps([(10, 1.0), (20, 0.5)], grid)
    assert np.isnan(found[0]) and found[1:].tolist() == [1.0, 1.0, 0.5, 0.5]


# --- what is measured on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [["method=ph2p", "method.restarts=2"], ["method=ph2p_plus", "method.budget=800"]])
def test_a_curve_goes_from_the_start_to_the_result(inverter_of, targets, method):
    inverter = inverter_of(*method)
    watch = Watch(inverter, 2)
    results = inverter(targets[:2], watch)
    watch.curves(inverter, targets[:2], results)
    cfg, batch = inverter.cfg, Batch(targets[:2], inverter.generator, inverter.scorer)
    draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
    keys = [f"{key}#{r}" if r else key for key in batch.keys for r in range(cfg.method.restarts)]
    start = starting_tokens(inverter.generator.vocabulary, inverter.scorer, cfg.method, 0, keys, batch.features)
    for row, result in enumerate(results):
        samples, values = zip(*result.regret_curve, strict=True)
        assert list(samples) == sorted(samples) and samples[-1] == result.metrics["samples"]
        assert values[-1] == pytest.approx(result.regret)
        begun = start[row * cfg.method.restarts : (row + 1) * cfg.method.restarts]
        one = slice(row, row + 1)
        losses = candidate_losses(inverter.generator, batch.latents[one], begun[None], draws[one])[0].tolist()
        possible = [regret(loss, result.loss_caption, result.loss_empty) for loss in losses]
        assert min(abs(values[0] - value) for value in possible) < 1e-5
        assert len(samples) == len(watch.visits) + 1 and samples[0] == cfg.method.restarts * cfg.method.judge_draws
    assert watch.trace["distance"] and len(watch.trace["samples"]) == len(watch.trace["changed"])


def test_the_clarity_of_a_gradient_is_that_of_its_distribution():
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 5, generator=random)
    found = [probes.clarity(mean + 2 * torch.randn(16, 3, 5, generator=random)) for _ in range(400)]
    assert np.mean(found) == pytest.approx(float(mean.square().sum()) / (15 * 4), rel=0.1)


def test_one_attribute_of_a_caption_is_swapped():
    targets = [WorldTargets(count=4, objects=1, image_size=16).load(k) for k in range(4)]
    for k in range(len(targets[0].words)):
        text = probes.swapped(targets[0], targets[1:], k)
        if text is None:  # all have the same
            continue
        changed = [(a, b) for a, b in zip(targets[0].caption.split(), text.split(), strict=True) if a != b]
        ((before, after),) = changed
        assert before in targets[0].words[k] and after not in targets[0].words[k]
        assert any(after in other.words[k] for other in targets[1:])


def test_samples_to_a_regret_count_the_scenes_that_never_get_there():
    def line(scene, value, seed=0, curve=((10, 1.0),)):
        record = {"samples_to_tenth": value, "regret_curve": list(curve)}
        return {"image_id": scene, "variant": "ph2p", "seed": seed, "record": record}

    some = [line("a", 100.0), line("a", 300.0, seed=1), line("b", 1000.0), line("c", 4000.0), line("d", None)]
    assert digest.reached(some, "ph2p", "samples_to_tenth") == "2,500, 75% of scenes"  # of 200, 1000, 4000, never
    never = [*some, line("e", None), line("f", None), line("g", None)]
    assert digest.reached(never, "ph2p", "samples_to_tenth") == "\u2013, 43% of scenes"
    unknown = [*some, line("h", None, curve=())]  # nobody has followed it
    assert digest.reached(unknown, "ph2p", "samples_to_tenth") == digest.reached(some, "ph2p", "samples_to_tenth")
    assert digest.reached(some, "pez", "samples_to_tenth") == "\u2013"


def test_a_rivals_regret_is_reached_by_others_with_so_many_samples(made):
    (main,) = experiments("small", "main")
    for line in made:
        own = {"sgd": [[100, 1.0], [2000, 0.5]], "ph2p": [[100, 0.9], [250, 0.4], [2000, None]]}[line["variant"]]
        line["record"] |= {"regret": own[-1][1] or 0.4, "samples": 2000, "regret_curve": own}
    assert digest.overtaken(main, made) == ""  # nobody has run the rival
    rival = [{**line, "variant": "ph2p_released"} for line in made if line["variant"] == "sgd"]
    assert digest.overtaken(main, made + rival) == (
        "The median regret of ph2p_released is 0.50 after 2,000 samples; half of the scenes get there with fewer by: "
        "ph2p 250 (1/8.0)."
    )


def test_a_column_that_needs_another_model_stands_where_it_is_known(made):
    (main,) = experiments("small", "main")
    assert "CLIP elsewhere" not in digest.table(main, made)[0]
    made[0]["record"]["transfer_similarity"] = 0.75
    head, _, first, second = digest.table(main, made)
    assert "CLIP elsewhere" in head and "0.75" in first and "0.75" not in second


def test_a_measure_that_is_better_when_higher_is_told_so(made):
    (coco,) = experiments("small", "coco")
    for line in made:
        line["record"]["gap_closed"] = None if line["record"]["regret"] is None else 1 - line["record"]["regret"]
    assert digest.answer(coco, made).startswith("The highest median gap closed has ph2p, ")
    assert digest.answer(coco, made).endswith("Intervals apart, worse than ph2p: sgd.")
    ours, theirs = digest.paired(made, "sgd", "ph2p", "gap_closed"), digest.paired(made, "sgd", "ph2p")
    assert ours == pytest.approx(-theirs)
    assert "gap closed above ph2p" in digest.table(coco, made)[0]


def test_pictures_in_cocos_layout_are_written_once(tmp_path):
    scenes = {"layout": "coco", "seed": 3, "count": 2}
    first = loaded(targets_of(scenes, tmp_path, (64, 64)))
    (root,) = tmp_path.iterdir()
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    again = loaded(targets_of(scenes, tmp_path, (64, 64)))
    assert [t.key for t in again] == [t.key for t in first] and len(stamps) == 2
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")} == stamps
    assert all(t.references and t.caption is None for t in first)
