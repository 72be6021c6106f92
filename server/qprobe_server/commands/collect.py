"""``qprobe collect``: checks what can be checked, starts the engine, makes the dataset."""

import argparse
from typing import TYPE_CHECKING, Any

from qprobe.data.prompts import PromptRow
from qprobe.data.source import Source
from qprobe.errors import PromptFileError, RowError
from qprobe.rewards import Reward
from qprobe_server.commands.api_flags import check_api_flags
from qprobe_server.commands.collect_flags import DEFAULT_WINDOWS
from qprobe_server.commands.manifest import (
    DEFAULT_N,
    SAMPLING_FLAGS,
    SEED_STRIDE,
    check_same,
    describe,
    describe_flags,
)
from qprobe_server.commands.parser import refuse_flags
from qprobe_server.commands.preflight import check_adapter, check_model, check_worker
from qprobe_server.commands.prompt_source import read_rows
from qprobe_server.commands.rewarding import HowToReward, Rewarding, find_reward, try_out
from qprobe_server.commands.serve import choose_default_model, name_given, prepare_environment
from qprobe_server.commands.shots import put_shots
from qprobe_server.commands.solutions import check_solutions
from qprobe_server.commands.summary import print_summary
from qprobe_server.errors import StartupError

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import SamplingEngine

__all__ = ["check_token_states", "run"]

Json = dict[str, Any]

# The scheduler runs in this process, so that the same prompts are sampled in the same batches: a
# collection that goes on comes out as one that was never stopped.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_REWARD_FLAGS = ("reward_workers", "reward_batch", "reward_timeout", "keep_unsolved")


def run(given: argparse.Namespace) -> None:
    """Collect as the command line says; goes on where an earlier run was stopped.

    Args:
        given: The flags as ``commands.arguments`` has read them.

    Raises:
        QProbeError: A row, the reward or the dataset's folder is not valid.
        StartupError: A flag is not valid, or the model cannot be had.
    """
    check_api_flags(given)
    if given.embeddings is None:
        prepare_environment(verbose=given.verbose, **_ENVIRONMENT)
    if given.reader is not None:
        given.model = given.reader
    _check_flags(given)
    reward = None if given.reward is None else find_reward(given)
    rows = _read_rows(given, reward)
    check_same(given.output, describe_flags(given, rows))
    if reward is not None:
        first = next((each.text for each in rows[0].completions), None)
        how = HowToReward.of(given, reward)
        try_out(reward, how, rows[0].fields, first if given.completions else None)
        # One that goes on was checked when it was begun.
        if not (given.output / "manifest.json").exists():
            keep = given.keep_unsolved
            check_solutions(given.prompts, rows, reward, workers=how.workers, keep=keep)
    # Not at the top: torch takes seconds, which no mistake above should cost.
    from qprobe.data.writer import check_output

    check_output(given.output)
    if given.embeddings is not None:
        _collect_by_endpoint(given, reward, rows)
    else:
        _collect_by_engine(given, reward, rows)
    print_summary(given.output)


def _collect_by_endpoint(
    args: argparse.Namespace, reward: Reward | None, rows: list[PromptRow]
) -> None:
    # Not at the top: an engine needs none of it.
    from qprobe_server.commands.collect_api import collect_by_endpoint, embed_given

    if args.completions:
        embed_given(args, reward, rows)
        return
    assert reward is not None  # only --completions may go without
    collect_by_endpoint(args, reward, rows)


def _collect_by_engine(
    given: argparse.Namespace, reward: Reward | None, rows: list[PromptRow]
) -> None:
    # Not at the top: vLLM takes seconds, and reads the environment when it is imported.
    from qprobe_server.vllm_backend import arguments

    args = arguments.parse(given.argv, given.add_flags)
    args.given = name_given(given)
    args.windows = DEFAULT_WINDOWS if args.windows is None else args.windows
    args.model = args.reader or args.model or choose_default_model()
    if args.upstream is None:
        _collect(args, reward, rows)
        return
    from qprobe_server.commands.collect_api import collect_by_reader
    from qprobe_server.vllm_backend.sampling import SamplingEngine

    assert reward is not None  # only --completions may go without
    engine = SamplingEngine(args, layers=args.layers, windows=args.windows, adapter=None)
    collect_by_reader(args, engine, reward, rows)


