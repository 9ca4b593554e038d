#!/bin/sh
# Everything that is measured on an accelerator, in one call; results go to a directory.
#
#   sh tools/accelerator.sh docs/benchmarks/my-gpu
#
# Correctness comes first: the logits of all variants at highest precision beside
# PyTorch's (column `difference` of torch-highest.txt). QUICK=1 tries the script itself
# with small images on any machine. PYTHON names the interpreter.
set -eu
out=${1:?usage: sh tools/accelerator.sh DIRECTORY}
mkdir -p "$out"
python=${PYTHON:-python}

benchmark() { # name of the result, then arguments
  name=$1
  shift
  "$python" tools/benchmark.py "$@" --output "$out/$name.json" | tee "$out/$name.txt"
}

if [ "${QUICK:-}" ]; then
  models="gfnet-ti gfnet-h-ti" sizes=32 batch=2 rounds=2 sides="4 8" peak=256 largest=7 compile= write=
else
  models="gfnet-ti gfnet-xs gfnet-s gfnet-b gfnet-h-ti gfnet-h-s gfnet-h-b"
  sizes=224 batch=128 rounds=20 sides="14 28 56 112 224" peak=8192 largest=96
  compile=--compile write=--write
fi

# Lists of words are meant to be split.
# shellcheck disable=SC2086
{
  benchmark torch-highest torch --models $models --image-size $sizes --batch-size 8 \
    --precision highest --rounds 2
  benchmark backends backends --batch-size $batch --largest $largest --rounds $rounds $write
  benchmark models models --models $models --image-sizes $sizes --batch-sizes $batch \
    --dtypes float32 bfloat16 --rounds $rounds --peak-side $peak
  benchmark torch-bf16 torch --models $models --image-size $sizes --batch-size $batch \
    --precision bf16 $compile --rounds $rounds
  benchmark torch-float32 torch --models $models --image-size $sizes --batch-size $batch \
    $compile --rounds $rounds
  benchmark layer layer --sides $sides --rounds $rounds
  benchmark profile models --models gfnet-h-ti --image-sizes $sizes --batch-sizes $batch \
    --dtypes bfloat16 --rounds 2 --peak-side $peak --profile "$out/profile"
}
