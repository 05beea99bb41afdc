"""What the engine, the batcher and the sampling answer, beside plain transformers; everything recorded as rows."""

import dataclasses
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "opt"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "opt" / "inference"))

import models
import torch
from batcher import Batcher, Request
from engine import Engine
from handson import worker
from sampling import Draw, Sampling, choose, keep_likely
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

SHAPES = {
    "norm first": models.Shape(3, 64, 4, vocabulary=331, positions=96),
    "norm last, narrow words": models.Shape(3, 64, 4, embedding=32, norm_first=False, vocabulary=331, positions=96),
}


def build(shape):
    model, _ = models.build(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # so that the answers are not one token repeated
                parameter.mul_(0.2 if "embed_tokens" in name else 50.0 if "embed_positions" in name else 5.0)
    return model.eval()


def generate(model, prompt, tokens):
    ids = torch.tensor([prompt])
    how = {"do_sample": False, "use_cache": True, "eos_token_id": None}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **how)
    return made[0, len(prompt) :].tolist()


class Counted:
    """An engine that says how many requests each of its calls worked on."""

    def __init__(self, engine):
        self.engine, self.reads, self.steps = engine, [], []

    def read(self, prompts):
        self.reads.append(len(prompts))
        return self.engine.read(prompts)

    def step(self, tokens):
        self.steps.append(len(tokens))
        return self.engine.step(tokens)

    def drop(self, rows):
        self.engine.drop(rows)


def answers(model, requests, rows, pauses=None, end_token=None):
    """The tokens of each request, submitted at once or with pauses between them, and how the calls were shared."""
    counted = Counted(Engine(model, ranks=1, rows=rows, columns=model.config.max_position_embeddings))
    batcher = Batcher(rows=rows, queue=len(requests), read_tokens=128)
    batcher.start(counted, end_token)
    thread = threading.Thread(target=batcher.run, daemon=True)
    if pauses:
        thread.start()
    futures = []
    for at, request in enumerate(requests):
        futures.append(batcher.submit(request))
        time.sleep(pauses[at] if pauses else 0)
    if not pauses:
        thread.start()
    made = [future.result(60) for future in futures]
    batcher.fail("over")
    thread.join(10)
    return made, counted, thread.is_alive()


def parity():
    chance = random.Random(5)
    for name, shape in SHAPES.items():
        model = build(shape)
        asked = [
            ([chance.randrange(4, 331) for _ in range(chance.randint(1, 60))], chance.randint(1, 36)) for _ in range(24)
        ]
        truth = [generate(model, *one) for one in asked]
        for rows in (1, 5, 24):
            requests = [Request(*one, Sampling()) for one in asked]
            # Some come while others are answered, and faster than five rows of any host answer them.
            pauses = [chance.random() * 0.003 for _ in asked] if rows == 5 else None
            made, counted, alive = answers(model, requests, rows, pauses)
            worker.record(
                "parity",
                model=name,
                rows=rows,
                same=sum(tokens == right for (tokens, _), right in zip(made, truth, strict=True)),
                of=len(truth),
                kinds=len({token for right in truth for token in right}),
                most=max(counted.steps),
                reads=len(counted.reads),
                reasons=sorted({reason for _, reason in made}),
                alive=alive,
            )


def stop():
    model = build(SHAPES["norm first"])
    for first in range(4, 300):
        prompt = [first, 8, 9]
        right = generate(model, prompt, 30)
        later = [token for token in right[3:] if token not in right[:3]]
        if later:
            break
    end = later[0]
    made, _, _ = answers(model, [Request(prompt, 30, Sampling())], 2, end_token=end)
    worker.record("stop", tokens=made[0][0], reason=made[0][1], right=right[: right.index(end) + 1])


SEEDED = (
    Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=11),
    Sampling(temperature=1.5, seed=12),
    Sampling(top_p=0.5, seed=13),
    Sampling(top_k=3, seed=14),
)


