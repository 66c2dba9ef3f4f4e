"""What libraries say about loading and rendering stays off the screen; nothing of it outlasts the block."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import huggingface_hub
import transformers

LOGGERS = (diffusers.logging, transformers.logging, huggingface_hub.logging)


@contextmanager
def quiet() -> Iterator[None]:
    """While inside, diffusers, transformers and the hub's client show no bars for reading weights and say nothing.

    What matters of it is checked in this folder and raised: weights that do not fit, options that are ignored.
    """
    levels = [logs.get_verbosity() for logs in LOGGERS]
    bars = [logs for logs in LOGGERS[:2] if logs.is_progress_bar_enabled()]
    for logs in LOGGERS:
        logs.set_verbosity(logging.CRITICAL)
    for logs in bars:
        logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logs, level in zip(LOGGERS, levels, strict=True):
            logs.set_verbosity(level)
        for logs in bars:
            logs.enable_progress_bar()
