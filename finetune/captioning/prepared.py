"""Captions for a dataset that was prepared just now: what was prepared stays when they fail."""

from collections.abc import Generator
from pathlib import Path

from finetune.captioning.choice import CaptionerChoice
from finetune.captioning.dataset import Captioned, caption_dataset
from finetune.data.text.wording import CaptionWords
from finetune.errors import FinetuneError, InputError, Interrupted, action
from finetune.events import Event


def caption_new(path: Path, choice: CaptionerChoice) -> Generator[Event, None, Captioned]:
    """Captions the dataset at `path`, which has its own words.

    Raises:
        InputError: the captioner failed; names the call that captions what was prepared.
        Interrupted: Ctrl-C; the same call goes on.
    """
    named = {"vocabulary": choice.vocabulary, "with_model": choice.with_model}
    again = action("caption", path=path, **named)
    try:
        return (yield from caption_dataset(path, CaptionWords(), choice.make))
    except Interrupted as e:
        raise Interrupted(f"{e.problem}; {path} is prepared", "continue with", again) from e
    except FinetuneError as e:
        advice = f"{e.hint}, then" if e.hint else "correct this, then"
        raise InputError(f"{path} is prepared, but not captioned: {e.problem}", advice, again) from e
