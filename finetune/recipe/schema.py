"""Every table and key of a recipe, with its bounds and its default. The text after each key is its documentation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from finetune.recipe.tables import (
    Count,
    Distinct,
    Loose,
    Patterns,
    Positive,
    Rate,
    Seed,
    Share,
    Table,
    Tagged,
    Text,
    WrittenPath,
    members,
)

Component = Literal["denoiser", "text_encoder", "text_encoder_2"]
Pixels = Annotated[int, Field(ge=16, le=8192)]


class Data(Table):
    path: WrittenPath
    """a prepared dataset or a folder of images; `example:product` and `example:style` are bundled"""
    trigger: Text | None = None
    """the word that calls the subject or style; injected once into captions that lack it"""
    class_word: Text | None = None
    """what the subject is (mug, dog): captions are written with it where there are none"""
    resolution: Pixels | None = None
    """px; buckets hold this squared. Default: the base's own"""
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 2.0
    """longest side / shortest side of the most extreme bucket; 1 gives square crops only"""
    crop: Literal["center", "random"] = "center"
    """where the window lies along the cropped axis: in the middle, or at one of five places by chance"""
    flip: bool = False
    """mirror half of the visits; never for products with text or logos"""
    caption_dropout: Share = 0.05
    """share of visits with the empty caption, which guidance needs"""
    allow_uncaptioned: bool = False
    """images without a caption get the template, even when others have captions"""
    text_encoder_bits: Literal[4, 8] | None = None
    """of the weights of a large text encoder (T5, a language model) while it reads the captions; needs bitsandbytes"""
    cache: WrittenPath | None = None
    """where encoded images and captions are kept. Default: the user's cache folder"""


class Prior(Table):
    mode: str
    """off; a folder of class images; or the base's own prediction with the adapter off"""


class NoPrior(Prior):
    mode: Literal["off"] = "off"
    weight: ClassVar[float] = 0.0


class ClassImages(Prior):
    mode: Literal["images"] = "images"
    path: WrittenPath
    """the folder of class images"""
    prompt: Text | None = None
    """caption of class images that have none. Default: "a photo of CLASS" """
    weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    """what the prior's loss counts beside the training loss"""


class OwnPrediction(Prior):
    mode: Literal["self"] = "self"
    weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    """what the prior's loss counts beside the training loss"""


class Adapter(Table):
    """What every method has."""

    method: str
    """low-rank change, or all weights"""
    components: Annotated[tuple[Component, ...], Field(strict=False, min_length=1), Distinct] = ("denoiser",)
    """what is trained: denoiser, text_encoder, or both; of SDXL also text_encoder_2"""


class LowRank(Adapter):
    """What every method has that adds a low-rank change to chosen modules."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """of the change; more holds more, and overfits sooner"""
    alpha: Annotated[float, Field(gt=0)] = Field(default_factory=lambda known: float(known["rank"]))
    """the adapter is scaled by alpha / rank. Default: rank"""
    dropout: Share = 0.0
    """share of the adapter's input switched off at each step"""
    targets: Patterns = "attention"
    """a preset (attention, attention+ff, all) or patterns of denoiser module names; each must match"""
    text_encoder_targets: Patterns = "attention"
    """the same for the text encoders"""
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    """pattern -> another rank for the modules it matches; their alpha / rank stays the same"""
    init_from: WrittenPath | None = None
    """an adapter to go on from, of any program; each of its modules must be a target, of no larger rank"""


class LoRA(LowRank):
    method: Literal["lora"] = "lora"


class FullWeights(Adapter):
    method: Literal["full"] = "full"
    init_from: ClassVar[Path | None] = None


AnyAdapter = LoRA | FullWeights
"""a method: one table here, one entry in `adapters.attach.METHODS`"""


class Objective(Table):
    prediction: Literal["auto", "epsilon", "v", "flow"] = "auto"
    """what the base predicts: detected; if written, it must agree"""
    min_snr: Annotated[float, Field(gt=0)] | None = None
    """gamma of min-SNR weighting, arXiv:2303.09556; usually 5. Default: off"""
    density: Literal["auto", "uniform", "logit_normal"] = "auto"
    """of a flow base: where on the path training looks, arXiv:2403.03206. auto: logit_normal"""
    logit_mean: float | None = None
    """of logit_normal; above 0 looks more at noise. Default: 0"""
    logit_deviation: Annotated[float, Field(gt=0)] | None = None
    """of logit_normal. Default: 1"""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """of a flow base: above 1 looks more at noise, after the density. Default: the base's own, which may grow with the
    resolution"""
    guidance: Rate | None = None
    """the scale that a base with a guidance embedding (FLUX.1 dev) is told while it trains. Default: 1"""
    distilled: bool = False
    """train a distilled base, which may undo what was distilled into it"""


