"""The built site, opened in a real browser as its readers do: headless Chromium, light and dark, desktop and phone."""

import json
import re
import urllib.parse
from pathlib import Path

import pytest
from conftest import ROOT, SITE, build, pages

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]


def lesson_pages():
    """The pages of lessons that start jobs."""
    gallery = ROOT / "gallery"
    found = [path.relative_to(gallery) for path in sorted(gallery.glob("*/plot_*.py")) if "launch(" in path.read_text()]
    return [f"lessons/{path.with_suffix('.html').as_posix()}" for path in found]


LESSONS = lesson_pages()


def test_there_is_a_lesson():
    assert LESSONS


def test_building_again_executes_nothing(site):
    assert "successfully executed 0 out of 0 files" in build()


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_shows_tables_with_headings_and_rows(visit, lesson):
    page = visit(lesson)
    tables = page.locator(".handson-table table")
    assert tables.count() >= 2
    for table in tables.all():
        assert table.locator("thead th").count() >= 2 and table.locator("tbody tr").count() >= 1
        assert table.locator("caption").inner_text().strip()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_shows_each_picture_in_the_theme_with_a_description(visit, lesson, theme):
    page = visit(lesson, theme)
    shown, hidden = (
        page.locator(f"article img.only-{name}") for name in ((theme, "dark" if theme == "light" else "light"))
    )
    assert shown.count() == hidden.count() >= 1
    for image in shown.all():
        image.scroll_into_view_if_needed()
        assert len(image.get_attribute("alt").split()) >= 3
        assert image.is_visible() and image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    assert not any(image.is_visible() for image in hidden.all())


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_says_where_its_numbers_come_from(visit, lesson):
    lines = visit(lesson).locator(".handson-origin p[data-way]").all()
    assert lines
    for line in lines:
        assert line.get_attribute("data-way") in ("live", "recorded")
        said = line.inner_text()
        assert "PyTorch 2." in said and "Colossal-AI 0.5.0" in said and re.search(r"\d{4}-\d\d-\d\d", said)
        assert "H200" in said or "CPU" in said


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_offers_its_script_notebook_training_script_and_data(visit, lesson):
    page = visit(lesson)
    offered = {}
    for link in page.locator("a.download").all():
        address = urllib.parse.urljoin(page.url, link.get_attribute("href"))
        answer = page.request.get(address)
        assert answer.ok and answer.body(), address
        offered[address.rpartition("/")[2]] = answer
    name = Path(lesson).stem
    assert f"{name}.py" in offered and f"{name}.ipynb" in offered
    assert json.loads(offered[f"{name}.ipynb"].body())["cells"]
    assert [file for file in offered if file.endswith(".whl")]
    scripts = [file for file in offered if file.endswith(".py") and file != f"{name}.py"]
    assert scripts
    data = [json.loads(answer.body()) for file, answer in offered.items() if file.endswith(".json")]
    assert data and all(len(run["key"]) == 64 for run in data)


def test_repairs_page_lists_every_repair(visit):
    from handson import repairs

    page = visit("repairs.html")
    listed = page.locator(".handson-repair h3 code").all_inner_texts()
    assert sorted(listed) == sorted(repair.name for repair in repairs.all_repairs())
    for issue in (repair.upstream for repair in repairs.all_repairs() if repair.upstream):
        assert page.locator(f'a[href^="{issue.split()[0].rstrip(",;")}"]').count()


def test_no_page_is_wider_than_a_phone(tour):
    assert not [path for path, seen in tour.items() if seen.wider_than_a_phone]


def test_every_page_works_without_a_network_and_without_errors(site, tour):
    asked = [url for seen in tour.values() for url in seen.asked]
    assert len(asked) > 2 * len(tour) and not [url for url in asked if not url.startswith((site, "data:"))]
    assert not [error for seen in tour.values() for error in seen.errors]


def test_every_link_within_the_site_leads_somewhere(site, tour):
    broken = []
    for path, seen in tour.items():
        for link in seen.links:
            target = urllib.parse.urlsplit(link)
            file = SITE / urllib.parse.unquote(target.path).lstrip("/")
            if link.startswith(site) and not (file / "index.html" if file.is_dir() else file).is_file():
                broken.append(f"{path} -> {link}")
    assert not broken


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_an_accessibility_violation(visit, theme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit("index.html", theme)
    root = page.url.removesuffix("index.html")
    violations = []
    for path in pages():
        page.goto(root + path)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        # Without a list of what is right, which takes twice as long as the checks.
        for found in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            where = "; ".join(" ".join(node["target"]) for node in found["nodes"][:3])
            violations.append(f"{path}: {found['id']}: {where}")
    assert not violations, "\n".join(violations)


def test_search_finds_the_lesson(visit):
    page = visit("search.html?q=tensor+parallelism")
    # Results come one by one.
    page.wait_for_selector("#search-results li a[href*=tensor_parallel]")
