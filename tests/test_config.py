"""Every option composes, validates and builds what it names; whatever is wrong gives one line that names the key."""

import importlib.util
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ph2p.config.budget import plan
from ph2p.config.compose import config_dir, load_config
from ph2p.config.schema import MethodConfig
from ph2p.data import Targets
from ph2p.errors import UserError
from ph2p.run.build import load_inverter
from ph2p.run.logs import RunLog, make_loggers
from ph2p.world.coco import write_coco


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def test_every_group_is_looked_into():
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    assert groups == {"data", "generator", "method", "scorer", "trainer", "logger", "debug"}
    assert "ph2p_plus" in options("method") and "embedded" in options("generator")


@pytest.mark.parametrize("group", ["generator", "scorer", "debug"])
def test_options_compose(group):
    for option in options(group):
        words = [f"{group}.path=model"] if option == "folder" else []
        assert OmegaConf.missing_keys(load_config([f"{group}={option}", *words])) == set()


def test_another_generator_keeps_nothing_of_the_embedded_one():
    cfg = load_config(["generator=folder", "generator.path=model"])
    ours = cfg.generator
    assert (ours.path, ours.allowlist) == ("model", None)
    assert cfg.scorer.name == "clip-vit-l-14"
    assert load_config(["generator=sd15", "scorer=siglip"]).scorer.name == "siglip"
    assert (ours.guidance_scale, ours.guidance_rescale) == (7.5, 0.0)


@pytest.mark.parametrize("option", options("method"))
def test_a_method_makes_its_optimiser_and_keeps_its_budget(option):
    cfg = load_config([f"method={option}"])
    assert cfg.method.name == option and cfg.name == f"examples-{option}"
    assert plan(cfg.method).epochs + plan(cfg.method).rounds > 0 or cfg.method.optimizer is None
    assert 0.9 * cfg.method.budget < spent(cfg.method) <= cfg.method.budget
    if cfg.method.optimizer is not None:
        parameter = torch.nn.Parameter(torch.ones(2, 3))
        optimizer = instantiate(cfg.method.optimizer, _partial_=True)([parameter])

        def closure():
            optimizer.zero_grad()
            losses = parameter.square().sum(1)
            losses.sum().backward()
            return losses.detach()

        assert isinstance(optimizer, torch.optim.Optimizer)
        assert optimizer.step(closure).shape == (2,) and not torch.equal(parameter, torch.ones(2, 3))


