"""Datasets that an embeddings endpoint reads, of what an API samples: a real server plays both."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qprobe import Reading, load_probe, save_probe
from qprobe.data.dataset import GREEDY, Dataset
from qprobe.data.merging import drop_few, merge_datasets
from qprobe.errors import DatasetError
from qprobe.evaluation.metrics import choose_freely
from qprobe.evaluation.scoring import score
from qprobe.evaluation.summary import summarise
from qprobe.probe.values import NUMBERS
from qprobe.training.recipe import train
from qprobe_server.commands import arguments, collect
from qprobe_server.errors import StartupError
from qprobe_server.library.registry import ProbeRegistry, read_probe
from qprobe_server.proxy.embeddings import open_embeddings_reader
from qprobe_server.proxy.reader import Prompt, Written

Json = dict[str, Any]
N = 4
WORDS = ("red", "green", "blue", "grey")
SECRET = "sk-of-the-upstream"


def embed(text: str) -> list[float]:
    """Count some letters: no two of the answers have the same."""
    return [3.0 * text.count(letter) for letter in "rgbuy"] + [1.0]


def play(request: Json, _: int) -> Json:
    """Sample by the seed; embed by letters, last text first."""
    if "input" in request:
        data = [{"index": i, "embedding": embed(t)} for i, t in enumerate(request["input"])]
        return {"data": data[::-1], "model": request["model"]}
    text = "greedy" if "seed" not in request else WORDS[request["seed"] % len(WORDS)]
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    content = [{"token": text, "logprob": -0.5}, {"token": "", "logprob": -0.25}]
    logprobs = {"logprobs": {"content": content}} if request.get("logprobs") else {}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **logprobs}
    return {"id": "x", "choices": [choice], "usage": usage}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Return a file of prompts that want a colour; green and grey begin with what they want."""
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Colour {i}?"}], "answer": "gr"}
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "reward.py").write_text(
        "def begins(row, completion):\n    return float(completion.startswith(row['answer']))\n"
    )
    return path


