"""The HTTP interface: POST /generation, GET /health, GET /metrics, and /docs without any other host."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Any

from answers import Answers
from batcher import Batcher, NotServing, QueueFull, Request
from body_limit import BodyLimit
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from options import MAX_TOKENS
from pydantic import BaseModel, ConfigDict, Field
from sampling import Sampling

MOST_BYTES = 1 << 20
log = logging.getLogger("opt")


class ClientGone(Exception):
    """The client has closed its connection before its answer was there."""


class Question(BaseModel):
    """What to continue, and how. Without temperature, top_k and top_p the likeliest token is taken each time."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "The value of the expression", "max_tokens": 32},
                {"prompt": "The value of the expression", "max_tokens": 32, "temperature": 0.8, "top_k": 50, "seed": 1},
            ]
        },
    )

    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS, description="Most tokens to generate.")] = 64
    top_k: Annotated[int | None, Field(ge=1, le=1 << 31, description="Only among the k likeliest tokens.")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="Only among the likeliest that reach this share.")] = (
        None
    )
    temperature: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Under 1: nearer to the likeliest; over 1: more varied."),
    ] = None
    seed: Annotated[int | None, Field(ge=0, lt=1 << 63, description="The same seed gives the same answer.")] = None


class Answer(BaseModel):
    """The continuation, without the prompt; `stop`: the model ended it, `length`: max_tokens did."""

    text: str
    tokens: int
    finish_reason: str


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: Any


def _refusals(**sentences: str) -> dict[int | str, dict[str, Any]]:
    return {int(code[1:]): {"model": Refusal, "description": text} for code, text in sentences.items()}


def build(batcher: Batcher, info: dict[str, Any], cache_size: int, log_requests: bool) -> FastAPI:
    """The application.

    Args:
        info: what /health tells beside the state; "tokenizer" and "columns" in it appear with the model.
    """
    app = FastAPIOffline(
        title="OPT on Colossal-AI",
        description="Continues texts with an OPT model; requests share the steps of the model as they come.",
        version="1",
        redoc_url=None,
    )
    app.add_middleware(
        BodyLimit, most=MOST_BYTES, seconds=30.0, refused=lambda reason: metrics.refused.labels(reason).inc()
    )
    answers = Answers(cache_size)
    metrics = batcher.metrics

    def refuse(status: int, reason: str, detail: Any) -> JSONResponse:
        metrics.refused.labels(reason).inc()
        return JSONResponse({"detail": detail}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> JSONResponse:
        # The client's own words are not sent back: they may be what JSON cannot say (NaN, half a surrogate pair).
        told = [{"type": e["type"], "loc": e["loc"], "msg": e["msg"]} for e in error.errors()]
        return refuse(422, "invalid", told)

    @app.post(
        "/generation",
        responses=_refusals(
            _400="The body cannot be read.",
            _406="The queue is full.",
            _408="The body did not arrive in time.",
            _413="The body is too large.",
            _422="The request is not as described here, or prompt and answer are too long for the model.",
            _503="The model is being loaded, drained or lost.",
        ),
    )
    async def generation(question: Question, http: HttpRequest) -> Answer:
        """Continue a prompt."""
        began = time.monotonic()
        if batcher.state != "ok":
            return refuse(503, batcher.state, batcher.reason)
        sampling = Sampling(question.temperature, question.top_k, question.top_p, question.seed)
        if sampling.greedy:
            sampling = Sampling()  # where nothing is drawn, a seed is no difference
        key = question.prompt, question.max_tokens, sampling
        kept = answers.get(key) if sampling.repeatable else None
        if kept is not None:
            metrics.cache_hits.inc()
            return finish(kept, began, "kept")
        prompt = (await asyncio.to_thread(info["tokenizer"], question.prompt))["input_ids"]
        if not prompt:
            return refuse(422, "empty prompt", "The prompt has no token.")
        if len(prompt) + question.max_tokens > info["columns"]:
            return refuse(
                422,
                "too long",
                f"The prompt has {len(prompt)} tokens; with max_tokens {question.max_tokens} that is more than the "
                f"{info['columns']} that this model can hold.",
            )
        request = Request(prompt, question.max_tokens, sampling)
        try:
            future = asyncio.wrap_future(batcher.submit(request))
            tokens, reason = await _unless_gone(future, http)
        except QueueFull:
            return refuse(
                406,
                "queue full",
                f"The queue is full: {batcher.queue} requests wait beside the {batcher.rows} of a step.",
            )
        except NotServing as error:
            return refuse(503, batcher.state, str(error))
        except ClientGone:
            metrics.left.inc()
            return PlainTextResponse("", 499)  # nobody reads it
        answer = Answer(
            text=info["tokenizer"].decode(tokens, skip_special_tokens=True), tokens=len(tokens), finish_reason=reason
        )
        if sampling.repeatable and answers.size:
            metrics.cache_misses.inc()
            answers.put(key, answer)
        return finish(answer, began, f"{len(prompt)} tokens read")

    def finish(answer: Answer, began: float, note: str) -> Answer:
        seconds = time.monotonic() - began
        metrics.latency.observe(seconds)
        metrics.answered.labels(answer.finish_reason).inc()
        if log_requests:
            log.info("%d tokens in %.3f s (%s, %s)", answer.tokens, seconds, note, answer.finish_reason)
        return answer

    @app.get("/health", responses=_refusals(_503="The model is being loaded, drained or lost; detail says why."))
    async def health() -> dict[str, Any]:
        """Whether requests are taken."""
        told = {"status": batcher.state, **{k: v for k, v in info.items() if k != "tokenizer"}}
        if batcher.state == "ok":
            return told
        return JSONResponse({**told, "detail": batcher.reason}, 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


async def _unless_gone(future: asyncio.Future, http: HttpRequest) -> Any:
    """The future's result; a client that goes before it cancels it, which frees its row within a step.

    Raises:
        ClientGone: when the client has closed its connection.
    """

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(gone())
    try:
        await asyncio.wait({future, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise ClientGone
        return future.result()
    finally:
        watcher.cancel()
        future.cancel()
