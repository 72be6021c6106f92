"""Which probes an embeddings endpoint can read for, and what text it is given."""

from typing import Any

import numpy as np
import pytest

from qprobe import Probe, ProbeFileError, ProbeInfo, Reading, Terms
from qprobe.probe.probe import Endpoint
from qprobe_server.errors import RequestError, StartupError
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe
from qprobe_server.proxy.chat_text import check_text_only, fill, write_answer, write_prompt
from qprobe_server.proxy.embeddings import EmbeddingsReader, normalize, open_embeddings_reader
from qprobe_server.proxy.reader import Prompt, Written

Json = dict[str, Any]
DIMENSIONS = 3


def make_probe(
    *,
    weight: tuple[float, ...] = (1, 0, 0),
    template: str = "{completion}",
    normalize: bool = False,
    **fields: Any,
) -> Probe:
    given = {"base_model": "org/e5", "hidden_size": len(weight), "num_layers": 1, **fields}
    endpoint = Endpoint(template=template, normalize=normalize)
    info = ProbeInfo(**{"objective": "ce", "k": 4, "beta": 0.1, "endpoint": endpoint, **given})
    reads = Reading.parse("embedding") if info.endpoint else Reading("final", "mean")
    return Probe(info, Terms.linear(reads, weight, 0.25))


def play(request: Json, _: int) -> Json:
    """Embed by the lengths of the words, of three texts' beginnings none."""
    data = [
        {"index": i, "embedding": [len(text), text.count("a"), 2]}
        for i, text in enumerate(request["input"])
    ]
    return {"data": data, "model": "e5"}


def serve(probe: Probe) -> ServedProbe:
    """Return a probe as a request holds it."""
    return ProbeRegistry().reserve(LoadedProbe("any", "v", 0, probe))


@pytest.fixture
async def reader(playing: Any) -> EmbeddingsReader:
    played = playing(play)
    opened = await open_embeddings_reader(played.url, model="e5", api_key=None)
    assert isinstance(opened, EmbeddingsReader)
    return opened


@pytest.mark.parametrize(
    ("probe", "field", "says"),
    [
        (make_probe(), None, ""),
        (make_probe(base_model="e5"), None, ""),
        (make_probe(base_model="ORG/E5"), None, ""),
        (make_probe(base_model="org/e5-large"), "base_model", "the endpoint's is 'e5'"),
        (make_probe(weight=(1, 0)), "hidden_size", "is 2, the embeddings of 'e5' have 3"),
        (make_probe(endpoint=None), "endpoint", "reads states of 'org/e5'"),
    ],
)
async def test_a_probe_of_something_else_is_refused_by_name(
    reader: EmbeddingsReader, probe: Probe, field: str | None, says: str
) -> None:
    if field is None:
        reader.check(probe)
        return
    with pytest.raises(ProbeFileError, match=says) as caught:
        reader.check(probe)
    assert caught.value.field == field


async def test_a_probe_of_numbers_is_refused(reader: EmbeddingsReader) -> None:
    probe = make_probe()
    terms = Terms(states=probe.terms.states, numbers={"length": 1.0})
    with pytest.raises(ProbeFileError, match="read length, which no endpoint tells"):
        reader.check(Probe(probe.info, terms))


async def test_an_endpoint_that_does_not_embed_stops_the_start(playing: Any) -> None:
    played = playing(lambda *_: (401, {}, {}))
    with pytest.raises(StartupError, match="status 401"):
        await open_embeddings_reader(played.url, model="e5", api_key="k")
    with pytest.raises(StartupError, match="--embeddings"):
        await open_embeddings_reader("ftp://x", model="e5", api_key="k")


async def test_each_probe_of_a_mix_reads_as_it_was_trained(reader: EmbeddingsReader) -> None:
    """One call for each template; the vector brought to length 1 or not."""
    probes = [
        make_probe(weight=(1, 0, 0)),
        make_probe(weight=(0, 0, 1), normalize=True),
        make_probe(weight=(1, 0, 0), template="{prompt}{completion}"),
    ]
    served = [serve(probe) for probe in probes]
    await reader.load(list(zip(served, probes, strict=True)))
    written = [Written(text="abca"), Written(text="x")]
    found = await reader.read(Prompt(text="12"), written, served, with_tokens=False)
    lengths = [(4**2 + 2**2 + 2**2) ** 0.5, (1 + 2**2) ** 0.5]
    for read, each, length in zip(found, written, lengths, strict=True):
        assert read is not None
        size = len(each.text)
        assert read.scores == pytest.approx([size + 0.25, 2 / length + 0.25, 2 + size + 0.25])


