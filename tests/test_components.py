"""The map of Colossal-AI: what it claims of the installed package is so, and its links lead somewhere."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from handson.show import components, inventory, retired
from handson.show.components_map import component_map, exists

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "gallery"
PAGE = "multi_dimensional/plot_components"
NAMED = sorted({f"colossalai.{name}".rstrip(".") for _, box in components.boxes() for name in box.modules})

IMPORTS = """
import importlib, json, sys
from handson import repairs
from handson.repairs import noise
repairs.apply(noise)
faults = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        faults[name] = [type(error).__name__, str(getattr(error, "name", ""))]
try:
    from colossalai.legacy.amp.torch_amp._grad_scaler import GradScaler
    GradScaler(enabled=False)
except AssertionError:
    faults["fp16"] = ["AssertionError", ""]
print(json.dumps(faults))
"""


@pytest.fixture(scope="module")
def package():
    """The installed Colossal-AI, read once."""
    return inventory.Package("colossalai")


@pytest.fixture(scope="module")
def faults(package):
    """What went wrong when one process really imported each module that a box names, and each that we call dead."""
    names = json.dumps([*NAMED, *package.nowhere])
    command = [sys.executable, "-c", IMPORTS, names]
    done = subprocess.run(command, cwd=ROOT / "tutorial_src", capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def page(package, monkeypatch):
    """The map as the lesson's page shows it."""
    monkeypatch.setenv("HANDSON_LESSON", PAGE)
    return BeautifulSoup(component_map(package)._repr_html_(), "html.parser")


@pytest.mark.parametrize("name", NAMED)
def test_every_module_that_a_box_names_imports(faults, name):
    assert name not in faults, faults[name]


def test_what_is_called_dead_cannot_be_imported_for_want_of_a_module_of_its_own(package, faults):
    assert len(package.nowhere) >= 10
    for name in package.nowhere:
        kind, missing = faults[name]
        assert kind == "ModuleNotFoundError" and missing.startswith("colossalai.")
        assert missing not in package.modules


def test_torch_amp_of_the_legacy_engine_really_stops_on_this_torch(faults):
    assert faults["fp16"] == ["AssertionError", ""]


def test_every_living_module_is_in_exactly_one_box(package):
    held = [module.name for modules in components.modules_of(package).values() for module in modules]
    assert sorted([*held, *package.dead]) == sorted(package.modules)
    assert all(components.modules_of(package).values()), "a box is empty"


def test_a_part_of_the_package_that_no_box_holds_is_named(package, monkeypatch):
    without = tuple(
        components.Band(band.area, band.title, tuple(box for box in band.boxes if box.title != "Kernels"))
        for band in components.BANDS
    )
    monkeypatch.setattr(components, "BANDS", without)
    with pytest.raises(ValueError, match=r"no box of handson\.show\.components holds colossalai\.(_C|kernel)"):
        components.modules_of(package)


def test_every_lesson_link_leads_to_a_lesson_and_what_is_coming_has_none(page):
    links = [a["href"] for a in page.select(".lessons a")]
    assert links
    for target in links:
        topic, _, name = str((Path(PAGE).parent / target.removesuffix(".html")).as_posix()).rpartition("/")
        folder = (GALLERY / topic).resolve()
        assert any(folder.glob("plot_*.py")) if name == "index" else (folder / f"{name}.py").is_file(), target
    titles = {a.get_text() for a in page.select(".lessons a")}
    there = {title for lesson, title in components.LESSONS.items() if exists(lesson)}
    assert titles == there
    for coming in page.select(".coming"):
        assert not coming.select("a") and not there & set(coming.get_text().removeprefix("coming: ").split(", "))


def test_every_lesson_of_the_gallery_is_on_the_map():
    for path in GALLERY.glob("*/plot_*.py"):
        lesson = path.relative_to(GALLERY).with_suffix("").as_posix()
        named = lesson == PAGE or lesson in components.LESSONS or path.parent.name in components.LESSONS
        assert named, f"name {lesson} in handson.show.components.LESSONS, and in the boxes that it uses"


