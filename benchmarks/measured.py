"""What `learns.py` measured: the bars that it must reach, and its pages, docs/learns.md and docs/learns-foreign.md."""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import foreign as owners

INTRODUCTION = """`python benchmarks/learns.py` trains adapters on the pocket base with the shipped recipes, changes
one setting at a time, and asks two judges what came of it: a classifier that knows objects, colours and styles
(`benchmarks/referee/`) and the pocket eyes. `product` and `style` are the bundled examples;
`product-2` and `style-2` are drawn by `benchmarks/unseen.py`; `handbag`, `kettle`, `lamp`, `lines`, `flat` and `shaded`
by `benchmarks/foreign.py`, and come as users have them: without captions, called as cameras and designers call files,
prepared as the README says with nothing but the words changed; `captioned` is the same after `finetune caption DATASET
--vocabulary pocket`. No recipe was tuned on these eight. Values are means over seeds, with half of their range.

Acceptable drift: pictures without the trigger may move a tenth of the way to the base's pictures of other prompts.
"""
DRIFT = 0.1
"""acceptable: how far pictures without the trigger may go towards the base's pictures of other prompts"""
COLUMNS = {
    "fidelity": "of a product: its pictures' mean similarity to the real ones, over the real ones' own; of a style, "
    "and of the subjects that users bring: the share of pictures in which the referee sees it. Backgrounds and objects "
    "were never trained on",
    "prompt": "share of the same pictures with the background (product) or object (style) that was asked for",
    "captions": "share of the training captions whose picture is nearest, of all the real ones, to its own",
    "drift": "what pictures without the trigger lost of their similarity to the base's, from the same noise; in the "
    "row `base`, to the base's of other prompts",
    "kept": "share of those pictures whose object the referee still sees",
    "diversity": "1 less the mean similarity between six pictures of one prompt",
}
OURS = ("product", "style", "product-2", "style-2")
"""subjects whose captions are written by hand"""


class Measures(NamedTuple):
    fidelity: float = 0.0
    prompt: float = 0.0
    captions: float = 0.0
    drift: float = 0.0
    kept: float = 0.0
    diversity: float = 0.0
    refused: str = ""


class Bar(NamedTuple):
    subject: str
    what: str
    found: float
    bar: float
    at_most: bool = False

    @property
    def held(self) -> bool:
        return self.found <= self.bar if self.at_most else self.found >= self.bar


Found = dict[str, dict[str, list[Measures]]]
"""subject -> label -> runs"""


def bars(subject: str, runs: dict[str, list[Measures]]) -> Iterator[Bar]:
    """What the mean of the shipped runs must reach, and what runs that cannot learn must not."""
    base, held = runs["base"][0], runs["shipped"]
    ours = Measures(**{field: statistics.fmean(getattr(m, field) for m in held) for field in COLUMNS})
    if subject in owners.PRODUCTS:
        yield Bar(subject, "product seen in settings never trained on", ours.fidelity, 0.8)
        yield Bar(subject, "background as asked for", ours.prompt, 0.8)
    elif subject in owners.STYLES:
        yield Bar(subject, "style on objects never trained on", ours.fidelity, 0.8)
        yield Bar(subject, "object as asked for, less the base's", ours.prompt - base.prompt, -0.1)
    elif subject.startswith("product"):
        yield Bar(subject, "similarity to the real pictures, of their own", ours.fidelity, 0.8)
        yield Bar(subject, "background as asked for", ours.prompt, 0.8)
    else:
        yield Bar(subject, "style on objects never trained on", ours.fidelity, 0.85)
        yield Bar(subject, "object as asked for, less the base's", ours.prompt - base.prompt, -0.1)
    yield Bar(subject, "drift, of the way to another prompt's picture", ours.drift / base.drift, DRIFT, at_most=True)
    yield Bar(subject, "objects kept without the trigger, less the base's", ours.kept - base.kept, -0.1)
    if subject not in OURS:
        return
    lost = runs["shuffled captions"][0].prompt - ours.prompt
    yield Bar(subject, "shuffled captions: as asked for, less what the true ones give", lost, -0.3, at_most=True)
    yield Bar(subject, "rate 0: refused", float(bool(runs["rate 0"][0].refused)), 1)


def page(found: Found, rows: Sequence[Bar]) -> str:
    lines = [
        "# What training on the pocket base learns",
        "",
        INTRODUCTION,
        *(f"- **{name}**: {what}" for name, what in COLUMNS.items()),
        "",
    ]
    lines += ["## The bars", ""]
    lines += ["| subject | measured | found | bar | |", "|---|---|---|---|---|"]
    for bar in rows:
        told = f"{'at most' if bar.at_most else 'at least'} {bar.bar:.2f}"
        lines.append(f"| {bar.subject} | {bar.what} | {bar.found:.2f} | {told} | {'held' if bar.held else 'missed'} |")
    for subject, runs in found.items():
        lines += [
            "",
            f"## {subject}",
            "",
            f"| trial | runs | {' | '.join(COLUMNS)} |",
            "|---" * (2 + len(COLUMNS)) + "|",
        ]
        for label, some in sorted(runs.items(), key=lambda row: order(row[0])):
            told = " | ".join(spread([getattr(m, field) for m in some if not m.refused]) for field in COLUMNS)
            refused = f" (refused: {some[0].refused})" if some[0].refused else ""
            lines.append(f"| {label}{refused} | {len(some)} | {told} |")
    return "\n".join(lines) + "\n"


def order(label: str) -> tuple[int, str]:
    """References first, then the answers to each question."""
    first = ("base", "shipped", "captioned", "rate 0", "shuffled captions", "over-trained", "sweep")
    return (first.index(label), "") if label in first else (len(first), label.partition(":")[0])


def spread(values: Sequence[float]) -> str:
    """mean ± half of the range"""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.2f}" + (f" ± {half:.2f}" if len(values) > 1 else "")