async def test_an_answer_that_is_not_taken_has_no_scores(playing: Any) -> None:
    def refuse(request: Json, number: int) -> Any:
        is_long = any(len(text) > 5 for text in request["input"])
        return (400, {}, {}) if is_long else play(request, number)

    reader = await open_embeddings_reader(playing(refuse).url, model="e5", api_key=None)
    probe = make_probe()
    served = serve(probe)
    await reader.load([(served, probe)])
    written = [Written(text="a"), Written(text="too long")]
    found = await reader.read(Prompt(text="1"), written, [served], with_tokens=False)
    assert [each is None for each in found] == [False, True]


def test_vectors_of_length_one_and_of_zeros() -> None:
    assert np.linalg.norm(normalize(np.array([3, 4], np.float32))) == pytest.approx(1)
    assert normalize(np.zeros(2, np.float32)).tolist() == [0, 0]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}


def test_a_chat_is_written_as_text() -> None:
    prompt = Prompt(
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "c"},
        ],
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    assert write_prompt(prompt) == (
        'tools: [{"type": "function", "function": {"name": "f"}}]\n\n'
        "system: Be brief.\n\nuser: a\nb\n\n"
        'assistant: {"name": "f", "arguments": {"a": "ü"}}\n\ntool: c\n\nassistant: '
    )
    assert write_prompt(Prompt(text="def f(")) == "def f("


@pytest.mark.parametrize(
    ("message", "text", "expected"),
    [
        (None, "plain", "plain"),
        ({"content": "yes"}, "yes", "yes"),
        ({"content": None, "refusal": "no"}, "", "no"),
        (
            {"content": "see", "tool_calls": [CALL]},
            "see",
            'see\n{"name": "f", "arguments": {"a": "ü"}}',
        ),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]},
            "",
            '{"name": "f", "arguments": "{x"}',
        ),
        (
            {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "ü"}}]},
            "",
            '{"type": "custom", "custom": {"name": "f", "input": "ü"}}',
        ),
        (
            {"tool_calls": [None, {"function": "f"}, {"function": {}}]},
            "a",
            'a\nnull\n{"function": "f"}\n{"function": {}}',
        ),
        ({"tool_calls": {"a": 1}}, "", '{"a": 1}'),
        ({"tool_calls": 7, "refusal": {"no": 1}}, "", "7"),
        ({"content": "yes", "reasoning_content": "hm"}, "yes", "yes"),
    ],
)
def test_an_answer_is_written_as_text(message: Json | None, text: str, expected: str) -> None:
    assert write_answer(Written(text=text, message=message)) == expected


def test_what_a_text_says_is_no_place_of_a_template() -> None:
    made = fill("p: {prompt} c: {completion} {x}", prompt="{completion}", completion="{prompt}")
    assert made == "p: {completion} c: {prompt} {x}"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}],
            "image_url",
        ),
        ([{"type": "text", "text": "a"}, "b"], "None"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": 7}], "text"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(content: list[Any], kind: str) -> None:
    prompt = Prompt(
        messages=[{"role": "user", "content": "a"}, {"role": "user", "content": content}]
    )
    with pytest.raises(RequestError, match=kind) as caught:
        check_text_only(prompt)
    assert caught.value.param == "messages.1.content.1"
    check_text_only(Prompt(messages=[{"role": "user", "content": content[:1]}]))


@pytest.mark.parametrize("content", [{"a": 1}, 7, False])
def test_a_content_that_is_neither_text_nor_list_is_refused(content: object) -> None:
    prompt = Prompt(messages=[{"role": "user", "content": content}])
    with pytest.raises(RequestError, match="text or a list") as caught:
        check_text_only(prompt)
    assert (caught.value.param, caught.value.status) == ("messages.0.content", 400)


async def test_a_prompt_that_cannot_be_written_is_refused_before_it_is_paid_for(
    reader: EmbeddingsReader,
) -> None:
    await reader.check_prompt(Prompt(messages=[{"role": "user", "content": "secret"}]))
    with pytest.raises(RequestError, match="KeyError") as caught:
        await reader.check_prompt(Prompt(messages=[{"content": "secret"}]))
    assert (caught.value.param, caught.value.status) == ("messages", 400)
    assert "secret" not in str(caught.value)
