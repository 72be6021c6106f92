#!/usr/bin/env bash
# Every table of the study, on one model: run.sh MODEL STUDY [flags of every collection]
#
# MBPP and HUMANEVAL are the published files, once. What is there is not made again, and a collection
# that was stopped goes on; so run it again after whatever stopped it. README.md lists the folders.
set -euo pipefail
model=$1 study=$2
shift 2
flags=("$@")
here=$(cd "$(dirname "$0")" && pwd)
epochs=${EPOCHS:-2}
dtype=(${DTYPE:+--dtype "$DTYPE"})
read -r -a sizes <<<"${SIZES:-10 20 50 100 200}"

script() { python "$here/$1.py" "${@:2}"; }

sample() { # NAME PROMPTS [flags]
  [ -f "$study/$1/complete.json" ] ||
    qprobe collect "$study/$2.jsonl" --layout "${1%%-*}" --reward tests --keep-unsolved \
      --model "$model" -o "$study/$1" "${dtype[@]}" "${flags[@]}" "${@:3}"
}

tune() { # NAME METHOD ROWS [flags]
  [ -f "$study/$1/training.json" ] ||
    script tune "$2" "$study/$3.jsonl" --model "$model" -o "$study/$1" "${dtype[@]}" "${@:4}"
}

score() { # BENCHMARK [flags]
  [ -f "$study/reward/$1.json" ] ||
    script score "$study/reward" "$study/$1" --model "$model" "${dtype[@]}" "${@:2}"
}

[ -f "$study/mbpp.jsonl" ] || script prompts "$MBPP" -o "$study/mbpp.jsonl"
[ -f "$study/humaneval.jsonl" ] ||
  script prompts "$HUMANEVAL" --num-test 0 -o "$study/humaneval.jsonl"

sample mbpp mbpp
sample humaneval humaneval
[ -f "$study/rewarded.jsonl" ] || script pairs "$study/mbpp" -o "$study"

shots=(--shots "$study/solutions.jsonl" --num-shots 5)
sample mbpp-shots mbpp-test "${shots[@]}"
sample humaneval-shots humaneval "${shots[@]}"

tune sft sft solutions --epochs "$epochs"
sample mbpp-sft mbpp-test --adapter "$study/sft"
sample mbpp-sft-shots mbpp-test --adapter "$study/sft" "${shots[@]}"
sample humaneval-sft humaneval --adapter "$study/sft"
for size in "${sizes[@]}"; do
  tune "sft-$size" sft solutions --epochs "$epochs" --prompts "$size"
  sample "mbpp-sft-$size" mbpp-test --adapter "$study/sft-$size"
done

tune dpo dpo pairs
sample mbpp-dpo mbpp-test --adapter "$study/dpo"

tune reward reward rewarded
score mbpp
score humaneval --num-test 0

script tables "$study" >"$study/tables.md"
echo "$study/tables.md"
