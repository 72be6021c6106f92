"""From an API to a proxy: collected, trained, served; read by a model here, and by an endpoint.

The upstream is the session's server. Beside it run vLLM's pooling engine, and then, one at a time,
the reader of a collection and the one of a proxy: two small engines at once, as in earnest.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qprobe import Probe, ProbeInfo, Reading, load_probe, save_probe
from qprobe.data.dataset import Dataset
from qprobe.probe.terms import Terms
from qprobe_server.default_model import SERVED_NAME

BIN = Path(sys.executable).parent
PLAIN_VLLM = Path(__file__).parents[1] / "bench" / "plain_vllm.py"
N, SEED = 4, 7
ENGINE = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "512")
QUESTIONS = ("What is a volcano?", "Name three colours.", "Say hello.", "Is fire hot?")
CHAT = "/v1/chat/completions"
EMBEDDER = "small-embedder"
OTHER_HIDDEN = 128
OTHER_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{{ '</s>' if message.role == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@contextmanager
def running(command: Sequence[str], log: Path, url: str, **variables: str) -> Iterator[None]:
    """Run a server until the block ends; waits until it is healthy."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables},
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture(scope="module")
def embeddings(
    small_model: Path, free: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve the small model's embeddings by vLLM alone; give their address."""
    url = f"http://127.0.0.1:{(port := free())}"
    command = [sys.executable, str(PLAIN_VLLM), "serve", str(small_model), "--runner", "pooling"]
    command += ["--convert", "embed", "--served-model-name", EMBEDDER, "--port", str(port)]
    with running([*command, *ENGINE], tmp_path_factory.mktemp("pooling") / "log", url):
        yield f"{url}/v1"


@pytest.fixture
def collect(server: Any, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that collects from the server, read as the flags say, and loads that."""
    rows = [{"messages": [{"role": "user", "content": each}]} for each in QUESTIONS]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    reward = tmp_path / "reward.py"
    reward.write_text("def score(row, completion):\n    return min(1.0, len(completion) / 200)\n")

    def run(*flags: str) -> Dataset:
        call(
            *("collect", str(path), "-o", str(tmp_path / "data"), *flags),
            *("--upstream", f"{server.url}/v1", "--upstream-model", SERVED_NAME),
            *("--reward", f"python:{reward}:score", "--n", str(N), "--seed", str(SEED)),
            *("--max-tokens", "24", "--temperature", "1"),
            QPROBE_UPSTREAM_API_KEY=server.key,
        )
        return Dataset.load(tmp_path / "data")

    return run


def call(*arguments: str, **variables: str) -> None:
    """Run a command of ours to its end."""
    done = subprocess.run(
        [str(BIN / "qprobe"), *arguments],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def sweep(folder: Path) -> Path:
    """Train on a dataset; return the probe."""
    given = ("--objectives", "mse", "--folds", "2", "--test-fraction", "0.25")
    call("sweep", str(folder / "data"), "-o", str(folder / "runs"), *given)
    return folder / "runs" / "probe.safetensors"


@contextmanager
def proxy(server: Any, port: int, log: Path, *flags: str) -> Iterator[str]:
    """Run a proxy before the server; give its address."""
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "qprobe"), "proxy", "--upstream", f"{server.url}/v1", *flags]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, log, url, QPROBE_UPSTREAM_API_KEY=server.key):
        yield url


def ask(url: str, headers: dict[str, str], *, messages: Any = None, **own: Any) -> Any:
    body = {
        "model": SERVED_NAME,
        "messages": messages or [{"role": "user", "content": QUESTIONS[0]}],
        "seed": SEED,
        "max_tokens": 24,
        "temperature": 1,
        "q_probe": {"probe": "mine", "k": 4, "beta": 0, "return_candidates": True, **own},
    }
    reply = httpx.post(f"{url}{CHAT}", json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    (result,) = reply.json()["q_probe"]["results"]
    return result


def test_an_endpoint_reads(
    server: Any,
    embeddings: str,
    collect: Callable[..., Dataset],
    free: Callable[[], int],
    tmp_path: Path,
) -> None:
    """The dataset's vectors are the endpoint's; the proxy chooses the best by them."""
    flags = ("--embeddings", embeddings, "--embedding-model", EMBEDDER)
    data = collect(*flags)
    assert len(data.samples) == len(QUESTIONS) * N
    vectors = data.features(Reading.parse("embedding")).numpy()
    assert vectors.shape == (len(QUESTIONS) * N, 576)
    texts = [f"user: {QUESTIONS[each.prompt]}\n\nassistant: {each.text}" for each in data.samples]
    body = {"model": EMBEDDER, "input": texts}
    reply = httpx.post(f"{embeddings}/embeddings", json=body, timeout=60).json()
    right = np.array([each["embedding"] for each in reply["data"]])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, right, atol=2e-3)
    probe = sweep(tmp_path)
    assert load_probe(probe).info.base_model == EMBEDDER
    with proxy(server, free(), tmp_path / "log", *flags, "--probe", f"mine={probe}") as url:
        result = ask(url, {})
    assert result["selected"] == [int(np.argmax(result["scores"]))]
    assert len(result["candidates"]) == 4


def test_a_model_here_reads(
    server: Any,
    small_model: Path,
    collect: Callable[..., Dataset],
    free: Callable[[], int],
    tmp_path: Path,
) -> None:
    """The proxy scores the same answers as the server that samples, which has the probe too.

    Both sample candidate i with the seed raised by i. Batches differ, and few texts by that; and a
    text does not tell how it was sampled if the tokenizer makes other tokens of it. Scores of the
    same tokens agree as parity has it: 1e-4 of |w| |phi| each; |phi| is below 30 in this model.
    """
    flags = ("--reader", str(small_model), *ENGINE)
    data = collect(*flags, "--layers", "2,4,final", "--windows", "8")
    assert len(data.samples) == len(QUESTIONS) * N
    for each in data.samples:
        assert len(each.token_ids) == each.num_scored + 1, "a stop token, or the one after the cut"
        assert each.logprob is None
    probe = sweep(tmp_path)
    loaded = load_probe(probe)
    assert loaded.info.base_model == small_model.name
    put = server.client().put(
        "/v1/probes/mine",
        content=probe.read_bytes(),
        headers={"authorization": f"Bearer {server.admin_key}"},
    )
    assert put.status_code in (200, 201), put.text
    try:
        with proxy(server, free(), tmp_path / "log", *flags, "--probe", f"mine={probe}") as url:
            ours = ask(url, {}, return_token_scores=True)
        theirs = ask(
            server.url, {"authorization": f"Bearer {server.key}"}, return_token_scores=True
        )
    finally:
        server.client().delete(
            "/v1/probes/mine", headers={"authorization": f"Bearer {server.admin_key}"}
        )
    scores = {
        tuple(each["tokens"]): score
        for each, score in zip(theirs["candidates"], theirs["scores"], strict=True)
    }
    same = [
        (score, scores[tuple(each["tokens"])])
        for each, score in zip(ours["candidates"], ours["scores"], strict=True)
        if tuple(each["tokens"]) in scores
    ]
    assert len(same) >= 2
    bound = 2 * 1e-4 * 30 * float(np.linalg.norm(loaded.terms.states[0].weight))
    assert all(abs(one - other) <= bound for one, other in same), same


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """Return the folder of a random Llama whose size, tokens, template and end are its own."""
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=ByteLevel.alphabet()
    )
    words = Tokenizer(BPE())
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.decoder = ByteLevelDecoder()
    words.train_from_iterator([*QUESTIONS, "[system] [user] [assistant] "], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.chat_template = OTHER_TEMPLATE
    config = LlamaConfig(
        hidden_size=OTHER_HIDDEN,
        intermediate_size=2 * OTHER_HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        initializer_range=0.1,  # so large that the tokens before a token tell in it
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    folder = tmp_path / "other"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score_plainly(folder: Path, prompt: str, answer: str, probe: Probe, *, is_cut: bool) -> float:
    """Return a probe's score of a model's final states by transformers alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    before, tokens = (tokenizer.encode(each) for each in (prompt, answer))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    read = tokens[: -1 if is_cut else None]
    with torch.inference_mode():
        states = model.model(torch.tensor([before + read])).last_hidden_state[0, len(before) :]
    (term,) = probe.terms.states
    return float(states.mean(0).numpy() @ term.weight)


def test_a_model_that_has_nothing_of_the_upstreams_reads(
    server: Any, other_model: Path, free: Callable[[], int], tmp_path: Path
) -> None:
    """Scores are what transformers makes of the reader's own template and tokens.

    Of float32 states of norm about 11 (those of 128 numbers behind an RMS norm): 1e-3 of that.
    """
    info = ProbeInfo(
        base_model="other",
        hidden_size=OTHER_HIDDEN,
        num_layers=3,
        objective="ce",
        k=4,
        beta=0.1,
    )
    weight = np.random.default_rng(0).normal(size=OTHER_HIDDEN).astype(np.float32)
    weight /= np.linalg.norm(weight)
    probe = Probe(info, Terms.linear(Reading("final", "mean"), weight))
    save_probe(probe, path := tmp_path / "mine.safetensors")
    flags = ("--reader", str(other_model), *ENGINE, "--probe", f"mine={path}")
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    with proxy(server, free(), tmp_path / "log", *flags) as url:
        result = ask(url, {}, messages=chat)
    assert result["selected"] == [int(np.argmax(result["scores"]))]
    prompt = f"[system] Be brief.\n[user] {QUESTIONS[0]}\n[assistant] "
    for score, each in zip(result["scores"], result["candidates"], strict=True):
        is_cut = each["finish_reason"] == "length"
        wanted = score_plainly(other_model, prompt, each["text"], probe, is_cut=is_cut)
        assert score == pytest.approx(wanted, abs=0.011)
    assert np.ptp(result["scores"]) > 0.1
