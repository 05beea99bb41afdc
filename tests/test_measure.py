"""Step time, memory and communication: every figure against one that is worked out by hand."""

import pytest
import torch
from conftest import SCRIPTS
from handson import launch
from handson.measure.communication import CommunicationCounter, wire_bytes
from handson.measure.memory import PeakMemory, SavedForBackward, step_memory, storage_bytes
from handson.measure.timing import median_step_time
from torch import nn

COMMUNICATE = str(SCRIPTS / "communicate.py")
FLOAT = 4


# --- time


def test_the_median_leaves_out_the_warm_up():
    calls = []
    time = median_step_time(lambda: calls.append(1), warmup=2, repeats=5, device="cpu")
    assert len(calls) == 7 and len(time.all_ms) == 5 and time.warmup == 2
    assert sorted(time.all_ms)[2] == time.median_ms and time.method == "wall clock"
    assert time.per_second(10) == pytest.approx(10_000 / time.median_ms)


def test_a_step_time_needs_a_step():
    with pytest.raises(ValueError, match="repeats=0"):
        median_step_time(lambda: None, repeats=0)


# --- memory


@pytest.fixture
def perceptron():
    network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, foreach=False)
    batch = torch.ones(4, 8)

    def step():
        optimizer.zero_grad()
        network(batch).sum().backward()
        optimizer.step()

    step()
    return network, optimizer, batch, step


def test_the_memory_of_a_step_is_the_one_worked_out_by_hand(perceptron):
    network, optimizer, batch, step = perceptron
    memory = step_memory(step, model=network, optimizer=optimizer, alive=[batch], device="cpu")
    weights = (8 * 16 + 16 * 2) * FLOAT
    assert memory.parameter_bytes == memory.gradient_bytes == memory.optimizer_bytes == weights
    # Saved: the batch [4, 8] for dW1, and ReLU's result [4, 16], which dW2 shares with ReLU's own backward.
    assert memory.activation_bytes == (4 * 8 + 4 * 16) * FLOAT
    # The peak is at dW1 = X^T dH. Alive: weights, momentum and the batch; the loss and its gradient; dW2, dH, dW1.
    # Gone: H, ReLU's result and its gradient, and the gradients of the step before.
    assert memory.peak_bytes == 2 * weights + (4 * 8 + 1 + 1 + 16 * 2 + 4 * 16 + 8 * 16) * FLOAT
    assert memory.method == "live tensors, counted"
    assert memory == step_memory(step, model=network, optimizer=optimizer, alive=[batch], device="cpu")


def test_a_wrapped_optimizer_is_looked_into(perceptron):
    network, optimizer, _, step = perceptron
    wrapped = type("Wrapper", (), {"optim": optimizer})()
    assert step_memory(step, model=[network], optimizer=wrapped, device="cpu").optimizer_bytes > 0


def test_views_count_once_and_the_dead_not_at_all():
    x = torch.zeros(32)
    with PeakMemory(alive=[x], device="cpu") as peak:
        a = x + 1  # 32 more
        view = a.view(8, 4)
        del a
        b = view * 2  # 32 more, the peak
        del view
        part = b[:1]
        del b
        part.clone()  # 4 more, while `a` is gone and the view keeps `b`
    assert peak.start_bytes == 32 * FLOAT and peak.peak_bytes == 96 * FLOAT


def test_a_tensor_that_grows_counts_with_its_new_size():
    with PeakMemory(device="cpu") as peak:
        out = torch.empty(0)
        torch.add(torch.zeros(100), 1, out=out)
    assert peak.peak_bytes == 200 * FLOAT


def test_saved_bytes_leave_out_parameters_and_fall_when_a_backward_has_run():
    weight = torch.ones(10, 10, requires_grad=True)
    with SavedForBackward(exclude=[weight]) as saved:
        for _ in range(3):
            (torch.ones(2, 10) @ weight).sum().backward()
    assert saved.total_bytes == 3 * 20 * FLOAT and saved.peak_bytes == 20 * FLOAT
    with SavedForBackward() as saved:
        losses = [(torch.ones(2, 10) @ weight.t()).sum() for _ in range(3)]
    # Nobody ran a backward: all three inputs are kept; the weight needs no place, since the input needs no gradient.
    assert len(losses) == 3 and saved.peak_bytes == 3 * 20 * FLOAT


def test_storage_bytes_count_a_storage_once():
    x = torch.zeros(10)
    assert storage_bytes([x, x[:2], x.view(2, 5), torch.zeros(3)]) == 13 * FLOAT


# --- communication


@pytest.mark.parametrize(
    "collective, sent",
    [
        ("all_reduce", 150),  # 2 (n-1)/n of 100
        ("reduce_scatter", 75),
        ("all_gather", 300),  # the local piece goes n-1 times
        ("all_to_all", 75),
        ("broadcast", 75),
        ("reduce", 75),
        ("send", 100),
        ("recv", 0),
        ("barrier", 0),
    ],
)
def test_wire_bytes_of_the_ring_over_four_ranks(collective, sent):
    assert wire_bytes(collective, 100, 4) == sent
    assert wire_bytes(collective, 100, 1) == (100 if collective == "send" else 0)


def test_wire_bytes_keep_a_fraction():
    assert wire_bytes("all_reduce", 4, 3) == pytest.approx(16 / 3)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_collective_is_counted_as_worked_out_by_hand(ranks):
    run = launch(COMMUNICATE, "every-kind", ranks=ranks, preset="laptop")
    b, n = 24 * FLOAT, ranks
    world = {
        "all_gather": (2, 2 * b, 2 * (n - 1) * b),
        "all_reduce": (1, b, 2 * (n - 1) / n * b),
        "all_to_all": (1, b, (n - 1) / n * b),
        "barrier": (1, 0, 0),
        "broadcast": (1, b, (n - 1) / n * b),
        "gather": (1, b, (n - 1) / n * b),
        "reduce": (1, b, (n - 1) / n * b),
        "reduce_scatter": (1, b, (n - 1) / n * b),
        "scatter": (1, b / n, (n - 1) / n * b / n),
    }
    for rank in range(ranks):
        rows = run.value("communication", "rows", rank)
        sends, receives = 1 + (rank == 0), 1 + (rank == 1)  # rank 0 sends one more message, to rank 1
        due = world | {"send": (sends, sends * b, sends * b), "recv": (receives, receives * b, 0)}
        due = {("world", collective): (n, *numbers) for collective, numbers in due.items()}
        due["pair", "all_reduce"] = (2, 1, b, b)
        fields = ("group_size", "calls", "bytes", "wire_bytes")
        found = {(row["group"], row["collective"]): tuple(row[f] for f in fields) for row in rows}
        assert found == due
        assert run.value("communication", "total", rank) == sum(numbers[-1] for numbers in due.values())


@pytest.mark.ranks
def test_ddp_and_the_backward_are_counted():
    run = launch(COMMUNICATE, "data-parallel", ranks=2, preset="laptop")
    bucket = (8 * 4 + 4) * FLOAT
    shared = {"collective": "all_reduce", "group_size": 2, "calls": 1}
    for rank in range(2):
        sent = dict(bytes=bucket, wire_bytes=bucket)  # 2 (n-1)/n is 1 for two ranks
        assert run.value("communication", "rows", rank) == [{**shared, "group": "data", **sent}]
        assert run.value("backward", "rows", rank) == [{**shared, "group": "world", "bytes": 20, "wire_bytes": 20}]


def test_a_counter_forgets_when_asked():
    counter = CommunicationCounter()
    counter.calls.append(object())
    counter.clear()
    assert counter.rows() == [] and counter.total_wire_bytes() == 0
