"""``qprobe sweep`` and ``train``, thin layers over the package ``qprobe``; all commands' parser.

Needs no engine. A probe records the prompts that it has seen, so that ``eval`` takes others.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qprobe import Probe, ProbeInfo, save_probe
from qprobe.dataset import Dataset, Reading
from qprobe.errors import DatasetError
from qprobe.probe import OBJECTIVES, Layer
from qprobe.report import write_report
from qprobe.split import DEFAULT_TEST_FRACTION, SEEN, note_seen, split_prompts
from qprobe.sweep import Cell, format_table, run_sweep, write_sweep
from qprobe.training import FittedProbe, TrainingSettings, fit_probe
from qprobe_server import eval_command, schedule_command
from qprobe_server.errors import StartupError

__all__ = ["run", "train"]

Json = dict[str, Any]
_SWEPT_OBJECTIVES = ("ce", "pg")


def run(argv: Sequence[str]) -> None:
    """Run a command; exits on a usage error, as argparse does.

    Raises:
        QProbeError: The dataset, the probe or a setting is not valid.
    """
    args = _parse(argv)
    args.run(args)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    main = argparse.ArgumentParser(prog="qprobe", description="Reranked generation with Q-probes.")
    main.add_argument("--version", action="version", version=version("qprobe"))
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # These two have vLLM's flags and their own parser; here they are named only.
    commands.add_parser("serve", help="serve a model with probes", add_help=False)
    commands.add_parser("collect", help="sample prompts into a dataset", add_help=False)

    sweep = commands.add_parser("sweep", help="compare layers, poolings and objectives")
    sweep.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    sweep.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    sweep.add_argument(
        "--readings",
        type=_readings,
        metavar="15/mean/48,final/last",
        help="LAYER/last, LAYER/mean or LAYER/mean/WINDOW; default: all that the dataset has",
    )
    sweep.add_argument("--objectives", type=_names, default=_SWEPT_OBJECTIVES, metavar="ce,pg")
    _add_training_flags(sweep)
    sweep.set_defaults(run=_sweep)

    train = commands.add_parser("train", help="train a probe")
    train.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    train.add_argument("-o", "--output", type=Path, required=True, help="the probe's file")
    train.add_argument(
        "--layer", type=_layer, required=True, help="as in the dataset: a number or 'final'"
    )
    train.add_argument("--pooling", choices=["mean", "last"], default="mean")
    train.add_argument("--window", type=_count, help="mean of the first so many tokens only")
    train.add_argument("--objective", choices=OBJECTIVES, default="ce")
    train.add_argument(
        "--checkpoints",
        type=_counts,
        default=(),
        metavar="16,32,64",
        help="also heads for the first so many tokens, which early rejection needs",
    )
    _add_training_flags(train)
    train.set_defaults(run=_train)

    eval_command.add_parser(commands)
    schedule_command.add_parser(commands)
    return main.parse_args(list(argv))


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, default=16, help="candidates per prompt; default 16")
    parser.add_argument("--beta", type=float, default=0.1, help="of the choice; default 0.1")
    parser.add_argument(
        "--hidden", type=_counts, default=(), metavar="64,32", help="an MLP; default: linear"
    )
    parser.add_argument(
        "--weight-decays", type=_numbers, default=(), metavar="1,10", help="to choose from"
    )
    parser.add_argument("--folds", type=int, default=5, help="of cross-validation; default 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--licence", help="SPDX expression for the probe's weights")
    parser.add_argument(
        "--test-fraction",
        type=float,
        help="of the prompts, set aside for the test at random; default: the rows' field 'split' "
        f"says train or test; if they have none, {DEFAULT_TEST_FRACTION}",
    )


def _readings(text: str) -> list[Reading]:
    try:
        return [Reading.parse(each) for each in text.split(",")]
    except DatasetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _layer(text: str) -> Layer:
    return "final" if text == "final" else _count(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(each) for each in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def _settings(args: argparse.Namespace, objective: str) -> TrainingSettings:
    return TrainingSettings(
        objective=objective,
        beta=args.beta,
        k=args.k,
        hidden=args.hidden,
        weight_decays=args.weight_decays,
        num_folds=args.folds,
        seed=args.seed,
    )


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StartupError(f"--output {str(path)!r} must be a folder")


def _check_file(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise StartupError(f"--output {str(path)!r} must be a file in a folder that is there")


def _sweep(args: argparse.Namespace) -> None:
    _check_folder(args.output)
    dataset = Dataset.load(args.data)

    def show(cell: Cell) -> None:
        reward = cell.refusal if cell.reward is None else f"{cell.reward:.4f}"
        sys.stderr.write(f"{cell.reading} {cell.objective}: {reward}\n")

    result = run_sweep(
        dataset,
        readings=args.readings or dataset.readings,
        objectives=args.objectives,
        settings=_settings(args, args.objectives[0]),
        test_fraction=args.test_fraction,
        seed=args.seed,
        progress=show,
    )
    write_sweep(result, args.output)
    probe = _make_probe(
        dataset,
        result.winner.reading,
        result.settings,
        result.probe,
        test=result.test,
        licence=args.licence,
    )
    save_probe(probe, args.output / "probe.safetensors")
    title = f"Sweep winner: {result.winner.reading}, {result.winner.objective}"
    cells = [cell.to_json() for cell in result.cells]
    write_report({**result.metrics, "title": title, "sweep": cells}, args.output)
    sys.stdout.write(format_table(result))
    eval_command.print_headline(result.metrics)
    sys.stdout.write(f"{args.output / 'report.html'}\n{args.output / 'probe.safetensors'}\n")


def _train(args: argparse.Namespace) -> None:
    _check_file(args.output)
    dataset = Dataset.load(args.data)
    reading = Reading(args.layer, args.pooling, args.window)
    probe = train(
        dataset,
        reading,
        _settings(args, args.objective),
        test_fraction=args.test_fraction,
        licence=args.licence,
        checkpoints=args.checkpoints,
    )
    save_probe(probe, args.output)
    chosen = probe.info.training
    sys.stdout.write(
        f"trained on {chosen['train_prompts']} prompts, weight decay {chosen['weight_decay']}, "
        f"cross-validated reward {chosen['cross_validated_reward']:.4f} (base "
        f"{chosen['train_base']:.4f})\n{args.output}\n"
    )


def train(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings,
    *,
    test_fraction: float | None,
    licence: str | None = None,
    checkpoints: Sequence[int] = (),
) -> Probe:
    """Train a probe on a dataset, less the prompts that are set aside.

    Args:
        dataset: Loaded whole.
        reading: Stored in it.
        settings: Of the training; the seed also of the split.
        test_fraction: Of the prompts, 0 <= test_fraction < 1; None as in ``split_prompts``.
        licence: SPDX expression for the weights.
        checkpoints: Numbers of tokens. The probe gets a linear head for each, trained in the same
            way on the mean over the first so many tokens of the same layer.

    Raises:
        QProbeError: The dataset cannot be split or trained on, or lacks the reading.
    """
    kept: list[int] = list(range(len(dataset.prompts)))
    test: list[int] = []
    if test_fraction != 0:
        kept, test = split_prompts(dataset.prompts, test_fraction=test_fraction, seed=settings.seed)
    known = dataset.subset(kept)
    questions = known.questions[known.groups]

    def fit(reading: Reading, settings: TrainingSettings) -> FittedProbe:
        features = known.features(reading)
        return fit_probe(features, known.rewards, known.groups, settings, questions)

    readings = {tokens: Reading(reading.layer, "mean", tokens) for tokens in sorted({*checkpoints})}
    known.require([reading, *readings.values()])
    fitted = fit(reading, settings)
    linear = replace(settings, hidden=())
    heads = {tokens: fit(of_head, linear).layers[0] for tokens, of_head in readings.items()}
    return _make_probe(dataset, reading, settings, fitted, test=test, licence=licence, heads=heads)


def _make_probe(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings,
    fitted: FittedProbe,
    *,
    test: list[int],
    licence: str | None,
    heads: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Probe:
    manifest = dataset.manifest
    trained_on = ~np.isin(dataset.groups, test)  # (samples,)
    best = max(float(row["reward"]) for row in fitted.cross_validation)
    training = {
        "dataset": dataset.digest,
        "adapter": manifest.get("adapter"),
        "prompts": manifest.get("prompts"),
        "reward": manifest.get("reward"),
        "sampling": manifest.get("sampling"),
        "train_prompts": len(dataset.prompts) - len(test),
        "train_samples": int(trained_on.sum()),
        "train_base": float(dataset.rewards[trained_on].mean()),
        "cross_validated_reward": best,
        "weight_decay": fitted.weight_decay,
        "weight_decays": list(settings.weight_decays),
        "hidden": list(settings.hidden),
        "scale": fitted.scale,
        "seed": settings.seed,
        "k": settings.k,
        "beta": settings.beta,
        "folds": settings.num_folds,
        "qprobe": version("qprobe"),
        SEEN: note_seen([dataset.prompts[i] for i in np.unique(dataset.groups[trained_on])]),
    }
    info = ProbeInfo(
        base_model=manifest["model"],
        hidden_size=manifest["hidden_size"],
        num_layers=manifest["num_layers"],
        layer=reading.layer,
        pooling=reading.pooling,
        window=reading.window,
        objective=settings.objective,
        k=settings.k,
        beta=settings.beta,
        training=training,
        licence=licence,
        checkpoints=tuple(heads or ()),
    )
    return Probe(info, fitted.layers, heads)
