"""handson.show for a lesson in steps: code and its changes, losses compared with one run, who computes what."""

import html
import re

import pytest
from handson.run import Run
from handson.show.against import against
from handson.show.diff import diff, source
from handson.show.work_map import work_map

PLAIN, LAUNCH = "step_by_step/step1_plain.py", "step_by_step/step2_launch.py"
BLOCKS = {"whole": (range(4), (0, 1)), "top": (range(2), (0, 0.5)), "bottom": (range(2, 4), (0.5, 1))}


def run(data: list[dict], preset: str = "laptop", ranks: int = 1) -> Run:
    named = dict(script="s.py", argv=[], command="python s.py", key="k" * 64, files={}, provenance={}, log=[])
    return Run(**named, ranks=ranks, preset=preset, data=data, seconds=1.0)


def losses(*values: float) -> list[dict]:
    return [{"rank": 0, "kind": "loss", "step": step, "loss": value} for step, value in enumerate(values)]


def share(rank: int, images: range, block: str) -> dict:
    layers, features = BLOCKS[block]
    row = {"images": list(images), "batch": 8, "layers": list(layers), "depth": 4, "features": list(features)}
    return {"rank": rank, "kind": "share", **row}


def text_of(code) -> str:
    inside = re.search(r"<pre[^>]*>(.*)</pre>", code._repr_html_(), re.DOTALL)[1]
    return html.unescape(re.sub(r"<[^>]+>", "", inside))


def test_a_script_is_shown_as_it_is():
    code = source(PLAIN)
    shown = text_of(code)
    assert shown.splitlines() == code.lines and "loss.backward()" in shown
    assert f"step1_plain.py, {len(code.lines)} lines" in code._repr_html_()


def patched(before: list[str], patch: list[str]) -> list[str]:
    """Apply a unified diff, insisting on every line that it says is there."""
    after, at = [], 0
    for line in patch:
        if header := re.match(r"@@ -(\d+),", line):
            start = int(header[1]) - 1
            after, at = after + before[at:start], start
        elif line[0] == "+":
            after.append(line[1:])
        else:
            assert before[at] == line[1:]
            after, at = after + [line[1:]] * (line[0] == " "), at + 1
    return after + before[at:]


def test_a_diff_turns_one_script_into_the_next():
    assert patched(source(PLAIN).lines, text_of(diff(PLAIN, LAUNCH)).splitlines()) == source(LAUNCH).lines


def test_changes_can_be_told_without_colours():
    code = diff(PLAIN, LAUNCH)
    shown = code._repr_html_()
    added = [html.unescape(re.sub(r"<[^>]+>", "", line)) for line in re.findall(r"<ins>(.*?)\n</ins>", shown)]
    assert "+colossalai.launch_from_torch(verbose=False)" in added and all(line.startswith("+") for line in added)
    assert (
        f"{len(added)} lines added" in shown and 'aria-label="Changes from step1_plain.py to step2_launch.py"' in shown
    )
    assert str(code).splitlines()[2:] == code.lines


def test_a_script_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match=r"step9\.py"):
        source("step_by_step/step9.py")


def test_losses_are_compared_with_the_baseline_step_by_step():
    runs = {"one": run(losses(2.0, 1.0)), "two": run(losses(2.0, 1.25))}
    compared = against(runs, baseline="one")
    assert [row["reference"] for row in compared["two"].rows("loss")] == [2.0, 1.0]
    assert compared["two"].value("parity", "max_loss_difference") == 0.25
    assert compared["one"].rows("parity") == [] and "reference" not in runs["two"].rows("loss")[0]


def test_a_model_of_another_size_is_not_compared():
    runs = {"one": run(losses(2.0)), "large": run(losses(7.0), preset="gpu")}
    assert against(runs, baseline="one")["large"] is runs["large"]


def test_the_work_map_says_in_words_who_computes_what():
    runs = {
        "copies": run([share(0, range(8), "whole"), share(1, range(8), "whole")], ranks=2),
        "data": run([share(rank, range(rank, 8, 2), "whole") for rank in range(2)], ranks=2),
        "hybrid": run([share(0, range(8), "top"), share(1, range(8), "bottom")], ranks=2),
    }
    alt = work_map(runs).alt
    assert "copies: ranks 0 and 1 each all 8 images, all 4 layers." in alt
    assert "data: ranks 0 and 1 each 4 images of their own, all 4 layers." in alt
    assert "rank 0 all 8 images, 1/2 of layers 0 to 1; rank 1 all 8 images, 1/2 of layers 2 to 3." in alt


def test_the_work_map_covers_each_ranks_part_and_no_other():
    from handson.show.style import rank_colour
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    picture = work_map({"data": run([share(rank, range(rank, 8, 2), "whole") for rank in range(2)], ranks=2)})
    area = dict.fromkeys((0, 1), 0.0)
    for patch in picture.axes[0].patches:
        for rank in area:
            if isinstance(patch, Rectangle) and patch.get_fill() and to_hex(patch.get_facecolor()) == rank_colour(rank):
                area[rank] += patch.get_width() * patch.get_height()
    assert area == pytest.approx({0: 0.5, 1: 0.5})
