"""What a configuration's parts must be together, and which arguments of Lightning's Trainer a run can take."""

import difflib
from typing import Any

from ph2p.config.budget import plan
from ph2p.config.checks import is_whole, require, require_choice
from ph2p.config.schema import Config
from ph2p.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # of the frozen models
TRAINER = ("accelerator", "benchmark", "detect_anomaly", "deterministic", "devices", "num_nodes", "precision")

OURS = "the run sets it itself"
STEPS = "method.budget and method.steps say how many steps there are"
SHORT = "it would cut the optimisation short at its full price; debug=quick is the short run"
UNUSED = "Lightning neither validates, tests nor predicts here; evaluation.draws and evaluation.renders measure"
CLIPPED = "nothing is clipped here, each prompt has steps of its own; method.optimizer.lr says how long they are"
REFUSED = {  # arguments of lightning.Trainer that a run does not take, and why
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps"), STEPS),
    **dict.fromkeys(("limit_train_batches", "overfit_batches", "fast_dev_run"), SHORT),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval"), UNUSED),
    **dict.fromkeys(("check_val_every_n_epoch", "num_sanity_val_steps", "inference_mode"), UNUSED),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), CLIPPED),
    "accumulate_grad_batches": "all draws of a step are one batch; method.draws says how many",
    "max_time": "method.time_limit is a batch's; a job's: on SIGTERM a run saves, and the same command continues it",
    "log_every_n_steps": "every epoch is logged",
    "logger": "choose logger=tensorboard, logger=wandb or logger=csv",
    "profiler": "each batch is a fit of its own, so it would tell of one; use py-spy or torch.profiler around the run",
    "default_root_dir": "output=... and name=... say where results go",
    "strategy": "trainer.devices and trainer.num_nodes say how many processes share the images",
    **dict.fromkeys(("callbacks", "plugins", "use_distributed_sampler", "sync_batchnorm", "barebones"), OURS),
    **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), OURS),
    **dict.fromkeys(("reload_dataloaders_every_n_epochs", "enable_autolog_hparams", "model_registry"), OURS),
}


def validate(cfg: Config) -> None:
    """Check what no part can check for itself; raises UserError naming the key and what it may be."""
    for key in cfg.trainer:
        check_trainer_key(key)
    _check_trainer(cfg.trainer)
    plan(cfg.method)


def check_set_size(cfg: Config, pictures: int) -> None:
    """Raise UserError unless all draws by which prompts are compared are enough for a set of so many pictures."""
    method = cfg.method
    wanted = f"a prompt is to be found for {pictures} pictures; give at least as many, or fewer pictures"
    counts = {"evaluation.draws": cfg.evaluation.draws}
    if method.judge_draws:
        counts["method.judge_draws"] = method.judge_draws
    if method.selection.validates:
        counts["method.selection.draws"] = method.selection.draws
    for key, count in counts.items():
        require(count >= pictures, key, count, wanted)
    if method.search:
        last = method.search.race[-1][1]  # what the others have drawn of the set is left to chance
        wanted = f"its last stage's {last} draws are too few for the {pictures} pictures of one prompt; give it more"
        require(last >= pictures, "method.search.race", method.search.race, wanted)


def check_trainer_key(key: str) -> None:
    """Raise UserError, with the reason, for an argument of Lightning's Trainer that a run does not take."""
    near = difflib.get_close_matches(key, TRAINER, 1)
    if key not in (*TRAINER, *REFUSED) and near:
        raise UserError(f"trainer.{key}: no such key; did you mean trainer.{near[0]}?")
    if key not in TRAINER:
        reason = REFUSED.get(key, "a run does not take it")
        raise UserError(f"trainer.{key}: leave it out: {reason} (a run takes {', '.join(TRAINER)})")


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Leave to Lightning what it checks itself; refuse what the inverter cannot do."""
    precision = str(trainer.get("precision"))
    if precision.startswith(("16", "fp16", "half")):
        raise UserError(
            f"trainer.precision={precision}: float16 gradients underflow, and loss scaling hides the losses from the "
            "line search; give bf16-mixed, bf16-true or 32-true"
        )
    require_choice("trainer.precision", precision, PRECISIONS)
    nodes = trainer.get("num_nodes", 1)
    require(is_whole(nodes, 1), "trainer.num_nodes", nodes, "give a whole number of at least 1")
