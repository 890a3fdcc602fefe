"""32 chats at once with the embedded model: `luthier serve`, `transformers serve`, and `model.generate` one after the other.

    python benchmarks/serving.py            # three rounds, about five minutes on one core
    python benchmarks/serving.py --quick    # one round of eight chats: does it run?

All sides answer the same questions greedily, in float32, on one thread, at most 64 tokens each, over HTTP where they are servers, and
the clients are threads of this process. Counted are the tokens of the answers and the CPU seconds of the server's process tree between
the first question and the last answer, so other work on the machine changes little; loading is left out, and each side answers one
question before. `transformers serve` is measured as it starts by default and with `--continuous-batching`, each as it stands; a side
that does not come up, or answers with an error, is a row that says why. Ratios are medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MODEL = Path(__file__).resolve().parents[1] / "src/luthier/models/tiny"
CHATS, LONGEST, ROUNDS, PATIENCE = 32, 64, 3, 600
LUTHIER, GENERATE, TRANSFORMERS, CONTINUOUS = (
    "luthier serve",
    "model.generate, one by one",
    "transformers serve",
    "transformers serve --continuous-batching",
)


@dataclass
class Side:
    """What a side did.

    Attributes:
        speeds: tokens per CPU-second of each round.
        answers: of the last round.
        reason: why there is nothing.
    """

    speeds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    reason: str = ""


class Failed(Exception):
    """A side could not be measured."""


def questions(count: int) -> list[str]:
    """Short and long answers, mixed."""
    rng = random.Random(0)
    sums = (f"How much is {rng.randint(10, 99)} + {rng.randint(10, 99)}?" for _ in range(count // 2))
    stories = (
        f"Tell me a story about a {animal}." for animal in ("cat", "dog", "bird", "fish", "horse", "mouse", "bear", "fox") * count
    )
    return [next(sums if number % 2 else stories) for number in range(count)]


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and its descendants, those that have ended included."""
    spent = 0.0
    for each in (process, *process.children(recursive=True)):
        times = each.cpu_times()
        spent += times.user + times.system + (times.children_user + times.children_system if each is process else 0)
    return spent


@contextmanager
def server(command: list[str], port: int, work: Path) -> Iterator[psutil.Process]:
    """A server until the block ends.

    Raises:
        Failed: it ends, or does not answer in time.
    """
    log = work / "server.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers_at(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(last_words(log))
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def answers_at(port: int) -> bool:
    """Whether a server is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def last_words(log: Path) -> str:
    """The last line that a process printed."""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def ask(port: int, model: str, question: str) -> str:
    """One answer.

    Raises:
        Failed: there is none.
    """
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": LONGEST}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        raise Failed(f"{error.code}: {error.read(300).decode('utf-8', 'replace')}") from None
    except OSError as error:
        raise Failed(str(error)) from None


def over_http(command: list[str], port: int, model: str, asked: list[str], work: Path) -> tuple[list[str], float]:
    """Answers of a server to all questions at once, and its CPU seconds."""
    with server(command, port, work) as process, ThreadPoolExecutor(len(asked)) as clients:
        ask(port, model, "Hello")
        before = cpu_seconds(process)
        said = list(clients.map(lambda question: ask(port, model, question), asked))
        return said, cpu_seconds(process) - before


def one_by_one(asked: list[str]) -> tuple[list[str], float]:
    """Answers of plain transformers, one after the other, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--generate"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise Failed(done.stderr.strip().splitlines()[-1])
    said, spent = json.loads(done.stdout)
    return said, spent


def generate() -> None:
    """The process behind `one_by_one`: questions on stdin, answers and CPU seconds on stdout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    def say(question: str) -> str:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(written, skip_special_tokens=True))

    asked = json.load(sys.stdin)
    say("Hello")
    before = time.process_time()
    said = [say(question) for question in asked]
    json.dump((said, time.process_time() - before), sys.stdout)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def measured(name: str, asked: list[str], work: Path) -> tuple[list[str], float]:
    """One round of one side."""
    if name == GENERATE:
        return one_by_one(asked)
    port = free_port()
    if name == LUTHIER:
        return over_http([sys.executable, "-m", "luthier", "serve", "tiny", "--port", str(port)], port, "tiny", asked, work)
    more = ["--continuous-batching"] if name == CONTINUOUS else []
    script = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-c", script, "serve", str(MODEL), *options, *more]
    return over_http(command, port, str(MODEL), asked, work)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of eight chats")
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        return generate()
    from transformers import AutoTokenizer

    asked = questions(8 if options.quick else CHATS)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    sides = {name: Side() for name in (LUTHIER, GENERATE, TRANSFORMERS, CONTINUOUS)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if options.quick else ROUNDS):
            for name, side in sides.items():
                if side.reason:
                    continue
                try:
                    side.answers, spent = measured(name, asked, Path(folder))
                except Failed as error:
                    side.reason = str(error)
                else:
                    side.speeds.append(sum(len(tokenizer(text).input_ids) + 1 for text in side.answers) / spent)
                    print(f"{name}: {side.speeds[-1]:.0f} tokens per CPU-second", file=sys.stderr, flush=True)
    print(table(sides))
    return None


def table(sides: dict[str, Side]) -> str:
    """What was found, as Markdown."""
    lines = ["| side | tokens per CPU-second | luthier serve is | same answers |", "| --- | --- | --- | --- |"]
    ours = sides[LUTHIER]
    for name, side in sides.items():
        if side.reason or ours.reason:
            lines.append(f"| {name} | not measured: {side.reason or ours.reason} | | |")
            continue
        ratio = statistics.median(mine / its for mine, its in zip(ours.speeds, side.speeds, strict=False))
        same = sum(mine.strip() == its.strip() for mine, its in zip(ours.answers, side.answers, strict=True))
        lines.append(f"| {name} | {statistics.median(side.speeds):.0f} | {ratio:.2f}× | {same} of {len(side.answers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
