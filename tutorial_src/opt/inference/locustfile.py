"""The load of the serving lesson, by locust (https://locust.io).

    pip install "locust>=2.40"
    locust -f locustfile.py --host http://127.0.0.1:7070                                  # charts at port 8089
    locust -f locustfile.py --host http://127.0.0.1:7070 --headless -u 32 -r 32 -t 60s

Each user asks for the continuation of an opening of a sentence, waits for the answer, and asks again. A full queue
(406) counts as an answer of the server, everything else but 200 as a failure. locust is no part of this repository's
environment; `load.py` beside this file needs nothing more and also checks the answers.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from locust import FastHttpUser, constant, task

sys.path.insert(0, str(Path(__file__).parent))

from load import questions

ASKED = questions(64, (8, 16, 32, 64))
numbers = count()


class Client(FastHttpUser):
    """One client in a closed loop; users begin with different questions."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Take a place in the questions."""
        self.next = next(numbers)

    @task
    def generation(self) -> None:
        """Ask the next question."""
        question = ASKED[self.next % len(ASKED)]
        self.next += 1
        body = {"prompt": question.prompt, "max_tokens": question.max_tokens}
        with self.client.post("/generation", json=body, catch_response=True) as answer:
            if answer.status_code == 406:
                answer.success()
            elif answer.status_code == 200 and answer.json()["tokens"] > question.max_tokens:
                answer.failure("more tokens than asked for")
