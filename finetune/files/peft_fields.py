"""What each field of PEFT's LoraConfig means for an adapter that was trained with it: nothing, something that is read,
or something that only PEFT can do, whose files are refused by the field's name.

A field is refused when it is set: true, or not empty, as PEFT itself decides whether to use a variant of LoRA.
"""

from collections.abc import Iterator, Mapping

from finetune.errors import BaseError

HONOURED = frozenset({"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"})
"""read beside the tensors: they give each module its scale and its method"""

HARMLESS = frozenset({
    # of the file, or of where it came from
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
    # which modules were changed: the tensors say so
    "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules",
    # of training only
    "lora_dropout", "megatron_config", "megatron_core", "runtime_config",
    # PEFT takes it back for every layer of a picture model, with a warning: it is of transformers' Conv1D
    "fan_in_fan_out",
    # how the first values were found; whether the base was changed for them, `init_lora_weights` says
    "corda_config", "eva_config", "lora_ga_config", "loftq_config",
    # of what another field switches on
    "ensure_weight_tying", "qalora_group_size",
})  # fmt: skip

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "it works after certain words of a text only",
    "arrow_config": "it chooses among several adapters while it runs",
    "kasa_config": "it takes a part of the base's weights away",
    "layer_replication": "it repeats layers of the base",
    "lora_bias": "it has trained biases",
    "modules_to_save": "it has modules that were trained whole",
    "monteclora_config": "its weights are drawn by chance while it runs",
    "target_parameters": "it changes parameters that no layer holds",
    "trainable_token_indices": "it has trained words",
    "use_bdlora": "its matrices are of blocks",
    "use_qalora": "it reads its input in groups",
    "velora_config": "its file holds VeLoRA's own tensors",
}
"""field -> what an adapter with it does that no program but PEFT would"""

JUDGED = frozenset({"bias", "init_lora_weights"})
"""plain by some values, refused by the others"""

STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""values of init_lora_weights, beside true and false, that leave the base's weights as they are"""

_PLAIN = "save it as a plain LoRA with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"


def check_fields(table: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Fields that are not known and may say something, a sentence each.

    Raises:
        BaseError: a field is set that changes what the tensors mean; it is named.
    """
    start = table.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool) or start in STARTS):
        raise BaseError(
            f"{where}: init_lora_weights = {str(start)[:40]!r}: the base's weights were changed before training, "
            "so that by itself the adapter is not what was trained",
            _PLAIN,
        )
    if (bias := table.get("bias") or "none") != "none":
        raise BaseError(
            f"{where}: bias = {str(bias)[:40]!r}: the base's biases were trained beside it, which are not read",
            'train it with bias = "none"',
        )
    for field, what in REFUSED.items():
        if table.get(field):
            raise BaseError(f"{where}: {field} is set: {what}, which is not read", "merge it with PEFT")
    return tuple(_strangers(table, where))


def _strangers(table: Mapping[str, object], where: str) -> Iterator[str]:
    for field in sorted(table.keys() - HONOURED - HARMLESS - REFUSED.keys() - JUDGED):
        value = table[field]
        if value is True or (value and isinstance(value, dict | list)):
            raise BaseError(
                f"{where}: {field} is set, which is not known here: it may change what the adapter does",
                "merge it with PEFT; or take the field out, if it is of training only",
            )
        if value is not None and value is not False and value not in ({}, [], ""):
            yield f"{where}: {field} is not known here, and was passed over"
