"""Faults in the middle of a build: it ends soon, says what happened, leaves nothing behind, and the next one is right.

On a small site of one lesson (see small_site).
"""

import contextlib
import os
import socket
import subprocess

import pytest
import small_site
from handson import jobs
from small_site import LESSON

pytestmark = pytest.mark.ranks


@pytest.fixture
def site(tmp_path):
    return small_site.make(tmp_path)


@pytest.mark.parametrize(
    "fault, says",
    [("kill", "rank 1 of 2 was killed by SIGKILL"), ("hang", "the job passed its time limit of 3 s and was ended")],
)
def test_a_rank_that_fails_fails_the_build_and_the_next_one_is_right(site, fault, says):
    code, said, seconds = site.build(FAULT=fault, HANDSON_TIMEOUT="3", PAUSE="60" if fault == "hang" else "0")
    assert code == 1 and seconds < 40
    assert says in said and ("in loop_without_end" in said) == (fault == "hang")
    assert "to run it alone: python gallery/topic/plot_small.py" in said
    assert said.rstrip().endswith("the lines above say where.")
    assert site.is_right()


def test_a_port_that_is_taken_fails_the_build_and_the_next_one_is_right(site):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        lesson = site.root / "gallery" / "topic" / "plot_small.py"
        lesson.write_text(LESSON.replace("ranks=2", f"ranks=2, port={taken.getsockname()[1]}"))
        code, said, _ = site.build()
    assert code == 1
    assert "cannot be used (Address already in use): name another, or name none and a free one is taken" in said
    assert site.is_right()


def test_ctrl_c_ends_the_build_and_the_next_one_is_right(site):
    code, said, seconds = site.interrupted()
    assert code == 130 and seconds < 15
    assert "The build was interrupted after" in said and not site.processes()
    assert site.is_right()


def test_two_builds_at_once_are_both_right_and_run_the_job_once(site):
    first = site.start(PAUSE="3")
    site.wait_for_ranks(2)
    second = site.start(PAUSE="3")
    said = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "another build of this checkout is running: waiting for it to end" in said[1]
    assert "successfully executed 1 out of 1 file" in said[0]
    assert "successfully executed 0 out of 0 file" in said[1]
    assert not site.processes() and site.is_right()
    records = sorted((site.root / "build" / "handson" / "jobs").glob("*.jsonl"))
    (build,) = [jobs.read(path) for path in records if '"job"' in path.read_text()]
    (job,) = build.jobs
    assert (job["lesson"], job["devices"], job["failed"]) == ("topic/plot_small", ["cpu"], False)
    assert 3 < build.device_seconds < build.seconds and len(records) == 3
    assert jobs.latest(site.root / "build" / "handson") == records[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_fails_the_build_and_the_next_one_is_right(site):
    disk = site.root / "build"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this host lets nobody mount a small disk")
    try:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        code, said, seconds = site.build()
        assert code and seconds < 60
        assert "the run ended well, but the build folder cannot hold it (No space left on device)" in said
        assert "ERROR: the disk that holds build/ is full (0 KiB are left): make room, and build again" in said
        ballast.unlink()
        assert site.is_right()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_gpu_that_goes_out_of_view_changes_the_page_and_says_so(site):
    site.pretend_gpus(2)
    assert site.is_right() and "Run live for this page on 2 × H · 2 ranks over NCCL" in site.page()
    assert site.is_right(CUDA_VISIBLE_DEVICES="1")
    assert "2 ranks over gloo" in site.page() and "H ·" not in site.page()
    assert "there is no recording of `hybrid_parallel/job.py on 2 ranks` at the gpu preset" in site.page()
    lesson = site.root / "gallery" / "topic" / "plot_small.py"
    lesson.write_text(LESSON.replace("ranks=2", 'ranks=2, preset="gpu"'))
    code, said, _ = site.build(CUDA_VISIBLE_DEVICES="1")
    assert code == 1
    assert "the gpu preset on 2 ranks needs 2 GPUs, this host has 1: use preset='laptop', or a host with" in said
    assert site.is_right()
