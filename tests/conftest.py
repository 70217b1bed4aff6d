"""Quick and alone: one thread, no network, a cache of its own, and the rich output as wide as it needs."""

import contextlib
import functools
import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "200"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

pytest.register_assert_rewrite("support")  # a helper that asserts says what it found, as a test does

from support.whole import LONGEST, is_whole  # noqa: E402

from finetune import families  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: threads only wait on one another
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in the background ignore it
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does; programs that tests start take that over


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Encoded images of the tests, away from the user's."""
    os.environ["FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def kept_bases(tmp_path_factory):
    """Small bases are made once for all processes that share this run's folder."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kept-bases"
    folder.mkdir(exist_ok=True)
    os.environ["FINETUNE_TEST_BASES"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def looked_up_once():
    """What is installed does not change while tests run; a test that adds to it puts a list of its own in place."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(families, "entry_points", functools.cache(families.entry_points))
        yield


@contextlib.contextmanager
def judged_at(levels):
    from finetune.evaluation import effect, held_out  # not in the process that only hands tests out

    with pytest.MonkeyPatch.context() as patched:
        for module in (effect, held_out):
            patched.setattr(module, "LEVELS", levels)
        yield


@pytest.fixture(scope="session", autouse=True)
def brief_judgement():
    """What runs learnt is judged at one level of noise: all of them cost more than the few steps that tests take."""
    from finetune.evaluation import effect

    all_levels = effect.LEVELS
    with judged_at((0.5,)):
        yield all_levels


@pytest.fixture(scope="module")
def whole_judgement(brief_judgement):
    """For tests of the judgement itself."""
    with judged_at(brief_judgement):
        yield


def pytest_collection_modifyitems(items):
    """`-m "not whole"` is the quick half: no test that builds or opens a base, or trains. Long files go first."""
    for item in items:
        if is_whole(item):
            item.add_marker("whole")
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What importing made stays: half a second of each collection, and tests of memory let go ask for many."""
    gc.collect()
    gc.freeze()
