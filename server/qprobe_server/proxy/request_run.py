"""One reranked request behind a proxy: what is checked before anything is paid for, its prompts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from qprobe_server.choice.fields import read_lax
from qprobe_server.choice.rerank import Rerank
from qprobe_server.choice.schemas import show
from qprobe_server.edge.metrics import RerankMetrics
from qprobe_server.edge.turns import Turns
from qprobe_server.errors import RequestError
from qprobe_server.proxy.answers import Body, Candidate, Format
from qprobe_server.proxy.prompt_run import PromptRun
from qprobe_server.proxy.reader import Reader
from qprobe_server.proxy.sampling import Asked

__all__ = ["RequestRun"]

# Of all its prompts together: about what 64 at a time can do within the default --timeout.
_MAX_CANDIDATES = 4096


@dataclass(frozen=True, kw_only=True)
class RequestRun:
    """A request that is to be reranked.

    Attributes:
        rerank: What it asks of us; gets the results.
        format: Of its route.
        body: Without what is ours.
        reader: Of candidates.
        metrics: Of the server.
        budget_tokens: The most tokens that its candidates may have together; None: any.
    """

    rerank: Rerank
    format: Format
    body: Body
    reader: Reader
    metrics: RerankMetrics
    budget_tokens: int | None

    async def choose(self, asked: Asked) -> list[Candidate]:
        """Return the answers to all prompts, in their order.

        Raises:
            RequestError: 400, it cannot be reranked; nothing was sampled.
            UpstreamError: A prompt has no answer, or fewer than are wanted.
            ReadingError, ScoringError: What came cannot be scored.
        """
        if self.rerank.request.temperature == 0:
            self.rerank.keep_greedy()
        n = self._read_n()
        prompts = self.format.read_prompts(self.body)
        self._check_number(len(prompts))
        self._check_budget(len(prompts))
        for prompt in prompts:
            await self.reader.check_prompt(prompt)
        seed = read_lax(self.body.get("seed"), int)
        runs = [
            PromptRun(self.rerank, prompt, self.reader, self.metrics, n=n, seed=seed)
            for prompt in prompts
        ]
        deadline_s = asyncio.get_running_loop().time() + asked.upstream.bounds.deadline_s
        return await _run_all(runs, asked, deadline_s)

    def _read_n(self) -> int:
        """Return how many answers are wanted."""
        given = self.body.get("n")
        n = 1 if given is None else read_lax(given, int)
        if n is None or n < 1:
            raise RequestError(f"n: must be an integer >= 1, got {show(given)}", param="n")
        if n > 1 and not self.format.has_n:
            raise RequestError(f"n: a request of this API has one answer, got {n}", param="n")
        if n > self.rerank.k:
            raise RequestError(
                f"n: {n} answers cannot be drawn from k={self.rerank.k} candidates", param="n"
            )
        return n

    def _check_number(self, num_prompts: int) -> None:
        num = num_prompts * self.rerank.k
        if num > _MAX_CANDIDATES:
            param = "q_probe.k" if num_prompts == 1 else "prompt"
            raise RequestError(
                f"{param}: {num_prompts} prompts with k={self.rerank.k} are {num} candidates, a "
                f"request may have {_MAX_CANDIDATES}",
                param=param,
            )

    def _check_budget(self, num_prompts: int) -> None:
        if self.budget_tokens is None:
            return
        most = self.budget_tokens // (self.rerank.k * num_prompts)
        said = self.format.max_tokens(self.body)
        given = {name: value for name, value in said.items() if value is not None}
        # Each of them: nobody knows which the upstream heeds.
        for name, value in (given or {"max_tokens": None}).items():
            # Some servers take -1 for no bound.
            number = value if isinstance(value, int) and not isinstance(value, bool) else 0
            if not 1 <= number <= most:
                raise RequestError(
                    f"{name}: must be given, from 1 to {most} for k={self.rerank.k}: the "
                    f"candidates of a request may have {self.budget_tokens} tokens "
                    f"(--budget-tokens), got {show(value)}",
                    param=name,
                )


async def _run_all(runs: Sequence[PromptRun], asked: Asked, deadline_s: float) -> list[Candidate]:
    """Run prompts side by side; what fails first ends the others."""
    tasks = []
    turns = Turns()
    try:
        for each in runs:
            tasks.append(asyncio.create_task(each.run(asked, deadline_s=deadline_s)))
            await turns.give_way()
        chosen = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [candidate for each in chosen for candidate in each]
