"""``qprobe train``: one probe of a dataset. Needs no engine."""

import argparse
import sys
from pathlib import Path

from qprobe import save_probe
from qprobe.data.dataset import Dataset, Reading
from qprobe.training.fit import TrainingSettings
from qprobe.training.recipe import train
from qprobe_server.errors import StartupError

__all__ = ["read_settings", "run"]


def run(args: argparse.Namespace) -> None:
    """Train a probe and write its file.

    Raises:
        QProbeError: The dataset or a setting is not valid.
    """
    _check_file(args.output)
    dataset = Dataset.load(args.data)
    reading = Reading(args.layer, args.pooling, args.window)
    probe = train(
        dataset,
        reading,
        read_settings(args, args.objective),
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


def read_settings(args: argparse.Namespace, objective: str) -> TrainingSettings:
    """Return the settings that the flags of training ask for."""
    return TrainingSettings(
        objective=objective,
        beta=args.beta,
        k=args.k,
        hidden=args.hidden,
        weight_decays=args.weight_decays,
        num_folds=args.folds,
        seed=args.seed,
    )


def _check_file(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise StartupError(f"--output {str(path)!r} must be a file in a folder that is there")
