"""What a file says it was made for, held against the base."""

from finetune import families
from finetune.families import lines
from finetune.families.base import BaseInfo
from finetune.files import layouts


def made_for_another(adapter: layouts.AdapterFile, facts: BaseInfo) -> str:
    """A sentence when the file's metadata or names say another base than this; else empty."""
    published = families.family_class(facts.family).published(facts)
    line, here = published.title, published.base_version
    said = adapter.metadata.get("ss_base_model_version", "")
    architecture = adapter.metadata.get("modelspec.architecture", "")
    other = lines.line_of(said, architecture)
    if other and other.title != line:
        return f"the adapter was made for {other.title} ({said or architecture}), the base is {here}"
    if said in published.unlike and facts.prediction_known:
        return f"the adapter was made for {said}, the base is {here} (v: it predicts v, else epsilon)"
    for prefix, titles in lines.lines_by_key().items():
        key = next((key for key in adapter.unused if key.startswith(prefix)), "")
        if key and line not in titles:
            return f"the adapter was made for {' or '.join(titles)} (it holds {key}), the base is {here}"
    return ""