@pytest.fixture
def run(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that collects from a server; more flags may be given."""
    monkeypatch.setenv("QPROBE_UPSTREAM_API_KEY", SECRET)
    monkeypatch.setenv("QPROBE_EMBEDDINGS_API_KEY", "another")

    def collect_from(played: Any, *flags: str) -> Path:
        output = prompts.parent / "data"
        given = {
            "--upstream": played.url,
            "--upstream-model": "gpt-x",
            "--embeddings": played.url,
            "--embedding-model": "e5",
        }
        argv = ["collect", str(prompts), "-o", str(output), "--n", str(N), "--seed", "40000"]
        argv += ["--reward", f"python:{prompts.parent / 'reward.py'}:begins"]
        argv += ["--prompts-per-shard", "3"]
        argv += [
            part for flag, value in given.items() if flag not in flags for part in (flag, value)
        ]
        collect.run(arguments.parse([*argv, *flags]))
        return output

    return collect_from


def test_what_is_collected_is_what_was_sampled_read_and_rewarded(
    playing: Any, run: Callable[..., Path]
) -> None:
    played = playing(play)
    data = Dataset.load(run(played, "--temperature", "0.7"))
    assert [each.prompt for each in data.samples] == [i for i in range(8) for _ in range(N)]
    for each in data.samples:
        assert each.index != GREEDY
        assert each.seed == 40_000 + each.prompt * 10_000 + each.index
        assert each.text == WORDS[each.seed % len(WORDS)]
        assert each.reward == float(each.text.startswith("gr"))
        assert (each.finish_reason, each.logprob) == ("stop", None)
    assert data.greedy_rewards.tolist() == [1.0] * 8
    features = data.features(Reading.parse("embedding")).numpy()
    texts = [f"user: Colour {each.prompt}?\n\nassistant: {each.text}" for each in data.samples]
    vectors = np.array([embed(text) for text in texts])
    np.testing.assert_allclose(
        features, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-3
    )
    sampled = [each for each in played.requests if "input" not in each]
    assert all(each["model"] == "gpt-x" and each["max_tokens"] == 256 for each in sampled)
    assert sorted(each["temperature"] for each in sampled) == [0] * 8 + [0.7] * 8 * N
    embedded = [each["input"] for each in played.requests if "input" in each]
    assert sorted(map(len, embedded)) == [1] + [N] * 8  # one to see what the endpoint gives
    keys = {
        path: each["authorization"] for path, each in zip(played.paths, played.headers, strict=True)
    }
    assert keys == {
        "/v1/chat/completions": f"Bearer {SECRET}",
        "/v1/embeddings": "Bearer another",
    }


def test_the_manifest_says_what_sampled_and_what_read_and_nothing_secret(
    playing: Any, run: Callable[..., Path]
) -> None:
    played = playing(play)
    output = run(played, "--embedding-template", "passage: {completion}")
    text = (output / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["upstream"] == {"url": played.url, "model": "gpt-x", "logprobs": False}
    assert manifest["embeddings"] == played.url
    assert manifest["endpoint"] == {"template": "passage: {completion}", "normalize": True}
    assert (manifest["model"], manifest["hidden_size"]) == ("e5", 6)
    assert manifest["readings"] == ["embedding"]
    assert manifest["sampling"] == {"n": N, "seed": 40000, "greedy": True, "max_tokens": 256}
    assert SECRET not in text
    (first, *_) = [text for each in played.requests[1:] for text in each.get("input", ())]
    assert first in {f"passage: {word}" for word in WORDS}


async def test_a_probe_of_it_is_served_with_the_scores_it_was_measured_with(
    playing: Any, run: Callable[..., Path], tmp_path: Path
) -> None:
    """Collected, trained, written, read, and asked by the reader of the proxy."""
    played = playing(play)
    data = Dataset.load(run(played))
    probe = train(data, Reading.parse("embedding"), test_fraction=0)
    save_probe(probe, tmp_path / "probe.safetensors")
    loaded = read_probe("colours", (tmp_path / "probe.safetensors").read_bytes())
    assert loaded.probe.info.endpoint is not None
    assert loaded.probe.info.endpoint.template == "{prompt}{completion}"
    reader = await open_embeddings_reader(played.url, model="org/e5", api_key=None)
    try:
        reader.check(loaded.probe)
        served = ProbeRegistry().reserve(loaded)
        await reader.load([(served, loaded.probe)])
        prompt = Prompt(messages=data.prompts[0]["messages"])
        answers = [Written(text=each.text) for each in data.samples[:N]]
        found = await reader.read(prompt, answers, [served, served], with_tokens=False)
    finally:
        await reader.close()
    # The dataset holds float16: 2^-11 of a vector of length 1.
    bound = float(np.linalg.norm(probe.terms.states[0].weight)) * 2**-11
    expected = score(probe.terms, data)[:N]
    scores = np.array([each.scores for each in found if each is not None])
    np.testing.assert_allclose(scores, np.stack([expected, expected], axis=1), atol=bound)
    rewards = data.rewards[:N]
    assert min(expected[rewards == 1]) > max(expected[rewards == 0])
    assert load_probe(tmp_path / "probe.safetensors").info.base_model == "e5"


def test_log_probabilities_are_kept_where_they_are_asked_for(
    playing: Any, run: Callable[..., Path]
) -> None:
    data = Dataset.load(run(playing(play), "--upstream-logprobs"))
    assert {each.logprob for each in data.samples} == {-0.75}
    # A mean would be over tokens, of which nobody tells.
    assert choose_freely(data, 1).keys() == {"greedy", "best_by_logprob"}


def test_numbers_of_answers_that_an_endpoint_reads_are_refused(
    playing: Any, run: Callable[..., Path]
) -> None:
    data = Dataset.load(run(playing(play)))
    for name in NUMBERS:
        with pytest.raises(DatasetError, match="numbers: are not known"):
            data.numbers([name])


def test_one_that_was_stopped_goes_on_and_asks_nothing_twice(
    playing: Any, run: Callable[..., Path]
) -> None:
    """The upstream fails for good in the second shard of three; what is there stays."""
    played = playing(play)

    def fail(request: Json, number: int) -> Any:
        is_bad = any("Colour 4" in each["content"] for each in request.get("messages", ()))
        return (400, {}, {"error": "my secret prompt"}) if is_bad else play(request, number)

    played.play = fail
    with pytest.raises(StartupError, match="status 400 for the prompt of line 5;") as caught:
        run(played)
    assert "secret" not in str(caught.value)
    played.play = play
    before = len(played.requests)
    data = Dataset.load(run(played))
    assert len(data.samples) == 8 * N
    again = [
        each["messages"][0]["content"] for each in played.requests[before:] if "messages" in each
    ]
    assert set(again) == {f"Colour {i}?" for i in range(3, 8)}


def refuse(*bad: int, status: int = 400, after: int = 0) -> Callable[[Json, int], Any]:
    """Refuse prompts for good, from some request on."""

    def answer(request: Json, number: int) -> Any:
        asked = [each["content"] for each in request.get("messages", ())]
        is_bad = any(f"Colour {i}?" in asked for i in bad) and number > after
        return (status, {}, {"error": "my secret prompt"}) if is_bad else play(request, number)

    return answer


@pytest.mark.parametrize("status", [400, 403, 422])
def test_what_an_api_refuses_is_left_out_where_that_is_asked_for(
    playing: Any, run: Callable[..., Path], capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """Of the last shard all prompts; the collection was stopped by them before."""
    played = playing(refuse(4, 6, 7, status=status))
    with pytest.raises(StartupError, match=r"of line 5; .* --on-refusal skip leaves out what"):
        run(played)
    before = len(played.requests)
    output = run(played, "--on-refusal", "skip")
    said = capsys.readouterr()
    assert "refused  3       prompts, by the API" in said.out
    assert f"no samples: 3; the first: that of line 5, status {status}" in said.err
    assert "secret" not in said.out + said.err
    data = Dataset.load(output)
    assert data.num_refused == 3
    assert data.num_samples.tolist() == [N, N, N, N, 0, N, 0, 0]
    assert np.isnan(data.greedy_rewards).tolist() == [i in (4, 6, 7) for i in range(8)]
    assert len(data.features(Reading.parse("embedding"))) == 5 * N
    kept = drop_few(data, 1)  # as the commands of training do
    assert train(kept, Reading.parse("embedding"), test_fraction=0).info.k == N
    # Of the first shard nothing is asked again: what is asked to see that it answers is newer.
    again = {each["messages"][0]["content"] for each in played.requests[before:] if "seed" in each}
    assert again == {f"Colour {i}?" for i in range(3, 8)}
    assert summarise(data) == summarise(Dataset.load(run(played, "--on-refusal", "skip")))


def test_a_prompt_of_which_one_sample_is_refused_has_none(
    playing: Any, run: Callable[..., Path]
) -> None:
    def filter_one(request: Json, number: int) -> Any:
        return (400, {}, {}) if request.get("seed") == 40_000 + 10_002 else play(request, number)

    data = Dataset.load(run(playing(filter_one), "--on-refusal", "skip"))
    assert data.num_samples.tolist() == [N, 0, *[N] * 6]
    assert np.flatnonzero(np.isnan(data.greedy_rewards)).tolist() == [1]


@pytest.mark.parametrize("status", [400, 413])
def test_an_answer_that_is_too_long_for_what_reads_leaves_its_prompt_out(
    playing: Any, run: Callable[..., Path], capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """Of prompt 4 one answer, of 6 all: then the endpoint is asked whether it takes others."""

    def limit(request: Json, number: int) -> Any:
        long = [
            text
            for text in request.get("input", ())
            if "Colour 6" in text or ("Colour 4" in text and "grey" in text)
        ]
        return (status, {}, {"error": "my secret"}) if long else play(request, number)

    played = playing(limit)
    with pytest.raises(StartupError, match="line 5: it may be too long; --on-refusal skip leaves"):
        run(played)
    data = Dataset.load(run(played, "--on-refusal", "skip"))
    assert data.num_samples.tolist() == [N, N, N, N, 0, N, 0, N]
    assert np.flatnonzero(np.isnan(data.greedy_rewards)).tolist() == [4, 6]
    said = capsys.readouterr()
    assert "refused  2       prompts, by the API or by what reads" in said.out
    assert "an answer cannot be read: 2; the first: --embeddings: " in said.err
    assert "secret" not in said.out + said.err


def test_an_endpoint_that_takes_nothing_any_more_leaves_nothing_out(
    playing: Any, run: Callable[..., Path]
) -> None:
    """As one whose model was changed in the midst of a collection."""
    num_read = 0

    def change(request: Json, number: int) -> Any:
        nonlocal num_read
        num_read += "input" in request
        is_changed = "input" in request and num_read > 5
        return (400, {}, {}) if is_changed else play(request, number)

    with pytest.raises(StartupError, match="status 400: it does not take the model 'e5', or a"):
        run(playing(change), "--on-refusal", "skip")


@pytest.mark.parametrize(
    ("played", "says", "num_shards"),
    [
        (refuse(*range(8), status=401), "status 401 for the prompt of line 1; started again", 0),
        (refuse(5, status=404), "status 404 for the prompt of line 6; started again", 1),
        (refuse(*range(8)), "status 400 for the prompt of line 1, and no other was answered", 0),
        (refuse(*range(8), status=403, after=1 + 4 * (N + 1)), "which it has answered before", 1),
    ],
    ids=["a wrong key", "no such model", "a wrong parameter", "a key that is withdrawn"],
)
def test_what_no_prompt_is_the_cause_of_stops_all_the_same(
    playing: Any,
    run: Callable[..., Path],
    tmp_path: Path,
    played: Any,
    says: str,
    num_shards: int,
) -> None:
    """The key of the last is withdrawn in the second shard, which is not written."""
    with pytest.raises(StartupError, match=says) as caught:
        run(playing(played), "--on-refusal", "skip", "--upstream-concurrency", "1")
    assert "secret" not in str(caught.value)
    assert len([*tmp_path.glob("data/samples/*")]) == num_shards


@pytest.mark.parametrize("name", ["UPSTREAM", "EMBEDDINGS"])
def test_a_key_that_no_header_can_have_is_refused_before_anything_is_asked(
    playing: Any, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    played = playing(play)
    monkeypatch.setenv(f"QPROBE_{name}_API_KEY", "a\r")
    with pytest.raises(StartupError, match="a key in the environment has a character"):
        run(played)
    assert played.requests == []


def test_an_address_where_nobody_is_says_why(
    playing: Any, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.01)
    played = playing(play)
    for flag in ("--embeddings", "--upstream"):
        with pytest.raises(StartupError, match=r"reached \(All connection attempts") as caught:
            run(played, flag, "http://127.0.0.1:9/v1")
        assert str(caught.value).startswith(f"{flag}: ")


@pytest.mark.parametrize("of", ["upstream", "embeddings"])
def test_a_header_for_a_key_that_is_not_there_is_refused(
    playing: Any, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.delenv(f"QPROBE_{of.upper()}_API_KEY")
    played = playing(play)
    with pytest.raises(StartupError, match=f"--{of}-key-header 'api-key': there is no key"):
        run(played, f"--{of}-key-header", "api-key")
    assert played.requests == []


def test_keys_are_put_where_the_apis_look(playing: Any, run: Callable[..., Path]) -> None:
    played = playing(play)
    run(played, "--upstream-key-header", "api-key", "--embeddings-key-header", "X-Key")
    for path, headers in zip(played.paths, played.headers, strict=True):
        assert "authorization" not in headers
        of_it = {name: headers.get(name) for name in ("api-key", "x-key")}
        if path.endswith("/embeddings"):
            assert of_it == {"api-key": None, "x-key": "another"}
        else:
            assert of_it == {"api-key": SECRET, "x-key": None}


@pytest.mark.parametrize("unknown", [{"seed"}, {"max_tokens"}, {"seed", "max_tokens"}])
def test_what_an_api_does_not_take_is_not_said_again(
    playing: Any, run: Callable[..., Path], capsys: pytest.CaptureFixture[str], unknown: set[str]
) -> None:
    """As Mistral's, which refuses seeds, and OpenAI's of models that reason."""
    chats: list[Json] = []

    def refuse(request: Json, number: int) -> Any:
        if "input" in request:
            return play(request, number)
        chats.append(request)
        if unknown & {*request}:
            return (422, {}, {"detail": "extra inputs are not permitted"})
        return play({**request, "seed": request.get("seed", len(chats))}, number)

    played = playing(refuse)
    data = Dataset.load(run(played, "--upstream-concurrency", "1"))
    assert len(data.samples) == 8 * N
    assert len(chats) <= 8 * (N + 1) + 4  # a refused form each of the first greedy and sampled
    last = chats[-1]
    limit = "max_completion_tokens" if "max_tokens" in unknown else "max_tokens"
    assert last[limit] == 256
    assert not unknown & {*last}
    has_seeds = "seed" not in unknown
    assert all((each.seed is not None) == has_seeds for each in data.samples)
    assert ("the API takes no seed" in capsys.readouterr().err) == (not has_seeds)


def test_a_refused_greedy_answer_says_how_to_do_without(
    playing: Any, run: Callable[..., Path]
) -> None:
    def refuse(request: Json, number: int) -> Any:
        is_greedy = request.get("temperature") == 0
        return (400, {}, {}) if is_greedy else play(request, number)

    with pytest.raises(StartupError, match=r"line \d; --no-greedy asks for no greedy answers;"):
        run(playing(refuse))


def test_datasets_of_one_template_are_joined_and_of_two_are_not(
    playing: Any, run: Callable[..., Path]
) -> None:
    """Also where one and the same model stands at several addresses."""
    parts = []
    for number, flags in enumerate(((), (), ("--embedding-template", "x {completion}"))):
        made = run(playing(play), *flags)
        parts.append(Dataset.load(made.rename(made.with_name(f"data{number}"))))
    joined = merge_datasets(parts[:2], ["a", "b"])
    probe = train(joined, Reading.parse("embedding"), test_fraction=0)
    assert probe.info.endpoint is not None
    assert len(probe.info.training["upstream"]) == 2
    with pytest.raises(DatasetError, match="endpoint"):
        merge_datasets([parts[0], parts[2]], ["a", "c"])


def test_a_limit_of_the_rate_is_waited_for(playing: Any, run: Callable[..., Path]) -> None:
    refused: list[int] = []

    def limit(request: Json, number: int) -> Any:
        if "messages" in request and len(refused) < 5:
            refused.append(number)
            return (429, {"retry-after": "1"}, {})
        return play(request, number)

    begun_s = time.monotonic()
    data = Dataset.load(run(playing(limit)))
    assert len(data.samples) == 8 * N
    assert time.monotonic() - begun_s >= 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--upstream-model", "other"), "--upstream-model is 'other', but"),
        (("--embedding-template", "x{completion}"), "--embedding-template is"),
        (("--upstream-logprobs",), "--upstream-logprobs is True"),
        (("--embedding-model", "other"), "--embedding-model is 'other'"),
    ],
)
def test_a_flag_that_differs_from_those_it_was_begun_with_is_named(
    playing: Any, run: Callable[..., Path], flags: tuple[str, ...], says: str
) -> None:
    played = playing(play)
    run(played)
    with pytest.raises(StartupError, match=says):
        run(played, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--upstream", "u"), "needs the model's name: --upstream-model"),
        (("--upstream", "u", "--upstream-model", "m"), "one of --reader and --embeddings"),
        (
            ("--upstream", "u", "--upstream-model", "m", "--reader", "r", "--embeddings", "e"),
            "one of --reader and --embeddings",
        ),
        (
            ("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
            "needs the model's name: --embedding-model",
        ),
        (("--reader", "r"), "--reader goes with --upstream"),
        (("--upstream-logprobs",), "--upstream-logprobs goes with --upstream"),
        (("--embedding-model", "m"), "--embedding-model goes with --embeddings"),
        (("--embeddings", "e", "--embedding-model", "m"), "goes with --upstream or --completions"),
        (("--upstream-concurrency", "4"), "--upstream-concurrency goes with --upstream"),
        (("--on-refusal", "stop"), "--on-refusal goes with --upstream or --embeddings"),
        (("--upstream-key-header", "api-key"), "--upstream-key-header goes with --upstream"),
        (("--embeddings-key-header", "k"), "--embeddings-key-header goes with --embeddings"),
        (
            ("--upstream", "u", "--upstream-model", "m", "--reader", "r", "--model", "m"),
            "--model does not go with --upstream",
        ),
        (
            (
                *("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
                *("--embedding-model", "m", "--layers", "3"),
            ),
            "--layers goes with --reader",
        ),
        (
            (
                *("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
                *("--embedding-model", "m", "--windows", "8"),
            ),
            "--windows goes with --reader",
        ),
        (
            (
                *("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
                *("--embedding-model", "m", "--dtype", "float32"),
            ),
            "--dtype goes with --reader",
        ),
        (
            (
                *("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
                *("--embedding-model", "m", "--max-model-len", "0"),
            ),
            "--max-model-len goes with --reader",
        ),
        (
            (
                *("--upstream", "u", "--upstream-model", "m", "--embeddings", "e"),
                *("--embedding-model", "m", "--embedding-template", "{prompt}"),
            ),
            "must have {completion}",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    prompts: Path, flags: tuple[str, ...], says: str
) -> None:
    argv = ["collect", str(prompts), "-o", str(prompts.parent / "data"), "--reward", "numeric"]
    with pytest.raises(StartupError) as caught:
        collect.run(arguments.parse([*argv, *flags]))
    assert says in str(caught.value)
