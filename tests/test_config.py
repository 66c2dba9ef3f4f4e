"""Every option composes and builds what it names; whatever is wrong gives one line that names the key."""

import importlib.util
import inspect
import math
import re
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from ph2p.config.budget import plan
from ph2p.config.compose import config_dir, load_config
from ph2p.config.help import help_text
from ph2p.config.method import MethodConfig
from ph2p.config.schema import Config
from ph2p.config.settings import as_yaml, difference, read_settings, settings
from ph2p.config.sweep import jobs
from ph2p.data import Targets
from ph2p.errors import UserError
from ph2p.inversion.simplex import SimplexDescent
from ph2p.run.engine import run
from ph2p.run.logs import RunLog, make_loggers
from ph2p.world.coco import write_coco


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def test_every_group_is_looked_into():
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    assert groups == {
        "data",
        "generator",
        "method",
        "scorer",
        "trainer",
        "logger",
        "debug",
        "application",
        "experiment",
    }
    assert "ph2p_plus" in options("method") and "embedded" in options("generator")


@pytest.mark.parametrize("group", ["generator", "scorer", "debug"])
def test_options_compose(group):
    for option in options(group):
        words = [f"{group}.path=model"] if option == "folder" else []
        assert isinstance(load_config([f"{group}={option}", *words]), Config)


def test_a_configuration_is_made_of_dataclasses_that_check_themselves():
    cfg = load_config(["seed=3"])
    parts = [cfg, cfg.generator, cfg.generator.tokens, cfg.scorer, cfg.method, cfg.method.search, cfg.evaluation]
    assert all(is_dataclass(part) for part in parts)
    assert {type(part) for part in (cfg.data, cfg.trainer, cfg.logger, cfg.method.optimizer)} == {dict}
    assert replace(cfg, seed=4).seed == 4
    with pytest.raises(UserError, match=r"^method\.draws=0: give a whole number of at least 1$"):
        replace(cfg.method, draws=0)
    with pytest.raises(UserError, match=r"^seed=1: give a list of words"):
        load_config("seed=1")
    with pytest.raises(UserError, match=r"^seed=-1: "):
        replace(cfg, seed=-1)


def test_a_configuration_is_read_before_a_heavy_library_is_loaded():
    code = "import sys; from ph2p.config.sweep import jobs; from ph2p.config.compose import load_config; load_config()"
    code += "; print([name for name in ('torch', 'diffusers', 'lightning', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=config_dir().parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")


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
    assert spent(cfg.method) <= cfg.method.budget
    assert spent(cfg.method) > 0.9 * cfg.method.budget or cfg.method.written  # captions cost nothing
    if cfg.method.optimizer is not None:
        parameter = torch.nn.Parameter(torch.ones(2, 1, 3))
        optimizer = instantiate(cfg.method.optimizer, _partial_=True)([parameter])
        if isinstance(optimizer, SimplexDescent):
            optimizer.over(torch.eye(3))

        def closure():
            optimizer.zero_grad()
            losses = parameter.square().sum((1, 2))
            losses.sum().backward()
            return losses.detach()

        assert isinstance(optimizer, torch.optim.Optimizer)
        assert optimizer.step(closure).shape == (2,) and not torch.equal(parameter, torch.ones(2, 1, 3))


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


@pytest.mark.parametrize("option", options("data"))
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
    cfg = load_config([f"data={option}", *words.get(option, [])])
    assert cfg.name.startswith(option) and cfg.name.endswith("-ph2p_plus")
    targets = instantiate(cfg.data, image_size=(16, 16))
    assert isinstance(targets, Targets) and len(targets) > 0
    sets = {"coco": 5, "captioned": 1, "flickr30k": 2, "lexica": 1, "celeba": 2, "webdataset": 1}
    assert len(targets.load(0).references) == sets.get(option, 0)


@pytest.mark.parametrize("option", options("logger"))
def test_loggers(option, tmp_path):
    cfg = load_config([f"logger={option}", f"output={tmp_path}", "name=x"])
    if option == "wandb":
        cfg.logger["offline"] = True
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
        trainer = L.Trainer(**load_config([f"trainer={option}"]).trainer, logger=False)
    assert trainer.precision == "32-true" and trainer.num_devices == 1