def _check_flags(args: argparse.Namespace) -> None:
    check_model(args.model, args)
    check_adapter(args.adapter)
    check_worker(args)
    if args.n is not None and args.n > SEED_STRIDE:
        raise StartupError(f"--n must be at most {SEED_STRIDE}, got {args.n}")
    if not args.completions:
        if args.reward is None:
            raise StartupError("--reward is missing: tests, numeric, regex, python:... or a URL")
        return
    sampling = ("n", *SAMPLING_FLAGS, "no_greedy")
    refuse_flags(args, sampling, "goes with sampling, not with --completions")
    if args.reward is None:
        refuse_flags(args, _REWARD_FLAGS, "goes with --reward")


def _read_rows(args: argparse.Namespace, reward: Reward | None) -> list[PromptRow]:
    rows = read_rows(args, reward)
    if (
        args.completions
        and reward
        and all(c.reward is not None for r in rows for c in r.completions)
    ):
        raise StartupError("--reward is not used: every completion of the file has a reward")
    return put_shots(args, rows)


def _collect(args: argparse.Namespace, reward: Reward | None, rows: list[PromptRow]) -> None:
    # Not at the top: they import torch and vLLM.
    from qprobe.data.writer import DatasetWriter
    from qprobe_server.commands.collection import collect_given, collect_samples, readings_of
    from qprobe_server.commands.progress import open_bar
    from qprobe_server.vllm_backend.sampling import SamplingEngine

    engine = SamplingEngine(
        args,
        layers=args.layers,
        windows=args.windows,
        adapter=args.adapter,
        token_layers=args.token_states or (),
    )
    given = {name: getattr(args, name) for name in SAMPLING_FLAGS}
    params = engine.sampling_params({k: v for k, v in given.items() if v is not None})
    prompts = _tokenize(engine, args.prompts, rows)
    check_token_states(args, engine, rows, prompts, params.max_tokens)
    manifest = describe(args, engine, rows, params, [str(each) for each in readings_of(engine)])
    check_same(args.output, manifest)
    how = HowToReward.of(args, reward)
    with (
        DatasetWriter(args.output, manifest, [row.fields for row in rows]) as writer,
        Rewarding(reward, how) as rewarding,
    ):
        greedy = not args.no_greedy
        n = args.n or DEFAULT_N
        counts = [len(row.completions) if args.completions else n + greedy for row in rows]
        with open_bar(writer, counts) as bar:
            shared: Json = {"progress": bar.advance}
            if args.completions:
                collect_given(engine, writer, rows, prompts, rewarding, **shared)
            else:
                shared |= {"params": params, "n": n, "seed": args.seed, "greedy": greedy}
                collect_samples(engine, writer, rows, prompts, rewarding, **shared)


def check_token_states(
    args: argparse.Namespace,
    engine: "SamplingEngine",
    rows: list[PromptRow],
    prompts: list[list[int]],
    max_tokens: int | None,
) -> None:
    """Check the disk space that the states of single tokens may take at most.

    Args:
        args: The flags.
        engine: Of the collection.
        rows: All of them.
        prompts: Their tokens.
        max_tokens: That a sample may have; None: as many as fit.

    Raises:
        StartupError: It is more than the limit.
    """
    num_layers, hidden = len(engine.token_layers), engine.facts.hidden_size
    if not num_layers:
        return
    if args.completions:
        lengths = [
            len(engine.tokenizer.completion(each.text)) for row in rows for each in row.completions
        ]
    else:
        left = [engine.context - len(each) for each in prompts]
        lengths = [min(max_tokens or each, each) for each in left] * (args.n or DEFAULT_N)
    gib = sum(max(each, 1) for each in lengths) * hidden * 2 * num_layers / (1 << 30)
    if gib > args.token_states_limit:
        raise StartupError(
            f"--token-states may take {gib:.1f} GiB ({len(lengths)} samples of at most "
            f"{max(lengths)} tokens x {num_layers} layers x {hidden} numbers of 2 bytes), more "
            f"than --token-states-limit {args.token_states_limit}"
        )


def _tokenize(engine: "SamplingEngine", source: Source, rows: list[PromptRow]) -> list[list[int]]:
    """Return every prompt's tokens, so that nothing is sampled before all are known to be right."""
    found = []
    for row in rows:
        try:
            found.append(
                engine.tokenizer.prompt(row.prompt, [each.text for each in row.completions])
            )
        except RowError as error:
            raise PromptFileError(source, row.line, error.field, error.message) from error
    return found
