"""What a checkpoint of an OPT goes through: written, interrupted, damaged, read by another strategy, exported."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tutorial_src" / "opt"))

import supervised
from handson import worker


def join():
    import colossalai
    import strategies

    strategies.repair()
    colossalai.launch_from_torch(verbose=False)


def made(strategy: str = "ddp"):
    import models
    import strategies

    model, _ = models.build("tiny", pretrained=False)
    return strategies.prepare(strategy, model, lr=1e-3, precision="fp32")


def weights(trained) -> float:
    return float(sum(p.detach().double().abs().sum() for p in trained.model.parameters()))


def interrupted(where: str) -> None:
    """A process is killed at `where` in its second save; another goes on from what it left."""

    def killed() -> None:
        import checkpoints
        import manifest

        join()
        trained = made()
        checkpoints.save(OUT, trained, step=1, losses=[3.0])
        homes = {"_save_model": checkpoints, "_states": checkpoints, "write": manifest, "flush": manifest}
        home, before = homes[where], getattr(homes[where], where)

        def then_killed(*args, **options):
            before(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(home, where, then_killed)
        checkpoints.save(OUT, trained, step=2, losses=[3.0, 2.0])

    def resumed() -> None:
        import checkpoints

        join()
        trained = made()
        left = sorted(path.name for path in OUT.iterdir())
        step, losses = checkpoints.resume(OUT, trained)
        checkpoints.save(OUT, trained, step=2, losses=[3.0, 2.0])
        checkpoints.save(OUT, trained, step=3, losses=[3.0, 2.0, 1.0])
        worker.record("after", left=left, step=step, losses=losses, now=sorted(path.name for path in OUT.iterdir()))

    with supervised.shared_folder() as folder:
        supervised.phase(folder, "killed", killed, kill_at=10**9)  # it kills itself
        for row in supervised.phase(folder, "resumed", resumed):
            if row["kind"] == "after":
                worker.record("after", **{key: row[key] for key in ("left", "step", "losses", "now")})


def damaged(file: str, how: str) -> None:
    """A checkpoint of which one file is cut, changed or removed must not be resumed."""
    import checkpoints

    join()
    trained = made()
    path = checkpoints.save(OUT, trained, step=1, losses=[3.0]) / file
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    checkpoints.resume(OUT, trained)


def other(saved: str, resumed: str) -> None:
    """A checkpoint of one strategy under another."""
    import checkpoints

    join()
    checkpoints.save(OUT, made(saved), step=1, losses=[3.0])
    checkpoints.resume(OUT, made(resumed))


def absent() -> None:
    """Nothing to resume from."""
    import checkpoints

    join()
    checkpoints.resume(OUT, made())


def exported(what: str) -> None:
    """Twice into one folder; the second replaces the first, unless the folder is somebody else's."""
    import checkpoints

    join()
    trained = made()
    if what == "foreign":
        OUT.mkdir(parents=True)
        (OUT / "thesis.tex").write_text("years of work")
    checkpoints.export(OUT, trained)
    (OUT / "stale.bin").touch()
    checkpoints.export(OUT, trained)
    worker.record("exported", files=sorted(path.name for path in OUT.iterdir()), weights=weights(trained))


if __name__ == "__main__":
    worker.place()
    OUT = Path(sys.argv[1])
    globals()[sys.argv[2]](*sys.argv[3:])
