"""Jobs over several hosts: two network namespaces of this machine are the hosts, joined by a virtual cable."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SCRIPTS, gone
from handson import RunFailed, hosts, launch

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parent.parent
KIT = ROOT / "tutorial_src"
VIA = "ip netns exec {host}"
STEPS = str(SCRIPTS / "two_hosts.py")
FOLDER = KIT / "hybrid_parallel"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Cable:
    """Two hosts and what joins them."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    interface: str

    @property
    def hosts(self) -> str:
        return ",".join(f"{name}={address}" for name, address in zip(self.names, self.addresses, strict=True))

    def set(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", self.interface, state)


@pytest.fixture(scope="module")
def two():
    """Two hosts of their own network each: what one listens on, the other reaches by the cable alone."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) to make network namespaces with")
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    names = tuple(f"handson-{os.getpid()}-{end}" for end in "ab")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this host lets nobody make a network namespace: {error.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        addresses = ("10.88.7.1", "10.88.7.2")
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield Cable(names, addresses, "cable")
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


@pytest.fixture(scope="module")
def ssh(two, tmp_path_factory):
    """An SSH server on each host, and a home folder whose key opens them."""
    if shutil.which("ssh") is None:
        pytest.skip("there is no `ssh` (openssh-client)")
    pytest.importorskip("paramiko", reason="colossalai's own needs are not installed")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import rsa

    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    key, pair = home / ".ssh" / "id_rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key.write_bytes(pair.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()))
    key.chmod(0o600)
    public = home / ".ssh" / "id_rsa.pub"
    public.write_bytes(pair.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH))
    servers = []
    for name, address in zip(two.names, two.addresses, strict=True):
        command = ["ip", "netns", "exec", name, sys.executable, str(SCRIPTS / "ssh_server.py"), address, "2222"]
        servers.append(subprocess.Popen([*command, str(public)], stdout=subprocess.PIPE, text=True))
    for server in servers:
        assert server.stdout.readline() == "listening\n"
    yield home
    for server in servers:
        server.kill()
        server.communicate()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(KIT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(where: str, *words: str, count: int = 4, via: str = VIA, **options):
    """Run a job on these hosts."""
    script, *argv = words
    return hosts.run_on_hosts(script, argv, hosts=hosts.read_hosts(where), count=count, via=via, **options)


def inside(names: tuple[str, ...]) -> list[int]:
    """Every process of a job in these namespaces; the SSH servers are none."""
    found = []
    for name in names:
        listed = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True).stdout
        for pid in listed.split():
            with contextlib.suppress(OSError):
                if b"ssh_server" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def nothing_left(two: Cable) -> bool:
    return all(gone(pid) for pid in inside(two.names))


def start(where: str, *words: str, **options) -> subprocess.Popen:
    """Start a job on these hosts by the command line, and wait for its third step."""
    command = [sys.executable, "-m", "handson", "run", "--hosts", where, "--via", VIA, *words]
    job = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what it puts in the background with SIGINT ignored; these tests may be run like that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
    )  # fmt: skip
    for line in job.stdout:
        if line.startswith("step 2"):
            return job
    pytest.fail(f"the job ended before its third step: {job.communicate()[1]}")


def test_a_job_on_two_hosts_learns_what_the_same_job_learns_on_one(two, capsys):
    words = ("hybrid_parallel/train.py", "--config", "config.py", "-s", "--check")
    there = run(two.hosts, *words)
    assert capsys.readouterr().out.splitlines() == there.log
    here = launch(*words, ranks=4, preset="laptop", quiet=True)
    assert "parity: the same" in "\n".join(there.log)
    assert len(there.rows("loss")) == 5 and there.rows("loss") == here.rows("loss")
    assert there.provenance["hardware"].startswith("2 hosts, each the CPU") and there.preset == "laptop"
    assert "--nnodes 2 --nproc_per_node 2 --rdzv-backend c10d" in there.command
    assert nothing_left(two)


def test_the_ranks_of_each_host_are_numbered_and_talk_over_its_own_interface(two):
    job = run(two.hosts, STEPS, "1", "0")
    assert [row["value"] for row in job.rows("sum")] == [6.0] * 4
    assert [row["local_rank"] for row in job.rows("place")] == [0, 1, 0, 1]
    assert all(row["master"] == two.addresses[0] and "cable" in row["interfaces"] for row in job.rows("place"))


def test_hosts_are_entered_by_ssh(two, ssh, tmp_path):
    script = tmp_path / "hello.py"
    script.write_text("import os\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n")
    via = f"ssh -i {ssh}/.ssh/id_rsa -p 2222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null {{host}}"
    command = [sys.executable, "-m", "handson", "run", "--hosts", ",".join(two.addresses), "--via", via]
    there = ["ip", "netns", "exec", two.names[0], *command, "--ranks", "2", str(script)]
    done = subprocess.run(there, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank 0 of 2\n\nRun live")


def test_colossalai_run_takes_a_hostfile(two, ssh, tmp_path):
    (tmp_path / "hosts.txt").write_text("\n".join(two.addresses))
    known = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    known |= {name: environment()[name] for name in ("PATH", "PYTHONPATH")}
    known |= {"HOME": str(ssh), "GLOO_SOCKET_IFNAME": two.interface, "OMP_NUM_THREADS": "1"}
    command = ["colossalai", "run", "--hostfile", "hosts.txt", "--ssh-port", "2222", "--nproc_per_node", "1"]
    there = ["ip", "netns", "exec", two.names[0], *command, STEPS, "2", "0"]
    done = subprocess.run(there, capture_output=True, text=True, env=known, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1: sum of ranks 1" in done.stdout
    assert all(f"{address}: success" in done.stdout for address in two.addresses)


def test_the_slurm_script_makes_one_job_of_a_torchrun_on_each_host(two, tmp_path):
    """Slurm's programs are stood in for; the script, torchrun and the two hosts are real."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\nprintf '{two.addresses[0]}\\n{two.addresses[1]}\\n'\n")
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nnumber=0; jobs=()\n"
        f"addresses=({' '.join(two.addresses)})\n"
        f"for name in {' '.join(two.names)}; do\n"
        "  export SLURM_NODEID=$number SLURMD_NODENAME=${addresses[$number]}\n"
        '  ip netns exec "$name" "$@" & jobs+=($!); number=$((number + 1))\n'
        'done\nfor job in "${jobs[@]}"; do wait "$job" || exit; done\n'
    )
    for program in ("scontrol", "srun"):
        (tmp_path / program).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "two", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "RANKS_PER_HOST": "1"}
    known = {**environment(), **slurm, "GLOO_SOCKET_IFNAME": two.interface, "OMP_NUM_THREADS": "1"}
    known["PATH"] = f"{tmp_path}:{known['PATH']}"
    command = ["bash", str(ROOT / "docs" / "_static" / "several_hosts.sbatch"), STEPS, "2", "0"]
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known, start_new_session=True
    )
    try:
        printed, errors = job.communicate(timeout=90)
    finally:
        for pid in inside(two.names):
            os.kill(pid, signal.SIGKILL)
    assert job.returncode == 0, errors
    assert printed.splitlines() == ["step 0: sum of ranks 1", "step 1: sum of ranks 1"]


