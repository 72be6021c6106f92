"""What a request says of how its chat is put into a template: the reader's is put the same way.

Relies on vLLM 0.32.0: ``ChatCompletionRequest.build_chat_params``
(entrypoints/openai/chat_completion/protocol.py), which hands the same fields to the template.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qprobe_server.choice.fields import read_lax
from qprobe_server.errors import RequestError
from qprobe_server.proxy.chat_text import write_content
from qprobe_server.proxy.reader import Prompt

__all__ = ["make_chat_prompt", "strip_begun"]

Json = Mapping[str, Any]

_ARGUMENTS = "chat_template_kwargs"
# Fields that vLLM hands to templates too.
_PASSED = ("documents", "reasoning_effort")
# Of the arguments those that vLLM itself refuses; a client's template would be run here.
_REFUSED = ("chat_template", "tokenize")


def make_chat_prompt(
    body: Json, messages: Sequence[Json], tools: Sequence[Json], *, is_begun: bool
) -> Prompt:
    """Return a chat as a reader reads it.

    Args:
        body: The request.
        messages: Of it, in OpenAI's form; at least one.
        tools: Likewise.
        is_begun: Whether the API has an answer go on with a last message of the assistant's.

    Raises:
        RequestError: 400, the upstream would render the chat as the reader cannot.
    """
    if body.get("chat_template") is not None:
        raise _refuse("chat_template", "the reader has a template of its own")
    is_last_own = messages[-1].get("role") == "assistant"
    goes_on = _goes_on(body, messages[-1])
    if goes_on and not is_last_own:
        raise _refuse("messages", "the last one is not the assistant's, to go on with")
    if read_lax(body.get("add_generation_prompt"), bool) is False and not goes_on:
        raise _refuse("add_generation_prompt", "false goes only with continue_final_message")
    return Prompt(
        messages=messages,
        tools=tools,
        continues=goes_on or (is_begun and is_last_own),
        template_arguments=_read_arguments(body),
    )


def strip_begun(body: Json, content: str) -> str:
    """Return an answer's text without the message that it goes on with.

    Mistral repeats it, and vLLM does with ``echo``.
    """
    last = body["messages"][-1]
    return content.removeprefix(write_content(last)) if _goes_on(body, last) else content


def _goes_on(body: Json, last: Json) -> bool:
    """Return whether a request says so to vLLM, or to DeepSeek and Mistral."""
    return bool(
        read_lax(body.get("continue_final_message"), bool) or read_lax(last.get("prefix"), bool)
    )


def _read_arguments(body: Json) -> Json:
    given = body.get(_ARGUMENTS)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise _refuse(_ARGUMENTS, "must be an object")
    for name in _REFUSED:
        if name in given:
            raise _refuse(f"{_ARGUMENTS}.{name}", "is no argument of a template")
    passed = {name: body[name] for name in _PASSED if body.get(name) is not None}
    if "reasoning_effort" in passed:
        given = {"enable_thinking": passed["reasoning_effort"] != "none", **given}
    return {**given, **passed}


def _refuse(name: str, said: str) -> RequestError:
    return RequestError(f"{name}: {said}", param=name)