def test_gpu_trainer_composes():
    assert load_config(["trainer=gpu"]).trainer["accelerator"] == "gpu"


def test_every_argument_of_lightnings_trainer_is_taken_or_refused_with_a_reason():
    taken = load_config().trainer
    for key in inspect.signature(L.Trainer.__init__).parameters:
        if key in taken or key == "self":
            continue
        for sign in ("", "+", "++"):
            with pytest.raises(UserError, match=rf"^trainer\.{key}: leave it out: (?!a run does not take it)"):
                load_config([f"{sign}trainer.{key}=1"])


def test_values_can_be_overridden_and_null():
    words = ["method.budget=900", "method.search=null", "generator.allowlist=null", "seed=3", "name=night"]
    cfg = load_config(["data=world", "data.count=5", "data.objects=null", *words])
    assert (cfg.method.budget, cfg.method.search, cfg.generator.allowlist) == (900, None, None)
    assert (cfg.data["count"], cfg.data["objects"], cfg.seed, cfg.name) == (5, None, 3, "night")
    cfg = load_config(["generator.image_size=[64,32]", "batch_size=2", "shard=1/3", "+seed=4"])
    assert (cfg.generator.image_size, cfg.batch_size, cfg.shard, cfg.seed) == ([64, 32], 2, "1/3", 4)
    assert load_config(["method=sgd", "+method.optimizer.momentum=0.5"]).method.optimizer["momentum"] == 0.5
    assert load_config(["logger=wandb", "+logger.tags=[a]"]).logger["tags"] == ["a"]


