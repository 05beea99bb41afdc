"""A host's SSH server, for the tests of several hosts: `ssh_server.py ADDRESS PORT KEY.pub`.

OpenSSH's server would need an account and a configuration of this machine; this one needs neither.
"""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import paramiko


class Account(paramiko.ServerInterface):
    """Lets in who has the key, and runs one command a channel."""

    def __init__(self, key: str) -> None:
        self.key = key

    def get_allowed_auths(self, username: str) -> str:
        """By key alone."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Whether it is the one key."""
        return paramiko.AUTH_SUCCESSFUL if key.get_base64() == self.key else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, number: int) -> int:
        """Sessions, and nothing else."""
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Run it by the shell, as every SSH server does."""
        threading.Thread(target=serve, args=(channel, command), daemon=True).start()
        return True


def serve(channel: paramiko.Channel, command: bytes) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen(["sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def give() -> None:
        while data := channel.recv(1 << 15):
            process.stdin.write(data)
            process.stdin.flush()
        process.stdin.close()

    def take(stream, send) -> None:
        while data := stream.read1(1 << 15):
            send(data)

    threading.Thread(target=give, daemon=True).start()
    both = ((process.stdout, channel.sendall), (process.stderr, channel.sendall_stderr))
    readers = [threading.Thread(target=take, args=one) for one in both]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    channel.send_exit_status(process.wait())
    channel.close()


def main(address: str, port: int, key: Path) -> None:
    host_key = paramiko.RSAKey.generate(2048)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        print("listening", flush=True)
        while True:
            transport = paramiko.Transport(listener.accept()[0])
            transport.add_server_key(host_key)
            transport.start_server(server=Account(key.read_text().split()[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
