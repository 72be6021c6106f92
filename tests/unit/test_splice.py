"""Single fields of JSON, found and changed without reading all of it."""

import json
import random
import time
import timeit
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
    within = json.loads(add_field(data, b"d", b"1", end=b'},"c":'))
    assert within == {"a": {"b": "}", "d": 1}, "c": [{}]}
    with pytest.raises(ValueError, match="not found"):
        add_field(data, b"d", b"1", end=b'},"x":')


@pytest.mark.parametrize("within", [False, True])
def test_a_long_reply_is_not_read_to_be_changed(*, within: bool) -> None:
    """2,000 tokens with 20 logprobs each, which come after the model's name."""
    logprob = {"token": " a", "logprob": -1.25, "bytes": [32, 97]}
    tokens = [{**logprob, "top_logprobs": [logprob] * 20}] * 2000
    made: Any = {"model": "base", "output": [{"logprobs": tokens}]}
    if within:
        made = {"response": made, "sequence_number": 9, "type": "response.completed"}
    data = json.dumps(made, separators=(",", ":")).encode()
    path = (b"response", b"model") if within else (b"model",)

    def change() -> bytes:
        changed = replace_value(data, path, b'"new"')
        return add_field(changed, b"d", b"1", end=b'},"sequence_number":' if within else b"}")

    assert min(timeit.repeat(change, timer=time.thread_time, number=1, repeat=3)) < 0.05
    holder = made["response"] if within else made
    holder |= {"model": "new", "d": 1}
    assert json.loads(change()) == made
