"""What others see of the site: search engines (sitemap, description), chats (a card for a link), a wrong address (404).

Where the site will stand is known only when it is published: HANDSON_SITE_URL says it, or on GitHub's runners
GITHUB_REPOSITORY (owner.github.io/name). Without either, nothing on a page names an address, and the sitemap has the
preview's.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx

PREVIEW = "http://localhost:8000/"
CARD = "_static/social_card.png"
NOT_LISTED = {"404", "search", "genindex"}
LONGEST = 200  # characters of a description that search engines and chats show


def address(environment: Mapping[str, str]) -> str:
    """Return where the site will stand, with a slash at its end, or nothing where that is not known."""
    if told := environment.get("HANDSON_SITE_URL"):
        return told.rstrip("/") + "/"
    owner, _, name = environment.get("GITHUB_REPOSITORY", "").partition("/")
    if not name:
        return ""
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def repository(environment: Mapping[str, str]) -> str:
    """Return the address of the sources' repository, or nothing where that is not known."""
    if told := environment.get("HANDSON_REPOSITORY"):
        return told.rstrip("/")
    name = environment.get("GITHUB_REPOSITORY", "")
    return f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else ""


def source_of(docname: str, folder: Path) -> str:
    """Return the file that a page is made from, relative to the repository; nothing for a page without one."""
    lesson = docname.removeprefix("lessons/")
    if lesson != docname:
        header = "GALLERY_HEADER.rst"
        named = (
            f"gallery/{lesson.removesuffix('index')}{header}" if lesson.endswith("index") else f"gallery/{lesson}.py"
        )
    else:
        named = f"docs/{docname}.md"
    return named if (folder / named).is_file() else ""


def description(doctree: nodes.document | None) -> str:
    """Return the first sentences of a page, as many as fit."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree is not None else ():
        if isinstance(paragraph.parent, nodes.section | nodes.container):
            texts = (text for text in paragraph.findall(nodes.Text) if not isinstance(text.parent, nodes.raw))
            text = " ".join("".join(texts).split())
            if len(text) <= LONGEST:
                return text
            cut = text[:LONGEST]
            end = max(cut.rfind(mark) for mark in (". ", ": ", "; "))
            return cut[: end + 1].rstrip(":;") if end > LONGEST // 3 else cut.rpartition(" ")[0] + " …"
    return ""


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Say on each page what it is about and where it comes from."""
    title = html.unescape(re.sub(r"<[^>]+>", "", context.get("title") or app.config.html_title))
    root = app.config.html_baseurl
    about = description(doctree) or app.config.handson_lead
    properties = {
        "og:type": "website" if page == "index" else "article",
        "og:site_name": app.config.html_title,
        "og:title": title,
        "og:description": about,
        "og:image": root + CARD if root else context["pathto"](CARD, 1),
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": app.config.handson_card_alt,
        **({"og:url": context["pageurl"]} if root and context.get("pageurl") else {}),
    }
    names = {"description": about, "twitter:card": "summary_large_image"}
    tags = [f'<meta name="{name}" content="{html.escape(text)}" />' for name, text in names.items()]
    tags += [f'<meta property="{name}" content="{html.escape(text)}" />' for name, text in properties.items()]
    if page in NOT_LISTED:
        tags.append('<meta name="robots" content="noindex" />')
    context["metatags"] = context.get("metatags", "") + "\n" + "\n".join(tags)
    source, sources = source_of(page, Path(app.confdir)), repository(os.environ)
    context["page_source"] = source
    context["edit_address"] = f"{sources}/edit/main/{source}" if source and sources else ""


def write_sitemap(app: Sphinx) -> None:
    """List every page for search engines."""
    root = app.config.html_baseurl or PREVIEW
    pages = sorted(name for name in app.env.found_docs if name not in NOT_LISTED)
    entries = "".join(
        f"  <url><loc>{html.escape(root + app.builder.get_target_uri(name))}</loc></url>\n" for name in pages
    )
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n'
    (Path(app.outdir) / "sitemap.xml").write_text(text, encoding="utf-8")
    robots = f"User-agent: *\nAllow: /\nSitemap: {root}sitemap.xml\n"
    (Path(app.outdir) / "robots.txt").write_text(robots, encoding="utf-8")


def root_links(page: str, prefix: str) -> str:
    """Return a page whose links work at any depth: a server shows 404.html for /no/such/page too."""
    return re.sub(
        r'(?<=\s)(href|src|action|content|data-content_root)="(?:\./)?(?!https?:|data:|mailto:|[#/])'
        r'((?:_static|_images|lessons|[\w-]+\.(?:html|js|xml|ico|svg))[^"]*|)"',
        lambda match: f'{match[1]}="{prefix}{match[2]}"',
        page,
    )


def finish(app: Sphinx, exception: Exception | None) -> None:
    """After the pages: the sitemap, and a 404 page that works anywhere."""
    if exception is not None or app.builder.format != "html":
        return
    write_sitemap(app)
    lost = Path(app.outdir) / "404.html"
    if lost.is_file():
        prefix = urlsplit(app.config.html_baseurl or PREVIEW).path or "/"
        lost.write_text(root_links(lost.read_text(encoding="utf-8"), prefix), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Describe each page before the theme looks which parts of its footer are empty."""
    app.add_config_value("handson_card_alt", "", "html")
    app.connect("html-page-context", describe, priority=400)
    app.connect("build-finished", finish, priority=200)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
