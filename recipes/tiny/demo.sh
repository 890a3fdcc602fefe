#!/usr/bin/env bash
# The demo of `make demo`: the embedded model learns who it is. No hub, no server, a new run each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1
luthier=.venv/bin/luthier

name=demo
number=2
while [[ -e runs/$name ]]; do
  name=demo-$number
  number=$((number + 1))
done

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. The embedded model, as it is"
for question in "你是谁？" "Who are you?"; do
  printf '  > %s\n  ' "$question"
  "$luthier" chat tiny --prompt "$question"
done

say "2. It learns the 60 examples of recipes/tiny/identity.json"
"$luthier" train recipes/tiny/identity.yaml --name "$name"

say "3. Before and after"
"$luthier" compare "$name" --prompt "你是谁？" --prompt "Who are you?" --prompt "What is 21 + 34?"

say "What next"
cat <<END
  runs/$name                              the run: metrics.jsonl, samples.jsonl, loss.png, checkpoints/, final/
  $luthier chat $name              talk to it
  $luthier export merge $name --out merged    an ordinary transformers folder
  $luthier recipes list            other models to start from
  $luthier train recipes/tiny/identity.yaml data.train=my.json    your own file (alpaca, ShareGPT or OpenAI messages)
END
