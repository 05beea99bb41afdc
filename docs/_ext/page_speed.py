"""What a browser has to wait for before it shows a page: as little as the theme allows.

The theme and some extensions write their scripts so that a page is not drawn before all of them are there, and give
every page the styles of all kinds of pages, a file each. Each built page is changed once, in its head; the styles that
are left come as one file, which is written anew by every build.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sphinx.application import Sphinx

BLOCKING = re.compile(r'<script (?![^>]*\b(?:defer|async|type)\b)(?=[^>]*\bsrc=)')  # fmt: skip
PRELOADED = re.compile(r'\s*<link rel="preload" as="script"[^>]*>')
# The theme reads the whole index on every page, for a search that answers while one types, which this site has not.
SEARCH = re.compile(r'\s*<script [^>]*src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"[^>]*></script>')
STYLE = re.compile(
    r'\s*<link rel="stylesheet"[^>]*href="[^"]*?(sg_gallery[\w-]*|sphinx-design[\w.]*|copybutton)\.css[^"]*"[^>]*>'
)
# A style is needed where one of its words is on the page.
NEEDS = {"sg_gallery": "sphx-glr-", "sphinx-design": "sd-", "copybutton": 'class="highlight'}
SHEET = re.compile(
    r'\s*<link (?=[^>]*rel="stylesheet")[^>]*href="([^"]*?)(_static/[^"?]+\.css)[^"]*"(?: data-parts="([^"]*)")?[^>]*>'
)
BASIC = '@import "../basic.css";'  # at the head of theme.css; by itself it would be asked for last
FIRST = re.compile(r'<img [^>]*class="handson-picture only-(light|dark)"[^>]*src="([^"]+)"')


def faster(page: str) -> str:
    """Return a page whose scripts run after it is drawn, without styles that it does not use."""
    head, end, body = page.partition("</head>")
    if not end or "handson-faster" in head:
        return page
    head = BLOCKING.sub('<script defer="defer" ', head)
    # These two lines use what a script before them has made; as modules they wait for it.
    head = head.replace("<script>DOCUMENTATION_OPTIONS", '<script type="module">DOCUMENTATION_OPTIONS')
    head = PRELOADED.sub("", head)
    if 'id="search-results"' not in body:
        head, body = SEARCH.sub("", head), SEARCH.sub("", body)
    head = STYLE.sub(lambda found: found[0] if _needed(found[1], body) else "", head)
    # The picture in the first screen is asked for late, being lazy.
    if "handson-hero" in body:
        for theme, picture in FIRST.findall(body)[:2]:
            head += (
                f'<link rel="preload" as="image" fetchpriority="high" href="{picture}" '
                f'media="(prefers-color-scheme: {theme})" />\n'
            )
    return f'{head}<meta name="handson-faster" content="1" />\n{end}{body}'


def one_sheet(page: str, folder: Path, sheets: dict[str, str]) -> str:
    """Return a page that asks for its style sheets as one file, written into the site's `folder`.

    `sheets` has the files that this build has written so far, with a digest of each, for the browser's cache.
    """
    head, end, body = page.partition("</head>")
    found = list(SHEET.finditer(head))
    if not end or not found:
        return page
    parts = found[0][3].split() if found[0][3] else [one[2] for one in found]
    # Beside the theme's own style sheets, so that the addresses in them stay right.
    name = f"_static/styles/pages-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}.css"
    if name not in sheets:
        text = "\n".join((folder / part).read_text(encoding="utf-8") for part in parts)
        text = text.replace(
            BASIC, (folder / "_static" / "basic.css").read_text(encoding="utf-8") if BASIC in text else ""
        )
        (folder / name).write_text(text, encoding="utf-8")
        sheets[name] = hashlib.sha256(text.encode()).hexdigest()[:8]
    link = f'\n<link rel="stylesheet" href="{found[0][1]}{name}?v={sheets[name]}" data-parts="{" ".join(parts)}" />'
    return SHEET.sub(lambda one: link if one.start() == found[0].start() else "", head) + end + body


def _needed(style: str, body: str) -> bool:
    return any(word in body for name, word in NEEDS.items() if style.startswith(name))


def _pages(app: Sphinx, exception: Exception | None) -> Iterator[Path]:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir)
        yield from (path for path in folder.rglob("*.html") if "_static" not in path.relative_to(folder).parts)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    page = path.read_text(encoding="utf-8")
    if (changed := change(page)) != page:
        path.write_text(changed, encoding="utf-8")


def make_faster(app: Sphinx, exception: Exception | None) -> None:
    """Change the head of every page that this build has written."""
    for path in _pages(app, exception):
        _rewrite(path, faster)


def join_sheets(app: Sphinx, exception: Exception | None) -> None:
    """Give every page its one style sheet."""
    folder, sheets = Path(app.outdir), {}
    for path in _pages(app, exception):
        _rewrite(path, lambda page: one_sheet(page, folder, sheets))


def setup(app: Sphinx) -> dict[str, bool]:
    """Heads before the 404 page's links are changed; sheets last, when the theme has written its colours of code."""
    app.connect("build-finished", make_faster, priority=150)
    app.connect("build-finished", join_sheets, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
