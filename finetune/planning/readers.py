"""Programs that will not read all of what a recipe trains: said before it is trained."""

from finetune.adapters.change import matches
from finetune.families.base import Family
from finetune.recipe import Adapter, LowRank


def reader_notices(family: type[Family], config: Adapter) -> list[str]:
    """A sentence for each program that passes over modules which adapter.targets chooses."""
    if not isinstance(config, LowRank):
        return []
    notices = []
    for reader in (one for one in family.readers if family.layout in one.names):
        lost = [name for name in reader.drops if _chosen(name, family, config)]
        if lost:
            others = [one.label for one in family.readers if one is not reader and family.layout in one.names]
            notices.append(
                f"{reader.title} passes over {len(lost)} of the modules that adapter.targets chooses, "
                f"{lost[0]} first: the file will be whole in {', '.join(others)} only; "
                'adapter.targets = "attention+ff" leaves them out'
            )
    return notices


def _chosen(name: str, family: type[Family], config: LowRank) -> bool:
    """Is that module, a canonical name, one of the denoiser's targets?"""
    component, _, path = name.partition(".")
    if component != family.denoiser_name or "denoiser" not in config.components:
        return False
    written = config.targets
    patterns = family.presets[component].get(written, (written,)) if isinstance(written, str) else written
    return any(matches(path, pattern) for pattern in patterns)
