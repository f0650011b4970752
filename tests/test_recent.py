"""Dictionaries of bounded size."""

from __future__ import annotations

import copy
import pickle
import random

from fastdiff.recent import Recent


def test_the_values_used_last_stay() -> None:
    held: Recent[str] = Recent(2)
    assert held.put("a", "1") == "1" and held.put("b", "2") == "2"
    assert held.get("a") == "1"
    held.put("c", "3")
    assert (held.get("a"), held.get("b"), held.get("c")) == ("1", None, "3")


def test_sizes_count_and_the_latest_value_stays_whatever_its_size() -> None:
    held: Recent[list[int]] = Recent(9, len, 5)
    held.put("a", [0, 1, 2])
    held.put("b", [0, 1])
    assert len(held) == 2
    held.put("b", [0, 1, 2])  # instead of two
    assert len(held) == 1 and held.get("a") is None
    held.put("c", [0] * 9)
    assert len(held) == 1 and held.get("c") == [0] * 9
    held.put("d", [])
    assert held.get("c") is None and held.get("d") == []


def test_against_a_list_in_the_order_of_use() -> None:
    chance = random.Random(0)
    held: Recent[tuple[int, int]] = Recent(6, lambda value: value[1], 20)
    order: list[tuple[int, int]] = []  # (key, size), latest last
    for _ in range(4000):
        key = chance.randrange(12)
        known = next((entry for entry in order if entry[0] == key), None)
        if chance.random() < 0.5:
            assert held.get(key) == known
            if known is not None:
                order.remove(known)
                order.append(known)
            continue
        value = (key, chance.randrange(8))
        held.put(key, value)
        order = [entry for entry in order if entry[0] != key] + [value]
        while len(order) > 6 or sum(size for _, size in order) > 20:
            order.pop(0)
        assert len(held) == len(order)


def test_copies_are_empty() -> None:
    held: Recent[list[int]] = Recent(3, len, 5)
    held.put("a", [0])
    for other in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert len(other) == 0
        for key in "abcd":
            other.put(key, [0])
        assert len(other) == 3
