"""What MkDocs does with pages that are written for a repository: links that leave docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_DOCS = Path(__file__).parent
# a link to a file beside docs/, or to the kept evidence: [text](target#anchor)
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./|evidence)[^)#]*)(?P<anchor>#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Turn links to files outside of the site into links from site/ to the repository.

    Raises:
        PluginError: when there is no such file.
    """

    def replace(found: re.Match[str]) -> str:
        target = (_DOCS / found["path"]).resolve()
        if not target.exists():
            raise PluginError(f"{page.file.src_path} links to {found['path']}, which is not there")
        relative = target.relative_to(_DOCS.parent)
        return f'<a href="../{relative}{found["anchor"] or ""}">{found["text"]}</a>'

    return _LINK.sub(replace, markdown)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Show docstrings' references to code, such as :func:`~a.b`, by the last of their names."""
    html = re.sub(r":[a-z]+:<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
    return html.replace("::</p>", ":</p>")
