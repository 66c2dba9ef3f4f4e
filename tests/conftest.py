"""Settings that all tests share: no network, few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns in every forked process

import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
