"""Pictures for benchmarks: many prompts at once, each from its own seed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "data"))

import icons

from finetune.sampling.request import SampleRequest
from finetune.sampling.session import Session

STEPS, GUIDANCE = 20, 3.0
"""as the card of the pocket base says it is sampled"""


def draw(session: Session, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """One picture a prompt, at the base's own resolution."""
    side = session.family.facts.resolution
    requests = [SampleRequest(p, s, "", STEPS, GUIDANCE, side, side) for p, s in zip(prompts, seeds, strict=True)]
    return [picture.image for picture in session.generate_many(requests)]


def prompt(name: str, colour: str) -> str:
    return f"{icons.article(name)} {name} on {icons.article(colour)} {colour} background"
