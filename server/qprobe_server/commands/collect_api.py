"""``qprobe collect --upstream`` and ``--embeddings``: no model here samples.

An API does, or the rows bring their answers; a model here or an embeddings endpoint reads.
"""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qprobe.data.prompts import PromptRow
from qprobe.data.writer import DatasetWriter
from qprobe.rewards import Reward
from qprobe_server.commands.answer_shards import Embedder
from qprobe_server.commands.api_collection import SamplingPlan, collect_from_api
from qprobe_server.commands.api_flags import DEFAULT_CONCURRENCY, DEFAULT_MAX_TOKENS
from qprobe_server.commands.api_sampling import DEADLINE_S, ApiSampler
from qprobe_server.commands.embedders import EndpointEmbedder, EngineEmbedder, Run
from qprobe_server.commands.given_collection import collect_given_by_endpoint
from qprobe_server.commands.manifest import (
    DEFAULT_N,
    SAMPLING_FLAGS,
    check_same,
    describe_engine,
    describe_flags,
)
from qprobe_server.commands.printing import warn
from qprobe_server.commands.progress import open_bar
from qprobe_server.commands.rewarding import HowToReward, Rewarding
from qprobe_server.errors import ReadingError, StartupError
from qprobe_server.proxy.address import read_address
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint
from qprobe_server.proxy.keys import find_embeddings_key
from qprobe_server.proxy.upstream import explain

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import SamplingEngine

__all__ = ["collect_by_endpoint", "collect_by_reader", "embed_given"]

Json = dict[str, Any]


def collect_by_reader(
    args: argparse.Namespace, engine: "SamplingEngine", reward: Reward, rows: list[PromptRow]
) -> None:
    """Collect, with a model here that reads.

    Args:
        args: The flags, vLLM's among them.
        engine: Of the reader.
        reward: Of the answers.
        rows: The prompts, checked.

    Raises:
        QProbeError: A prompt cannot be read, or the dataset's folder is not valid.
        ServerError: The API, or what reads, gives no answer.
    """
    embedder = EngineEmbedder(engine, rows, args.prompts)
    manifest = {
        **describe_flags(args, rows),
        **describe_engine(engine),
        "readings": embedder.readings,
    }
    with _open_sampler(args) as sampler:
        _collect(args, sampler, embedder, manifest, reward, rows)


def collect_by_endpoint(args: argparse.Namespace, reward: Reward, rows: list[PromptRow]) -> None:
    """Collect, with an embeddings endpoint that reads. Needs no vLLM.

    Args and errors are those of ``collect_by_reader``.
    """
    with (
        _open_sampler(args) as sampler,
        _open_embedder(args, sampler.run, rows) as (embedder, manifest),
    ):
        _collect(args, sampler, embedder, manifest, reward, rows)


def embed_given(args: argparse.Namespace, reward: Reward | None, rows: Sequence[PromptRow]) -> None:
    """Collect the completions that the rows bring, with an embeddings endpoint that reads.

    Args and errors are those of ``collect_by_endpoint``; without a reward all completions have one.
    """
    with (
        asyncio.Runner() as runner,
        _open_embedder(args, runner.run, rows) as (embedder, manifest),
    ):
        check_same(args.output, manifest)
        with (
            DatasetWriter(args.output, manifest, [row.fields for row in rows]) as writer,
            Rewarding(reward, HowToReward.of(args, reward)) as rewarding,
            open_bar(writer, [len(row.completions) for row in rows]) as bar,
        ):
            collect_given_by_endpoint(
                embedder,
                writer,
                rows,
                rewarding,
                skip_unread=args.on_refusal == "skip",
                progress=bar.update,
            )


@contextmanager
def _open_embedder(
    args: argparse.Namespace, run: Run, rows: Sequence[PromptRow]
) -> Iterator[tuple[EndpointEmbedder, Json]]:
    """Open the embeddings endpoint; gives what reads by it, and the dataset's manifest.

    Raises:
        StartupError: The endpoint gives no embeddings, now or later.
    """
    flags = describe_flags(args, rows)
    endpoint = EmbeddingsEndpoint(
        read_address("--embeddings", args.embeddings),
        model=args.embedding_model,
        api_key=find_embeddings_key(),
        key_header=args.embeddings_key_header,
        total_s=DEADLINE_S,
    )
    try:
        template = flags["endpoint"]["template"]
        hidden_size = run(endpoint.probe())
        embedder = EndpointEmbedder(endpoint, run, rows, template=template, hidden_size=hidden_size)
        yield (
            embedder,
            {
                **flags,
                "hidden_size": hidden_size,
                "num_layers": 1,
                "readings": embedder.readings,
                "versions": {name: version(name) for name in ("qprobe", "torch")},
            },
        )
    except ReadingError as error:
        raise StartupError(f"--embeddings: {explain(error)}") from error
    finally:
        run(endpoint.close())


def _open_sampler(args: argparse.Namespace) -> ApiSampler:
    return ApiSampler(
        args.upstream,
        key_header=args.upstream_key_header,
        concurrency=args.upstream_concurrency or DEFAULT_CONCURRENCY,
    )


def _collect(
    args: argparse.Namespace,
    sampler: ApiSampler,
    embedder: Embedder,
    manifest: Json,
    reward: Reward,
    rows: Sequence[PromptRow],
) -> None:
    given = {name: getattr(args, name) for name in SAMPLING_FLAGS}
    params = {name: value for name, value in given.items() if value is not None}
    plan = SamplingPlan(
        model=args.upstream_model,
        params={"max_tokens": DEFAULT_MAX_TOKENS, **params},
        n=args.n or DEFAULT_N,
        seed=args.seed or 0,
        greedy=not args.no_greedy,
        logprobs=args.upstream_logprobs,
    )
    manifest["sampling"] |= {"seed": plan.seed, **plan.params}
    check_same(args.output, manifest)
    with (
        DatasetWriter(args.output, manifest, [row.fields for row in rows]) as writer,
        Rewarding(reward, HowToReward.of(args, reward)) as rewarding,
        open_bar(writer, [plan.n + plan.greedy] * len(rows)) as bar,
    ):
        collect_from_api(
            sampler,
            embedder,
            writer,
            rows,
            rewarding,
            plan=plan,
            skip_refused=args.on_refusal == "skip",
            progress=bar.update,
        )
    if not sampler.takes_seeds:
        warn("--upstream: the API takes no seed, so that its samples cannot be had again")
