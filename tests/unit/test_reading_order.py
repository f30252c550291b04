"""What worker processes read ahead is what the schedule asks for next, from wherever it goes on."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.data.workers import Ahead, WorkerSequence
from lowdimfa.services.block.instructions import Policy
from lowdimfa.tickets import Ticket


@given(st.data(), st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 6))
def test_a_replica_reads_its_tickets_in_the_order_of_its_schedule(
    data: st.DataObject, replicas: int, share: int, steps: int
) -> None:
    rank = data.draw(st.integers(0, replicas - 1))
    policy = Policy(False, False, replicas * share, 4, 0, replicas=replicas, rank=rank)
    ahead = Ahead(int, 1, 1, steps, rank=rank, replicas=replicas)  # type: ignore[arg-type]
    sequence = WorkerSequence(ahead, policy.microbatches, 7)
    first = data.draw(st.integers(0, steps * share - 1))
    sequence.first = ("train", *policy.ticket(first))
    expected = [("train", *policy.ticket(index)) for index in range(first, steps * share)]
    assert list(sequence) == expected == list(sequence)
    sequence.first = ("test", 0, rank)
    assert [index for _, _, index in sequence] == list(range(rank, 7, replicas))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_the_head_reads_whole_steps(microbatches: int, steps: int, begun: int) -> None:
    ahead = Ahead(int, 1, 1, begun + steps, rank=1, replicas=2, whole_steps=True)  # type: ignore[arg-type]
    sequence = WorkerSequence(ahead, microbatches, 1)
    sequence.first = ("train", begun, 0)
    tickets = [Ticket(begun + step, part) for step in range(steps) for part in range(microbatches)]
    assert [Ticket(*request[1:]) for request in islice(sequence, len(tickets) + 1)] == tickets
