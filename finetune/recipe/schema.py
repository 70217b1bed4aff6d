"""Every table and key of a recipe, with its bounds and its default. The text after a key documents it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field

from finetune.choices import TrackerName
from finetune.recipe.placeholders import checked_prompt
from finetune.recipe.tables import (
    BatchSize,
    Count,
    DenoisingSteps,
    Distinct,
    Guidance,
    Loose,
    NonEmpty,
    Outside,
    Patterns,
    PictureCount,
    Pixels,
    Positive,
    Rate,
    Seed,
    Share,
    Table,
    Tagged,
    WrittenPath,
    members,
)

ComponentName = Literal["denoiser", "text_encoder", "text_encoder_2"]
CheckedPrompt = AfterValidator(checked_prompt)


class Data(Table):
    path: WrittenPath
    """Folder with your images, best one that `prepare` wrote. `example:product` and `example:style` are
    bundled examples."""
    trigger: NonEmpty | None = None
    """A rare word that will stand for your product or style in prompts, such as `sks`. It is put once into each caption
    that lacks it. Default: the one that the prepared dataset names."""
    class_word: NonEmpty | None = None
    """The ordinary word for what the images show (mug, dog, chair). Images without a caption are captioned "a photo of
    TRIGGER CLASS_WORD". Default: the one that the prepared dataset names."""
    resolution: Pixels | None = None
    """Training resolution in pixels: images are resized and cropped to buckets with about this number squared of
    pixels. Lower it to save memory and time; above the base's own resolution results get worse. Default: the base's own
    (512 for SD 1.5, 1024 for SDXL and newer)."""
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Largest width:height or height:width ratio of a bucket; longer images are cropped to it. 1 crops every image to a
    square."""
    crop: Literal["center", "random"] = "center"
    """Which part of an image is kept when it does not fit its bucket: `center` the middle, `random` one of five
    positions, drawn anew each time. Use `random` for styles, `center` for products that must stay whole."""
    flip: bool = False
    """Mirrors the image left to right at half of its visits. It helps with few images, but never use it for products
    with text, logos or a left and a right side."""
    caption_dropout: Share = 0.05
    """Share of visits at which the caption is replaced by an empty one, so that classifier-free guidance keeps working.
    Usual: 0.05 to 0.1; 0 turns it off."""
    shuffle_tags: bool = False
    """Shows the tags of a caption (its parts between commas) in another order at each visit, so that their order is not
    learnt. For captions that are lists of tags, not for sentences. The tag with the trigger keeps its place."""
    keep_tags: Count = 0
    """How many of the first tags of a caption `shuffle_tags` and `tag_dropout` leave as they are, beside the one with
    the trigger. Usual: 0 to 3."""
    tag_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tags of a caption that is left out, drawn anew at each visit, so that no tag is needed for what is
    learnt. The tag with the trigger always stays. Usual: 0 to 0.2."""
    caption_variants: Annotated[int, Field(ge=1, le=1000)] = 16
    """Different texts that `shuffle_tags` and `tag_dropout` make of a picture's captions, at most: each is encoded and
    kept once, and each visit shows one of them. More vary more, and take more time before training and more of the
    cache's disk."""
    mask_outside: Outside = 0.0
    """What counts outside of the masks of images that have one: the share of the loss there, where 0 learns only what
    is white in a mask and 1 is training without masks; or "own_prediction", which holds the base's own prediction there
    and takes one more forward pass a step. Images without a mask are learnt whole."""
    allow_uncaptioned: bool = False
    """Gives images without a caption the default one ("a photo of TRIGGER CLASS_WORD") although other images have
    captions of their own. Without it such a mixture is an error, as it is mostly an oversight."""
    text_encoder_bits: Literal[4, 8] | None = None
    """Loads a large text encoder (T5 or a language model) in 4 or 8 bits while it encodes the captions, for GPUs that
    cannot hold it otherwise. Needs bitsandbytes. Default: full size."""
    cache: WrittenPath | None = None
    """Folder where encoded images and captions are kept, so that the next run starts faster. Default: the user's cache
    folder."""


class Prior(Table):
    mode: str
    """Prior preservation (DreamBooth, arXiv:2208.12242) keeps what the base already knows from changing: `images` also
    trains on class images of yours, `own_prediction` holds the base's own prediction fixed for captions without the
    trigger and needs no images. Either takes one more forward pass a step. Use it when other objects begin to look like
    yours."""


