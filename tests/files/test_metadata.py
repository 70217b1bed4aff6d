"""What a file says to the programs that show it."""

import json
from dataclasses import replace

import pytest
from support.adapter_files import ABOUT

from finetune.files.metadata import sidecar


@pytest.mark.parametrize(
    "kind, trigger, text",
    [("style", "sks", "sks style"), ("product", "sks", "sks"), ("", "sks", "sks"), ("style", "", "")],
)
def test_web_interfaces_are_told_the_words_that_captions_had(kind, trigger, text):
    about = replace(ABOUT, kind=kind, trigger=trigger)
    assert json.loads(sidecar(about, "mug"))["activation text"] == text
