"""What a dataset records of how it was made, and which flag differs when a collection goes on."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from qprobe.data.prompts import PromptRow
from qprobe.data.sample import FORMAT_VERSION
from qprobe.rewards.custom import find_source
from qprobe_server.commands.api_flags import API_FLAGS, describe_api
from qprobe_server.commands.prompt_source import SOURCE_FLAGS, describe_source
from qprobe_server.commands.reward_service import is_url
from qprobe_server.commands.shots import SHOTS_FLAGS, describe_shots
from qprobe_server.errors import StartupError

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import SamplingEngine
    from qprobe_server.vllm_backend.sampling_parameters import SamplingParameters

__all__ = [
    "DEFAULT_N",
    "SAMPLING_FLAGS",
    "SEED_STRIDE",
    "check_same",
    "describe",
    "describe_engine",
    "describe_flags",
    "name_reward",
]

Json = dict[str, Any]

# Sample j of prompt i is drawn with the seed ``seed + i * SEED_STRIDE + j``, as a server draws it
# that is asked with ``seed + i * SEED_STRIDE``.
SEED_STRIDE = 10_000
DEFAULT_N = 16
SAMPLING_FLAGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
_SAMPLES_PER_SHARD = 256
# Of a model's file that are read to know it again.
_NUM_BLOCKS, _BLOCK = 1024, 4096

# Where a field differs, this was changed. In the order in which it is told: a later field may
# follow from a former one, as prompts_per_shard does from n.
_FLAGS = {
    "model": "--model, --reader or --embedding-model",
    "model_files": "--model or --reader",
    "revision": "--revision",
    "adapter": "--adapter",
    **API_FLAGS,
    **{f"prompts.{name}": flag for name, flag in SOURCE_FLAGS.items()},
    "num_prompts": "--limit",
    "shots": "--shots",
    **{f"shots.{name}": flag for name, flag in SHOTS_FLAGS.items()},
    "completions": "--completions",
    "sampling.n": "--n",
    "sampling.seed": "--seed",
    "no_greedy": "--no-greedy",
    **{f"sampling.{name}": f"--{name.replace('_', '-')}" for name in SAMPLING_FLAGS},
    "reward": "--reward",
    "reward_source": "--reward",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "readings": "--layers or --windows",
    "token_states": "--token-states",
    "prompts_per_shard": "--prompts-per-shard",
}
_HASHES = ("model_files", "prompts.sha256", "shots.sha256", "reward_source")
_MENDED = (
    "collect into another folder, or go on with the old file and --on-reward-error skip, and "
    "reward all of it with the new one by `qprobe reward`"
)


def describe_flags(args: argparse.Namespace, rows: Sequence[PromptRow]) -> Json:
    """Return what of the manifest the command line says, before there is an engine.

    Args:
        args: As either parser has read them.
        rows: The prompts.
    """
    n = args.n or DEFAULT_N
    per_prompt = max(len(row.completions) for row in rows) if args.completions else n
    given = {name: getattr(args, name) for name in ("seed", *SAMPLING_FLAGS)}
    sampling = {name: value for name, value in given.items() if value is not None}
    sampling |= {"n": n, "greedy": not args.no_greedy}
    adapter = None
    if args.adapter is not None:
        weights = [*Path(args.adapter).glob("adapter_model.*")]
        adapter = {"name": Path(args.adapter).absolute().name, "sha256": _hash(*weights)}
    return {
        **({} if args.model is None else _name_model(args.model)),
        "revision": args.revision,
        "adapter": adapter,
        "sampling": None if args.completions else sampling,
        **name_reward(args.reward),
        "prompts": describe_source(args, rows),
        "num_prompts": len(rows),
        "shots": describe_shots(args, rows),
        "prompts_per_shard": args.prompts_per_shard or max(1, _SAMPLES_PER_SHARD // per_prompt),
        **describe_api(args),
    }


def describe(
    args: argparse.Namespace,
    engine: "SamplingEngine",
    rows: list[PromptRow],
    params: "SamplingParameters",
    readings: list[str],
) -> Json:
    """Return the manifest: all that the data depend on, and nothing secret."""
    made = describe_flags(args, rows)
    if made["sampling"] is not None:
        made["sampling"] |= engine.record(params)
    # As in datasets that were begun before there were any: None without.
    made["token_states"] = list(engine.token_layers) or None
    return {**made, **describe_engine(engine), "readings": readings}


def describe_engine(engine: "SamplingEngine") -> Json:
    """Return what the manifest says of the engine and its model."""
    return {
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "hidden_size": engine.facts.hidden_size,
        "num_layers": engine.facts.num_layers,
        "engine": engine.describe(),
        "versions": {name: version(name) for name in ("qprobe", "torch", "transformers")},
    }


def check_same(folder: Path, made: Json) -> None:
    """Check that a dataset that was begun, if one was, was begun with the same flags.

    Args:
        folder: Of the dataset.
        made: The manifest, or a part of it; what it lacks may be anything.

    Raises:
        StartupError: It was not; the first flag that differs is named.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return
    try:
        stored = _flatten(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise StartupError(f"{str(path)!r} is no manifest of a dataset: {error}") from error
    wanted = _flatten(json.loads(json.dumps(made)))
    begun = f"the dataset in {str(folder)!r} was begun"
    if stored.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise StartupError(
            f"{begun} by an older qprobe, which wrote format {stored['format_version']!r}: it can "
            "be read, and not gone on with; collect into another folder"
        )
    for field, flag in _FLAGS.items():
        if field not in wanted or wanted[field] == stored.get(field):
            continue
        if field in _HASHES:
            what = f"{flag}: the files are not what they were when {begun}"
            if field == "reward_source":
                raise StartupError(f"{what}: {_MENDED}")
        else:
            what = f"{flag} is {wanted[field]!r}, but {begun} with {stored.get(field)!r}"
        raise StartupError(f"{what}: collect into another folder")


def _flatten(manifest: Json) -> Json:
    """Return a manifest's fields as ``_FLAGS`` names them."""
    sampling = manifest.get("sampling") or {}
    flat = {**manifest, "completions": not sampling, "shots": bool(manifest.get("shots"))}
    for name in ("prompts", "shots", "sampling", "upstream", "endpoint"):
        fields = manifest.get(name) or {}
        flat |= {f"{name}.{field}": value for field, value in fields.items()}
    if sampling:
        flat["no_greedy"] = not sampling.get("greedy")
    return flat


def _name_model(model: str) -> Json:
    """Return a hub id as it is, and of a folder its name and content: its place says nothing."""
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model}
    # What generation_config.json sets is in the manifest already, as far as it counts.
    files = {
        path.name: _sample(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "generation_config.json"
    }
    content = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {"model": folder.resolve().name, "model_files": content}


def _sample(path: Path) -> str:
    """Return a hash of a file's size and of blocks spread over it: all of it, up to 4 MiB.

    Weights are too large to be read whole; tuning changes whole matrices, which a block meets.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in range(_NUM_BLOCKS):
            file.seek(size * place // _NUM_BLOCKS)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def name_reward(reward: str | None) -> Json:
    """Return what is recorded of a reward: its name, and the hash of its file if it has one."""
    if is_url(reward):
        url = httpx.URL(str(reward))
        # Neither a password nor what stands behind the question mark: both may be secret.
        return {"reward": str(url.copy_with(userinfo=b"", query=None, fragment=None))}
    kind, _, where = (reward or "").partition(":")
    source = find_source(where.rpartition(":")[0]) if kind == "python" else None
    if source is None:
        return {"reward": reward}
    return {"reward": reward, "reward_source": _hash(source)}


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
