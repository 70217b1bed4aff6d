"""Any bytes in: a value, or an error of ours. The same few examples each time; `make fuzz` goes on with others."""

from pathlib import Path

import pytest
from support.fuzzing import fuzzed
from support.readers import READERS, sound_place
from support.spoilt import NASTY, TOKENS, applied, structured

EXAMPLES = 40


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_place(tmp_path_factory.mktemp("readers") / "place")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_a_value_or_an_error_in_words(name: str, readable: Path) -> None:
    reader = READERS[name]
    reader.read(readable)  # the sound file
    found = fuzzed(name, readable, EXAMPLES)
    assert found.content is None, f"{found.content!r:.2000}\n{found.error}"
    assert found.examples >= EXAMPLES // reader.dear


def test_a_reader_that_lets_something_through_is_found_with_a_file_that_shows_it(
    readable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(place: Path) -> object:
        content = (place / "mine.toml").read_bytes()
        return 1 / (content.count(b"\x00") == 0)

    monkeypatch.setitem(READERS, "careless", READERS["recipe"]._replace(read=careless))
    found = fuzzed("careless", readable, 200)
    assert found.content is not None and b"\x00" in found.content and "ZeroDivisionError" in found.error
    assert b'base = "pocket"' in (readable / "mine.toml").read_bytes(), "the sound file is put back"


def test_every_format_is_spoilt_in_its_structure_too(readable: Path) -> None:
    for file in ("mine.toml", "run/events.jsonl", "run/run.json", "mug.safetensors", "base/model_index.json"):
        assert structured((readable / file).read_bytes()), file
    assert not structured((readable / "photos/00.png").read_bytes())
    assert len(NASTY) > 25 and applied(b"ab", [lambda content: content + TOKENS[0]]) == b"ab\x00"
