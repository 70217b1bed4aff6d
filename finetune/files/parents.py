"""What an adapter says of its licence and of its training pictures', for one that goes on from it."""

from pathlib import Path
from typing import NamedTuple

from finetune import tensors as weights
from finetune.files.metadata import about
from finetune.files.read import adapter_files


class ParentRights(NamedTuple):
    """Empty where it says nothing."""

    license: str = ""
    """Its own licence, its images' and that of the adapter before it, in words."""
    credits: str = ""
    """A line for each author whose licence asks to be named."""


def rights_of(path: Path) -> ParentRights:
    """Of an adapter's file or PEFT directory, from its header alone. Raises BaseError: it is none."""
    said, credits = dict[str, None](), dict[str, None]()
    for file in adapter_files(path):
        if file.suffix != ".safetensors":
            continue
        header = weights.read_header(file).metadata
        own = about(header)
        license = own.license if own else header.get("modelspec.license") or header.get("license", "")
        parts = {"": license, "by": header.get("modelspec.author", "")}
        if own:
            parts |= {"its images:": own.dataset_license, "before it:": own.parent_license}
            credits |= dict.fromkeys(line for line in own.dataset_credits.split("\n") if line)
        said |= dict.fromkeys([", ".join(f"{what} {told}".strip() for what, told in parts.items() if told)])
    return ParentRights("; ".join(filter(None, said)), "\n".join(credits))
