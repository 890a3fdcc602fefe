"""Which rung of the mask ladder finds the answers: 62 chat templates of real models × 12 conversations.

    python benchmarks/mask_ladder.py [path of the shared data] [--list]

Each pair is rendered as training would, and counted under the rung that proved its mask. Pairs that the template itself cannot
render, and pairs without an answer, are counted apart. `--list` prints a line for each pair.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from luthier.chat import ChatTemplate, TemplateRefused

RUNGS = ("markers", "twin", "sentinels", "prefixes", "unrolled", "refused by the template", "no answer", "refused by the ladder")


def pairs(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Template, conversation, rung and reason of each pair."""
    conversations = json.loads((folder / "conversations.json").read_text(encoding="utf-8"))
    for path in sorted((folder / "templates").glob("*.jinja")):
        context = json.loads((folder / "expected" / f"{path.stem}.json").read_text(encoding="utf-8"))["context"]
        template = ChatTemplate(path.stem, path.read_text(encoding="utf-8"), context | {"strftime_now": ""})
        for name, conversation in conversations.items():
            messages, tools = conversation["messages"], conversation.get("tools")
            try:
                template.render(messages, tools)
            except TemplateRefused as refused:
                yield path.stem, name, "refused by the template", refused.reason
                continue
            try:
                yield path.stem, name, template.supervise(messages, tools)[0].rung, ""
            except TemplateRefused as refused:
                answers = any(message["role"] == "assistant" for message in messages)
                yield path.stem, name, "refused by the ladder" if answers else "no answer", refused.reason


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--list"]
    shared = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[2] / "shared/data"
    found = list(pairs(shared / "chat_templates"))
    if "--list" in sys.argv:
        print("\n".join("  ".join(pair) for pair in found))
    count = Counter(rung for _, _, rung, _ in found)
    for rung in RUNGS:
        print(f"{rung:24} {count[rung]:4}")
    print(f"{'all':24} {len(found):4}")


if __name__ == "__main__":
    main()
