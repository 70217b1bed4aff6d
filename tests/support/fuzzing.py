"""A reader on many files that are spoilt: the smallest one that is neither read nor refused in words."""

import tempfile
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import HypothesisWarning

from support.readers import READERS, sound_place
from support.spoilt import any_bytes

PHASES = (Phase.generate, Phase.shrink)


class Fuzzed(NamedTuple):
    examples: int
    content: bytes | None
    """the smallest file that is neither read nor refused"""
    error: str
    """what came of it"""


def fuzzed(name: str, place: Path, examples: int, seed: int | None = None) -> Fuzzed:
    """examples: fewer of a dear reader; seed: None: the same examples each time. The place is left as it was."""
    reader, count, last = READERS[name], 0, b""
    examples = max(1, examples // reader.dear)
    sound = (place / reader.file).read_bytes()
    wanted = settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None, phases=PHASES,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip

    @wanted
    @given(any_bytes(sound))
    def holds(content: bytes) -> None:
        nonlocal count, last
        count, last = count + 1, content
        reader.tried(place, content)

    test = hypothesis.seed(seed)(holds) if seed is not None else holds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)
            test()
    except Exception as e:  # noqa: BLE001  (whatever a reader lets through is what is looked for)
        e.__notes__ = []
        return Fuzzed(count, last, "".join(traceback.format_exception(e)[-6:]))
    finally:
        (place / reader.file).unlink(missing_ok=True)
        (place / reader.file).write_bytes(sound)
        reader.read(place)  # some write down what they read
    return Fuzzed(count, None, "")


def new_place() -> Path:
    return sound_place(Path(tempfile.mkdtemp(prefix="finetune-fuzz-")))