TEXTS = ["~x", "my pics (1)/a=b,c.png", "1e3", "true", "3", "[x", "{a,b}/{0..9}", "a'b", 'a"b', "a\\", "x: y #z", " a"]
TEXTS += ["a\\'b", "'a' 'b'", "choice(a,b)"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_stands(text):
    name = text.replace("/", "-")
    words = [
        f"data.path={text}",
        f"name={name}",
        f"method.init={text}",
        f"generator.lora={text}",
        f"logger.project={text}",
    ]
    cfg = load_config(["data=folder", "logger=wandb", *words])
    assert (cfg.data["path"], cfg.name, cfg.method.init, cfg.logger["project"]) == (text, name, text, text)
    assert cfg.generator.lora == text
    assert load_config([f"name={name}", "seed=1"]).output == "outputs"


def test_quotes_interpolations_and_null_mean_what_they_did(monkeypatch):
    cfg = load_config(["name='a b'", 'output="x, y"', "generator.allowlist=null", "method.init=${seed} dogs", "seed=3"])
    assert (cfg.name, cfg.output, cfg.generator.allowlist, cfg.method.init) == ("a b", "x, y", None, "3 dogs")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PICS", "/pics")
    cfg = load_config(["output=~/out", "generator.path=$PICS/model", "scorer.cache_dir=~/c", "name=$PICS ~"[:10]])
    assert (cfg.output, cfg.generator.path, cfg.scorer.cache_dir) == ("/home/me/out", "/pics/model", "/home/me/c")
    assert cfg.name == "$PICS"  # a name is no path


WRONG = [  # the command line's words, and what the line must name
    ("bogus=1", "bogus"),
    ("method.bogus=1", "bogus"),
    ("data.objects=1", "no key data.objects; data has name, path, count"),  # a key of data=world, not of the examples
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
    ("method.timesteps=[500]", "method.timesteps"),
    ("method.timesteps=[900,500]", "method.timesteps"),
    ("method.timesteps=[a,b]", "method.timesteps"),
    ("method.selection.finalists=0", "method.selection.finalists=0"),
    ("method=sgd method.search={share:0.5}", "method.search={share:0.5}: give such keys in a file"),
    ("method=random method.smoothing=1", "method.smoothing=1.0"),
    ("method=pez method.smoothing=1", "method.smoothing=1.0"),
    ("method.smoothing=-1", "method.smoothing=-1.0: give 0, or a number above it"),
    ("method.search.share=1.5", "method.search.share=1.5"),
    ("method.search.starts=0", "method.search.starts=0"),
    ("method.search.race=[[0,1]]", "method.search.race=[[0, 1]]: give [[candidates, draws], ...]"),
    ("method.search.race=[[9,1],[3]]", "method.search.race=[[9, 1], [3]]: give"),
    ("method.search.draws=5", "method.search.draws=5: give at most 4, the last stage's"),
    ("method.search.min_length=30", "method.search.min_length=30: give at most 20"),
    ("method.search.max_length=8", "method.search.max_length=8: give at least method.prompt_length=12"),
    ("generator.tokens.min_length=3", "generator.tokens.min_length=3: has no effect beside generator.allowlist"),
    ("method.word_price=1", "method.word_price=1.0: give a number in [0, 1)"),
    ("batch_size=0", "batch_size=0"),
    ("batch_size=null", "batch_size=null: give a whole number"),
    ("data.batch_size=2", "data.batch_size=2: give batch_size=2"),
    ("data.shard=0/3", "data.shard=0/3: give shard=0/3"),
    ("data=folder", "data.path"),
    ("data=coco", "data.root"),
    ("data=captioned data.root=x", "data.captions"),
    ("data=webdataset", "data.shards"),
    ("data.path=", "data.path=: has no value"),
    ("output=", "output=: has no value"),
    ("generator.path=", "generator.path=: has no value"),
    ("generator.steps=0", "generator.steps=0"),
    ("generator.image_size=0", "generator.image_size=0"),
    ("generator.image_size=[64]", "generator.image_size=[64]"),
    ("generator.clip_skip=-1", "generator.clip_skip=-1"),
    ("generator.guidance_scale=strong", "generator.guidance_scale"),
    ("evaluation.draws=0", "evaluation.draws=0"),
    ("generator=folder", "generator.path=..."),
    ("scorer=folder", "scorer.path=..."),
    ("scorer.path=null", "scorer.path"),
    ("generator.scorer=clip", "did you mean scorer?"),
    ("metod=ph2p", "metod=ph2p: no key metod; did you mean method?"),
    ("+metod=ph2p", "no key metod; did you mean method?"),
    ("++metod=ph2p", "no key metod; did you mean method?"),
    ("method=ph2p_pluss", "did you mean ph2p_plus?"),
    ("ph2p", "did you mean method=ph2p?"),
    ("budget=5", "did you mean method.budget?"),
    ("+method.budgt=5", "did you mean method.budget?"),
    ("+data.bogus=1", "no key data.bogus; data has name, path"),
    ("+data.pth=1", "did you mean data.path?"),
    ("+generator.bogus=1", "no key generator.bogus"),
    ("+scorer.bogus=1", "no key scorer.bogus"),
    ("+evaluation.bogus=1", "no key evaluation.bogus"),
    ("+logger.bogus=1", "no key logger.bogus"),  # where no logger is chosen
    ("logger=wandb logger.ofline=true", "did you mean logger.offline?"),
    ("+method.search.bogus=1", "no key method.search.bogus"),
    ("method=sgd method.search.share=0.5", "method.search is null"),
    ("hydra.run.dir=x", "no key hydra.run.dir"),
    ("~method.search", "cannot be taken away"),
    ("seed=0,1", "seed=0,1: gives several values; add -m"),
    ("seed=[1", "seed=[1: cannot be read"),
    ("name=${nope}", "name=${nope}: "),
    ("trainer.device=2", "did you mean trainer.devices?"),
    ("+trainer.bogus=7", "trainer.bogus"),
    ("data=null", "data=null"),
    ("trainer=null", "trainer=null"),
    ("+trainer.max_epochs=3", "trainer.max_epochs"),
    ("+trainer.enable_progress_bar=true", "trainer.enable_progress_bar"),
    ("trainer.precision=7", "trainer.precision=7"),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed"),
    ("generator.lora_scale=0.5", "generator.lora_scale=0.5: there is no generator.lora"),
    ("generator.lora_revision=v1", "generator.lora_revision=v1: there is no generator.lora"),
    ("trainer.num_nodes=0", "trainer.num_nodes=0"),
    ("+trainer.strategy=ddp", "trainer.strategy"),
    ("shard=3/3", "shard=3/3"),
    ("shard=1", "shard=1"),
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
    assert "hydra.cc" not in message and "use +" not in message, message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bogus: 1", "bogus"),
        ("budget: lots", "method.budget: give a whole number"),
        ("budget: [1", "mine.yaml"),
        ("search: {share: 2}", "method.search.share=2"),
        ("defaults: [nope]", "nope"),
    ],
)
def test_a_file_of_ones_own_is_read_and_what_is_wrong_in_it_gives_one_line(tmp_path, text, says):
    (tmp_path / "method").mkdir()
    file = tmp_path / "method" / "mine.yaml"
    words = ["method=mine", f"hydra.searchpath=[{tmp_path}]"]
    file.write_text("defaults: [ph2p_plus, _self_]\nname: mine\n")
    assert load_config([*words, "seed=1"]).name == "examples-mine"
    file.write_text(text + "\n" if "defaults" in text else f"defaults: [ph2p_plus, _self_]\nname: mine\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_config([*words, "seed=1"])
    assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


CONSTRUCTORS = [  # what only the thing that is built from it can refuse
    ("+method.optimizer.bogus=1", "method.optimizer: "),
    ("method=sgd method.optimizer.lr=-1", "method.optimizer: "),
    ("method.optimizer._target_=torch.optim.Nonsense", "method.optimizer: "),
    ("trainer.accelerator=abacus", "trainer: "),
    ("logger=tensorboard logger._target_=nowhere.Logger", "logger: "),
    ("trainer.devices=0", "trainer: "),
    ("trainer.devices=few", "trainer: "),
]


@pytest.mark.parametrize(("words", "key"), CONSTRUCTORS, ids=[words for words, _ in CONSTRUCTORS])
def test_what_cannot_be_built_gives_one_line_before_a_model_is_loaded(words, key, tmp_path):
    with pytest.raises(UserError) as caught:
        run(load_config([*words.split(), f"output={tmp_path}"]), load=lambda cfg: pytest.fail("loads a model"))
    message = str(caught.value)
    assert message.startswith(key) and "\n" not in message and len(message) < 400, message


# --- sweeps, results folders, help --------------------------------------------------------------------------------


def names(*words: str) -> list[str]:
    return [load_config(job).name for job in jobs(words)]


def test_the_runs_of_a_sweep_have_names_that_say_what_is_swept():
    assert names("seed=3") == ["examples-ph2p_plus"]
    assert names("seed=0,1") == ["examples-ph2p_plus-seed=0", "examples-ph2p_plus-seed=1"]
    assert names("method=ph2p,sgd") == ["examples-ph2p", "examples-sgd"]  # the usual name says it
    both = ["examples-ph2p-seed=0", "examples-ph2p-seed=1", "examples-sgd-seed=0", "examples-sgd-seed=1"]
    assert names("method=ph2p,sgd", "seed=range(2)") == both
    assert names("seed=0,1", "name=s${seed}") == ["s0", "s1"]
    assert names("seed=0,1", "name=mine") == ["mine-seed=0", "mine-seed=1"]
    assert names("name=a,b") == ["a", "b"]
    assert names("generator=folder", "generator.path=a/b,a_b", "name=x") == ["x-generator.path=0", "x-generator.path=1"]
    paths = ["generator=folder", "generator.path=/a/b,/a c/d", "method.budget=900"]
    assert names(*paths) == ["examples-ph2p_plus-generator.path=_a_b", "examples-ph2p_plus-generator.path=_a_c_d"]
    values = [load_config(job) for job in jobs(["data=folder", "data.path='x,y',z (1,2)", "seed=1"])]
    assert [cfg.data["path"] for cfg in values] == ["x,y", "z (1,2)"]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("metod=ph2p,pez", "did you mean method?"),
        ("method=ph2p,nope", "method=nope"),
        ("seed=choice()", "seed=choice()"),
        ("seed=0,[", "seed=0,["),
    ],
)
def test_a_wrong_key_ends_a_sweep_before_its_first_run(words, key):
    with pytest.raises(UserError) as caught:
        jobs(words.split())
    assert key in str(caught.value) and "\n" not in str(caught.value)


