"""Chat completions and completions of OpenAI's API, as its many servers speak it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qprobe_server.choice.fields import read_lax
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import RequestError, UpstreamError
from qprobe_server.proxy.answers import Answer, Body, Candidate, check_list, reading
from qprobe_server.proxy.chat_prompt import make_chat_prompt, strip_begun
from qprobe_server.proxy.events import HALF_PAIRS, Event, read_events
from qprobe_server.proxy.growing import GrowingChoice
from qprobe_server.proxy.reader import Prompt, Written
from qprobe_server.proxy.upstream import Reply
from qprobe_server.proxy.usage import Usage, add_usages, count_of, read_usage

__all__ = ["ChatCompletions", "Completions"]

_DONE = "[DONE]"
_DONE_EVENT = Event("", _DONE).dump()
# Of a prompt, not of an answer: the answers of one prompt share it.
_OF_THE_PROMPT = ("prompt_tokens", "prompt_tokens_details")


class _OpenAI(ABC):
    """What both have in common: choices, chunks, usage."""

    has_n = True

    def ask(self, body: Body, prompt_index: int, candidate_index: int, num: int) -> Body:
        """See ``Format``."""
        asked = {name: value for name, value in body.items() if name != "n"}
        if num > 1:
            asked["n"] = num
        seed = read_lax(body.get("seed"), int)
        if seed is not None:
            asked["seed"] = seed + candidate_index
        if read_lax(body.get("stream"), bool):
            options = body.get("stream_options")
            given = options if isinstance(options, dict) else {}
            asked["stream_options"] = {**given, "include_usage": True}
        return asked

    async def read(self, reply: Reply, body: Body) -> Answer:
        """See ``Format``."""
        return await reading(self._read(reply, body))

    async def _read(self, reply: Reply, body: Body) -> Answer:
        if reply.is_stream:
            return await self._read_stream(reply.body, body)
        if read_lax(body.get("stream"), bool):
            return await self._read_stream(_to_stream(reply.body), body)
        return self._read_json(reply.body, body)

    def _read_json(self, raw: bytes, body: Body) -> Answer:
        fields = json.loads(raw)
        _check_error(fields)
        usage = _find_usage([fields])
        choices = [GrowingChoice.of(each) for each in fields["choices"]]
        return Answer(
            raw=raw,
            parts=[fields],
            events=(),
            choices=self._finish(choices, body, usage),
            usage=usage,
        )

    async def _read_stream(self, raw: bytes, body: Body) -> Answer:
        events, parts = [], []
        growing: dict[int, GrowingChoice] = {}
        is_done = False
        turns = Turns()
        for event in read_events(raw):
            await turns.give_way()
            if event.data == _DONE:
                is_done = True
                break
            fields = json.loads(event.data)
            _check_error(fields)
            events.append(event)
            parts.append(fields)
            for choice in fields.get("choices") or ():
                growing.setdefault(choice.get("index", 0), GrowingChoice()).add(choice)
        choices = [growing[index] for index in range(len(growing))]
        if not is_done and not all(each.finish_reason for each in choices):
            raise UpstreamError("a stream that was cut off")
        usage = _find_usage(parts)
        return Answer(
            raw=b"",
            parts=parts,
            events=events,
            choices=self._finish(choices, body, usage),
            usage=usage,
        )

    def _finish(
        self, choices: Sequence[GrowingChoice], body: Body, usage: Usage | None
    ) -> list[Written]:
        if not choices:
            raise UpstreamError("a reply without a choice")
        # With several nobody says which has taken how many.
        num_tokens = count_of(usage, "completion_tokens") if len(choices) == 1 else None
        return [self._finish_one(each, body, num_tokens) for each in choices]

    @abstractmethod
    def _finish_one(self, choice: GrowingChoice, body: Body, num_tokens: int | None) -> Written:
        """Return a completion that is whole."""

    def join(self, winners: Sequence[Candidate], body: Body) -> bytes:
        """See ``Format``."""
        first = winners[0].answer
        if _is_whole(winners):
            return first.raw
        choices = [
            {**each.answer.parts[0]["choices"][each.place], "index": index}
            for index, each in enumerate(winners)
        ]
        joined = {**first.parts[0], "choices": choices}
        usage = _join_usages(winners)
        if usage is not None:
            joined["usage"] = usage
        text = json.dumps(joined, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors=HALF_PAIRS)

    def replay(self, winners: Sequence[Candidate], body: Body) -> Iterator[bytes]:
        """See ``Format``."""
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and read_lax(options.get("include_usage"), bool)
        first = winners[0].answer
        if _is_whole(winners):
            for event, part in zip(first.events, first.parts, strict=True):
                if wants_usage or part.get("choices") or not part.get("usage"):
                    yield event.dump()
        else:
            yield from _replay_several(winners)
            usage = _join_usages(winners)
            if wants_usage and usage is not None:
                yield _dump({**_envelope(first), "choices": [], "usage": usage})
        yield _DONE_EVENT


class ChatCompletions(_OpenAI):
    """``/v1/chat/completions``."""

    def read_prompts(self, body: Body) -> list[Prompt]:
        """See ``Format``."""
        messages = check_list(body, "messages")
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                place = f"messages.{index}"
                raise RequestError(f"{place}: must be an object with a role", param=place)
        tools = body.get("tools")
        tools = tools if isinstance(tools, list) else ()
        return [make_chat_prompt(body, messages, tools, is_begun=False)]

    def max_tokens(self, body: Body) -> Mapping[str, object]:
        """See ``Format``."""
        return {name: body.get(name) for name in ("max_tokens", "max_completion_tokens")}

    def _finish_one(self, choice: GrowingChoice, body: Body, num_tokens: int | None) -> Written:
        message = choice.finish_message()
        content = message["content"]
        if isinstance(content, str):
            content = message["content"] = strip_begun(body, content)
        return Written(
            text=content if isinstance(content, str) else "",
            message=message,
            finish_reason=choice.finish_reason,
            num_tokens=num_tokens,
            logprobs=choice.logprobs,
        )


class Completions(_OpenAI):
    """``/v1/completions``, of texts."""

    def read_prompts(self, body: Body) -> list[Prompt]:
        """See ``Format``."""
        return [Prompt(text=text) for text in _list_texts(body)]

    def ask(self, body: Body, prompt_index: int, candidate_index: int, num: int) -> Body:
        """See ``Format``."""
        asked = super().ask(body, prompt_index, candidate_index, num)
        prompt = body["prompt"]  # as ``read_prompts`` has checked
        return {**asked, "prompt": prompt[prompt_index] if isinstance(prompt, list) else prompt}

    def max_tokens(self, body: Body) -> Mapping[str, object]:
        """See ``Format``."""
        # Also where the API has a default: llama.cpp's is no bound.
        return {"max_tokens": body.get("max_tokens")}

    def _finish_one(self, choice: GrowingChoice, body: Body, num_tokens: int | None) -> Written:
        text, logprobs = choice.text, choice.logprobs
        if read_lax(body.get("echo"), bool):
            text = text.removeprefix(body["prompt"])
            logprobs = None  # some of them are the prompt's
        return Written(
            text=text,
            finish_reason=choice.finish_reason,
            num_tokens=num_tokens,
            logprobs=logprobs,
        )


def _list_texts(body: Body) -> list[str]:
    prompt = body.get("prompt")
    given = prompt if isinstance(prompt, list) else [prompt]
    texts = [each for each in given if isinstance(each, str)]
    if not texts or len(texts) < len(given):
        raise RequestError(
            "prompt: must be a text or a list of texts to be reranked, not tokens of the upstream",
            param="prompt",
        )
    return texts


def _to_stream(raw: bytes) -> bytes:
    """Return the stream that a server would have sent that sends none: all of it as one chunk."""
    fields = json.loads(raw)
    _check_error(fields)
    chunk = {name: value for name, value in fields.items() if name not in ("usage", "choices")}
    choices = []
    for choice in fields["choices"]:
        made = {name: value for name, value in choice.items() if name != "message"}
        if "message" in choice:
            made["delta"] = dict(choice["message"])
            calls = made["delta"].get("tool_calls")
            if calls:
                made["delta"]["tool_calls"] = [
                    {"index": index, **call} for index, call in enumerate(calls)
                ]
            chunk["object"] = "chat.completion.chunk"
        choices.append(made)
    chunks = [{**chunk, "choices": choices}]
    if fields.get("usage"):
        chunks.append({**chunk, "choices": [], "usage": fields["usage"]})
    return b"".join(map(_dump, chunks)) + _DONE_EVENT


def _check_error(fields: Mapping[str, Any]) -> None:
    """Check a reply, or a chunk of one, for the error that some send with status 200."""
    if fields.get("error"):
        raise UpstreamError("an error instead of an answer")


def _find_usage(parts: Sequence[Body]) -> Usage | None:
    """Return the last usage, which counts everything."""
    found = (read_usage(part.get("usage")) for part in reversed(parts))
    return next((usage for usage in found if usage is not None), None)


def _is_whole(winners: Sequence[Candidate]) -> bool:
    """Whether the answer is a reply just as the upstream gave it."""
    return len(winners) == 1 and len(winners[0].answer.choices) == 1


def _join_usages(winners: Sequence[Candidate]) -> Usage | None:
    """Return the usage of several answers; a reply of several choices counts them all."""
    prompts: set[int] = set()
    usages: dict[int, Usage] = {}  # by reply
    for each in winners:
        usage = each.answer.usage
        if usage is None:
            return None
        if id(each.answer) not in usages:
            shared = _OF_THE_PROMPT if each.prompt_index in prompts else ()
            usages[id(each.answer)] = {
                name: value for name, value in usage.items() if name not in shared
            }
            prompts.add(each.prompt_index)
    total = add_usages(list(usages.values())) or {}
    if "total_tokens" in total:
        parts = (count_of(total, name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        total["total_tokens"] = sum(parts)
    return total


def _replay_several(winners: Sequence[Candidate]) -> Iterator[bytes]:
    """Give the chunks of several answers, one after the other, as those of one reply."""
    envelope = _envelope(winners[0].answer)
    for index, winner in enumerate(winners):
        for part in winner.answer.parts:
            for choice in part.get("choices") or ():
                if choice.get("index", 0) == winner.place:
                    yield _dump({**envelope, "choices": [{**choice, "index": index}]})


def _envelope(answer: Answer) -> Body:
    """Return the fields that the chunks of a reply share."""
    return {
        name: value for name, value in answer.parts[0].items() if name not in ("choices", "usage")
    }


def _dump(fields: Body) -> bytes:
    return Event("", json.dumps(fields, ensure_ascii=False, separators=(",", ":"))).dump()
