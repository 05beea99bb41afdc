"""Sphinx configuration. The source directory is docs/; the lessons of gallery/ become pages of docs/lessons/."""

import importlib.util
import os
import sys
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - builds the font cache now: a lesson's page would show it being built

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
if importlib.util.find_spec("handson") is None:
    sys.path.insert(0, str(ROOT / "tutorial_src"))

import sharing  # noqa: E402 - one of ours, in docs/_ext

project = "Colossal-AI Tutorial Hands-on"
author = "the authors of the tutorial"
copyright = "the authors, under the Apache License 2.0"
version = release = "0.1.0"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    # ours, in docs/_ext
    "bench_page",
    "build_guards",
    "build_page",
    "contents",
    "downloads",
    "error_messages",
    "honesty",
    "kit_reference",
    "kit_wheel",
    "lessons_at_once",
    "mathml",
    "named_toggles",
    "origin",
    "outdated_lessons",
    "overview_picture",
    "page_speed",
    "papers_page",
    "pictures",
    "recordings_page",
    "repairs_page",
    "sharing",
]
exclude_patterns = ["_ext", "_static", "_templates", "inventories", "recordings"]
templates_path = ["docs/_templates"]
nitpicky = True
nitpick_ignore = [
    ("py:class", "torch.distributed.distributed_c10d.ProcessGroup"),  # PyTorch's pages do not describe it
    ("py:class", "collections.abc.Mapping[str"),  # how Sphinx reads the alias in `RunLike | Runs`
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# What other projects' pages are called is read from files of ours: a build needs no network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.inv"),
    "matplotlib": ("https://matplotlib.org/stable", "inventories/matplotlib.inv"),
}
bibtex_bibfiles = ["docs/references.bib"]

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
    "image_scrapers": ("pictures.figures",),
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
html_baseurl = sharing.address(os.environ)
html_copy_source = False
html_show_sourcelink = False
# A sidebar only where there is something to navigate: in the lessons.
html_sidebars = {path.stem: [] for path in (ROOT / "docs").glob("*.md")} | {"search": [], "genindex": []}
html_use_index = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "text": html_title, "alt_text": ""},
    "navbar_align": "left",
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright", "site_version"],
    "footer_end": ["page_source"],
}
# What a link to the site is shown with elsewhere.
handson_lead = "Train and serve one model on many accelerators: executed lessons, measured numbers"
handson_card_alt = "Peak memory of each rank and the time of a training step, for one model divided in several ways"
