"""What a browser has to wait for before it shows a page: as little as the theme allows.

The theme and some extensions write their scripts so that a page is not drawn before all of them are there, and give
every page the styles of all kinds of pages. Each built page is changed once, in its head.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

BLOCKING = re.compile(r'<script (?![^>]*\b(?:defer|async|type)\b)(?=[^>]*\bsrc=)')  # fmt: skip
PRELOADED = re.compile(r'\s*<link rel="preload" as="script"[^>]*>')
STYLE = re.compile(
    r'\s*<link rel="stylesheet"[^>]*href="[^"]*?(sg_gallery[\w-]*|sphinx-design[\w.]*|copybutton)\.css[^"]*"[^>]*>'
)
# A style is needed where one of its words is on the page.
NEEDS = {"sg_gallery": "sphx-glr-", "sphinx-design": "sd-", "copybutton": 'class="highlight'}
THEME = re.compile(r'(<link href="([^"]*?)_static/styles/theme\.css)')
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
    head = STYLE.sub(lambda found: found[0] if _needed(found[1], body) else "", head)
    # theme.css asks for basic.css: say so early. The picture in the first screen is asked for late, being lazy.
    head = THEME.sub(r'<link rel="preload" as="style" href="\2_static/basic.css" />\n\1', head, count=1)
    if "handson-hero" in body:
        for theme, picture in FIRST.findall(body)[:2]:
            head += (
                f'<link rel="preload" as="image" fetchpriority="high" href="{picture}" '
                f'media="(prefers-color-scheme: {theme})" />\n'
            )
    return f'{head}<meta name="handson-faster" content="1" />\n{end}{body}'


def _needed(style: str, body: str) -> bool:
    return any(word in body for name, word in NEEDS.items() if style.startswith(name))


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Change every page that this build has written."""
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.relative_to(app.outdir).parts:
            page = path.read_text(encoding="utf-8")
            if (changed := faster(page)) != page:
                path.write_text(changed, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before the 404 page's links are changed."""
    app.connect("build-finished", finish, priority=150)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
