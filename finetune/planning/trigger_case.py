"""The trigger in another case than it was declared in: the same word for some text encoders, and not for others."""

from collections import Counter
from collections.abc import Callable, Sequence

from finetune.data.text.prompts import whole_word


def case_notice(captions: Sequence[str], trigger: str | None, same: Callable[[str, str], bool] | None) -> str:
    """A sentence on captions that have the trigger in another case only; empty: it makes no difference.

    same: whether the base reads two spellings alike; None: no base is known.
    """
    if not trigger:
        return ""
    pattern, others = whole_word(trigger), Counter[str]()
    for caption in captions:
        found = [one[0] for one in pattern.finditer(caption)]
        if found and trigger not in found:
            others[found[0]] += 1
    different = {spelling: n for spelling, n in others.items() if same is None or not same(trigger, spelling)}
    if not different:
        return ""
    most = max(different, key=lambda spelling: different[spelling])
    who = "the text encoder of this base" if same else "a text encoder that keeps case (T5, language models; not CLIP)"
    return (
        f"{sum(different.values())} of {len(captions)} captions write the trigger {trigger!r} as {most!r}: {who} reads "
        f"it as another word, so prompts with {trigger!r} would not call up what is trained; spell it alike everywhere"
    )
