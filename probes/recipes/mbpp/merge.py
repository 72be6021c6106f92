"""Writes a model with a LoRA adapter in its weights, which vLLM samples faster on a CPU.

    python probes/recipes/mbpp/merge.py build/coder/sft --model MODEL -o build/coder/sft-merged

The folder is a model like any other, with tokenizer and defaults of sampling.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lora import load_model, open_tokenizer
from peft import PeftModel

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Write the folder of the model: weights in bfloat16, tokenizer and defaults of sampling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("adapter", type=Path, metavar="FOLDER", help="of tune.py's sft or dpo")
    parser.add_argument("--model", required=True, help="that was tuned: ORG/NAME or a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    model = load_model(args.model, has_head=True, dtype="bfloat16")
    merged = PeftModel.from_pretrained(model, str(args.adapter)).merge_and_unload()
    # transformers refuses to write a temperature without it.
    merged.generation_config.do_sample = True
    merged.save_pretrained(args.output)
    open_tokenizer(args.model).save_pretrained(args.output)


if __name__ == "__main__":
    main(sys.argv[1:])
