"""Read a request's whole body before anything looks at it, and give up on one that is too large or too slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

DROPPED = 16 * 2**20  # bytes of a body that is too large are still read, so that its sender sees the answer,
DROPPED_SECONDS = 2.0  # and not for longer than this: a connection closed before is "reset by peer" to it


class BodyLimit:
    """An ASGI layer: 413 for more than `most` bytes, announced or just sent; 408 when they take over `seconds`.

    `refused` is told "too large" or "too slow".
    """

    def __init__(self, app: Any, most: int, seconds: float, refused: Callable[[str], None]) -> None:
        self.app, self.most, self.seconds, self.refused = app, most, seconds, refused

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced[:20]) > self.most:
            return await self._too_large(receive, send)
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except TimeoutError:
            self.refused("too slow")
            return await _refuse(send, 408, f"The body has not arrived within {self.seconds:.0f} s.")
        if body is None:
            return await self._too_large(receive, send)
        messages = iter(body)

        async def replay() -> dict:
            message = next(messages, None)
            return await receive() if message is None else message

        await self.app(scope, replay, send)

    async def _too_large(self, receive: Any, send: Any) -> None:
        self.refused("too large")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_drop(receive), DROPPED_SECONDS)
        await _refuse(send, 413, f"The body has more than {self.most} bytes.")

    async def _read(self, receive: Any) -> list[dict] | None:
        """The body's messages; None for a body that is too large."""
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.most:
                return None
            if not message.get("more_body", False):
                return messages


async def _drop(receive: Any) -> None:
    dropped = 0
    while dropped <= DROPPED:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


async def _refuse(send: Any, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