class Optimizer(Table):
    """What every optimizer has."""

    name: str
    """adamw8bit keeps its state in a quarter of the memory, and needs bitsandbytes"""
    learning_rate: Rate = 1e-4
    """at its peak; never rescaled by batch or ranks"""
    text_encoder_learning_rate: Rate | None = None
    """Default: learning_rate"""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """of the learning rate after the warm-up: linear, cosine and, in its last fifth, wsd end at 0"""
    warmup_steps: Count = 0
    """steps in which the learning rate rises to its peak"""
    clip_norm: Rate = 1.0
    """longest gradient, over all trained parameters together; 0: off"""


class Adam(Optimizer):
    """What AdamW has in every precision of its state."""

    weight_decay: Rate = 0.01
    """AdamW's, decoupled from the gradient"""
    beta1: Share = 0.9
    """decay of the mean of gradients"""
    beta2: Share = 0.999
    """decay of the mean of their squares"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """added to the divisor"""


class AdamW(Adam):
    name: Literal["adamw"] = "adamw"


class AdamW8bit(Adam):
    name: Literal["adamw8bit"] = "adamw8bit"


AnyOptimizer = AdamW | AdamW8bit
"""an optimizer: one table here, one file in `optimizers`"""


class Train(Table):
    steps: Positive | None = None
    """optimizer steps; or say epochs. Default: 1000 steps"""
    epochs: Positive | None = None
    """times every image is seen at least; instead of steps"""
    batch: Positive = 1
    """images a forward pass, on each rank"""
    accumulate: Positive = 1
    """batches an optimizer step"""
    seed: Seed = 0
    """of every random choice"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the arithmetic; what is trained stays float32. auto: bf16 or fp16 on a GPU, fp32 on a CPU"""
    base_bits: Literal[4] | None = None
    """of the frozen denoiser's weights (nf4): down to a quarter of the memory; needs bitsandbytes. Default: all"""
    gradient_checkpointing: bool = False
    """less memory for slower steps"""
    ema: Share = 0.0
    """decay of a running mean of what is trained: that mean is then sampled and exported; 0: off, usually 0.999"""
    compile: bool = False
    """torch.compile the denoiser: minutes at first, faster steps after"""
    checkpoint_every: Positive = 250
    """steps"""
    keep_last: Positive = 2
    """checkpoints kept"""
    patience: Positive = 3
    """non-finite losses in a row before the run stops"""


class Validation(Table):
    count: Count = 0
    """images held out of training"""
    every: Positive = 100
    """steps between held-out losses, at the same noise for each image each time"""


class Sample(Table):
    every: Count = 0
    """steps between samples; 0: only at the end"""
    prompts: Annotated[tuple[str, ...], Loose] = ()
    """{trigger} stands for the trigger. Default: the first captions"""
    negative: str = ""
    """what the pictures should not show"""
    steps: Positive = 20
    """denoising steps"""
    guidance: Rate | None = None
    """classifier-free guidance, or what a base with a guidance embedding is told; 1: none. Default: the base's usual"""
    seed: Seed = 0
    """of the first prompt; each further one adds 1"""


class Export(Table):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """of the weights written; float32 loses nothing"""
    layouts: Annotated[tuple[Literal["universal", "diffusers", "merged"], ...], Loose, Distinct] = ("universal",)
    """the PEFT directory is always written"""
    title: str = ""
    """shown by user interfaces. Default: the name"""
    license: str = ""
    """of the adapter, written into the file"""


class Recipe(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    """of the adapter file. Default: the output folder's name"""
    base: Text
    """`pocket`, a diffusers folder, a hub id (with @revision), or a .safetensors checkpoint; `BASE + FILE`: a base with
    the denoiser's weights from a file, in diffusers' or the original code's names, whatever else the file holds"""
    data: Data
    prior: Annotated[NoPrior | ClassImages | OwnPrediction, Tagged("mode")] = NoPrior()
    adapter: Annotated[AnyAdapter, Tagged("method")] = LoRA()
    objective: Objective = Objective()
    optimizer: Annotated[AnyOptimizer, Tagged("name")] = AdamW()
    train: Train = Train()
    validation: Validation = Validation()
    sample: Sample = Sample()
    export: Export = Export()


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key path of the schema, in order; of tables that are chosen, what they share comes first."""
    for name, field in model.model_fields.items():
        tables = members(field)
        inner = [key for table in tables for key in keys(table, f"{prefix}{name}.")]
        yield from dict.fromkeys(inner) if tables else (f"{prefix}{name}",)