def lay_out(root: Path) -> None:
    """One picture in the layout of every data set."""
    write_coco(root, 1)
    for name in ("a.png", "flickr30k_images/1.jpg", "images/0.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "text").mkdir()
    texts = {
        "captions.csv": "file_name,caption\na.png,red\n",
        "results.csv": "image_name| comment_number| comment\n1.jpg| 0| A dog .\n1.jpg| 1| A cat .\n",
        "metadata.jsonl": '{"file_name": "a.png", "text": "red, trending"}\n',
        "text/0.txt": "She smiles.\nHe does not.\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "cat.txt").write_text("a cat")
    with tarfile.open(root / "0.tar", "w") as tar:
        tar.add(root / "a.png", "cat.png")
        tar.add(root / "cat.txt", "cat.txt")


@pytest.mark.parametrize("option", ["examples", "folder", "world"])
def test_data_makes_targets(option, tmp_path):
    words = {
        "folder": [f"data.path={tmp_path}"],
        "coco": [f"data.root={tmp_path}"],
        "captioned": [f"data.root={tmp_path}", "data.captions=captions.csv"],
        "flickr30k": [f"data.root={tmp_path}"],
        "lexica": [f"data.root={tmp_path}"],
        "celeba": [f"data.root={tmp_path}"],
        "webdataset": [f"data.shards={tmp_path}/*.tar"],
    }
    lay_out(tmp_path)
    targets = instantiate(load_config([f"data={option}", *words.get(option, [])]).data.targets, image_size=16)
    assert isinstance(targets, Targets) and len(targets) > 0
    sets = {"coco": 5, "captioned": 1, "flickr30k": 2, "lexica": 1, "celeba": 2, "webdataset": 1}
    assert len(targets.load(0).references) == sets.get(option, 0)


@pytest.mark.parametrize("option", options("logger"))
def test_loggers(option, tmp_path):
    cfg = load_config([f"logger={option}", f"output={tmp_path}", "name=x"])
    if option == "wandb":
        cfg.logger.offline = True
        if importlib.util.find_spec("wandb") is None:
            with pytest.raises(UserError, match=r"^logger=wandb: wandb is not installed: pip install 'ph2p\[wandb\]'$"):
                make_loggers(cfg)
            return
    loggers = make_loggers(cfg)
    assert len(loggers) == (option != "csv")  # the table is always there
    log = RunLog(tmp_path / "x" / "logs" / "part-00000.csv", loggers)
    log.write(1, {"ü.png": {"loss": 0.5}})
    log.close()
    assert len([path for path in (tmp_path / "x" / "logs").iterdir()]) == 1 + len(loggers)


@pytest.mark.parametrize("option", sorted(set(options("trainer")) - {"gpu"}))
def test_trainers(option):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(**OmegaConf.to_container(load_config([f"trainer={option}"]).trainer), logger=False)
    assert trainer.precision == "32-true" and trainer.num_devices == 1


def test_gpu_trainer_composes():
    assert load_config(["trainer=gpu"]).trainer.accelerator == "gpu"


def test_values_can_be_overridden_and_null():
    words = ["method.budget=900", "method.search=null", "generator.allowlist=null", "seed=3", "name=night"]
    cfg = load_config(["data=world", "data.count=5", "data.objects=null", *words])
    assert (cfg.method.budget, cfg.method.search, cfg.generator.allowlist) == (900, None, None)
    assert (cfg.data.targets.count, cfg.data.objects, cfg.seed, cfg.name) == (5, None, 3, "night")


WRONG = [  # the command line's words, and what the line must name
    ("bogus=1", "bogus"),
    ("method.bogus=1", "bogus"),
    ("data.count=3", "count"),  # a key of data=world, not of the examples
    ("method.optimizer.bogus=1", "bogus"),
    ("method.optimizer=adam", "method.optimizer=adam"),
    ("method.optimizer.max_eval=many", "method.optimizer.max_eval=many"),
    ("method.optimizer.max_eval=0", "method.optimizer.max_eval=0"),
    ("method=nope", "nope"),
    ("data=nope", "nope"),
    ("nope=ph2p", "nope"),
    ("method.budget=lots", "method.budget"),
    ("method.budget", "method.budget"),
    ("method.budget=1.5", "method.budget"),
    ("method.budget=10", "method.budget=10"),
    ("method.budget=0", "method.budget=0"),
    ("method=random method.budget=100", "method.budget=100"),
    ("method.snap=perhaps", "method.snap"),
    ("method.steps=0", "method.steps=0"),
    ("method.restarts=-2", "method.restarts=-2"),
    ("method.prompt_length=0", "method.prompt_length=0"),
    ("method.judge_draws=-1", "method.judge_draws=-1"),
    ("method.judge_draws=0", "method.projection_scales"),
    ("method.snap=false", "method.judge_draws=8"),
    ("method.straight_through=true", "method.judge_draws=8"),
    ("method=random method.judge_draws=4", "method.judge_draws=4"),
    ("method.projection_scales=[1,0]", "method.projection_scales"),
    ("method.objective=beauty", "method.objective=beauty"),
    ("method.timesteps=[500]", "method.timesteps"),
    ("method.timesteps=[900,500]", "method.timesteps"),
    ("method.timesteps=[a,b]", "method.timesteps"),
    ("method.selection.finalists=0", "method.selection.finalists=0"),
    ("method=sgd method.search={share:0.5}", "method.search={share:0.5}: give such keys in a file"),
    ("method=random method.smoothing=1", "method.smoothing=1.0"),
    ("method=pez method.smoothing=1", "method.smoothing=1.0"),
    ("method.smoothing=-1", "method.smoothing=-1.0: give 0, or a number above it"),
    ("method.search.share=1.5", "method.search.share=1.5"),
    ("method.search.swaps=0", "method.search.swaps=0"),
    ("data.batch_size=0", "data.batch_size=0"),
    ("data.batch_size=null", "data.batch_size"),
    ("data=folder", "data.path"),
    ("data=coco", "data.root"),
    ("data=captioned data.root=x", "data.captions"),
    ("data=captioned data.root=x data.captions=y data.delimiter=ab", "data.delimiter=ab"),
    ("data=webdataset", "data.shards"),
    ("data=webdataset data.shards=x data.count=few", "data.count"),
    ("data=world data.count=few", "data.count"),
    ("generator.steps=0", "generator.steps=0"),
    ("generator.image_size=0", "generator.image_size=0"),
    ("generator.guidance_scale=strong", "generator.guidance_scale"),
    ("evaluation.draws=0", "evaluation.draws=0"),
    ("generator=folder", "generator.path=..."),
    ("scorer=folder", "scorer.path=..."),
    ("scorer.path=null", "scorer.path"),
    ("generator.scorer=clip", "scorer"),
    ("data=null", "data=null"),
    ("trainer=null", "trainer=null"),
    ("+trainer.max_epochs=3", "trainer.max_epochs"),
    ("+trainer.enable_progress_bar=true", "trainer.enable_progress_bar"),
    ("trainer.precision=7", "trainer.precision=7"),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed"),
    ("trainer.num_nodes=0", "trainer.num_nodes=0"),
    ("+trainer.strategy=ddp", "trainer.strategy"),
    ("data.shard=3/3", "data.shard=3/3"),
    ("data.shard=1", "data.shard=1"),
    ("method.microbatch=0", "method.microbatch=0"),
    ("method.microbatch=many", "method.microbatch=many"),
    ("seed=-1", "seed=-1"),
    (f"seed={2**62}", f"seed={2**62}"),
    ("name=a/b", "name=a/b"),
    ("name=..", "name=.."),
    ("resume=perhaps", "resume=perhaps"),
]


@pytest.mark.parametrize(("words", "key"), WRONG, ids=[words for words, _ in WRONG])
def test_what_is_wrong_gives_one_line(words, key):
    with pytest.raises(UserError) as caught:
        load_config(words.split())
    message = str(caught.value)
    assert key in message and "\n" not in message and len(message) < 400, message


CONSTRUCTORS = [  # what only the thing that is built from it can refuse
    ("+method.optimizer.bogus=1", "method.optimizer: "),
    ("method=sgd method.optimizer.lr=-1", "method.optimizer: "),
    ("method.optimizer._target_=torch.optim.Nonsense", "method.optimizer: "),
    ("trainer.accelerator=abacus", "trainer: "),
    ("+trainer.bogus=7", "trainer: "),
    ("logger=tensorboard logger._target_=nowhere.Logger", "logger: "),
    ("trainer.devices=0", "trainer: "),
    ("trainer.devices=few", "trainer: "),
]


@pytest.mark.parametrize(("words", "key"), CONSTRUCTORS, ids=[words for words, _ in CONSTRUCTORS])
def test_what_cannot_be_built_gives_one_line_before_a_model_is_loaded(words, key):
    with pytest.raises(UserError) as caught:
        load_inverter(load_config([*words.split(), "generator.path=nowhere"]))
    message = str(caught.value)
    assert message.startswith(key) and "\n" not in message and len(message) < 400, message


# --- the budget ---------------------------------------------------------------------------------------------------


def spent(method: MethodConfig) -> int:
    """Denoiser samples of a whole run by the letter of the documentation, counted phase by phase."""
    bought, choice, search = plan(method), method.selection, method.search
    evaluations = bought.epochs * method.steps * (method.optimizer or {}).get("max_eval", 1) if method.optimizer else 0
    total = 2 * evaluations * method.draws * method.restarts
    total += method.judge_draws * method.restarts * (1 + bought.epochs * len(method.projection_scales))
    if search:
        total += search.draws * (choice.shortlist + search.starts)
        total += bought.rounds * search.starts * search.draws * (1 + 1 + search.swaps)
    return total + choice.shortlist * choice.draws + 2 * choice.finalists * choice.steps


def drawn_methods(option: str) -> Iterator[DictConfig]:
    """The method with a hundred random budgets and prices."""
    method, random = load_config([f"method={option}"]).method, np.random.default_rng(0)
    ranges = {"budget": (500, 9000), "draws": (1, 9), "steps": (1, 4), "restarts": (1, 4)}
    ranges |= {"judge_draws": (1, 9)} if method.judge_draws else {}
    ranges |= {"selection.shortlist": (1, 20), "selection.draws": (1, 20), "selection.finalists": (1, 5)}
    if method.search:
        ranges |= {"search.starts": (1, 4), "search.swaps": (1, 50), "search.draws": (1, 16)}
    for _ in range(100):
        for key, (low, high) in ranges.items():
            OmegaConf.update(method, key, int(random.integers(low, high)))
        if method.search:
            method.search.share = float(random.uniform(0.05, 0.95))
        yield method


@pytest.mark.parametrize("option", ["ph2p", "ph2p_plus", "adam_delayed", "random"])
def test_a_plan_never_spends_more_than_the_budget_and_little_less(option):
    refused = 0
    for method in drawn_methods(option):
        try:
            bought = plan(method)
        except UserError as error:
            refused += 1
            before = method.budget
            method.budget = int(re.search(r"give (\d+) samples", str(error))[1])
            assert method.budget > before
            bought = plan(method)  # what it asks for is enough
        assert spent(method) <= method.budget, method
        if method.optimizer is not None:
            epoch = 2 * method.draws * method.restarts * method.steps * method.optimizer.get("max_eval", 1)
            epoch += method.judge_draws * method.restarts * len(method.projection_scales)
            assert bought.epochs >= 1 and method.budget - spent(method) < epoch, method
    assert refused < 50
