"""`luthier serve` as people start it: a process, an address on stderr, a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from openai import OpenAI

QUESTION = "你是谁？"


@pytest.mark.slow
def test_it_answers_as_luthier_chat_does_and_ends_in_order() -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "luthier", "serve", "tiny", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stderr is not None
        address = next(found[0] for line in started.stderr if (found := re.search(r"http://\S+", line)))
        client = OpenAI(base_url=address, api_key="none")
        asked = {"role": "user", "content": QUESTION}
        said = client.chat.completions.create(model="tiny", messages=[asked], temperature=0)  # type: ignore[list-item]
        chat = subprocess.run(
            [sys.executable, "-m", "luthier", "chat", "tiny", "--prompt", QUESTION], capture_output=True, text=True, check=True
        )
        assert f"{said.choices[0].message.content}\n" == chat.stdout
        stream = client.completions.create(
            model="tiny", prompt="The cat", max_tokens=300, temperature=0, stream=True, logit_bias={"0": -100, "2": -100}
        )
        ends = [next(iter(stream)).choices[0].finish_reason]
        reader = threading.Thread(target=lambda: ends.extend(chunk.choices[0].finish_reason for chunk in stream))
        reader.start()
        started.send_signal(signal.SIGTERM)
        reader.join(60)
        assert ends[-1] == "length"
        assert started.wait(60) == 0
        assert "Traceback" not in started.stderr.read()
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow
def test_mistakes_are_one_line_before_a_model_is_read() -> None:
    for words, said in (
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--adapter", "polite"], "is not `name=path`"),
        (["--adapter", "a=tiny"], "is no adapter"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "luthier", "serve", "tiny", *words],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"},
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
