"""What became of a run, for a person who never trained a model: did it learn, is it good, which file is sent on."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from finetune import reading
from finetune.data.photographic import PHOTOGRAPHS
from finetune.errors import Action, action
from finetune.evaluation.subject import UNJUDGED
from finetune.pages.delivery import Delivery, delivery
from finetune.references import CHECKPOINTS, steps
from finetune.reporting.history import History, Told
from finetune.reporting.owner import owner_of
from finetune.reporting.status import resuming, steps_a_second
from finetune.resources import is_pocket


class Reply(NamedTuple):
    """To one of the three questions at the top of the page."""

    name: str
    question: str
    short: str
    text: str
    tone: str
    """good, bad or wait"""


class Todo(NamedTuple):
    """A sentence on what to do, and the call that does it."""

    text: str
    action: Action | None = None


class Outcome(NamedTuple):
    """The banner of the page, and what stands right under it."""

    state: str
    """learnt, not learnt, not judged, running, silent, interrupted, failed, not begun"""
    title: str
    text: str
    tone: str
    todo: tuple[Todo, ...]
    """what to do, the most useful first"""
    answers: tuple[Reply, ...]
    delivery: Delivery | None
    progress: str
    """how far it is, while it runs"""

    @property
    def goes_on(self) -> bool:
        return self.state == "running"


def outcome_of(history: History) -> Outcome:
    """A run that goes on is one whose folder belongs to a living process."""
    state = _state(history)
    verdict = latest(history, "evaluated")
    title, text = _banner(state, history, verdict)
    sent = delivery(history)
    answers = (_learnt(state, verdict, text), _good(state, verdict), _file(state, sent))
    todo = tuple(_todo(state, history, verdict))
    progress = progress_of(history) if state == "running" else ""
    return Outcome(state, title, text, _TONES[state], todo, answers, sent, progress)


_TONES = {"learnt": "good", "not learnt": "bad", "failed": "bad"} | dict.fromkeys(
    ("not judged", "running", "silent", "interrupted", "not begun"), "wait"
)


def latest(history: History, name: str) -> Told | None:
    """The last event of that name that the newest state of the run has: what was told before it went on is past."""
    for event in history.events[::-1]:
        if event.name == name:
            return event
        if event.name in ("stepped", "resumed"):
            return None
    return None


def judging(history: History) -> Action:
    """What judges the file; photographs, and pictures of most bases, need a judge that knows photos."""
    known = is_pocket(str(history.recipe.get("base", ""))) and PHOTOGRAPHS not in _why_unjudged(history)
    judge = "" if known else "FOLDER_OF_A_CLIP"
    return action("evaluate", what=history.folder.resolve(), judge=judge)


def progress_of(history: History) -> str:
    """Such as "Step 120 of 400 (30 %). About 4 minutes are left.", from when steps were told."""
    step, steps = history.step, history.steps
    if not steps or not step:
        return f"It prepares the first of {steps} steps." if steps else "It prepares the first step."
    if step >= steps:
        return f"All {steps} steps are done; the file is being written and checked."
    speed = steps_a_second(history)
    left = f" About {duration((steps - step) / speed)} left." if speed else ""
    return f"Step {step} of {steps} ({step / steps:.0%}).{left}"


def duration(seconds: float) -> str:
    """Such as "4 minutes"."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{max(1, round(seconds))} s" if seconds < 60 else "1 minute"


def _state(history: History) -> str:
    match history.outcome:
        case "done":
            verdict = latest(history, "evaluated")
            return "not judged" if verdict is None else "learnt" if verdict.values.get("learnt") else "not learnt"
        case "not learnt" | "interrupted" | "failed" as said:
            return said
        case "running":
            return "running" if owner_of(history.folder) else "silent"
    return "not begun"


def _banner(state: str, history: History, verdict: Told | None) -> tuple[str, str]:
    """Title and text."""
    said, reason = _said(verdict), str(history.record.get("reason", ""))
    match state:
        case "learnt":
            return "It learnt", said
        case "not learnt":
            return "It did not learn it", said or as_sentence(reason)
        case "not judged":
            return "Trained, but nobody judged whether it learnt", _why_unjudged(history)
        case "running":
            return "It is still running", "This page is written again as the run goes on, and reloads itself."
        case "silent":
            return "It was cut off", _cut_off(history)
        case "interrupted":
            return "It was interrupted", f"{_stopped_at(history)} Nothing that was saved is lost."
        case "failed":
            return "It ended in an error", as_sentence(reason) or "It left no reason."
    return "It has not begun", "The run ended, or still prepares itself, before its first step."


def _cut_off(history: History) -> str:
    why = "It was killed, ran out of memory, or the machine went off."
    if not history.events:
        return why
    heard = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(history.events[-1].time))
    return f"{_stopped_at(history)} {why} It was last heard of at {heard}."


