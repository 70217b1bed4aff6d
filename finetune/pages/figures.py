"""The curves of a run's page, drawn by matplotlib as SVG that takes its colours from the page, light or dark."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from finetune.pages.numbers import final_scores, finite
from finetune.reporting.history import History, Told

_INK, _LINE = "#010203", "#040506"
_CURVES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
"""colours that stand for the page's own until the SVG is written"""
_VARIABLES = {_LINE: "line"} | {colour: f"curve-{number}" for number, colour in enumerate(_CURVES, 1)}
_COLOURS = {_INK: "currentColor"} | {colour: f"var(--{name})" for colour, name in _VARIABLES.items()}
_DASHES = ("-", "--", "-.", ":")
"""curves differ in more than their colour"""
_SIZE_IN = (4.6, 2.5)
_MOST_POINTS = 400
"""of a curve: more are means of neighbours"""
_RATE = "learning rate"
_SMOOTHING = 0.95
"""share of the mean that a step keeps, as on the screen"""
Numbers = Sequence[float]


class Figure(NamedTuple):
    """A drawing, with what it shows in a title and in a sentence."""

    name: str
    title: str
    sentence: str
    svg: Markup


class Curve(NamedTuple):
    """A line of a figure; low, high: ends of its intervals, at the same steps."""

    label: str
    steps: Sequence[int]
    values: Numbers
    low: Numbers = ()
    high: Numbers = ()
    faint: bool = False


def figures(history: History) -> list[Figure]:
    """Those for which there are numbers."""
    made = (loss, held_out, scores, learning_rates, gradients)
    return [figure for make in made if (figure := make(history)) is not None]


def loss(history: History) -> Figure | None:
    """Raw, and smoothed."""
    steps, values = _series(history, "stepped", "loss")
    if len(steps) < 2:
        return None
    smooth = smoothed(values)
    raw, mean = (Curve(label, *thinned(steps, of)) for label, of in (("each step", values), ("smoothed", smooth)))
    curves = [raw._replace(faint=True), mean]
    prior_steps, prior = _series(history, "stepped", "prior_loss")
    if prior:
        curves.append(Curve("of the class, smoothed", *thinned(prior_steps, smoothed(prior))))
    return _figure("loss", "Loss while training", _fell("The smoothed loss", steps, smooth), curves, "loss")


def held_out(history: History) -> Figure | None:
    """Losses on held-out pictures, one curve a noise level."""
    told = history.every("validated")
    levels = sorted({level for event in told for level in event.values.get("bands", {})})
    curves = [Curve(f"noise {level}", *finite((_step(e), e.values.get("bands", {}).get(level)) for e in told))
              for level in levels]  # fmt: skip
    steps, values = _series(history, "validated", "loss")
    if not values:
        return None
    shown = [curve for curve in [Curve("mean", steps, values), *curves[:3]] if curve.steps]
    said = _fell("The loss on pictures that were not trained on", steps, values)
    return _figure("held-out", "Loss on held-out pictures", said, shown, "loss")


def scores(history: History) -> Figure | None:
    """Of the candidates that were scored, with their intervals."""
    told = history.every("scored")
    names = [name for name in ("likeness", "prompt", "drift", "memorisation") if _has(told, name)]
    curves = [_score_curve(told, name) for name in names]
    if not curves:
        return None
    final = final_scores(history)
    ends = {row.name: row.value for row in final.rows} if final else {curve.label: curve.values[-1] for curve in curves}
    said = "At the end " + ", ".join(f"{name} is {ends[name]:.2f}" for name in names if name in ends) + "."
    return _figure("scores", "Scores over the steps", said, curves, "score")


def learning_rates(history: History) -> Figure | None:
    told = history.every("stepped")
    components = sorted({name for event in told for name in event.values.get("rates", {})})
    curves = [Curve(name, *thinned(*finite((_step(e), e.values.get("rates", {}).get(name)) for e in told)))
              for name in components[:4]]  # fmt: skip
    shown = _merged([curve for curve in curves if len(curve.steps) > 1])
    if not shown:
        return None
    peak = max(max(curve.values) for curve in shown)
    said = f"How large the steps are. At its highest it was {peak:.2g}."
    return _figure("rate", "Learning rate", said, shown, _RATE)


def gradients(history: History) -> Figure | None:
    steps, values = _series(history, "stepped", "grad_norm")
    if len(steps) < 2:
        return None
    said = f"How strongly each step pulls. Its median was {sorted(values)[len(values) // 2]:.3g}."
    raw, mean = (Curve(label, *thinned(steps, of)) for label, of in (("each step", values),
                                                                     ("smoothed", smoothed(values))))  # fmt: skip
    return _figure("gradient", "Gradient norm", said, [raw._replace(faint=True), mean], "norm")


