"""The pages around the lessons: that they say what the recordings hold, and what the site tells the world."""

import importlib
import re
import xml.etree.ElementTree as ElementTree
import zlib
from types import SimpleNamespace

import pytest
from conftest import PHONE, ROOT, SITE, pages
from docutils import nodes
from handson import store
from handson.show import overview, recordings

MEGABYTE = 1_000_000
RECORDINGS = ROOT / "docs" / "recordings"


@pytest.fixture
def extension(monkeypatch):
    """Imports one of the site's own Sphinx extensions."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module


@pytest.fixture(scope="session")
def recorded():
    """Every recorded run."""
    return [store.load(path)[0] for path in sorted(RECORDINGS.rglob("*.json"))]


# --- what is drawn and listed from runs ------------------------------------------------------------------------


def run(peaks, *, tensor=1, data=1, time=100.0, difference=1e-7, device="cuda"):
    """A run that measured itself, with one peak in GiB for each rank."""
    data_rows = [
        {
            "rank": 0,
            "kind": "mesh",
            "sizes": {"data": data, "pipeline": 1, "tensor": tensor},
            "title": f"data {data} x pipeline 1 x tensor {tensor}" + " (2d)" * (tensor > 1),
        },
        {"rank": 0, "kind": "step_time", "median_ms": time},
        {"rank": 0, "kind": "parity", "steps": 5, "max_loss_difference": difference},
        *({"rank": rank, "kind": "memory", "peak_bytes": int(peak * 2**30)} for rank, peak in enumerate(peaks)),
    ]
    made = {"device": device, "accelerator": "NVIDIA H200" if device == "cuda" else None, "cpu": "Xeon", "cores": 64}
    made["accelerators"] = len(peaks) if device == "cuda" else 0
    return store.Run(
        "train.py", [], len(peaks), "gpu", "torchrun", "0" * 64, {}, made, [], data_rows, seconds=10.0
    )  # fmt: skip


def test_the_overview_takes_runs_of_one_kind_of_host_and_orders_them_by_memory():
    runs = [run([2, 1, 1, 1], data=4), run([8]), run([3] * 4, tensor=4), run([9], device="cpu"), run([5, 5], data=2)]
    assert list(overview.ways(runs)) == ["one GPU", "2D 4", "data 4"]


def test_the_overview_says_the_extremes_and_the_worst_loss():
    said = overview.sentence(overview.ways([run([8]), run([2, 1], data=2, difference=3e-6)]))
    assert "needs 8.00 GiB in the first and 2.00 GiB in the last" in said and "3.00 × 10⁻⁶" in said


def test_the_overview_describes_every_way_in_its_alternative_text():
    drawn = overview.overview(overview.ways([run([8], time=80), run([2, 1], data=2, time=43.2)]))
    assert "one GPU 8.00 GiB, 80.0 ms" in drawn.alt and "data 2 2.00 GiB and 1.00 GiB, 43.2 ms" in drawn.alt


def test_an_overview_of_runs_that_measured_nothing_is_refused():
    nothing = run([1])
    nothing.data.clear()
    with pytest.raises(LookupError, match="recorded mesh, memory"):
        overview.ways([nothing])


def test_device_seconds_count_accelerators_and_only_them():
    assert recordings.device_seconds(run([1, 1])) == 20.0
    assert recordings.device_seconds(run([1, 1], device="cpu")) is None


def test_a_stale_recording_is_marked_with_what_changed():
    table = recordings.times_table([run([1])], caption="times", stale={"0" * 64: "train.py changed since"})
    assert "stale" in str(table.rows[0][0]) and table.notes == ["Stale: train.py changed since"]


def test_the_times_of_all_lessons_count_a_shared_run_once():
    shared = run([1])
    table = recordings.totals_table({"a": ("a", [shared]), "b": ("b", [shared, run([1])])}, [shared, run([1])])
    assert table.rows[-1][:2] == ["all lessons", 2] and table.notes[0].startswith("1 times")


SVG = """<?xml version="1.0"?>
<!-- Created with matplotlib -->
<svg width="72pt" height="36pt" viewBox="0 0 72 36">
 <g id="figure_1">
  <defs><path id="A-1" d="M 1159 525
L 1159.123456 -1331
z
" transform="scale(0.015625)"/></defs>
  <use xlink:href="#A-1" x="67.791234" style="fill: #1f2630; stroke: none"/>
 </g>