class NoPrior(Prior):
    mode: Literal["off"] = "off"
    weight: ClassVar[float] = 0.0


PriorWeight = Annotated[float, Field(gt=0, le=10)]


class ClassImages(Prior):
    mode: Literal["images"] = "images"
    path: WrittenPath
    """Folder of class images: ordinary pictures of the same kind of thing (other mugs) without your product. 50 to 200
    are usual."""
    prompt: Annotated[NonEmpty, CheckedPrompt] | None = None
    """Caption for class images that have none; {class_word} stands for the class word, and the trigger must not be in
    it. Default: "a photo of CLASS_WORD"."""
    weight: PriorWeight = 1.0
    """Weight of the prior loss beside the training loss. Raise it when the base's knowledge still drifts, lower it when
    your product is not learnt. Usual: 0.5 to 1."""


class OwnPrediction(Prior):
    mode: Literal["own_prediction"] = "own_prediction"
    weight: PriorWeight = 1.0
    """Weight of the prior loss beside the training loss. Raise it when the base's knowledge still drifts, lower it when
    your product is not learnt. Usual: 0.5 to 1."""


class Adapter(Table):
    """What every method has."""

    method: str
    """How the base is changed: `lora` trains a small adapter file (LoRA, arXiv:2106.09685), `full` trains all weights
    and gives a whole pipeline, for many more images and much more memory."""
    components: Annotated[tuple[ComponentName, ...], Field(strict=False, min_length=1), Distinct] = ("denoiser",)
    """Which models are trained: the denoiser (UNet or transformer), the text encoder, or both; SDXL also has
    `text_encoder_2`. Train the text encoder too when the trigger is a word that the base does not know and the denoiser
    alone does not learn it."""


class LowRank(Adapter):
    """What every method has that adds a low-rank change to chosen modules."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter's matrices, which is its size. Higher learns more detail, takes more memory and overfits
    sooner. Usual: 8 to 32 for a product, 16 to 64 for a style."""
    alpha: Annotated[float, Field(gt=0, le=65_536)] = Field(default_factory=lambda known: float(known["rank"]))
    """Scale of the adapter: its change is multiplied by alpha / rank. It acts like a learning rate, so change one of
    the two. Default: the rank, a scale of 1."""
    dropout: Share = 0.0
    """Share of the adapter's input that is zeroed at random at each step (dropout), against overfitting on few images.
    Usual: 0 to 0.1."""
    targets: Patterns = "attention"
    """Which layers of the denoiser get an adapter: `attention`, `attention+ff` (feed-forward layers too), `all`, or a
    list of module name patterns, each of which must match. More layers learn more and take more memory; styles mostly
    need `attention+ff`."""
    text_encoder_targets: Patterns = "attention"
    """Which layers of the text encoders get an adapter: the same choices as for `targets`."""
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    """Other ranks for some layers: a table of module name pattern = rank. Their alpha / rank stays the adapter's."""
    init_from: WrittenPath | None = None
    """Adapter to continue from: a LoRA file of any trainer, a PEFT folder, a run folder or a step of it (RUN@500). Each
    of its modules must be a target here, of no larger rank."""


class LoRA(LowRank):
    method: Literal["lora"] = "lora"


class DoRA(LowRank):
    """Of the denoiser only: no reader but PEFT applies it in a text encoder."""

    method: Literal["dora"] = "dora"
    components: Annotated[tuple[Literal["denoiser"], ...], Field(strict=False, min_length=1), Distinct] = ("denoiser",)


class FullWeights(Adapter):
    method: Literal["full"] = "full"
    init_from: ClassVar[Path | None] = None


AnyAdapter = LoRA | DoRA | FullWeights
"""a method: one table here, one entry in `adapters.methods.METHODS`"""


