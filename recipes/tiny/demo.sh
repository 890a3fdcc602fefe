#!/usr/bin/env bash
# The demo of `make demo`: the embedded model learns who it is. No hub, no server, a new run each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # so small a model gains nothing from more threads, and waits for them on a busy machine
luthier=.venv/bin/luthier
bold='' plain=''
if [[ -t 1 ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi

name=demo
number=2
while [[ -e runs/$name ]]; do
  name=demo-$number
  number=$((number + 1))
done
answers=runs/$name/before-and-after.txt

say() { # a heading, and lines that explain it
  printf '\n%s%s%s\n' "$bold" "$1" "$plain"
  shift
  (($# == 0)) || printf '   %s\n' "$@"
}

say "1. Before · 训练之前" \
  "The small model that comes with Luthier is asked who it is." \
  "先问琴匠自带的小模型：你是谁？"
for question in "你是谁？" "Who are you?"; do
  printf '\n  > %s\n  ' "$question"
  "$luthier" chat tiny --prompt "$question"
done

say "2. Training · 训练" \
  "It now learns the 60 questions and answers of recipes/tiny/identity.json, ten times over." \
  "Only what stands between ⟦ ⟧ is learnt: the answers. The loss is how little it expects them: it should fall." \
  "The samples are the same two questions, asked again on the way." \
  "现在让它学 recipes/tiny/identity.json 里的六十条问答，学十遍。" \
  "只学 ⟦ ⟧ 之间的部分，也就是回答。loss（损失）表示这些回答有多出乎它的意料，应当越来越小。" \
  "sample 是训练途中再问同样两个问题，看看学到哪里了。"
echo
"$luthier" train recipes/tiny/identity.yaml --name "$name"

say "3. Before and after · 训练前后" \
  "base is the model as it was, tuned is what it has become. The sums are not in the examples: they show what it has kept." \
  "base 是原来的模型，tuned 是训练后的模型。样本里没有算术题，问它们是看原来会的还在不在。"
echo
{
  echo "The embedded model before (base) and after (tuned) it learnt recipes/tiny/identity.json; run $name."
  echo "内嵌小模型学习 recipes/tiny/identity.json 之前（base）与之后（tuned）的回答；运行 $name。"
  echo
  "$luthier" compare "$name" --prompt "你是谁？" --prompt "Who are you?" --prompt "What is 21 + 34?" --prompt "12加30等于多少？"
} | tee "$answers"

say "Where it is · 结果在哪里"
cat <<END
   $answers    these answers · 上面的回答
   runs/$name/loss.png    the loss over the steps · 损失曲线
   runs/$name/final    what was learnt: an ordinary PEFT adapter · 学到的东西：普通的 PEFT 适配器
END

say "What next · 接下来"
cat <<END
   talk to it · 和它聊聊
     $luthier chat $name
   your own file: questions and answers in recipes/tiny/identity.json's form, or any other that docs/formats.md shows
   用自己的数据：照 recipes/tiny/identity.json 的样子写，或用 docs/formats.zh.md 里的其他格式
     $luthier train recipes/tiny/identity.yaml data.train=my.json
   a larger model to start from · 换大一点的模型
     $luthier recipes list
   what all these lines mean: docs/what-happened.md · 这些行都是什么意思：docs/what-happened.zh.md
END
