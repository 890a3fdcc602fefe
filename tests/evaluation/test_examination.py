"""Base and tuned side by side: the pairing, the judge, the table, the files, the report."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluation.examination import examine
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.judge import verdict
from luthier.evaluation.report import items, page, rows, table, write_report
from luthier.evaluation.tasks import settings_of
from luthier.generation.bulk import Written
from tests.evaluation.examinees import tiny

EVIL = "<script>alert(1)</script>\x1b[31m"


class Says(Examinee):
    """The embedded model with answers of its own."""

    def __init__(self, *answers: str) -> None:
        super().__init__(tiny().chat, tiny().policy)
        self.said = answers

    def answers(self, prompts, settings, *, done=None):
        if done:
            done(len(prompts), len(prompts))
        none = np.zeros(0)
        return [Written(none, none, self.said[n % len(self.said)], True) for n in range(len(prompts))], 0


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "rows.jsonl"
    talks = [[{"role": "user", "content": f"Say {n} {EVIL}"}, {"role": "assistant", "content": f"{n}"}] for n in range(12)]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), "utf-8")
    return file


@pytest.fixture
def judge():
    """Prefers the longer answer, and the first of two alike; says nothing about what it was told to keep quiet on."""

    class Desk(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            first, second = asked["messages"][1]["content"].partition("[Answer A]\n")[2].split("\n\n[Answer B]\n")
            said = "no idea" if "quiet" in first + second else f"VERDICT: {'A' if len(first) >= len(second) else 'B'}"
            reply = json.dumps({"choices": [{"message": {"content": f"{EVIL} {self.path} {said}"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Desk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def both(base, tuned):
    return {"base": lambda: Says(*base), "tuned": lambda: Says(*tuned)}


def test_the_same_items_are_compared(questions, tmp_path, capsys):
    heard = []
    settings = settings_of([f"generate:{questions},metrics=[exact_match,f1],pattern=[0-9]"])
    report = examine(
        both(["no", "1"], [str(n) for n in range(12)]), settings, progress=lambda what, done, total: heard.append(what)
    )
    found = {one.measure.name: one.compared for one in report.tasks[0].found}
    assert (found["exact_match"].base.value, found["exact_match"].tuned.value) == (1 / 12, 1)
    assert found["exact_match"].difference.value == pytest.approx(11 / 12)
    assert found["exact_match"].sure
    assert set(heard) == {"base: generate", "tuned: generate"}
    lines = list(rows(report))
    assert lines[0][0] == "generate"
    assert lines[0][4].endswith("better")
    table(report)
    told = capsys.readouterr().out
    assert "exact_match %" in told
    assert "\x1b" not in told
    write_report(report, tmp_path / "out")
    values = json.loads((tmp_path / "out/evaluation.json").read_text("utf-8"))
    assert values["tasks"][0]["measures"][0]["difference"]["low"] > 0
    first = json.loads((tmp_path / "out/items/generate.jsonl").read_text("utf-8").split("\n")[0])
    assert (first["base"]["answer"], first["tuned"]["answer"], first["reference"]) == ("no", "0", "0")
    html = (tmp_path / "out/report.html").read_text("utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_one_model_alone(questions):
    report = examine({"base": lambda: Says("3")}, settings_of([f"generate:{questions},metrics=f1"]))
    (one,) = report.tasks[0].found
    assert one.compared.tuned is None
    assert one.compared.difference is None
    assert "Difference" not in page(report)
    with pytest.raises(UserError, match="a judge compares two models"):
        examine({"base": tiny}, settings_of(["judge:x,url=https://1.1.1.1/v1,model=m"]))


def test_a_judge_is_asked_in_both_orders(questions, judge):
    settings = settings_of([f"judge:{questions},url={judge},model=m,allow_private=true"])
    report = examine(both(["short", "same", "quiet"], ["longer", "same", "x"]), settings)
    found = {one.measure.name: one.compared for one in report.tasks[0].found}
    assert found["win_rate"].tuned.value == pytest.approx(0.75)  # wins, and ties that only follow the order
    assert found["win_rate"].base.value == pytest.approx(0.25)
    assert found["consistent"].tuned.value == pytest.approx(0.5)
    assert report.tasks[0].notes == ("tuned: 4 of 12 questions got no verdict",)
    first = next(items(report.tasks[0]))
    assert len(first["tuned"]["judge"]) == 2
    assert "/v1/chat/completions" in first["tuned"]["judge"][0]
    assert "<script" not in page(report)


def test_a_judge_on_this_machine_has_to_be_allowed(questions):
    with pytest.raises(UserError, match="allow_private"):
        examine(both(["a"], ["b"]), settings_of([f"judge:{questions},url=http://127.0.0.1:9/v1,model=m"]))


def test_verdicts():
    assert [verdict(text) for text in ("VERDICT: A", "… **Verdict:** B", "VERDICT: A\nno, VERDICT: TIE", "结论：平", "A")] == [
        1.0,
        0.0,
        0.5,
        0.5,
        None,
    ]
