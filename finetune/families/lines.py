"""What adapter files say of the models they were made for, by what all families know of their own."""

from finetune.families import family_class, registry
from finetune.families.base import ModelLine

OTHER_LINES = {"flex": "Flex", "lumina": "Lumina"}
"""how files of models begin to say so that no family of ours trains -> title"""

_DOTTED = ("transformer.", "diffusion_model.")
"""how dotted names begin in files of every transformer"""


def line_of(*said: str) -> ModelLine | None:
    """The line of models that a file's words name (ss_base_model_version, modelspec.architecture); None: not known."""
    starts = {start: line for name in registry() for line in family_class(name).lines for start in line.starts}
    starts |= {start: ModelLine(title, (start,)) for start, title in OTHER_LINES.items()}
    named = [start for start in starts if any(text.lower().startswith(start) for text in said)]
    return starts[max(named, key=len)] if named else None


def lines_by_key() -> dict[str, list[str]]:
    """How names of tensors begin -> titles of the only lines whose files hold such."""
    found: dict[str, list[str]] = {}
    for name in registry():
        for line in family_class(name).lines:
            for key in line.keys:
                found.setdefault(key, []).append(line.title)
    return found | {key: ["a transformer model"] for key in _DOTTED}


def denoiser_of(path: str) -> str:
    """What files call the denoiser that has a module of that path, in diffusers' or the original code's names; of
    paths that no family knows, the first family's."""
    kinds = [family_class(name) for name in registry()]
    starts = {pattern.partition("*")[0]: kind for kind in kinds for pattern in (*kind.blocks, *kind.original_blocks)}
    return next((kind for start, kind in starts.items() if path.startswith(start)), kinds[0]).denoiser_name
