"""Cache policies: who leaves, against a naive reference and by hand."""

import random

import pytest

from q4run.experts.policies import POLICIES, Key, Policy
from q4run.experts.policies.layers import LayerOrder
from q4run.experts.policies.lru import LeastRecentlyUsed


@pytest.fixture(params=POLICIES)
def policy(request) -> Policy:
    return POLICIES[request.param](4, 6)


def add(policy: Policy, *keys: Key) -> None:
    """Each is wanted, and comes."""
    for layer, expert in keys:
        policy.use(layer, [expert])
        policy.add((layer, expert))


def order_of_leaving(policy: Policy) -> list[Key]:
    leaving = []
    while (victim := policy.victim(set())) is not None:
        policy.remove(victim)
        leaving.append(victim)
    return leaving


def test_a_victim_is_resident_and_not_held(policy):
    rng = random.Random(1)
    resident: set[Key] = set()
    for step in range(600):
        layer = step % 4
        experts = rng.sample(range(6), rng.randint(1, 3))
        policy.use(layer, experts)
        for key in ((layer, expert) for expert in experts):
            if key not in resident:
                policy.add(key)
                resident.add(key)
        held = set(rng.sample(sorted(resident), rng.randint(0, len(resident))))
        held.add((3, 5))  # held, and perhaps not there: being read by somebody else
        victim = policy.victim(held)
        if resident <= held:
            assert victim is None
        else:
            assert victim in resident - held
            assert policy.victim(held) == victim  # it stays until it is removed
        if victim and len(resident) > 8:
            policy.remove(victim)
            resident.remove(victim)
    assert sorted(order_of_leaving(policy)) == sorted(resident)


def test_nothing_leaves_where_nothing_is_or_all_is_held(policy):
    assert policy.victim(set()) is None
    policy.use(2, [1])
    assert policy.victim(set()) is None
    policy.add((2, 1))
    assert policy.victim({(2, 1)}) is None
    assert policy.victim({(2, 0)}) == (2, 1)
    policy.remove((2, 1))
    assert policy.victim(set()) is None


def test_what_is_read_ahead_may_leave(policy):
    policy.add((3, 0))
    assert policy.victim(set()) == (3, 0)


def test_lru_against_a_naive_reference():
    rng = random.Random(2)
    policy = LeastRecentlyUsed()
    used_at: dict[Key, int] = {}
    for step in range(3000):
        key = (rng.randrange(3), rng.randrange(8))
        policy.use(key[0], [key[1]])
        if key not in used_at:
            if len(used_at) == 7:
                held = set(rng.sample(sorted(used_at), 3))
                expected = min(used_at.keys() - held, key=used_at.__getitem__)
                assert policy.victim(held) == expected
                policy.remove(expected)
                del used_at[expected]
            policy.add(key)
        used_at[key] = step
    assert order_of_leaving(policy) == sorted(used_at, key=used_at.__getitem__)


def test_lru_by_hand():
    policy = LeastRecentlyUsed()
    add(policy, (0, 1), (1, 1), (0, 2))
    policy.use(0, [1, 5])  # expert 5 is not there, and does not come
    assert policy.victim(set()) == (1, 1)
    assert policy.victim({(1, 1)}) == (0, 2)
    assert order_of_leaving(policy) == [(1, 1), (0, 2), (0, 1)]


def test_of_experts_as_likely_that_of_the_layer_just_run_leaves():
    policy = LayerOrder(4, 6)
    add(policy, (0, 0), (1, 0), (2, 0), (3, 0))
    for layer in [0, 1, 2, 3] * 100:
        policy.use(layer, [0])
    policy.use(0, [0])
    policy.use(1, [0])  # next come layers 2, 3, 0 and then 1
    assert order_of_leaving(policy) == [(1, 0), (0, 0), (3, 0), (2, 0)]


def test_of_a_layer_the_expert_used_most_stays():
    policy = LayerOrder(1, 6)
    add(policy, (0, 0), (0, 1), (0, 2))
    for expert in (0, 1, 0, 1, 0, 2):
        policy.use(0, [expert])
    for _ in range(6):
        policy.use(0, [5])
    # Used four, three and two times; the last one later than the others.
    assert order_of_leaving(policy) == [(0, 2), (0, 1), (0, 0)]


def test_what_is_used_often_stays_though_its_layer_is_far():
    policy = LayerOrder(2, 6)
    add(policy, (1, 0), (0, 0))
    for _ in range(40):
        policy.use(0, [0])
        policy.use(1, [5])
    policy.use(0, [0])  # layer 1 is next, but its expert 0 has not been wanted for long
    assert order_of_leaving(policy) == [(1, 0), (0, 0)]
