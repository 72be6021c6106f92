"""``qprobe train``: one probe of a dataset. Needs no engine."""

import argparse
import sys
from typing import TYPE_CHECKING

from qprobe.probe.reading import Reading
from qprobe_server.commands.datasets import check_datasets, load_datasets
from qprobe_server.commands.paths import check_output_file
from qprobe_server.commands.printing import warn, warn_of_gain
from qprobe_server.errors import StartupError

if TYPE_CHECKING:
    from qprobe import TrainingSettings

__all__ = ["read_settings", "run"]


def run(args: argparse.Namespace) -> None:
    """Train a probe and write its file.

    Raises:
        QProbeError: The dataset or a setting is not valid.
        StartupError: A path or a flag is not what it must be.
    """
    readings = _list_readings(args)
    check_output_file("--output", args.output)
    check_datasets(args.data)
    # Here, since torch takes seconds, which a wrong path should not.
    from tqdm import tqdm

    from qprobe import save_probe, train

    settings = read_settings(args, args.objective)
    dataset = load_datasets(args)
    with tqdm(unit="fit", disable=None, leave=False) as bar:

        def advance(total: int) -> None:
            bar.total = total
            bar.update()

        probe = train(
            dataset,
            readings,
            settings,
            numbers=args.numbers,
            gates=args.gate,
            k=args.k,
            test_fraction=args.test_fraction,
            licence=args.licence,
            checkpoints=args.checkpoints,
            progress=advance,
        )
    save_probe(probe, args.output)
    chosen = probe.info.training
    reward, base = chosen["cross_validated_reward"], chosen["train_base"]
    gain = chosen["cross_validated"]["gain"]
    sys.stdout.write(
        f"{probe.terms.describe()}\n"
        f"trained on {chosen['train_prompts']} prompts, k={probe.info.k}, weight decay "
        f"{chosen['weight_decay']}, cross-validated reward {reward:.4f}, base {base:.4f}, gain "
        f"{gain['difference']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}), a little too "
        "high, as the weight decay was chosen by it\n"
        f"{args.output}\n"
    )
    for note in chosen["notes"]:
        warn(note)
    warn_of_gain(chosen["cross_validated"])


def _list_readings(args: argparse.Namespace) -> list[Reading]:
    if args.layer is None:
        for flag, default in (("pooling", "mean"), ("window", None)):
            if getattr(args, flag) != default:
                raise StartupError(f"--{flag} needs --layer: --reading says its own")
        if not (args.reading or args.gate or args.numbers):
            raise StartupError(
                "--layer, --reading, --gate or --numbers must say what the probe reads"
            )
        return list(args.reading)
    if args.reading:
        raise StartupError("--layer and --reading say the same: give one of them")
    return [Reading(args.layer, args.pooling, args.window)]


def read_settings(args: argparse.Namespace, objective: str) -> "TrainingSettings":
    """Return the settings that the flags of training ask for."""
    from qprobe import TrainingSettings

    return TrainingSettings(
        objective=objective,
        beta=args.beta,
        per_prompt=args.per_prompt,
        weight_decays=args.weight_decays,
        num_folds=args.folds,
        seed=args.seed,
    )
