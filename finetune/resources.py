"""Where the files that travel with the package are: recipes, example data, the pocket base and the pocket eyes."""

from pathlib import Path

from finetune import reading

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE / "bundled" if reading.is_dir(_PACKAGE / "bundled") else _PACKAGE.parent
"""A wheel carries `recipes/` and `data/` inside the package; a checkout has them beside it."""

RECIPES = ROOT / "recipes"
POCKET = ROOT / "data" / "pocket"
EYES = ROOT / "data" / "eyes"
"""a small CLIP of the pocket base's pictures: how alike are two of them, or a picture and a caption?"""
VOCABULARIES = ROOT / "data" / "vocabularies"
"""what may be seen in pictures, for captions by a CLIP"""
EXAMPLES = ROOT / "data" / "examples"


def data_path(written: Path) -> Path:
    """What the user wrote -> a folder: `example:product` names bundled data, all else is taken as it is."""
    scheme, _, name = str(written).partition(":")
    return EXAMPLES / name if scheme == "example" and name else written


def base_path(written: str) -> str:
    """What the user wrote -> a folder, a file or a hub id: `pocket` names the bundled model."""
    return str(POCKET) if written == "pocket" else written


def is_pocket(written: str) -> bool:
    """Whether it is the bundled base, by its name or by its folder."""
    return reading.real_path(Path(base_path(written))) == reading.real_path(POCKET)


PLUS = " + "
"""between a base and a file of denoiser weights"""


def public_name(base: str) -> str:
    """What may be said of a base: a hub id or a word as it is, of a path on this machine only the last part."""
    return PLUS.join(Path(one).name if reading.exists(Path(one)) else one for one in base.split(PLUS))
