"""Sphinx configuration. The source directory is docs/; the lessons of gallery/ become pages of docs/lessons/."""

import importlib.util
import sys
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - builds the font cache now: a lesson's page would show it being built

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
if importlib.util.find_spec("handson") is None:
    sys.path.insert(0, str(ROOT / "tutorial_src"))

project = "Colossal-AI Tutorial Hands-on"
author = "the authors of the tutorial"
copyright = "the authors, under the Apache License 2.0"
version = release = "0.1.0"
language = "en"

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    # ours, in docs/_ext
    "contents",
    "downloads",
    "honesty",
    "kit_wheel",
    "mathml",
    "named_toggles",
    "origin",
    "outdated_lessons",
    "repairs_page",
]
exclude_patterns = ["_ext", "_static", "recordings"]
nitpicky = True

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

TOPICS = ("multi_dimensional", "sequence", "large_batch", "auto_parallel", "auto_checkpoint", "opt")
sphinx_gallery_conf = {
    "examples_dirs": ["../gallery"],
    "gallery_dirs": ["lessons"],
    "subsection_order": [f"../gallery/{topic}" for topic in TOPICS] + ["*"],
    "within_subsection_order": "contents.ReadingOrder",
    "capture_repr": ("_repr_html_", "__repr__"),
    # A block that ends in a picture shows the picture, not what Python calls it.
    "ignore_repr_types": r"handson\.show\.picture|matplotlib",
    "image_scrapers": ("handson.show.scraper.figures",),
    "reset_modules": ("matplotlib",),
    "reset_modules_order": "both",
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    # How long a page took to build says nothing about its runs, which carry their own seconds.
    "min_reported_time": 1e9,
    "write_computation_times": False,
    # A warning is an error under -W; as one, it lets the other lessons go on and ends without a dump of Sphinx.
    "only_warn_on_example_error": True,
    "junit": "../lessons.xml",
    "plot_gallery": True,
    "inspect_global_variables": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "Colossal-AI hands-on"
html_static_path = ["docs/_static", "tutorial_src/handson/show/show.css"]
html_css_files = ["show.css", "handson.css"]
html_favicon = "docs/_static/favicon.svg"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
# A sidebar only where there is something to navigate: in the lessons.
html_sidebars = {page: [] for page in ("index", "start", "how_it_works", "notation", "repairs", "search", "genindex")}
html_use_index = False
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "text": html_title, "alt_text": ""},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