def smoothed(values: Numbers) -> list[float]:
    found: list[float] = []
    for value in values:
        found.append(value if not found else _SMOOTHING * found[-1] + (1 - _SMOOTHING) * value)
    return found


def thinned(steps: Sequence[int], values: Numbers, most: int = _MOST_POINTS) -> tuple[list[int], list[float]]:
    """At most so many points: means of neighbours, each at its last step."""
    width = -(-len(steps) // most) if steps else 1
    groups = [slice(start, start + width) for start in range(0, len(steps), width)]
    return [steps[group][-1] for group in groups], [sum(values[g]) / len(values[g]) for g in groups]


def _series(history: History, event: str, key: str) -> tuple[list[int], list[float]]:
    return finite((_step(one), one.values.get(key)) for one in history.every(event))


def _step(event: Told) -> int:
    return int(event.values["step"])


def _has(told: Sequence[Told], name: str) -> bool:
    return any(name in event.values.get("scores", {}) for event in told)


def _score_curve(told: Sequence[Told], name: str) -> Curve:
    with_it = [event for event in told if name in event.values.get("scores", {})]
    value, low, high = ([float(e.values["scores"][name][key]) for e in with_it] for key in ("value", "low", "high"))
    return Curve(name, [_step(event) for event in with_it], value, low, high)


def _merged(curves: Sequence[Curve]) -> list[Curve]:
    """Curves that are the same drawn once."""
    found: dict[tuple[float, ...], Curve] = {}
    for curve in curves:
        key = tuple(curve.values)
        label = f"{found[key].label}, {curve.label}" if key in found else curve.label
        found[key] = curve._replace(label=label)
    return list(found.values())


def _fell(what: str, steps: Sequence[int], values: Numbers) -> str:
    first, last = values[0], values[-1]
    verb = "fell" if last < 0.99 * first else "rose" if last > 1.01 * first else "stayed"
    to = f"from {first:.3g} to {last:.3g}" if verb != "stayed" else f"at {last:.3g}"
    return f"{what} {verb} {to} by step {steps[-1]}."


def _figure(name: str, title: str, sentence: str, curves: Sequence[Curve], axis: str) -> Figure:
    return Figure(name, title, sentence, _svg(name, title, sentence, lambda axes: _plot(axes, curves, axis)))


def _plot(axes: Any, curves: Sequence[Curve], axis: str) -> None:
    for number, curve in enumerate(curves):
        colour, dash = _CURVES[number % len(_CURVES)], _DASHES[max(0, number - any(c.faint for c in curves)) % 4]
        if curve.faint:
            axes.plot(curve.steps, curve.values, color=_CURVES[0], linewidth=0.7, alpha=0.35, label=curve.label)
            continue
        mark = "o" if len(curve.steps) < 25 else ""
        axes.plot(curve.steps, curve.values, color=_CURVES[0] if number == 1 and curves[0].faint else colour,
                  linewidth=1.8, linestyle=dash, marker=mark, markersize=3, label=curve.label)  # fmt: skip
        if curve.low:
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(axis)
    if axis == _RATE:
        axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        axes.figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8, labelcolor=_INK,
                           handlelength=1.6, columnspacing=1.2)  # fmt: skip


def _svg(name: str, title: str, sentence: str, draw: Callable[[Any], None]) -> Markup:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "path.simplify": True}):
        drawing = Drawing(figsize=_SIZE_IN, layout="constrained", facecolor="none")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[:].set_color(_INK)
        axes.tick_params(colors=_INK)
        axes.grid(color=_LINE, linewidth=0.6)
        draw(axes)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        stream = io.StringIO()
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _of_the_page(stream.getvalue(), name, title, sentence)


def _of_the_page(text: str, name: str, title: str, sentence: str) -> Markup:
    """As a part of an HTML page: names of its own, the page's colours, a title and a description for screen readers."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{name}-", text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'style="font: [^"]*?"', _font, text)
    box = re.search(r'viewBox="([^"]*)"', text)
    head = (
        f'<svg class="figure" role="img" aria-labelledby="{name}-title {name}-desc" '
        f'viewBox="{box[1] if box else "0 0 331 180"}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(sentence)}</desc>'
    )
    return Markup(head + text[text.index(">") + 1 :].replace("\n", " "))


def _font(style: re.Match[str]) -> str:
    """The size and the anchor that matplotlib chose, without its font."""
    found = re.search(r"font:\s*([\d.]+px)", style[0])
    rest = "; ".join(part.strip() for part in style[0][7:-1].split(";")[1:] if part.strip())
    return f'style="font-size: {found[1] if found else "9px"}; {rest}"'