</svg>"""


def test_a_picture_is_made_smaller_but_not_changed(extension):
    assert extension("pictures").smaller(SVG).rstrip() == (
        '<svg width="72pt" height="36pt" viewBox="0 0 72 36"><g><defs><path id="A-1" d="M1159 525L1159.12 -1331z" '
        'transform="scale(0.015625)"/></defs><use href="#A-1" x="67.79" style="fill:#1f2630;stroke:none"/></g></svg>'
    )


def test_a_thumbnail_gets_a_palette_once(extension, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a_thumb.png"
    drawn = image.linear_gradient("L").convert("RGB")
    drawn.putpixel((0, 0), (255, 0, 0))
    drawn.save(path)
    extension("pictures").fewer_colours(path)
    with image.open(path) as after:
        assert after.mode == "P" and len(after.getcolors()) <= 64 and after.size == (256, 256)
        assert after.convert("RGB").getpixel((0, 250))[0] == pytest.approx(drawn.getpixel((0, 250))[0], abs=8)
    written = path.stat().st_mtime_ns
    extension("pictures").fewer_colours(path)
    assert path.stat().st_mtime_ns == written


def test_a_pictures_room_is_known_before_it_comes(extension):
    assert extension("pictures").size(SVG) == (96, 48)


def test_scripts_do_not_hold_up_a_page_and_unused_styles_are_left_out(extension):
    page = (
        '<head><link rel="stylesheet" href="_static/sg_gallery.css?v=1" /><link rel="stylesheet" href="a.css" />'
        '<script src="a.js"></script><script>DOCUMENTATION_OPTIONS.pagename = 1;</script></head><body>text</body>'
    )
    changed = extension("page_speed").faster(page)
    assert '<script defer="defer" src="a.js">' in changed and '<script type="module">DOCUMENTATION_OPTIONS' in changed
    assert "sg_gallery" not in changed and "a.css" in changed
    assert extension("page_speed").faster(changed) == changed


def test_only_the_search_page_loads_the_index(extension):
    page = '<head><script src="a.js"></script>\n<script src="../searchindex.js"></script></head><body>{}</body>'
    faster = extension("page_speed").faster
    assert "searchindex" not in faster(page.format("text")) and "a.js" in faster(page.format("text"))
    assert "searchindex" in faster(page.format('<div id="search-results"></div>'))


def test_a_page_asks_for_one_style_sheet_that_follows_its_parts(extension, tmp_path):
    styles = tmp_path / "_static" / "styles"
    styles.mkdir(parents=True)
    (styles / "theme.css").write_text('@import "../basic.css";\n')
    (tmp_path / "_static" / "basic.css").write_text("b{}")
    (tmp_path / "_static" / "own.css").write_text("o{color:red}")
    page = (
        '<head><link href="../_static/styles/theme.css?digest=1" rel="stylesheet" />'
        '<link rel="stylesheet" href="../_static/own.css?v=2" /><link rel="icon" href="../_static/i.svg" /></head>text'
    )
    speed = extension("page_speed")
    changed = speed.one_sheet(page, tmp_path, {})
    assert changed.count('rel="stylesheet"') == 1 and 'rel="icon"' in changed
    (sheet,) = styles.glob("pages-*.css")
    assert sheet.read_text() == "b{}\n\no{color:red}" and f'href="../_static/styles/{sheet.name}?v=' in changed
    assert speed.one_sheet(changed, tmp_path, {}) == changed
    (tmp_path / "_static" / "own.css").write_text("o{color:blue}")
    again = speed.one_sheet(changed, tmp_path, {})
    assert "blue" in sheet.read_text() and again != changed, "a page that is not written again has the new style"


# --- what is taken from lessons, sources and docstrings -------------------------------------------------------

PAPER = """<div class="handson-table"><table><caption>The paper</caption>
<thead><tr><th>claim</th><th>paper</th><th>measured</th><th>source</th></tr></thead>
<tbody><tr><th>2D is <b>faster</b></th><td>1.5×</td><td>0.8×</td><td><a href="https://arxiv.org/abs/1">Xu</a></td></tr>
</tbody></table></div>"""


def test_claims_are_read_from_a_lessons_paper_table_and_from_no_other(extension):
    papers = extension("papers_page")
    row = papers.claims_in(PAPER)[0]
    assert row["claim"] == "2D is <b>faster</b>" and row["measured"] == "0.8×" and 'href="https' in row["source"]
    assert not papers.claims_in(PAPER.replace("<th>paper</th>", "<th>ranks</th>"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('raise E(f"port {x} is " f"taken ({y!r})")', "port … is taken (…)"),
        ('log("the lesson %s failed", name)', "the lesson … failed"),
        ('E("two  " "parts")', "two parts"),
    ],
)
def test_messages_are_found_as_the_code_writes_them(extension, tmp_path, source, message):
    (tmp_path / "code.py").write_text(source)
    messages = extension("error_messages")
    assert messages.holds(tmp_path / "code.py", message)
    assert not messages.holds(tmp_path / "code.py", message + "!")


def test_every_message_of_the_troubleshooting_page_is_in_the_sources(extension):
    messages = extension("error_messages")
    quoted = messages.QUOTED.findall((ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quoted) >= 20
    lost = [message for file, message in quoted if not messages.holds(ROOT / file, " ".join(message.split()))]
    assert not lost


def test_a_message_that_is_gone_is_named_before_any_lesson_runs(extension, tmp_path, caplog):
    messages, app = extension("error_messages"), SimpleNamespace(srcdir=tmp_path / "docs", confdir=tmp_path)
    app.srcdir.mkdir()
    (tmp_path / "code.py").write_text("E('it is gone')")
    page = app.srcdir / "trouble.md"
    page.write_text("# T\n\n```{handson-error} code.py\nit is gone\n\nLook again.\n```\n")
    messages.look_ahead(app)
    (tmp_path / "code.py").write_text("E('it is elsewhere')")
    with pytest.raises(SystemExit):
        messages.look_ahead(app)
    assert "docs/trouble.md: code.py does not say: it is gone" in caplog.text


def test_docstrings_code_becomes_code(extension):
    lines = ["Give `ranks` and ``this`` to :func:`launch`."]
    extension("kit_reference").double_backticks(None, "", "", None, None, lines)
    assert lines == ["Give ``ranks`` and ``this`` to :func:`launch`."]


def test_every_paper_that_a_lesson_links_is_in_the_bibliography():
    known = set(re.findall(r"eprint = \{([\d.]+)\}", (ROOT / "docs" / "references.bib").read_text()))
    linked = {
        number
        for folder in ("gallery", "tutorial_src/handson/show")
        for file in (ROOT / folder).rglob("*.py")
        for number in re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", file.read_text())
    }
    assert linked and linked <= known, f"add to docs/references.bib: {sorted(linked - known)}"


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "inventories").glob("*.inv")), ids=lambda file: file.stem)
def test_inventories_can_be_read_without_a_network(file):
    content = file.read_bytes()
    head, _, packed = content.partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2") and b" py:class 1 " in zlib.decompress(packed)


# --- what the world is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ""),
        ({"GITHUB_REPOSITORY": "Owner/tutorial"}, "https://owner.github.io/tutorial/"),
        ({"GITHUB_REPOSITORY": "owner/owner.github.io"}, "https://owner.github.io/"),
        ({"GITHUB_REPOSITORY": "o/t", "HANDSON_SITE_URL": "https://docs.example/x"}, "https://docs.example/x/"),
    ],
)
def test_the_address_is_known_when_the_site_is_published(extension, environment, address):
    assert extension("sharing").address(environment) == address


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("start", "docs/start.md"),
        ("lessons/large_batch/plot_sgd_lars_lamb", "gallery/large_batch/plot_sgd_lars_lamb.py"),
        ("lessons/large_batch/index", "gallery/large_batch/GALLERY_HEADER.rst"),
        ("lessons/index", "gallery/GALLERY_HEADER.rst"),
        ("search", ""),
    ],
)
def test_a_page_names_the_file_that_it_is_made_from(extension, page, source):
    assert extension("sharing").source_of(page, ROOT) == source


def test_a_page_links_to_its_sources_editor_where_the_repository_is_known(extension, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/tutorial")
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    config = SimpleNamespace(html_title="t", html_baseurl="", handson_lead="l", handson_card_alt="a")
    context = {"pathto": lambda path, _: path, "title": "Start"}
    app = SimpleNamespace(confdir=ROOT, config=config)
    extension("sharing").describe(app, "start", "", context, None)
    assert context["edit_address"] == "https://github.com/owner/tutorial/edit/main/docs/start.md"


def test_a_description_is_the_first_paragraph_cut_at_a_sentence(extension):
    page = nodes.section("", nodes.paragraph("", "One thing. " * 30))
    said = extension("sharing").description(page)
    assert said.endswith("One thing.") and 66 < len(said) <= 200


def test_links_of_the_404_page_work_at_any_depth(extension):
    page = (
        '<a href="start.html">x</a> <img src="_static/logo.svg"> <a href="#top">t</a> <a href="https://x.org/a">o</a>'
    )
    assert extension("sharing").root_links(page, "/tutorial/") == (
        '<a href="/tutorial/start.html">x</a> <img src="/tutorial/_static/logo.svg"> <a href="#top">t</a> '
        '<a href="https://x.org/a">o</a>'
    )


# --- the built site -----------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.timeout(1800)
class TestBuiltSite:
    """Pages as their readers get them."""

    def test_one_screen_shows_what_the_site_is_its_picture_and_the_topics(self, visit):
        page = visit("index.html")
        for shown in (".handson-lead", "img.only-light", ".handson-caption", ".handson-origin", ".handson-topics"):
            box = page.locator(shown).first.bounding_box()
            assert box and box["y"] < 900, shown
        box = page.locator("article img.only-light").first.bounding_box()
        assert box["y"] + box["height"] < 900
        assert len(page.locator("article img.only-light").first.get_attribute("alt")) > 100

    def test_the_front_page_leads_to_every_lesson(self, visit):
        page = visit("index.html", "dark", PHONE)
        links = page.eval_on_selector_all(".handson-topics a", "found => found.map(link => link.getAttribute('href'))")
        there = {f"lessons/{path.parent.name}/{path.stem}.html" for path in (ROOT / "gallery").glob("*/plot_*.py")}
        assert {link.partition("#")[0] for link in links} == there

    def test_hardware_page_names_every_host_of_the_recordings(self, visit, recorded):
        text = visit("hardware.html").locator("article").inner_text()
        for found in recorded:
            assert f"{found.provenance['cores']} CPU cores" in text
            assert (found.provenance["accelerator"] or "") in text
            assert all(found.provenance[name] in text for name in ("torch", "colossalai", "driver"))

    def test_times_page_has_a_row_for_every_run_of_every_lesson(self, visit, recorded):
        page = visit("times.html")
        tables = page.locator(".handson-table")
        rows = [tables.nth(index).locator("tbody tr").count() for index in range(tables.count())]
        assert rows[0] == len(rows)
        assert sum(rows[1:]) == sum(len(found.lessons) for found in recorded)
        assert rows[0] - 1 == len({lesson for found in recorded for lesson in found.lessons})

    def test_papers_page_has_every_row_of_the_lessons_and_links_back(self, visit):
        page = visit("papers.html")
        gathered = page.locator(".handson-table tbody tr")
        expected = 0
        for path in (ROOT / "gallery").glob("*/plot_*.py"):
            lesson = (SITE / "lessons" / path.parent.name / f"{path.stem}.html").read_text()
            head = '<th scope="col">claim</th>'
            expected += sum(
                table.count('<th scope="row"')
                for table in re.findall(r"<table>.*?</table>", lesson, re.S)
                if head in table and ">measured</th>" in table
            )
        assert gathered.count() == expected > 10
        for link in page.locator(".handson-table tbody th a").all()[:3]:
            file, _, anchor = link.get_attribute("href").partition("#")
            assert f'id="{anchor}"' in (SITE / file).read_text()

    def test_bibliography_lists_papers_with_the_lessons_that_cite_them(self, visit):
        page = visit("bibliography.html")
        listed = page.locator("div.citation")
        assert listed.count() >= 15
        assert page.locator("div.citation .handson-cited a").count() >= listed.count()

    def test_reference_describes_what_lessons_and_scripts_import(self, visit):
        page = visit("reference.html")
        for name in ("handson.launcher.launch", "handson.worker.record", "handson.show.run_tables.paper_table"):
            assert page.locator(f'[id="{name}"]').count() == 1
        links = page.locator('a.reference.external[href^="https://docs.python.org/3/"]')
        assert links.count() > 5

    def test_search_finds_an_error_message(self, visit):
        page = visit("search.html?q=passed+its+time+limit")
        page.wait_for_selector('#search-results li a[href*="troubleshooting"]')

    def test_search_works_from_a_folder_without_a_server(self, site, browser):
        context = browser.new_context()
        page = context.new_page()
        page.goto((SITE / "search.html").as_uri() + "?q=tensor+parallelism")
        # Results come one by one.
        page.wait_for_selector('#search-results li a[href*="tensor_parallel"]')
        context.close()

    def test_the_keyboard_reaches_content_and_search(self, visit):
        page = visit("start.html")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
        page.keyboard.press("Control+k")
        page.wait_for_selector("dialog[open] input[type=search]")
        assert page.evaluate("document.activeElement.type") == "search"

    def test_code_can_be_copied_without_its_prompt(self, visit):
        page = visit("how_it_works.html")
        page.wait_for_selector("button.copybtn", state="attached")
        page.evaluate("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }")
        page.evaluate("document.execCommand = () => { window.copied = document.activeElement.value; return true; }")
        console = page.locator(".highlight-console").first
        console.hover()
        console.locator("button.copybtn").click()
        page.wait_for_function("window.copied !== undefined")
        assert page.evaluate("window.copied").strip() == "python -m handson status"

    def test_every_page_says_what_it_is_about_and_has_a_card(self, visit):
        page = visit("index.html")
        root = page.url.removesuffix("index.html")
        for path in ("index.html", "times.html", "lessons/large_batch/plot_sgd_lars_lamb.html"):
            page.goto(root + path)
            said = {
                name: page.locator(f'meta[{kind}="{name}"]').get_attribute("content")
                for kind, names in (("name", ["description"]), ("property", ["og:title", "og:image", "og:description"]))
                for name in names
            }
            assert all(said.values()) and len(said["description"]) > 40
            card = page.request.get(page.evaluate("path => new URL(path, location.href).href", said["og:image"]))
            # A PNG's width and height are the eight bytes after its first header's name.
            assert card.ok and card.body()[12:24] == b"IHDR" + (1200).to_bytes(4) + (630).to_bytes(4)

    def test_sitemap_lists_every_page_but_those_that_nobody_looks_for(self, site):
        names = {"s": "http://www.sitemaps.org/schemas/sitemap/0.9"}
        listed = {found.text for found in ElementTree.parse(SITE / "sitemap.xml").findall("s:url/s:loc", names)}
        expected = set(pages()) - {"404.html", "search.html", "genindex.html", "py-modindex.html"}
        assert {re.sub(r"^https?://[^/]+/", "", address) for address in listed} == expected

    def test_the_404_page_has_its_style_and_links_at_any_depth(self, visit, site):
        page = visit("404.html")
        markup = (SITE / "404.html").read_text()
        assert 'content="noindex"' in markup and not re.search(r'(href|src)="(?!https?:|#|/|data:)', markup)
        assert page.get_by_role("heading", name="There is no such page").is_visible()

    def test_every_page_shows_the_version_and_its_source(self, visit):
        page = visit("lessons/large_batch/plot_sgd_lars_lamb.html")
        footer = page.locator(".bd-footer").inner_text()
        assert re.search(r"Version \d+\.\d+", footer) and "gallery/large_batch/plot_sgd_lars_lamb.py" in footer

    def test_no_page_weighs_more_than_one_and_a_half_megabytes(self, tour):
        weights = {path: seen.bytes / MEGABYTE for path, seen in tour.items()}
        assert min(weights.values()) > 0.05 and not {path for path, weight in weights.items() if weight > 1.5}

    def test_a_hidden_picture_is_not_loaded(self, visit):
        page = visit("lessons/large_batch/plot_sgd_lars_lamb.html", "dark")
        page.wait_for_load_state("networkidle")
        asked = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        pictures = [name for name in asked if "/_images/" in name]
        assert pictures and all(name.endswith("_dark.svg") for name in pictures)


def test_a_build_needs_no_network_for_other_projects_inventories():
    """Sphinx opens an inventory that is no address as a file below its source directory."""
    mapping = re.findall(r'\("https://[^"]+", "(inventories/\w+\.inv)"\)', (ROOT / "conf.py").read_text())
    assert len(mapping) == 3 and all((ROOT / "docs" / name).is_file() for name in mapping)
