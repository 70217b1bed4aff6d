"""Quick and alone: one thread, no network, a cache of its own, and the rich output as wide as it needs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "200"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait on one another


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Encoded images of the tests, away from the user's."""
    os.environ["FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