def companions():
    """A sampled request with a seed: alone, among others, and with another seed."""
    model = build(SHAPES["norm first"])
    chance = random.Random(1)

    def prompt(most):
        return [chance.randrange(4, 331) for _ in range(chance.randint(1, most))]

    for sampling in SEEDED:
        asked = prompt(12)
        alone, _, _ = answers(model, [Request(asked, 40, sampling)], 4)
        crowd = [Request(prompt(30), 30, chance.choice([Sampling(), Sampling(0.9)])) for _ in range(9)]
        among, counted, _ = answers(model, [*crowd[:4], Request(asked, 40, sampling), *crowd[4:]], 6)
        other, _, _ = answers(model, [Request(asked, 40, dataclasses.replace(sampling, seed=99))], 4)
        same, differs = among[4][0] == alone[0][0], other[0][0] != alone[0][0]
        worker.record("companions", seed=sampling.seed, same=same, other=differs, most=max(counted.steps))


ASKED = ((0.7, None, None), (1.3, 8, None), (1.0, None, 0.6), (0.8, 20, 0.85), (2.0, 1, 1.0), (1.0, 50, 1e-9))


def distribution():
    """How often each token is drawn, beside the probabilities of transformers' own warpers."""
    torch.manual_seed(3)
    row = torch.randn(1, 50) * 2
    count = 20000
    for temperature, top_k, top_p in ASKED:
        scores = TemperatureLogitsWarper(temperature)(None, row)
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p else scores
        theirs = scores.softmax(-1)[0].double()
        ours = keep_likely((row / temperature).double(), torch.tensor([top_k or 50]), torch.tensor([top_p or 1.0]))
        draws = [Draw(Sampling(temperature, top_k, top_p, seed)) for seed in range(count)]
        drawn = torch.bincount(torch.tensor(choose(row.expand(count, -1), draws)), minlength=50) / count
        worker.record(
            "distribution",
            asked=[temperature, top_k, top_p],
            formula=(ours.softmax(-1)[0] - theirs).abs().max().item(),
            drawn=(drawn - theirs).abs().max().item(),
            outside=drawn[theirs == 0].sum().item(),
        )
    cold = choose(row.expand(3, -1), [Draw(Sampling(temperature=t, seed=1)) for t in (5e-324, 1e-40, 1e-3)])
    worker.record("cold", same=cold == [row.argmax().item()] * 3)


def gone():
    """A client that goes frees its row within a step, whether its request runs or waits."""
    model = build(SHAPES["norm first"])
    counted = Counted(Engine(model, ranks=1, rows=2, columns=96))
    batcher = Batcher(rows=2, queue=3, read_tokens=128)
    batcher.start(counted, None)
    asked = [Request([5, 6, 7], 90, Sampling()) for _ in range(3)]
    futures = [batcher.submit(request) for request in asked]
    stepped = counted.step

    def step(tokens):
        if len(counted.steps) == 3:
            futures[0].cancel()
            futures[2].cancel()
        return stepped(tokens)

    counted.step = step
    threading.Thread(target=batcher.run, daemon=True).start()
    tokens, _ = futures[1].result(60)
    same = tokens == generate(model, [5, 6, 7], 90)
    worker.record("gone", steps=counted.steps[:8], last=counted.steps[-1], reads=counted.reads, same=same)


def slots():
    model = build(SHAPES["norm first"])
    engine = Engine(model, ranks=1, rows=2, columns=96)
    engine.read([[5], [6]])
    faults = []
    for prompts in ([[7]], [[1] * 97]):
        try:
            engine.read(prompts)
        except ValueError as error:
            faults.append(str(error))
        engine.drop([0])
    worker.record("slots", bytes=engine.slots.bytes, formula=3 * 2 * 2 * 96 * 64 * 4, faults=faults)


for part in (parity, stop, companions, distribution, gone, slots):
    part()