def _stopped_at(history: History) -> str:
    if not history.step:
        return "It stopped before the first step."
    return f"It stopped after step {history.step}" + (f" of {history.steps}." if history.steps else ".")


def _said(verdict: Told | None) -> str:
    return as_sentence(str(verdict.values.get("text", ""))) if verdict else ""


def as_sentence(text: str) -> str:
    """With a full stop, and a capital unless it begins with a key of the recipe."""
    text = text.strip()
    is_key = "." in text.partition(" ")[0][:-1]
    return (text[:1] if is_key else text[:1].upper()) + text[1:] + ("" if not text or text[-1] in ".?!" else ".")


def _why_unjudged(history: History) -> str:
    notes = [str(note.values.get("text", "")) for note in history.every("note")]
    return next((as_sentence(n) for n in reversed(notes) if UNJUDGED in n), "It was made without a verdict.")


def _todo(state: str, history: History, verdict: Told | None) -> Iterator[Todo]:
    reasons = [Todo(as_sentence(str(reason))) for reason in verdict.values.get("reasons", ())] if verdict else []
    resume = resuming(history.folder.resolve())
    match state:
        case "learnt" | "not learnt":
            yield from reasons
            if state == "not learnt" and not reasons:
                yield Todo("Look at the pictures below: they show what it draws instead.")
        case "not judged":
            yield Todo("Compare the pictures below yourself: the same prompt and seed, before and after.")
            yield Todo("Or have it judged now:", judging(history))
        case "interrupted" | "silent":
            yield Todo("Go on where it stopped:", resume)
            yield from _as_it_is(history)
        case "failed":
            if hint := str(history.record.get("hint", "")):
                yield Todo(as_sentence(hint))
            if reading.is_dir(history.folder / CHECKPOINTS):
                yield Todo("Then go on with it:", resume)
                yield from _as_it_is(history)
        case "not begun":
            yield Todo("Look at where the run was started: it says there what is wrong.")


def _as_it_is(history: History) -> Iterator[Todo]:
    """What else can be done with a run that has no result: its newest adapter as a file."""
    found = [] if history.recipe.get("adapter", {}).get("method") == "full" else steps(history.folder)
    if found:
        named = f"{history.folder.resolve()}@{max(found)}"
        export = action("export", source=named, base=str(history.recipe.get("base", "")))
        yield Todo("Or take what it has learnt so far as a file:", export)


def _learnt(state: str, verdict: Told | None, text: str) -> Reply:
    name, question = "learnt", "Did it learn?"
    seen = str(verdict.values.get("seen", "")).replace("/", " of ") if verdict else ""
    match state:
        case "learnt":
            return Reply(name, question, "Yes", f"It is there in {seen} test pictures.", "good")
        case "not learnt":
            return Reply(name, question, "No", f"It is there in {seen or 'too few'} test pictures.", "bad")
        case "not judged":
            return Reply(name, question, "Not judged", text, "wait")
        case "failed":
            return Reply(name, question, "Not known", "It did not come to its end.", "bad")
    return Reply(name, question, "Not known yet", "That is judged at the end of the run.", "wait")


def _good(state: str, verdict: Told | None) -> Reply:
    name, question = "good", "Is it good?"
    if verdict is None or state not in ("learnt", "not learnt"):
        return Reply(name, question, "Not known", "Look at the pictures below, and judge for yourself.", "wait")
    if state == "not learnt":
        return Reply(name, question, "No", "Do not use it. What to change stands under What to do.", "bad")
    reasons = len(verdict.values.get("reasons", ()))
    if not reasons:
        return Reply(name, question, "Yes", "No test found anything against it.", "good")
    things = "one thing" if reasons == 1 else f"{reasons} things"
    return Reply(name, question, "Mostly", f"The tests found {things} to know, under What to do.", "wait")


def _file(state: str, sent: Delivery | None) -> Reply:
    name, question = "file", "Which file do I send to the designer?"
    if sent is None:
        short = "None yet" if state in ("running", "interrupted", "silent") else "None"
        return Reply(name, question, short, "The run has not written its file.", "wait")
    if state in ("failed", "not learnt"):
        return Reply(name, question, "None", f"{sent.name} is kept, for a look only.", "bad")
    if state in ("running", "interrupted", "silent"):
        return Reply(name, question, "None yet", "The file that is there is of an earlier end of this run.", "wait")
    return Reply(name, question, sent.name, f"{sent.size}, in {sent.place}.{_called(sent)}", "good")


def _called(sent: Delivery) -> str:
    return f' In prompts, write "{sent.trigger}".' if sent.trigger else ""