@pytest.mark.parametrize(
    "how, says",
    [
        ("raise", 'rank 2 of 4 failed:\nTraceback (most recent call last):\n  File "'),
        ("kill", "rank 2 of 4 was killed by SIGKILL"),
    ],
)
def test_the_rank_that_fails_is_named_and_no_process_is_left(two, how, says):
    with pytest.raises(RunFailed) as failure:
        run(two.hosts, str(SCRIPTS / "ring.py"), how)
    assert says in str(failure.value) and "Connection closed" not in str(failure.value)
    assert ("ValueError: the shard of rank 2 has the wrong shape" in str(failure.value)) == (how == "raise")
    assert nothing_left(two)


@pytest.mark.alone
def test_a_host_whose_network_goes_away_ends_the_job(two):
    job = start(two.hosts, "--ranks", "4", STEPS, "1000", "0.2")
    try:
        two.set("down")
        began = time.monotonic()
        _, errors = job.communicate(timeout=60)
        assert time.monotonic() - began < 40
    finally:
        two.set("up")
        job.kill()
    assert job.returncode == 1 and "Traceback" not in errors
    (said,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    a, b = two.names
    assert f"the host {b} (ranks 2, 3) lost the network to {two.addresses[0]}:" in said
    assert said.endswith(f"; the job was ended on the host {a} (ranks 0, 1)")
    assert nothing_left(two)


@pytest.mark.alone
@pytest.mark.parametrize("which", [0, 1])
def test_a_host_whose_processes_all_die_ends_the_job(two, which):
    job = start(two.hosts, "--ranks", "2", STEPS, "1000", "0.2")
    for pid in inside(two.names[which : which + 1]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert time.monotonic() - began < 20
    a, b = two.names[which], two.names[1 - which]
    assert job.returncode == 1 and "Traceback" not in errors
    assert f"the host {a} (rank {which}) went away: its connection ended by SIGKILL" in errors
    assert f"the job was ended on the host {b} (rank {1 - which})" in errors
    assert nothing_left(two)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ctrl_c_or_the_launchers_death_ends_every_rank_on_every_host(two, tmp_path, number, code):
    script = tmp_path / "sleeper.py"
    script.write_text("import time\nfor n in range(600):\n    print('step', n, flush=True); time.sleep(0.2)\n")
    job = start(two.hosts, "--ranks", "2", str(script))
    assert len(inside(two.names)) >= 6  # on each host the agent, torchrun and a rank
    job.send_signal(number)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == code
    if number == signal.SIGINT:
        assert "interrupted; every rank was ended" in errors and "Traceback" not in errors
    assert nothing_left(two)


def test_one_host_is_enough():
    there = hosts.read_hosts("x=127.0.0.1")
    script = str(SCRIPTS / "ring.py")
    run = hosts.run_on_hosts(script, ["ok"], hosts=there, count=2, via="env HOST={host}", preset="laptop")
    assert run.log[-1] == "step 2: sum of ranks 1" and run.provenance["hardware"].startswith("1 host, each the CPU")


def test_a_job_that_hangs_ends_at_its_limit_and_says_where_the_rank_was(two, tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ndef loop_without_end():\n    time.sleep(600)\nloop_without_end()\n")
    with pytest.raises(RunFailed, match=r"time limit of 20 s and was ended. Rank 0 of 2 was at(.|\n)*in loop_without"):
        run(two.hosts, str(script), count=2, timeout=20)
    assert nothing_left(two)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--hosts", "a,b", "--ranks", "3"), "--ranks 3 on 2 hosts: use a multiple of 2"),
        (("--hosts", "a,a", "--ranks", "2"), "--hosts names a twice"),
        (("--hosts", ",", "--ranks", "2"), "--hosts names no host"),
        (("--hosts", "a=,b", "--ranks", "2"), "'a=' is no host: write NAME, or NAME=ADDRESS"),
        (("--hosts", "a,b", "--ranks", "2", "--via", "ssh"), "names no host: write {host} where its name belongs"),
        (("--via", "ssh {host}"), "--hosts names none"),
        (("--hosts", "a,b", "--ranks", "2", "--via", "no-such-program {host}"), "cannot be started: No such file"),
        (("--hosts", "a,b", "--ranks", "2", "--via", "sh -c 'echo locked >&2; exit 3' {host}"), ": locked"),
        (("--hosts", "a,b", "--ranks", "2", "--preset", "gpu", "--via", "env HOST={host}"), "cannot reach the host"),
    ],
)
def test_bad_input_is_one_sentence(words, says):
    command = [sys.executable, "-m", "handson", "run", *words, STEPS, "1", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_a_host_with_other_code_is_named(two, tmp_path):
    """The second host sees another file in the place of the script: a mount of its own, as on a host of its own."""
    script, other = tmp_path / "job.py", tmp_path / "other.py"
    script.write_text("print(1)\n")
    other.write_text("print(2)\n")
    enter = tmp_path / "enter.sh"
    enter.write_text(
        f'#!/bin/sh\nname=$1; shift\n[ "$name" = {two.names[0]} ] || mount --bind {other} {script}\n'
        'exec ip netns exec "$name" "$@"\n'
    )
    with pytest.raises(RunFailed, match=f"the host {two.names[1]} has other code than this one: job.py differ"):
        run(two.hosts, str(script), count=2, via=f"unshare --mount sh {enter} {{host}}")
    assert nothing_left(two)


def test_a_host_that_cannot_reach_the_first_says_so(two):
    with pytest.raises(RunFailed, match=rf"the host {two.names[1]} cannot reach the host 192.0.2.9 \(Network is unre"):
        run(f"{two.names[0]}=192.0.2.9,{two.names[1]}={two.addresses[1]}", STEPS, "1", "0", count=2)