DECIDING = "seed=1 method.budget=3000 generator.vae_tiling=true trainer.precision=bf16-mixed evaluation.renders=1"
DECIDING += (
    " generator.variant=fp16 generator.guidance_scale=3 method.selection.steps=9 generator.revision=x data=world"
)
FREE = "name=x output=y resume=force batch_size=2 shard=0/2 method.microbatch=4 trainer.devices=2 trainer=cpu"
FREE += " generator.offload=true generator.compile=true generator.cache_dir=x generator.local_files_only=true"
FREE += " scorer.cache_dir=x scorer.local_files_only=true generator.steps=9 generator.gradient_checkpointing=true"
FREE += " logger=tensorboard generator.name=x scorer.name=x data.name=x trainer.deterministic=true ckpt_path=x"


@pytest.mark.parametrize("word", [*DECIDING.split(), *FREE.split()])
def test_what_changes_nothing_that_is_found_does_not_keep_a_run_from_going_on(tmp_path, word):
    (tmp_path / "config.yaml").write_text(as_yaml(load_config()), encoding="utf-8")
    before = read_settings(tmp_path / "config.yaml")
    assert difference(before, settings(load_config())) is None
    assert (difference(before, settings(load_config([word]))) is None) == (word in FREE.split())


@pytest.mark.parametrize("content", [b"", b"data: {", b"\xff\xfe\x00\xd8", b"- 1", b"a: 1", b"\x00", b"data: ${"])
def test_a_damaged_configuration_in_a_results_folder_gives_one_line(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_settings(file)
    assert str(caught.value).startswith(f"{file}: is damaged") and "\n" not in str(caught.value)


def test_the_help_says_what_every_key_means():
    for words in ([], ["logger=wandb", "method=ph2p", "data=world"], ["data=coco", "method=random"]):
        keys = help_text(words).partition("Keys")[2].splitlines()[2:]
        silent = [line for line in keys if " # " not in line and "_target_" not in line]
        assert not [
            line
            for line in silent
            if not re.match(r"    (  )?(group|save_dir|project|name|offline|lr):|        \w+: \d+$", line)
        ]
        assert len(keys) > 60
    text = help_text(["seed=3"])
    assert re.search(r"^  seed: 3 +# of all draws", text, re.MULTILINE)
    assert re.search(r"^      share: 0\.7 +# of the budget", text, re.MULTILINE)
    assert all(field.name in text for part in (Config, MethodConfig) for field in fields(part))


# --- the budget ---------------------------------------------------------------------------------------------------


def spent(method: MethodConfig) -> int:
    """Denoiser samples of a whole run by the letter of the documentation, counted phase by phase."""
    bought, choice, search = plan(method), method.selection, method.search
    per_epoch = method.steps * (method.optimizer or {}).get("max_eval", 1)
    total = method.judge_draws * method.restarts
    for epoch in range(bought.epochs):
        halved = method.judge_draws > 0 and epoch >= bought.epochs / 2
        starts = math.ceil(method.restarts / 2) if halved else method.restarts
        total += 2 * per_epoch * method.draws * starts
        total += method.judge_draws * starts * len(method.projection_scales)
    if search:
        total += sum(draws * (1 + min(most, search.starts)) for most, draws in search.race)  # the starts, and no words
        first = search.race[0][0]
        race = sum(draws * min(most, first) for most, draws in search.race)
        total += bought.rounds * (2 * search.draws + race)
    renderings = 2 * choice.finalists * choice.steps if choice.rule == "renderings" else 0
    relative, fluent = method.word_price > 0 or method.fluent, method.fluent
    validated = (choice.shortlist + relative + fluent * choice.rewordings) * choice.draws if choice.validates else 0
    return total + validated + renderings


def drawn_methods(option: str) -> Iterator[MethodConfig]:
    """The method with a hundred random budgets and prices."""
    method, random = load_config([f"method={option}"]).method, np.random.default_rng(0)
    ranges = {"budget": (500, 9000), "draws": (1, 9), "steps": (1, 4), "restarts": (1, 4)}
    ranges |= {"judge_draws": (1, 9)} if method.judge_draws else {}
    chosen = {"shortlist": (1, 20), "draws": (1, 20), "finalists": (1, 5), "rewordings": (0, 9)}
    searched = {"starts": (1, 20), "draws": (1, 4)}

    def drawn(some: dict[str, tuple[int, int]]) -> dict[str, int]:
        return {key: int(random.integers(low, high)) for key, (low, high) in some.items()}

    for _ in range(100):
        new = replace(method, **drawn(ranges), selection=replace(method.selection, **drawn(chosen)))
        new.fluency, new.language_model = float(random.choice([0, 0.1])), random.choice(["world", None])
        if method.search:
            new.search = replace(method.search, **drawn(searched), share=float(random.uniform(0.05, 0.95)))
        yield new


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
