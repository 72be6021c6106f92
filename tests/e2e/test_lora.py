"""LoRA adapters served beside their base model, and probes on the states of each.

Scores are compared with those of plain transformers on weights merged by hand.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Reading, load_probe
from qprobe_server.default_model import SERVED_NAME

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "A volcano is a mountain that opens down to a pool of molten rock. It"
MESSAGES = [{"role": "user", "content": "Name three colours."}]
K = 4
# Relative error allowed in an embedding, as of tests/engine/test_parity.py.
EMBEDDING_ERROR = 1e-4


@dataclass(frozen=True)
class Lora:
    """A server of the small model with the adapters ``one`` and ``two``; ``late`` is not loaded.

    Attributes:
        server: It.
        adapters: Folders by served names; None of the base model's.
        probes: Files by names.
    """

    server: Any
    adapters: dict[str, Path | None]
    probes: dict[str, Path]


@pytest.fixture(scope="module")
def lora(
    start_server: Callable[..., AbstractContextManager[Any]],
    make_adapter: Callable[[str, int], Path],
    make_probe: Callable[..., Path],
    serve_small: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lora]:
    adapters = {"one": make_adapter("first", 1), "two": make_adapter("second", 2)}
    probes = {
        "mean": make_probe("mean"),
        "end": make_probe("end", layer="final", pooling="last"),
        "own": make_probe("own", adapter="first"),
    }
    with start_server(
        tmp_path_factory.mktemp("lora") / "log",
        *serve_small,
        *("--enable-lora", "--max-loras", "3", "--max-lora-rank", "8"),
        *("--lora-modules", *(f"{name}={path}" for name, path in adapters.items())),
        *(flag for name, path in probes.items() for flag in ("--probe", f"{name}={path}")),
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
    ) as server:
        every = {SERVED_NAME: None, **adapters, "late": make_adapter("third", 3)}
        yield Lora(server, every, probes)


@dataclass(frozen=True)
class Scored:
    """A candidate as a reply has it."""

    model: str
    probe: str
    prompt_ids: list[int]
    token_ids: list[int]
    score: float


class Checker:
    """Compares scores with the product of a probe and merged states."""

    def __init__(self, lora: Lora, read_merged: Callable[[Path | None], Any]) -> None:
        self._lora = lora
        self._models = {name: read_merged(path) for name, path in lora.adapters.items()}

    def check(self, every: Sequence[Scored]) -> None:
        """|error of a score| <= |w| |error of the embedding|; by other weights it is far from it.

        Far is ten times as much in the root mean square: one of them may be near by chance.
        """
        for name, model in self._models.items():
            errors = torch.tensor([self._compare(each, model) for each in every])
            if name == every[0].model:
                assert float(errors.max()) <= 1, (name, errors)
            else:
                assert float(errors.square().mean().sqrt()) > 10, (name, errors)

    def _compare(self, scored: Scored, model: Any) -> float:
        """Return the error of a score by a model, as a multiple of its bound."""
        probe = load_probe(self._lora.probes[scored.probe])
        (term,) = probe.terms.states
        expected = _embed(model, scored, term.reading)
        bound = EMBEDDING_ERROR * float(np.linalg.norm(term.weight) * np.linalg.norm(expected))
        return abs(scored.score - float(expected @ term.weight) - probe.terms.bias) / bound


@torch.inference_mode()
def _embed(model: Any, scored: Scored, reading: Reading) -> Any:
    tokens = torch.tensor([scored.prompt_ids + scored.token_ids])
    found = model(tokens, output_hidden_states=True)
    # The last token, a stop or a cut, is not scored; of nothing the prompt's last token is.
    first, end = len(scored.prompt_ids), tokens.shape[1] - 1
    first = end - 1 if reading.pooling == "last" else min(first, end - 1)
    place = -1 if reading.layer == "final" else int(reading.layer)
    return found.hidden_states[place][0, first:end].mean(0).numpy()


@pytest.fixture(scope="module")
def checker(lora: Lora, read_merged: Callable[[Path | None], Any]) -> Checker:
    return Checker(lora, read_merged)


def ask(lora: Lora, path: str, model: str, **fields: Any) -> Any:
    what = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": MESSAGES}
    body = {"model": model, "max_tokens": 24, "seed": 5, "return_token_ids": True, **what, **fields}
    reply = lora.server.client().post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def read_candidates(reply: Any, model: str, probe: str) -> list[Scored]:
    """Return all candidates of a reply with n = k."""
    result = reply["q_probe"]["results"][0]
    return [
        Scored(
            model,
            probe,
            choice.get("prompt_token_ids") or reply["prompt_token_ids"],
            choice["token_ids"],
            result["scores"][result["selected"][choice["index"]]],
        )
        for choice in reply["choices"]
    ]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_scores_in_a_mixed_batch_are_each_models_own(
    lora: Lora, checker: Checker, path: str
) -> None:
    """The base model and two adapters at once, by both probes, on one prompt."""
    asked = [(name, probe) for name in (SERVED_NAME, "one", "two") for probe in ("mean", "end")]
    asked.append(("one", "own"))
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = pool.map(lambda each: ask(lora, path, ":".join(each), n=K), asked)
        for (model, probe), reply in zip(asked, replies, strict=True):
            assert reply["model"] == f"{model}:{probe}"
            scored = read_candidates(reply, model, probe)
            assert len(scored) == K
            checker.check(scored)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stream_of_an_adapter_ends_with_its_scores(
    lora: Lora, checker: Checker, path: str
) -> None:
    what = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": MESSAGES}
    body = {"model": "one:mean", "max_tokens": 24, "seed": 5, "n": K, **what}
    body |= {"stream": True, "return_token_ids": True, "q_probe": {}}
    with lora.server.client().stream("POST", path, json=body) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    assert {chunk["model"] for chunk in chunks} == {"one:mean"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    prompts = [each.get("prompt_token_ids") for each in (*chunks, *choices)]
    result = next(chunk["q_probe"] for chunk in chunks if "q_probe" in chunk)["results"][0]
    tokens: list[list[int]] = [[] for _ in range(K)]
    for choice in choices:
        tokens[choice["index"]] += choice.get("token_ids") or []
    scores = [result["scores"][index] for index in result["selected"]]
    prompt = next(ids for ids in prompts if ids)
    checker.check(
        [Scored("one", "mean", prompt, *each) for each in zip(tokens, scores, strict=True)]
    )


def test_an_adapter_loaded_at_run_time_is_an_alias_until_it_is_unloaded(
    lora: Lora, checker: Checker
) -> None:
    client = lora.server.client()
    asked = {"model": "late:mean", "prompt": PROMPT, "max_tokens": 2}
    assert client.post(COMPLETIONS, json=asked).status_code == 404
    loading = {"lora_name": "late", "lora_path": str(lora.adapters["late"])}
    assert client.post("/v1/load_lora_adapter", json=loading).status_code == 200
    assert "late:mean" in list_models(client)
    checker.check(read_candidates(ask(lora, COMPLETIONS, "late:mean", n=K), "late", "mean"))
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "late"}).status_code == 200
    refused = client.post(COMPLETIONS, json=asked)
    assert refused.status_code == 404
    assert "one" in refused.json()["error"]["message"]  # what there is
    assert "late:mean" not in list_models(client)


def list_models(client: Any) -> dict[str, Any]:
    return {each["id"]: each for each in client.get("/v1/models").json()["data"]}


def test_adapters_are_listed_with_their_aliases(lora: Lora) -> None:
    listed = list_models(lora.server.client())
    bare = [SERVED_NAME, "one", "two"]
    aliases = [f"{name}:{probe}" for name in bare for probe in ("mean", "end")]
    aliases.insert(aliases.index("one:end") + 1, "one:own")
    assert list(listed) == [*bare, *aliases]
    assert listed["one:mean"]["parent"] == "one"
    assert listed["one:mean"]["root"] == listed["one"]["root"] == str(lora.adapters["one"])


def test_a_probe_of_an_adapter_scores_no_other(lora: Lora) -> None:
    """Neither the base model nor another adapter, whichever way they are named."""
    client = lora.server.client()
    asked = {"prompt": PROMPT, "max_tokens": 2, "q_probe": {"probe": "own"}}
    for model in (SERVED_NAME, "two", f"{SERVED_NAME}:own", "two:own"):
        for path in (COMPLETIONS, "/invocations"):
            refused = client.post(path, json={**asked, "model": model})
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["param"] == "model"
            assert "'own' was trained on the LoRA adapter 'first', served as 'one'" in str(error)
    for model in ("one", "one:own"):
        assert client.post(COMPLETIONS, json={**asked, "model": model}).status_code == 200


def test_sagemakers_header_names_the_model(lora: Lora) -> None:
    """It counts before the body's, as in vLLM."""
    asked = {"model": SERVED_NAME, "prompt": PROMPT, "max_tokens": 2}

    def post(header: str, **fields: Any) -> Any:
        headers = {"X-Amzn-SageMaker-Adapter-Identifier": header}
        return lora.server.client().post("/invocations", json={**asked, **fields}, headers=headers)

    reply = post("one:own").json()
    assert (reply["model"], reply["q_probe"]["probe"]) == ("one:own", "own")
    assert post("one").json()["model"] == "one"
    assert post("two", q_probe={"probe": "own"}).status_code == 400
