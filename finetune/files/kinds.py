"""What adapter files hold beside LoRA, by how the key ends; and problems told once for each kind, not for each key."""

import re
from collections.abc import Iterable, Iterator

NOT_LORA: tuple[tuple[str, str], ...] = (
    (r"^bundle_emb\.", "an embedding (textual inversion) that was bundled with the LoRA, which is not a LoRA tensor"),
    (r"\.hada_\w+$", "LoHa, not LoRA"),
    (r"\.lokr_\w+$", "LoKr, not LoRA"),
    (r"\.(oft_blocks|oft_diag|oft_r|oft_R)(\.\w+)?$", "OFT, not LoRA"),
    (r"\.vera_lambda_\w+$", "VeRA, not LoRA"),
    (r"\.(a[12]|b[12])\.weight$", "GLoRA, not LoRA"),
    (r"\.(on_input|ia3_l(\.\w+)?)$", "IA3, not LoRA"),
    (r"\.lora_embedding_[AB](\.\w+)*$", "a change of an embedding, which is not read"),
    (r"\.(w_norm|b_norm)$|\.norm\w*\.(\w+_norm\.)?(weight|bias|scale)$", "a trained norm, which is not read"),
    (r"\.(diff|set_weight)$", "the change of a whole weight, which is not a LoRA tensor"),
    (r"\.(diff_b|lora_(A|B|up|down)\.(\w+\.)?bias|bias)$", "a trained bias, which is not read"),
    (r"\.scalar$", "a factor of its own (LyCORIS' use_scalar), which is not read"),
    (r"\.(rescale|reshape_weight)$", "another shape of the weight, which is not read"),
    (r"\.(modules_to_save|original_module)\.", "a module that was trained whole, which is not read"),
    (r"\.processor\.(qkv|proj)_lora\d\.", "XLabs' names, which are not read"),
    (r"\.alpha$", "an .alpha without a change"),
    (r"\.dora_scale$", "DoRA's lengths without a change"),
)
"""pattern of a key -> what it is"""
OTHER = "not a LoRA tensor"
STRENGTH = "its strength is not known"
"""ends what is said of a change without alpha, where alpha is kept in another file"""


def kind_of(key: str) -> str:
    """What a tensor of that key is, that no method here reads."""
    return next((what for pattern, what in NOT_LORA if re.search(pattern, key)), OTHER)


def advice_on_file(problems: Iterable[str]) -> str:
    """What can be done about a file that cannot be read whole."""
    if any(STRENGTH in problem for problem in problems):
        return (
            "put it into a folder, as adapter_model.safetensors, beside the adapter_config.json that came with it: "
            "`r` and `lora_alpha` in there are its strength"
        )
    return "get the file again, or a plain LoRA from where it came"


class Findings:
    """What is wrong with which names: one sentence for each that is alike, however many names it is of."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, what: str) -> None:
        self._names.setdefault(what, []).append(name)

    def __bool__(self) -> bool:
        return bool(self._names)

    def __iter__(self) -> Iterator[str]:
        """Each names the first, in the order in which they were found."""
        for what, names in self._names.items():
            more = f" ({len(names) - 1} more like it)" if len(names) > 1 else ""
            yield f"{names[0]}: {what}{more}"
