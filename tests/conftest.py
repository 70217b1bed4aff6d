"""Quick and alone: one thread, no network, a cache of its own, and the rich output as wide as it needs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "200"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

pytest.register_assert_rewrite("support")  # a helper that asserts says what it found, as a test does

from support.whole import is_whole  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: threads only wait on one another


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Encoded images of the tests, away from the user's."""
    os.environ["FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items):
    """`-m "not whole"` is the quick half: no test that builds or opens a base, or trains."""
    for item in items:
        if is_whole(item):
            item.add_marker("whole")