class Objective(Table):
    prediction: Literal["auto", "epsilon", "v", "flow"] = "auto"
    """What the denoiser predicts: the noise (`epsilon`), the velocity (`v`) or the flow (`flow`). `auto` reads it from
    the base, and asks one that does not say by a forward pass; write it for a single file that does not say and that
    you know better. It cannot contradict what the base says."""
    min_snr: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Gamma of min-SNR loss weighting (arXiv:2303.09556), which evens out the timesteps and learns faster on `epsilon`
    and `v` bases. Usual: 5. Default: off."""
    timestep_density: Literal["auto", "uniform", "logit_normal"] = "auto"
    """How timesteps are sampled on flow-matching bases: `uniform`, or `logit_normal` (SD3, arXiv:2403.03206), which
    trains more in the middle. `auto` is `logit_normal` there, and has no meaning for other bases."""
    logit_mean: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Mean of the logit-normal timestep density. Above 0 trains more on noisy timesteps (composition), below 0 more on
    clean ones (detail). Default: 0."""
    logit_std: Annotated[float, Field(gt=0, le=100)] | None = None
    """Standard deviation of the logit-normal timestep density. Smaller keeps closer to its mean. Default: 1."""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """Timestep shift of flow-matching bases (SD3, arXiv:2403.03206, eq. 23). Above 1 trains more on noisy timesteps.
    Default: the base's own, which for some bases grows with the resolution."""
    guidance: Guidance | None = None
    """Guidance scale given to bases that read it as an input (guidance embedding, FLUX.1 dev) during training. Default:
    1, which trains without guidance, whatever scale you sample with."""
    distilled: bool = False
    """Allows training a distilled base (few-step bases such as FLUX.1 schnell, or Turbo), although training may undo
    the distillation: such pictures then need more steps again."""


