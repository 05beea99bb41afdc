#!/usr/bin/env bash
# Fine-tune OPT on text: run_clm.sh [BS] [MEMCAP] [MODEL] [GPUNUM]
#
#   BS      sequences of one rank in a step (16)
#   MEMCAP  GB of its GPU that a rank may use; 0 is all of it (0)
#   MODEL   a size, a name on the hub, or a folder with weights (125m)
#   GPUNUM  ranks; without that many GPUs they share the CPU (1)
#
# Learns the text that ships with the lesson, or the one that follows the four: --train_file FILE, --dataset_name NAME.
# The environment variables STRATEGY, SEQUENCE, STEPS, OUTPUT choose more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
BS=${1:-16} MEMCAP=${2:-0} MODEL=${3:-125m} GPUNUM=${4:-1}
if ! [[ $GPUNUM =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUNUM is $GPUNUM, and must be a number of ranks, from 1 on" >&2
    exit 2
fi
words=(--model_name_or_path "$MODEL" --batch_size "$BS" --mem_cap "$MEMCAP" ${OUTPUT:+--output_dir "$OUTPUT"}
    ${STRATEGY:+--strategy "$STRATEGY"} ${SEQUENCE:+--sequence "$SEQUENCE"} ${STEPS:+--steps "$STEPS"} "${@:5}")
# Checked before torchrun starts ranks: its report would bury the sentence.
python3 -c "import settings; settings.read()" "${words[@]}"
exec torchrun --standalone --nproc_per_node "$GPUNUM" run_clm.py "${words[@]}"
