"""What the documentation site does beyond Markdown: pages that lie outside docs/ in the repository are part of it.

README, benchmarks and changelog are read on their own, too, so their links are relative to where they lie; here these
are made relative to the site, in which docs/ is the root.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_IN_NAV = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
_LINK = re.compile(
    r"(?P<picture>!?)\[(?P<text>[^\]\[]*)\]\((?!https?:|mailto:|#)(?P<to>[^)#\s]+)(?P<place>#[^)\s]*)?\)"
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures from outside docs/."""
    for path in _outside():
        files.append(
            File.generated(
                config,
                path.relative_to(_ROOT).as_posix(),
                abs_src_path=str(path),
                inclusion=InclusionLevel.INCLUDED
                if path.relative_to(_ROOT).as_posix() in _IN_NAV
                else InclusionLevel.NOT_IN_NAV,
            )
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrites links that are right in the repository to what is right in the site."""
    here = page.file.src_uri
    at = f"docs/{here}" if (_ROOT / "docs" / here).exists() else here

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(at), found["to"]))
        if (_ROOT / target).is_dir() and (_ROOT / target / "README.md").exists():
            target = f"{target}/README.md"
        inside = "index.md" if target == "README.md" else target.removeprefix("docs/")
        if files.get_file_from_path(inside) is not None:
            inside = posixpath.relpath(inside, posixpath.dirname(here) or ".")
            return f"{found['picture']}[{found['text']}]({inside}{found['place'] or ''})"
        if (_ROOT / target).exists() and not found["picture"]:  # a file of the repository that is no page
            return found["text"] if "`" in found["text"] else f"{found['text']} (`{target}`)"
        return found[0]  # which mkdocs will say is dead

    return _LINK.sub(moved, markdown)


def _outside() -> list[Path]:
    pages = [_ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    return pages + [path for end in ("md", "svg", "png") for path in sorted((_ROOT / "benchmarks").rglob(f"*.{end}"))]