class Optimizer(Table):
    """What every optimizer has."""

    name: str
    """Optimizer that changes the weights. `adamw` is the usual one; `adamw8bit` needs a quarter of its state's memory
    and bitsandbytes; `adafactor` (arXiv:1804.04235) keeps hardly any state and suits `full` training."""
    learning_rate: Rate = 1e-4
    """Learning rate at its peak. Raise it when the product is not learnt, lower it when pictures turn noisy or all look
    alike. Usual: 1e-4 for LoRA, 1e-5 for `full`, 1e-3 to 1e-2 for `adafactor`, whose rate is relative to the size of
    each weight. It is never rescaled by batch size or number of GPUs."""
    text_encoder_learning_rate: Rate | None = None
    """Learning rate of the text encoders, where they are trained. A half to a tenth of the denoiser's is usual.
    Default: learning_rate."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """Learning rate schedule after the warm-up: `constant` stays at the peak, `linear` and `cosine` fall to 0 at the
    end, `wsd` (warm-up, stable, decay) stays at the peak and falls to 0 in the last fifth."""
    warmup_steps: Count = 0
    """Steps in which the learning rate rises from near 0 to its peak. Usual: 0 to 100 for LoRA."""
    clip_norm: Rate = 1.0
    """Gradient clipping: gradients are scaled down when their norm, over all trained parameters together, exceeds this.
    0 turns it off."""


class Adam(Optimizer):
    """What AdamW has in every precision of its state."""

    weight_decay: Rate = 0.01
    """Weight decay, decoupled from the gradient (AdamW, arXiv:1711.05101). It pulls weights toward 0 against
    overfitting. Usual: 0.01."""
    beta1: Share = 0.9
    """Decay rate of the running mean of gradients (Adam's beta1). Rarely changed."""
    beta2: Share = 0.999
    """Decay rate of the running mean of squared gradients (Adam's beta2). Rarely changed; 0.99 adapts faster in short
    runs."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Small number added to the divisor for numerical stability (Adam's epsilon). Rarely changed."""


class AdamW(Adam):
    name: Literal["adamw"] = "adamw"


class AdamW8bit(Adam):
    name: Literal["adamw8bit"] = "adamw8bit"


class Adafactor(Optimizer):
    name: Literal["adafactor"] = "adafactor"
    weight_decay: Rate = 0.0
    """Weight decay, decoupled from the gradient. It pulls weights toward 0 against overfitting. Usual: 0."""
    beta2_decay: Annotated[float, Field(ge=-1, le=0)] = -0.8
    """Exponent with which the running mean of squared gradients grows longer: beta2 is 1 - step^beta2_decay. Rarely
    changed."""
    clip_threshold: Annotated[float, Field(ge=1, le=10_000)] = 1.0
    """Largest root mean square of one parameter's update, in units of its learning rate (Adafactor's d). Rarely
    changed."""


AnyOptimizer = AdamW | AdamW8bit | Adafactor
"""an optimizer: one table here, one file in `optimizers`"""


class Train(Table):
    steps: Positive | None = None
    """Length of the run in optimizer steps; write this or epochs. Usual: 800 to 1500 for a product, 1500 to 3000 for a
    style. Default: 1000."""
    epochs: Positive | None = None
    """Length of the run in epochs, in each of which every image is seen at least once; write this or steps."""
    batch: BatchSize = 1
    """Images in one forward pass, on each GPU (batch size). More takes more memory and gives smoother gradients."""
    accumulate: BatchSize = 1
    """Gradient accumulation: forward passes whose gradients are summed into one optimizer step. It acts like a larger
    batch without its memory."""
    seed: Seed = 0
    """Seed of every random choice; the same seed repeats the run. Change it to see how much of a result is chance."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute precision of the forward and backward pass; trained weights stay in float32. `auto` is bf16 where the GPU
    has it, else fp16, and fp32 on a CPU."""
    base_bits: Literal[4] | None = None
    """Loads the frozen denoiser in 4 bits (nf4, QLoRA, arXiv:2305.14314), in about a quarter of the memory. The adapter
    fits the base in full size as well. Needs bitsandbytes. Default: full size."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: recomputes activations in the backward pass. Much less memory for steps that take about a
    third longer; needed for most bases at 1024 pixels."""
    ema: Share = 0.0
    """Decay of the exponential moving average (EMA) of the trained weights; with it the average is sampled and
    exported. It smooths long runs. Usual: 0.999 for `full`; 0 turns it off."""
    compile: bool = False
    """Compiles the denoiser with torch.compile. The first step takes minutes, later ones are faster: worth it for long
    runs on a GPU."""
    shard: Literal["auto", "on", "off"] = "auto"
    """Spreads weights, gradients and optimizer state over the GPUs of a run (FSDP2), each block gathered while it is
    computed. `auto`: where they do not fit on one GPU. The result is the same; steps take longer."""
    checkpoint_every: Positive = 250
    """Steps between checkpoints, from which an interrupted run resumes to the bit."""
    keep_last: Positive = 2
    """How many of the newest checkpoints are kept; older ones are deleted. The adapters of sampled steps all stay."""
    patience: Positive = 3
    """How many steps in a row the loss or its gradients may be infinite or not a number before the run stops with an
    error. The overflows by which fp16 finds its loss scale do not count."""


class Validation(Table):
    count: Count = 0
    """How many images are held out of training to measure the validation loss, which shows overfitting. Those that the
    dataset holds out itself (a folder `validation`, a column `split`) are always held out and count; others are drawn
    until there are so many. Usual: 0 for few images, a tenth of a larger dataset."""
    every: Positive = 100
    """Steps between validation losses. Each image gets the same noise and timesteps every time, so they compare."""


class Sample(Table):
    every: Count = 0
    """Steps between sample pictures; 0 makes them only at the end. Each such step also leaves its adapter as a whole
    file, which RUN@STEP names."""
    prompts: Annotated[tuple[Annotated[str, CheckedPrompt], ...], Loose] = ()
    """Prompts of the sample pictures. {trigger} and {class_word} stand for the dataset's own words: "a photo of
    {trigger} {class_word} in the snow". Add one without the trigger, to see what else has changed. Default: those of
    `goals/product` or `goals/style`, by what the dataset shows; else the first captions."""
    negative: Annotated[str, CheckedPrompt] = ""
    """Negative prompt: what the sample pictures should not show; placeholders as in `prompts`. It needs a guidance
    above 1."""
    steps: DenoisingSteps = 20
    """Denoising steps of a sample picture. More is slower and at most slightly better; few-step bases need 4 to 8."""
    guidance: Guidance | None = None
    """Guidance scale of the sample pictures (classifier-free guidance, or the base's guidance embedding): how strictly
    they follow the prompt. 1 turns it off. Default: the base's usual."""
    seed: Seed = 0
    """Seed of the first sample picture; each further prompt adds 1. It stays the same through the run, so pictures
    compare."""


class Evaluate(Table):
    prompts: Annotated[tuple[Annotated[str, CheckedPrompt], ...], Loose] = ()
    """Prompts that pictures are generated of for the verdict on the run; {trigger} and {class_word} are replaced. Those
    without the trigger must not change. Default: settings (of a style: objects) that no caption names, and a few other
    things."""
    judge: WrittenPath | None = None
    """Folder of a CLIP or DINOv2 in transformers' layout, which says how like the training pictures the generated ones
    are. A CLIP also tells whether they show what was asked for. Default: the bundled CLIP for the pocket base; for
    other bases there is no verdict until you name one."""
    count: PictureCount | None = None
    """How many pictures with the trigger are generated for the verdict at the end of the run. 0 turns the verdict off.
    Default: 10, or fewer (at least 4) where these pictures would take more than a tenth of the run's time."""
    every: Count = 0
    """Steps between two evaluations on the way, each with as many pictures as the verdict; the adapter of every such
    step is kept as a file (RUN@STEP). Usual: a tenth of train.steps. 0 evaluates the end of the run only."""
    pick: Literal["last", "best"] = "last"
    """Which step's adapter the run exports: `last`, or `best`, the one most like the training pictures among those
    within max_drift, min_prompt and max_memorisation. Use `best` when you do not know how many steps are right; it
    needs evaluate.every."""
    stop: Literal["off", "auto"] = "off"
    """Ends the run by itself with `auto`, when the likeness to the training pictures has not risen for `patience`
    evaluations while drift or memorisation rises; it needs evaluate.every. Together with pick = "best" a run can be
    given far too many steps without harm."""
    patience: Positive = 2
    """Evaluations without a gain after which `stop = "auto"` ends the run. Usual: 2 to 4; more waits longer."""
    max_drift: Rate = 0.2
    """Limit of `pick = "best"`: how far pictures without the trigger may have moved, from 0 (unchanged) to 1 (as far as
    another prompt's picture). Lower it when other prompts must stay as they are."""
    min_prompt: Share = 0.5
    """Limit of `pick = "best"`: share of the pictures that must show what was asked for beside the product or style."""
    max_memorisation: Rate = 0.5
    """Limit of `pick = "best"`: how near pictures may come to single training pictures, from 0 (no nearer than these
    are to each other) to 1 (copies)."""


class Export(Table):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the adapter file. `float32` keeps every bit; `float16` halves the file with hardly a visible
    difference."""
    layouts: Annotated[tuple[Literal["universal", "diffusers", "merged"], ...], Loose, Distinct] = ("universal",)
    """Formats to write: `universal` opens in every program that reads adapters of the base, `diffusers` in diffusers
    alone, `merged` is the whole base with the adapter in it. A PEFT folder is always written."""
    title: str = ""
    """Title that user interfaces show for the adapter. Default: its name."""
    license: str = ""
    """License of the adapter, written into the file, such as `CC-BY-4.0`."""


class Reporting(Table):
    to: Annotated[tuple[TrackerName, ...], Loose, Distinct] = ("tensorboard",)
    """Programs that get the run's losses, scores, speed, memory and pictures: `tensorboard` writes beside the run,
    `wandb`, `trackio` and `mlflow` are installed and logged into by you. [] for none. When one of them fails, the run
    says so and goes on."""
    project: NonEmpty = "finetune"
    """Project (MLflow: experiment) in which `wandb`, `trackio` and `mlflow` file the run."""


class Recipe(Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    """File name of the adapter, without its ending. Default: the name of the output folder."""
    base: NonEmpty
    """Base model to train on: `pocket` (bundled, small), a diffusers folder, a Hugging Face id (with @revision, if you
    like) or a .safetensors checkpoint. Write `BASE + FILE` to start from someone's fine-tuned weights, such as
    `black-forest-labs/FLUX.1-dev + my-flux.safetensors`."""
    data: Data
    prior: Annotated[NoPrior | ClassImages | OwnPrediction, Tagged("mode")] = NoPrior()
    adapter: Annotated[AnyAdapter, Tagged("method")] = LoRA()
    objective: Objective = Objective()
    optimizer: Annotated[AnyOptimizer, Tagged("name")] = AdamW()
    train: Train = Train()
    validation: Validation = Validation()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    report: Reporting = Reporting()


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key path of the schema, in order; of tables that are chosen, what they share comes first."""
    for name, field in model.model_fields.items():
        tables = members(field)
        inner = [key for table in tables for key in keys(table, f"{prefix}{name}.")]
        yield from dict.fromkeys(inner) if tables else (f"{prefix}{name}",)
