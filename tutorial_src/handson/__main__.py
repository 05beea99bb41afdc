"""`python -m handson run|plan|record|status|doctor|install`: the kit's command line."""

from __future__ import annotations

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="handson", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a training script on N ranks, here and now")
    run.add_argument("--ranks", type=int, default=1, help="number of processes")
    run.add_argument("--preset", default="auto", help="gpu, laptop or auto")
    run.add_argument("--timeout", type=float, default=600.0, help="seconds after which the job is ended")
    run.add_argument("--port", type=int, help="where the ranks meet; a free one by default")
    run.add_argument("--hosts", help="run on these hosts by torchrun's rendezvous: a,b or a=ADDRESS,b=ADDRESS")
    run.add_argument("--via", help="how a host is entered, {host} being its name; by ssh unless told otherwise")
    run.add_argument("script")
    run.add_argument("arguments", nargs=argparse.REMAINDER)

    commands.add_parser("plan", help="what the auto-parallel solver would do on a mesh of devices that you do not own")

    record = commands.add_parser("record", help="execute lessons live on this host and write their recordings")
    record.add_argument("lessons", nargs="+", metavar="LESSON", help="such as multi_dimensional/plot_x, or all")
    record.add_argument("--resume", action="store_true", help="keep what an earlier, interrupted attempt made here")

    status = commands.add_parser("status", help="which recordings are fresh")
    status.add_argument("--json", action="store_true", help="one JSON document")
    status.add_argument("--check", action="store_true", help="exit with 1 where a recording is stale or missing")

    commands.add_parser("doctor", help="what this host can do, and which repairs it needs")
    commands.add_parser("install", help="install colossalai and titans without their outdated pins")

    given = sys.argv[1:] if argv is None else argv
    # plan.py reads its own options; argparse would not hand on those that come first.
    asked = argparse.Namespace(command="plan") if given[:1] == ["plan"] else parser.parse_args(given)
    try:
        code = _command(asked, given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("handson: interrupted; every rank was ended", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `handson status | head`: the reader has seen enough, and Python's last flush would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(asked: argparse.Namespace, given: list[str]) -> int:
    # Each command imports what it needs: `status` must answer on a bare Python.
    if asked.command == "status":
        from handson.commands.status import status as command

        return command(as_json=asked.json, check=asked.check)
    if asked.command == "plan":
        from handson.commands.plan import plan as command

        return command(given[1:])
    if asked.command == "record":
        from handson.commands.record import record as command

        return command(asked.lessons, resume=asked.resume)
    if asked.command == "doctor":
        from handson.commands.doctor import doctor as command

        return command()
    if asked.command == "install":
        from handson.commands.install import install as command

        return command()
    return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    from handson import launch as kit
    from handson.store import StoreError

    os.environ["HANDSON_RUNS"] = "live"
    if asked.port is not None and not 0 < asked.port < 65536:
        print(f"error: --port {asked.port} is no port: name one from 1 to 65535", file=sys.stderr)
        return 1
    options = {"preset": asked.preset, "timeout": asked.timeout, "port": asked.port}
    try:
        if asked.hosts is not None:
            from handson import hosts

            there = hosts.read_hosts(asked.hosts)
            run = hosts.run_on_hosts(
                asked.script, asked.arguments, hosts=there, count=asked.ranks, via=asked.via or hosts.VIA, **options
            )
        elif asked.via is not None:
            raise ValueError("--via says how hosts are entered, and --hosts names none")
        else:
            run = kit(asked.script, *asked.arguments, ranks=asked.ranks, **options)
    except (RuntimeError, FileNotFoundError, ValueError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{run.provenance_line()} · {run.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
