"""What other trainers and image programs write into captions and prompts, and what of it means the same here.

Tell-tales, by program, from their documentation: AUTOMATIC1111 and Forge (weights, prompt editing, BREAK, AND, adapters
in angle brackets, pasted generation data), ComfyUI (embedding:NAME, comments), SwarmUI (<random:...>), InvokeAI and
compel ((word)1.3, .blend()), NovelAI (1.5::word::), Midjourney (ar, ::2), dynamic prompts (__x__, {a|b}, ${x=y}),
kohya (prompt options, |||, ;;;), ai-toolkit ([trigger], [name]), textual inversion templates ([filewords]), OneTrainer
(<embedding>), taggers (escaped brackets).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

PROMPT_OPTIONS = (
    "n n2 neg negative w width h height size d seed l cfg scale g guidance s steps ss sampler fs ct ctr rcfg t nl am m "
    "network_multiplier a ref ev extra_values gr cn c i ci ei f fps frames num_frames ctrl_img ctrl_img_1 ctrl_img_2 "
    "ctrl_img_3 ctrl_idx ip glt glr gls gle dsd1 dst1 dsd2 dst2 dsr of ar aspect v version niji style stylize chaos no "
    "iw q quality weird raw sref cref sw cw tile stop repeat"
).split()
"""Names after two hyphens that kohya, ai-toolkit, musubi and Midjourney read out of a prompt"""
OPTION = re.compile(rf"(?<!\S)--({'|'.join(PROMPT_OPTIONS)}|[a-z]{{1,2}})(?!\S)")


class Telltale(NamedTuple):
    """A way of writing that another program reads and that is plain text here."""

    pattern: re.Pattern[str]
    what: str
    remedy: str
    choice: bool = False
    """A wildcard: it stands for one of several texts."""


class Translation(NamedTuple):
    """A way of writing that has a meaning here, too."""

    pattern: re.Pattern[str]
    ours: str
    who: str


class Translated(NamedTuple):
    text: str
    found: tuple[str, ...]
    """What was understood, each as `[trigger] is ai-toolkit's {trigger}`."""


TRANSLATIONS = (
    Translation(re.compile(r"\[trigger\]", re.I), "{trigger}", "ai-toolkit's word for the trigger"),
    Translation(re.compile(r"\[name\]", re.I), "{trigger}", "the trigger of ai-toolkit and of embedding templates"),
    Translation(re.compile(r"<embedding>", re.I), "{trigger}", "OneTrainer's word for what is trained"),
    Translation(re.compile(r"\\([()\[\]])"), r"\1", "a bracket that taggers escape for web UIs"),
)

_WEIGHT = "write the words without brackets and number"
_EACH = "write a prompt for each choice"
_UNREAD = ": it is not read here"


def _telltale(pattern: str, what: str, remedy: str, flags: int = 0, choice: bool = False) -> Telltale:
    return Telltale(re.compile(pattern, flags), what, remedy, choice)


_SWARM = (
    "random|alternate|alt|wildcard|wc|fromto|repeat|preset|p|segment|object|region|embed|embedding|var|setvar|trigger|"
    "clear|break|comment|base|refiner"
)
TELLTALES = (
    _telltale(
        r"<(?:lora|lyco|lokr|loha|hypernet):[^<>]*>",
        f"is how web UIs load an adapter{_UNREAD}",
        "leave it out: adapters are given as files",
        re.I,
    ),
    _telltale(r"(?<!\w)__[\w/*-]{1,80}?__(?!\w)", f"is a wildcard of other programs{_UNREAD}", _EACH, choice=True),
    _telltale(
        rf"<(?:{_SWARM})(?:\[[^\]]*\])?:[^<>]*>",
        f"is an instruction to SwarmUI{_UNREAD}",
        "write plain words in its place",
        re.I,
    ),
    _telltale(
        r"\([^()]*:\s*\d*\.\d+\s*\)|\([^()]*[^\W\d_]\s*:\s*\d+\s*\)",
        f"is a weight of web UIs{_UNREAD}",
        _WEIGHT,
    ),
    _telltale(r"\([^()]+\)(?:\d*\.\d+|\+{1,5}|-{2,5})(?!\w)", f"is a weight of InvokeAI and compel{_UNREAD}", _WEIGHT),
    _telltale(r"\)\.(?:blend|swap|and|or)\(", f"is compel's arithmetic of prompts{_UNREAD}", "write one plain prompt"),
    _telltale(
        r"(?<!\S)-?(?:\d{1,4}(?:\.\d{1,4})?|\.\d{1,4})::[^:]{1,300}::|(?<=[^\W\d])::\s?-?\d[\d.]*(?=\s|,|$)",
        f"is a weight of NovelAI and Midjourney{_UNREAD}",
        "write the words without colons and number",
    ),
    _telltale(
        r"\[[^\[\]:]*:[^\[\]:]*:\s*\d*\.?\d+\s*\]|\[[^\[\]:]*[^\W\d_][^\[\]:]*:\s*\d*\.?\d+\s*\]",
        f"changes the prompt at a step in web UIs{_UNREAD}",
        "write what the whole picture should show",
    ),
    _telltale(
        r"\[[^\[\]|]+(?:\|[^\[\]|]*)+\]",
        f"alternates words from step to step in web UIs{_UNREAD}",
        "write one of the words",
    ),
    _telltale(
        r"""(?<![A-Z"'] )(?<![\w"'-])BREAK(?![\w"'-])(?! ?[A-Z]{2})""",
        f"begins a new part of the prompt in web UIs{_UNREAD}",
        "write a comma in its place",
    ),
    _telltale(
        r"(?<=[a-z0-9,.)\]] )AND(?= [a-z0-9(\[])",
        f"joins several prompts in web UIs{_UNREAD}",
        'write "and" in small letters, or a prompt for each',
    ),
    _telltale(
        r"(?<!\w)ADD(?:COL|ROW|COMM|BASE)(?!\w)",
        f"divides the picture in the Regional Prompter{_UNREAD}",
        "describe the whole picture",
    ),
    _telltale(
        r"(?<!\w)embedding:[\w./\\-]+",
        f"is how ComfyUI loads an embedding{_UNREAD}",
        "leave it out: embeddings are not used here",
        re.I,
    ),
    _telltale(
        r"\[filewords\]",
        f"stands for the file's caption in other trainers{_UNREAD}",
        "leave it out: captions are taken as they are",
        re.I,
    ),
    _telltale(
        r"\|\|\|",
        f"separates kohya's kept words from those that are shuffled{_UNREAD}",
        "write a comma in its place",
    ),
    _telltale(r";;;", f"binds words that kohya shuffles{_UNREAD}", "write a comma in its place"),
    _telltale(r"<\|[a-z_]{2,30}\|>", "is a token that text encoders begin or end at", "leave it out", re.I),
    _telltale(
        r"\bNegative prompt:|\bSteps: \d+, (?:Sampler|CFG scale|Seed|Size):",
        "is what web UIs write into a picture beside the prompt",
        "keep the prompt alone",
    ),
    _telltale(r"^\s*//.*|/\*.{0,300}?\*/", f"is a comment of ComfyUI's{_UNREAD}", "leave it out", re.S),
    Telltale(
        OPTION,
        "is an option of other programs, not a part of the prompt",
        "leave it out: size, seed and the negative prompt have options of their own",
    ),
)


_MARKS = re.compile(r"[<>()[\]|;:/\\]|--|__|BREAK|AND|ADD")
"""one of these is in each tell-tale and translation: most texts have none, and are asked no further"""


def translated(text: str) -> Translated:
    """The text with what other programs write differently written as here."""
    if not _MARKS.search(text):
        return Translated(text, ())
    found = []
    for one in TRANSLATIONS:
        if hit := one.pattern.search(text):
            ours = one.pattern.sub(one.ours, hit[0])
            found.append(f"{hit[0]} is {one.who}, and is read as {ours}")
            text = one.pattern.sub(one.ours, text)
    return Translated(text, tuple(found))


def telltales(text: str) -> Iterator[tuple[Telltale, str]]:
    """Each tell-tale in a text that means nothing here, with the place as it is written."""
    if not _MARKS.search(text):
        return
    for one in TELLTALES:
        if hit := one.pattern.search(text):
            yield one, hit[0].strip()
