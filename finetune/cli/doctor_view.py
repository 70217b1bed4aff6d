"""The doctor's findings, line by line. Imports torch."""

from rich.console import Console

from finetune.doctor import examine
from finetune.errors import RunError


def doctor() -> None:
    console = Console()
    bad = 0
    for found in examine():
        mark = "[green]ok[/]  " if found.ok else "[red]bad[/] "
        console.print(f"{mark}{found.what:<22} {found.detail}", highlight=False, soft_wrap=True)
        if not found.ok:
            bad += 1
            console.print(f"      try: {found.hint}", highlight=False, soft_wrap=True)
    if bad:
        raise RunError(f"{bad} finding{'s' if bad > 1 else ''} to mend", "the lines above say how")