def test_a_box_whose_modules_our_scripts_import_names_a_lesson(package):
    owner = {m.name: title for title, modules in components.modules_of(package).items() for m in modules}
    lessons = {box.title: box.lessons for _, box in components.boxes()}
    for path in (ROOT / "tutorial_src").glob("*/*.py"):
        if path.parent.name == "handson":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                title = owner.get(name, "Helpers")
                assert title == "Helpers" or lessons[title], f"{path.name} imports {name}: no lesson names {title}"


def test_outside_the_site_the_map_has_no_relative_links(package):
    drawn = BeautifulSoup(component_map(package)._repr_html_(), "html.parser")
    assert not drawn.select(".lessons a")
    assert all(a["href"].startswith("https://") for a in drawn.select("a"))


def test_links_with_the_same_words_say_what_they_are_for(page):
    named = [a.get_text() for a in page.select(".upstream > a")]
    assert len(named) == len(set(named)) >= 15
    addresses = [a["href"] for a in page.select(".upstream span a")]
    assert len(addresses) == len(set(addresses)) == len(NAMED)


def test_the_map_in_text_tells_of_every_box_and_its_size(package):
    told = str(component_map(package))
    for _, box in components.boxes():
        assert f"{box.title}: {box.what}; " in told
    assert f"{len(package.dead)} modules that no host can import" in told


def test_sizes_of_the_boxes_add_up_to_the_package(package):
    drawn = component_map(package)
    dead = sum(package.modules[name].lines for name in package.dead)
    everything = sum(module.lines for module in package.modules.values())
    assert drawn.lines(*drawn.modules) + dead == everything > 100_000


def test_every_retired_row_holds_and_links_to_its_proof(package):
    for table in (retired.retired_table(package), retired.unfinished_table(package)):
        for _, _, proof in table.rows:
            assert "no module" in str(proof) or "no file" in str(proof) or "/blob/v0.5.0/colossalai/" in str(proof)


@pytest.mark.parametrize(
    "wrong",
    [
        retired.Absent(("booster",)),
        retired.Unmentioned("booster"),
        retired.Unshipped("booster.booster", "booster.py"),
        retired.Says("booster.booster", "words that are not in it"),
        retired.Says("booster.booster", "class Booster", ("booster",)),
        retired.Idle("booster.booster", ("backward",)),
        retired.Idle("booster"),
        retired.Dead("booster"),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_a_row_that_is_not_true_stops_the_page(package, monkeypatch, wrong):
    monkeypatch.setattr(retired, "GONE", (retired.Retired("Booster", "was retired", wrong),))
    with pytest.raises(ValueError, match=r"colossalai 0\.5\.0 does not bear out what retired.py says of Booster"):
        retired.retired_table(package)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A package of six modules, each with one kind of import."""
    files = {
        "__init__.py": "",
        "whole.py": "# note\n\nclass Open:\n    x = 1\nclass _Own:\n    pass\ndef later():\n    import tiny.gone\n",
        "tried.py": "try:\n    import tiny.gone\nexcept (ImportError, OSError):\n    pass\n",
        "broken/__init__.py": "from . import within\nfrom .missing import thing\n",
        "broken/within.py": "",
        "reached.py": "from tiny.broken.within import x\n__all__ = ['a', 'b']\nif True:\n    __all__.append('c')\n",
    }
    for name, text in files.items():
        path = tmp_path / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = tmp_path / "tiny-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return inventory.Package("tiny")


def test_reading_a_package_runs_none_of_it(tiny):
    assert tiny.version == "1.2" and len(tiny.modules) == 6
    assert not [name for name in sys.modules if name.startswith("tiny")]


def test_lines_are_counted_without_comments_and_classes_without_private_ones(tiny):
    assert (tiny.modules["tiny.whole"].lines, tiny.modules["tiny.whole"].classes) == (6, ("Open",))


def test_only_an_import_that_is_sure_to_run_makes_a_module_dead_and_all_that_need_it(tiny):
    assert tiny.nowhere == {"tiny.broken": (2, "tiny.broken.missing")}
    assert set(tiny.dead) == {"tiny.broken", "tiny.broken.within", "tiny.reached"}
    assert set(tiny.dead.values()) == {"tiny.broken"}


def test_public_names_include_those_that_are_added_later(tiny):
    assert tiny.names("tiny.reached") == ["a", "b", "c"]


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="there is no package colossalai_of_tomorrow on this host"):
        inventory.Package("colossalai_of_tomorrow")
