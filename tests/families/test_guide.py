"""The guide for a new family names files that are there, and all that a family of its own file must say."""

import re

from support import TESTS

from finetune.families.flow import FlowFolder
from finetune.families.folder import DiffusersFolder
from finetune.families.unet import UNetFolder

ROOT = TESTS.parent
GUIDE = (ROOT / "docs" / "add-a-family.md").read_text(encoding="utf-8")
PLACES = (ROOT, ROOT / "finetune", ROOT / "finetune" / "families", TESTS / "families")


def test_files_that_the_guide_names_are_there() -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|md|toml))`", GUIDE)) - {"tests/families/test_NAME.py"}
    assert len(named) > 15
    assert not [name for name in named if not any((place / name).is_file() for place in PLACES)]


def test_the_guide_names_all_that_the_classes_leave_open() -> None:
    """What stands in the base class as a declaration only, and the verbs that no base class has."""
    said = set(re.findall(r"`(\w+)`", GUIDE)) | set(re.findall(r"^    (\w+)[:=\s]", GUIDE, re.MULTILINE))
    for kind in (FlowFolder, UNetFolder):
        declared = [name for c in kind.__mro__ for name in getattr(c, "__annotations__", {}) if not hasattr(kind, name)]
        assert set(declared) - said <= {"VARIANTS"}
    assert {"facts_of", "encode", "predict", "painting", "published"} <= said
    assert issubclass(FlowFolder, DiffusersFolder)
