#!/usr/bin/env bash
# Train OPT on random tokens: run_clm_synthetic.sh [BS] [MEMCAP] [MODEL] [GPUNUM]
#
#   BS      sequences of one rank in a step (16)
#   MEMCAP  GB of its GPU that a rank may use; 0 is all of it (0)
#   MODEL   125m 350m 1.3b 2.7b 6.7b 13b 30b 66b; tiny and small are for a laptop (125m)
#   GPUNUM  ranks; without that many GPUs they share the CPU (1)
#
# The environment variables STRATEGY, SEQUENCE, STEPS choose more; what follows the four goes to run_clm.py as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
BS=${1:-16} MEMCAP=${2:-0} MODEL=${3:-125m} GPUNUM=${4:-1}
if ! [[ $GPUNUM =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUNUM is $GPUNUM, and must be a number of ranks, from 1 on" >&2
    exit 2
fi
words=(--synthetic --random --model_name_or_path "$MODEL" --batch_size "$BS" --mem_cap "$MEMCAP"
    ${STRATEGY:+--strategy "$STRATEGY"} ${SEQUENCE:+--sequence "$SEQUENCE"} ${STEPS:+--steps "$STEPS"} "${@:5}")
# Checked before torchrun starts ranks: its report would bury the sentence.
python3 -c "import settings; settings.read()" "${words[@]}"
exec torchrun --standalone --nproc_per_node "$GPUNUM" run_clm.py "${words[@]}"
