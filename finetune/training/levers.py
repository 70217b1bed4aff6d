"""What a recipe can still turn where memory ends, in the order of what helps."""

from finetune.recipe import Recipe


def training(config: Recipe) -> str:
    """What a recipe can still turn for the steps of training."""
    train = config.train
    turned = {
        "train.gradient_checkpointing = true": train.gradient_checkpointing,
        "a smaller train.batch with a larger train.accumulate": train.batch == 1,
        "train.precision = bf16": train.precision in ("bf16", "fp16"),
        "train.base_bits = 4": train.base_bits is not None,
        "optimizer.name = adamw8bit": config.optimizer.name != "adamw",
        "a smaller data.resolution": False,
    }
    left = "; ".join(lever for lever, done in turned.items() if not done)
    return f"in this order: {left}. The rank is not the lever"


def loading(config: Recipe) -> str:
    return f"to load less: train.base_bits = 4; data.text_encoder_bits = 8 or 4; for the steps, {training(config)}"


def encoding(config: Recipe) -> str:
    return f"to encode: data.text_encoder_bits = 8 or 4; a smaller data.resolution; for the steps, {training(config)}"


def sampling(config: Recipe) -> str:
    return f"for the pictures: fewer of them, or sample.every = 0 and evaluate.every = 0; else, {training(config)}"
