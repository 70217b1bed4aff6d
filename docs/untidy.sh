#!/usr/bin/env bash
# From three hundred untidy pictures to a verified adapter, with the pocket base: bash docs/untidy.sh WORK
#
# Draws what lies around in a company (benchmarks/untidy.py), and makes one dataset of it: folders of kohya's and
# OneTrainer's, sidecars and tables of captions, archives, parquet, masks, licences, copies and broken files. On two
# cores it takes some minutes. SCALE=0.1 draws a tenth, STEPS=20 trains shorter.
set -euo pipefail
work=$1 scale=${SCALE:-1} steps=${STEPS:-300}
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
finetune() { "$python" -m finetune "$@"; }

mkdir -p "$work" && cd "$work"
"$python" "$repository/benchmarks/untidy.py" sources "$scale"

# what each source is: a look before anything is made; what is wrong with it is the answer of exit code 2
for source in photos captioned masked listed split faulty; do
  finetune check "sources/$source" --trigger sks --class-word handbag --quiet || test $? = 2
done

# one dataset of all, with what each source says of its pictures
finetune prepare sources/{photos,captioned,masked,cutout,listed,split,faulty} sources/agency.zip \
  sources/shard-000000.tar sources/studio.parquet:2 --where 'aesthetic > 4' \
  --out all --trigger sks --class-word handbag --license LicenseRef-Proprietary
finetune caption all --vocabulary pocket
finetune mask all --with background

# without copies, leaks and borders
finetune prepare all --out handbag --fix
finetune check handbag --base pocket --html handbag.html

finetune train pocket-product --out run --set data.path=handbag --set "train.steps=$steps"
finetune verify run/adapter/run.safetensors --run run
