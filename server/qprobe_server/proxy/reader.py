"""What reads completions that an upstream wrote. Knows no HTTP and no engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qprobe import Probe
from qprobe_server.library.registry import ServedProbe

__all__ = ["Prompt", "Read", "Reader", "Written"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What an upstream was asked to go on with: a chat, or plain text.

    Attributes:
        messages: As OpenAI's chat completions take them, system message first, also where the
            client spoke Anthropic's; None for plain text.
        tools: That the model may call, in OpenAI's form; only with messages.
        text: To go on with; None for a chat.
        continues: Whether the answer goes on with the last message, which is the assistant's.
        template_arguments: Of the chat's template, beside messages and tools.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    text: str | None = None
    continues: bool = False
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Written:
    """One completion as an upstream gave it.

    Attributes:
        text: The answer itself, without reasoning and tool calls; of plain text all there is.
        message: The assistant's message in OpenAI's form: ``role``, ``content``, and where there
            are any ``tool_calls``, ``reasoning_content`` and ``refusal``; None for plain text.
        finish_reason: In OpenAI's words, ``length`` where it was cut; None if nobody says.
        num_tokens: As the upstream counts them; None if it does not say.
        logprobs: Of its tokens, in nats, where the request asked the upstream for them; else None.
    """

    text: str
    message: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    num_tokens: int | None = None
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Read:
    """What came of reading one completion.

    Attributes:
        scores: One by each probe, in the order of the probes.
        own_score: Of one probe alone whose confidence has terms of its own: the score by these.
        tokens: The reader's tokens of the completion, each decoded alone; empty unless asked for.
        token_scores: For each of these tokens, one score by each probe.
    """

    scores: Sequence[float]
    own_score: float | None = None
    tokens: Sequence[str] = ()
    token_scores: Sequence[Sequence[float]] = ()


class Reader(Protocol):
    """Scores completions by probes; used on the event loop.

    Attributes:
        gives_token_scores: Whether it can score token by token. Else a request for that gets none,
            and a notice; ``read`` is then never asked for them.
    """

    gives_token_scores: bool

    def check(self, probe: Probe) -> None:
        """Check that it can score by a probe; the model is named where it is another one.

        Raises:
            ProbeFileError: It cannot.
        """

    async def load(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        """Take probes by the indices that are reserved for them; called by ``ProbeLifecycle``."""

    async def check_prompt(self, prompt: Prompt) -> None:
        """Check that it can read a prompt, before its completions are sampled and paid for.

        Raises:
            RequestError: 400, it is too long, or holds what the reader's template does not take.
        """

    async def read(
        self,
        prompt: Prompt,
        completions: Sequence[Written],
        probes: Sequence[ServedProbe],
        *,
        with_tokens: bool,
    ) -> Sequence[Read | None]:
        """Score the completions of one prompt, as one batch.

        A cancelled call leaves nothing running.

        Args:
            prompt: As ``check_prompt`` has let it pass.
            completions: At least one.
            probes: At least one; all were loaded.
            with_tokens: Whether the scores of single tokens are wanted too.

        Returns:
            One of each completion; None for one that cannot be read, such as one that is too long.

        Raises:
            ReadingError: Nothing can be read now: the endpoint or the engine gives no answer.
        """

    async def check_health(self) -> None:
        """Check that it can read.

        Raises:
            ReadingError: It cannot, and nothing tells that it will.
        """

    async def close(self) -> None:
        """Give up what it holds."""
