"""The network of one host of a job: its address, the interface that has it, and a connection that notices its end.

Standard library alone, as `host_agent.py` is.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

# torchrun itself waits without end for a store whose host or network is gone, and so do its ranks. So an idle
# connection to the first host is kept, which the kernel probes: after as many seconds without an answer it is lost.
PROBE_SECONDS, PROBES = 3, 4
SIOCGIFADDR = 0x8915


def own_address(peer: str | None) -> str:
    """The IPv4 address that this host's kernel would send from to reach `peer`; the loopback without a peer.

    Raises:
        OSError: when the peer's name is unknown here, or no route leads there.
    """
    if peer is None:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing: a datagram socket only looks up the route
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address, as gloo and NCCL want it named."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                asked = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24]) == address:
                    return name
    return None


def probed_connection(endpoint: tuple[str, int]) -> socket.socket:
    """An idle connection that ends when the other side can no longer be reached.

    Raises:
        OSError: when nobody answers there within a second.
    """
    wire = socket.create_connection(endpoint, timeout=1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, PROBE_SECONDS), (socket.TCP_KEEPINTVL, PROBE_SECONDS)):
        wire.setsockopt(socket.IPPROTO_TCP, option, value)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return wire
