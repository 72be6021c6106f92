"""Single fields of JSON, found and changed without reading all of it."""

import json
import random
from typing import Any

import pytest

from qprobe_server.edge.splice import add_field, find_value, replace_value

KEYS = ["model", "response", "a", 'x"model', "é", "mod\\el"]
LEAVES: list[Any] = ["", "base", '"model":"base"', "}{][,:", '\\"', "\\", "ünï\n", 1.5, None, True]


def make(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(LEAVES)
    if rng.random() < 0.3:
        return [make(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {key: make(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(5))}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("path", [("model",), ("response", "model")])
def test_only_the_value_of_the_path_changes(
    separators: tuple[str, str], path: tuple[str, ...]
) -> None:
    rng = random.Random(3)
    raw_path = tuple(key.encode() for key in path)
    num_found = 0
    for _ in range(3000):
        made = {key: make(rng, 3) for key in rng.sample(KEYS, rng.randrange(1, 6))}
        data = json.dumps(made, separators=separators, ensure_ascii=rng.random() < 0.5).encode()
        holder: Any = made
        for key in path[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        changed = json.loads(replace_value(data, raw_path, b'"new"'))
        found = find_value(data, raw_path)
        if isinstance(holder, dict) and path[-1] in holder:
            assert found is not None
            assert json.loads(data[found[0] : found[1]]) == holder[path[-1]]
            holder[path[-1]] = "new"
            num_found += 1
        else:
            assert found is None
        assert changed == made
    assert num_found > 100


def test_a_field_is_added_at_the_end() -> None:
    data = b'{"a":{"b":"}"},"c":[{}]} \n\n'
    assert json.loads(add_field(data, b"d", b"[1]")) == {"a": {"b": "}"}, "c": [{}], "d": [1]}
    within = json.loads(add_field(data, b"d", b"1", within=b"a"))
    assert within == {"a": {"b": "}", "d": 1}, "c": [{}]}
    assert add_field(data, b"d", b"1", within=b"x") == data
