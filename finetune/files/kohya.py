"""The universal file: what every reader of a family's adapters applies with the same result, in kohya's names."""

import torch
from torch import Tensor

from finetune import families
from finetune.adapters.change import AdapterState
from finetune.adapters.methods import METHODS
from finetune.errors import VerifyError
from finetune.files.diffusers import cast, diffusers, keyed, uniform


def universal(modules: AdapterState, dtype: torch.dtype, family: str) -> dict[str, Tensor]:
    """Tensors of the file that every reader of this family's adapters knows.

    For UNets: kohya's names, one rank, alpha == rank on every module; for transformers diffusers' names, where an alpha
    would be refused.

    Raises:
        VerifyError: an adapter that its readers do not apply as it was trained.
    """
    odd = next((change for change in modules.values() if not change.of_lora()), None)
    if odd is not None:
        raise VerifyError(
            f"{METHODS[odd.kind].TITLE} has no universal file: A1111, ComfyUI, Forge and kohya drop what it has beside "
            "LoRA, or apply it otherwise",
            "use layout diffusers, the PEFT directory, or merged",
        )
    known = families.family_class(family)
    if known.layout == "diffusers":
        return diffusers(modules, dtype)
    tensors: dict[str, Tensor] = {}
    for name, change in uniform(modules).items():
        key = known.kohya_name(name)
        tensors[f"{key}.alpha"] = torch.tensor(float(change.rank))  # fp32: bf16 would round 257 to 256
        tensors |= {f"{key}{ending}": cast(t, dtype, name) for ending, t in keyed(change, "kohya").items()}
    return tensors
