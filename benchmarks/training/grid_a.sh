#!/bin/sh
# One part of grid A (docs/evidence.md): all cells of one task and seed, six trials at once on two GPUs, in ten minutes.
# Called again, it goes on with what is not finished.
#
# usage: sh benchmarks/training/grid_a.sh TASK SEED [NAME]
#
# NAME (grid_a) begins the names of the sweep's folder and of the JSON file. Environment variables change a part:
# REWARDS its cells, GOALS a folder with a goal for each task, LIMIT the seconds, STEPS the length of each run,
# PARTS the folder of the JSON files.
set -eu
task=$1 seed=$2 name=${3:-grid_a}-$1-$2
out=sweeps/$name
cells=none:env-reward=dense,none,genreward,genreward:no-video,genreward:no-fb,genreward:env-reward=dense

if [ -e "$out/sweep.json" ]; then
  genreward sweep --local --gpus-per-trial 0.33 --cpus-per-trial 5 --limit "${LIMIT:-500}" --out "$out" --resume
else
  genreward sweep --local --gpus-per-trial 0.33 --cpus-per-trial 5 --limit "${LIMIT:-500}" --out "$out" \
    --tasks "$task" --seeds "$seed" --env-rewards sparse --rewards "${REWARDS:-$cells}" \
    ${GOALS:+--goals "$GOALS"} -- \
    --preset tiny --size 12M --dtype bfloat16 --batch-size 16 --batch-length 64 --lr 4e-5 --warmup 1000 \
    --train-ratio 256 --prefill 2500 --steps "${STEPS:-50000}" --fb-steps 15000 --replay-capacity 60000 \
    --envs 10 --eval-every 10000 --eval-episodes 10 --log-every 50 --checkpoint-minutes 4
fi
python benchmarks/training/evidence.py "$out" --name "$name" --results "${PARTS:-evidence}" --here
