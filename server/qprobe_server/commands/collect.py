"""``qprobe collect``: checks what can be checked, starts the engine, makes the dataset."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tqdm import tqdm

from qprobe.data.prompts import PromptRow, read_prompts
from qprobe.data.writer import DatasetWriter, check_output
from qprobe.errors import PromptFileError, RowError
from qprobe.rewards import Reward, make_reward
from qprobe_server.commands.collection import (
    SEED_STRIDE,
    collect_given,
    collect_samples,
    readings_of,
)
from qprobe_server.commands.reward_service import HttpReward
from qprobe_server.commands.serve import choose_default_model, prepare_environment
from qprobe_server.errors import StartupError

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import SamplingEngine, SamplingParameters

__all__ = ["main", "run"]

Json = dict[str, Any]

# The scheduler runs in this process, so that the same prompts are sampled in the same batches: a
# collection that goes on comes out as one that was never stopped.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_SAMPLES_PER_SHARD = 256
_DEFAULT_N = 16
_HTTP_WORKERS = 8
# The value of the header ``Authorization`` for a reward service: not a flag, which others can see.
_AUTHORIZATION = "QPROBE_REWARD_AUTHORIZATION"
_SAMPLING_FLAGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, and collect; see ``run``."""
    prepare_environment(**_ENVIRONMENT)
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend import arguments

    args = arguments.parse(argv)
    if args.model is None:
        args.model = choose_default_model(args)
    run(args)


def run(args: argparse.Namespace) -> None:
    """Collect as the command line says; goes on where an earlier run was stopped.

    Raises:
        QProbeError: A row, the reward or the dataset's folder is not valid.
        StartupError: A flag is not valid, or the model cannot be had.
    """
    _check_flags(args)
    check_output(args.output)
    reward = _find_reward(args)
    rows = read_prompts(
        args.prompts,
        layout=args.layout,
        needs_completions=args.completions,
        needs_rewards=args.completions and reward is None,
        check=reward.check if reward else None,
    )[: args.limit]
    if (
        args.completions
        and reward
        and all(c.reward is not None for r in rows for c in r.completions)
    ):
        raise StartupError("--reward is not used: every completion of the file has a reward")
    # Not at the top: it imports vLLM, which reads the environment.
    from qprobe_server.vllm_backend.sampling import SamplingEngine

    engine = SamplingEngine(args, layers=args.layers, windows=args.windows, adapter=args.adapter)
    given = {name: getattr(args, name) for name in _SAMPLING_FLAGS}
    params = engine.sampling_params({k: v for k, v in given.items() if v is not None})
    prompts = _tokenize(engine, args.prompts, rows)
    manifest = _describe(args, engine, rows, params)
    workers = args.reward_workers or (_HTTP_WORKERS if _is_url(args.reward) else os.cpu_count())
    with DatasetWriter(args.output, manifest, [row.fields for row in rows]) as writer:
        greedy = not args.no_greedy
        n = args.n or _DEFAULT_N
        counts = [len(row.completions) if args.completions else n + greedy for row in rows]
        missing = [prompt for shard in writer.missing() for prompt in writer.prompts_of(shard)]
        done = sum(counts) - sum(counts[prompt] for prompt in missing)
        with tqdm(total=sum(counts), initial=done, unit="sample") as bar:
            shared: Json = {"reward_workers": workers, "progress": bar.update}
            if args.completions:
                collect_given(engine, writer, rows, prompts, reward, **shared)
            else:
                assert reward is not None  # checked with the flags
                shared |= {"params": params, "n": n, "seed": args.seed, "greedy": greedy}
                collect_samples(engine, writer, rows, prompts, reward, **shared)


def _check_flags(args: argparse.Namespace) -> None:
    if args.n is not None and args.n > SEED_STRIDE:
        raise StartupError(f"--n must be at most {SEED_STRIDE}, got {args.n}")
    if not args.completions:
        if args.reward is None:
            raise StartupError("--reward is missing: tests, numeric, regex, python:... or a URL")
        return
    for name in ("n", *_SAMPLING_FLAGS):
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise StartupError(f"--{flag} goes with sampling, not with --completions")
    if args.no_greedy:
        raise StartupError("--no-greedy goes with sampling, not with --completions")


def _is_url(reward: str | None) -> bool:
    return reward is not None and reward.startswith(("http://", "https://"))


def _find_reward(args: argparse.Namespace) -> Reward | None:
    if args.reward is None:
        return None
    if not _is_url(args.reward):
        return make_reward(args.reward)
    authorization = os.environ.get(_AUTHORIZATION)
    return HttpReward(
        args.reward,
        max_concurrent=args.reward_workers or _HTTP_WORKERS,
        headers={"authorization": authorization} if authorization else None,
    )


def _tokenize(engine: "SamplingEngine", path: Path, rows: list[PromptRow]) -> list[list[int]]:
    """Return every prompt's tokens, so that nothing is sampled before all are known to be right."""
    found = []
    for row in rows:
        try:
            found.append(engine.tokenize(row.prompt, [each.text for each in row.completions]))
        except RowError as error:
            raise PromptFileError(path, row.line, error.field, error.message) from error
    return found


def _describe(
    args: argparse.Namespace,
    engine: "SamplingEngine",
    rows: list[PromptRow],
    params: "SamplingParameters",
) -> Json:
    """Return the manifest: all that the data depend on, and nothing secret."""
    n = args.n or _DEFAULT_N
    sampling = {**engine.record(params), "n": n, "seed": args.seed, "greedy": not args.no_greedy}
    per_prompt = max(len(row.completions) for row in rows) if args.completions else n
    adapter = None
    if args.adapter is not None:
        weights = [*Path(args.adapter).glob("adapter_model.*")]
        adapter = {"name": Path(args.adapter).name, "sha256": _hash(*weights)}
    return {
        **_name_model(args.model),
        "revision": args.revision,
        "adapter": adapter,
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "hidden_size": engine.facts.hidden_size,
        "num_layers": engine.facts.num_layers,
        "readings": [str(reading) for reading in readings_of(engine)],
        "sampling": None if args.completions else sampling,
        **_name_reward(args.reward),
        "prompts": {
            "name": args.prompts.name,
            "sha256": _hash(args.prompts),
            "layout": args.layout,
        },
        "num_prompts": len(rows),
        "prompts_per_shard": args.prompts_per_shard or max(1, _SAMPLES_PER_SHARD // per_prompt),
        "engine": engine.describe(),
        "versions": {name: version(name) for name in ("qprobe", "torch", "transformers")},
    }


def _name_model(model: str) -> Json:
    """Return a hub id as it is, and of a folder its name and content: its place says nothing."""
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model}
    # What generation_config.json sets is in the manifest already, as far as it counts.
    files = {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "generation_config.json"
    }
    config = _hash(folder / "config.json") if (folder / "config.json").is_file() else ""
    content = hashlib.sha256(json.dumps([files, config]).encode()).hexdigest()
    return {"model": folder.resolve().name, "model_files": content}


def _name_reward(reward: str | None) -> Json:
    if _is_url(reward):
        url = httpx.URL(str(reward))
        # Neither a password nor what stands behind the question mark: both may be secret.
        return {"reward": str(url.copy_with(userinfo=b"", query=None, fragment=None))}
    source = (reward or "").removeprefix("python:").rpartition(":")[0]
    if source.endswith(".py"):
        return {"reward": reward, "reward_source": _hash(Path(source))}
    return {"reward": reward}


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
