"""Give the sidebar's arrows a name: the theme writes them without one, and a screen reader then says "button"."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def name_toggles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Wrap the theme's function that writes the sidebar's tree."""
    write_tree = context.get("generate_toctree_html")
    if write_tree is None:
        return

    def write_named(*arguments: Any, **options: Any) -> str:
        return str(write_tree(*arguments, **options)).replace(
            "<summary>", '<summary aria-label="Show or hide the lessons of this topic">'
        )

    context["generate_toctree_html"] = write_named


def setup(app: Sphinx) -> dict[str, bool]:
    """Run after the theme has put its function there."""
    app.connect("html-page-context", name_toggles, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
