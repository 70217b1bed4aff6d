"""For mkdocs: pages that live outside docs/ (README, CONTRIBUTING, ...) become pages of the site, links and all."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "bundled.md",
}
"""file of the repository -> page of the site; README stays one text that is right in both places"""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in PAGES.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), source)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of pages in docs/ that lead out of it; commands coloured as a shell's, remarks and all."""
    text = markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}")
    return text.replace("```console\n", "```bash\n")


def on_post_page(output: str, **_: Any) -> str:
    """What the theme forgets to name for those who listen."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def relinked(text: str, source: str) -> str:
    """Links that hold in the repository, for the site: to its own pages, or none where it has no such page."""

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PAGES.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else None)
        if page is None or page.endswith(".py"):
            return f"{label}" if label.startswith("`") else f"{label} (`{there}`)"
        return f"{picture}[{label}]({page}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)
