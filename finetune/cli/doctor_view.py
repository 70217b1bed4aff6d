"""The doctor's findings, line by line. Imports torch."""

import typer
from rich.console import Console

from finetune.cli.options import Output
from finetune.doctor import Finding, examine_machine
from finetune.errors import RunError, advice


def doctor(output: Output) -> None:
    console, findings = Console(highlight=False, emoji=False), []
    for finding in examine_machine():
        findings.append(finding)
        if output.details or (output.quiet and not finding.ok):
            mark = "[green]ok[/]  " if finding.ok else "[red]bad[/] "
            console.print(f"{mark}{finding.what:<22} {finding.detail}", soft_wrap=True)
            if not finding.ok:
                console.print(f"      try: {_tried(finding)}", soft_wrap=True)
    bad = [finding for finding in findings if not finding.ok]
    output.json([{"what": f.what, "ok": f.ok, "detail": f.detail, "try": _tried(f)} for f in findings])
    if bad:
        count = "1 check failed" if len(bad) == 1 else f"{len(bad)} checks failed"
        raise RunError(f"{count}: {', '.join(finding.what for finding in bad)}", "the lines above say how to fix it")
    output.result("this machine can train")


def _tried(finding: Finding) -> str:

    from finetune.cli import app
    from finetune.cli.wording import written

    return advice(finding.hint, written(finding.action, typer.main.get_command(app)) if finding.action else "")
