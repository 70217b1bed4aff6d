"""The programs that read adapter files: what each is called, from which version it reads a family's, in which names.

Each family lists its own; model cards, the documentation and verdicts are made from that list and nothing else.
"""

from typing import NamedTuple, get_args

from finetune.choices import ReaderName

TITLES: dict[ReaderName, str] = {
    "diffusers": "diffusers", "comfyui": "ComfyUI", "a1111": "AUTOMATIC1111", "forge": "Forge", "kohya": "kohya",
    "lycoris": "LyCORIS",
}  # fmt: skip
assert tuple(TITLES) == get_args(ReaderName)


class Reader(NamedTuple):
    """A program that applies a family's adapter files as they were trained."""

    program: ReaderName
    since: str = ""
    """the version from which it does; empty: any that is in use"""
    names: tuple[str, ...] = ("diffusers",)
    """the spellings that it knows, as `files.spelling.spelling_of` calls them"""
    drops: tuple[str, ...] = ()
    """canonical names of modules that it passes over without an error"""
    but: str = ""
    """what that means for a recipe"""

    @property
    def title(self) -> str:
        """As people call it."""
        return TITLES[self.program]

    @property
    def label(self) -> str:
        """With its version and what it is limited to."""
        return " ".join(filter(None, (self.title, self.since, f"({self.but})" if self.but else "")))


KOHYA_NAMES = ("kohya",)
LENIENT_NAMES = ("kohya", "lora_unet_", "lora_te1_")
"""of programs that also take diffusers' paths under kohya's prefix, and lora_te1_ for the only text encoder"""
_NOT_KOHYAS = (
    "unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2",
)  # fmt: skip
OF_UNETS = (
    Reader("diffusers", names=("diffusers", "diffusers-old", *LENIENT_NAMES)),
    Reader("comfyui", names=LENIENT_NAMES),
    Reader("a1111", names=LENIENT_NAMES),
    Reader("forge", names=LENIENT_NAMES),
    Reader("kohya", names=KOHYA_NAMES, drops=_NOT_KOHYAS),
    Reader("lycoris", names=KOHYA_NAMES),
)
DIFFUSERS = Reader("diffusers")
