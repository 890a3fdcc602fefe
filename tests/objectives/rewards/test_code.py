"""Code that is run: what passes, what fails, and what hostile code does not reach."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.objectives.rewards import Bad, Judge, Part, build, code
from tests.objectives.rewards.answers import answer, settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the isolation is Linux's")


@pytest.fixture(scope="module")
def reward():
    return build(settings({"type": "code", "timeout": 5, "workers": 2})[0])


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """Nothing may be left where answers had their folders."""
    folder = tmp_path_factory.mktemp("answers")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


ADD = "def add(a, b):\n    return a + b"
PROGRAM = json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", "7"]})


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        (ADD, "assert add(1, 2) == 3", 1),
        (f"Here is it:\n```python\n{ADD}\n```\nIt adds.", "assert add(1, 2) == 3", 1),
        (f"好的：\n```python\n{ADD}  # 加法\n```\n这是加法。", "assert add(1, 2) == 3\nassert add('你', '好') == '你好'", 1),
        ("def add(a, b):\n    return a - b", "assert add(1, 2) == 3", 0),
        ("def add(a, b", "assert add(1, 2) == 3", 0),
        ("I do not know.", "assert add(1, 2) == 3", 0),
        (ADD, '["assert add(1, 2) == 3", "assert add(0, 0) == 0"]', 1),
        ("add = max", '["assert add(1, 2) == 3", "assert add(0, 0) == 0"]', 0),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", PROGRAM, 1),
        ("a = input().split()\nprint(int(a[0]) + int(a[-1] if len(a) > 1 else input()), '', flush=True)\nexit()", PROGRAM, 1),
        ("print(3)", PROGRAM, 0),
        ("print(int(input()[0]) + 2)\n1 / 0", PROGRAM, 0),
        (ADD, None, "the prompt has no reference"),
        (ADD, " ", "the reference holds no tests"),
        (ADD, '{"inputs": [], "outputs": []}', "the reference is JSON, but neither a list of tests nor"),
        (ADD, "[1, 2]", "the reference is JSON, but neither a list of tests nor"),
    ],
)
def test_cases(reward, text, reference, expected):
    (value,) = reward([answer(text, reference)])
    assert value.why.startswith(expected) if isinstance(value, Bad) else value == expected


def test_a_share_of_the_tests():
    reward = build(settings({"type": "code", "score": "share"})[0])
    tests = json.dumps(["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert 0"])
    assert reward([answer("add = lambda a, b: 4", tests), answer(ADD, tests)]) == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


REFUSED = """
try:
    {act}
    refused = None
except OSError as error:
    refused = error.errno
"""
EPERM, EACCES, EFBIG = 1, 13, 27


@pytest.mark.parametrize(
    ("act", "number"),
    [
        ("import os; os.fork()", EPERM),
        ("import subprocess; subprocess.run(['true'])", EPERM),
        ("import multiprocessing; multiprocessing.get_context('fork').Process(target=print).start()", EPERM),
        ("import os; os.execv('/bin/sh', ['sh'])", EACCES),
        ("import os; os.execv(__import__('sys').executable, ['python'])", EACCES),
        ("import socket; socket.socket()", EPERM),
        ("import socket; socket.socket(socket.AF_UNIX)", EPERM),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", EPERM),
        ("import os; os.kill(-1, 9)", EPERM),
        ("import os; os.kill(os.getppid(), 9)", EPERM),
        ("import os; os.setsid()", EPERM),
        ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", EPERM),
        ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)", EPERM),
        ("import fcntl, os; fcntl.ioctl(os.pipe()[0], 0x8901, b'aaaa')", EPERM),
        ("import os; os.truncate(os.__file__, 0)", EPERM),
        ("import os; os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)", EPERM),
        ("import os; os.setpriority(0, 0, 5)", EPERM),
        ("import os; open('mine', 'w').close(); os.chmod('mine', 0)", EPERM),
        ("open('/etc/passwd')", EACCES),
        ("open('/proc/self/environ')", EACCES),
        ("import os; os.listdir(os.path.dirname(os.getcwd()))", EACCES),
        ("open('../outside', 'w')", EACCES),
        ("open('/dev/shm/outside', 'w')", EACCES),
        ("import os; os.symlink('/etc/passwd', 'mine'); open('mine')", EACCES),
        ("import os; os.remove(os.__file__)", EACCES),
        ("open(__import__('os').__file__, 'a')", EACCES),
        ("open('large', 'wb').write(bytes(17 << 20))", EFBIG),
    ],
)
def test_what_is_refused(reward, act, number):
    assert reward([answer(REFUSED.format(act=act), f"assert refused == {number}, refused")]) == [1]


ALLOWED = """
import asyncio, collections, dataclasses, datetime, decimal, functools, heapq, itertools, json, math, random, re, sqlite3, tempfile
from concurrent.futures import ThreadPoolExecutor
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("other"); file.truncate(0); file.seek(0); file.write("own"); file.seek(0); own = file.read()
with ThreadPoolExecutor(3) as pool:
    squares = list(pool.map(lambda n: n * n, range(5)))
slept = asyncio.run(asyncio.sleep(0, 7))
"""


def test_what_is_allowed(reward):
    test = "assert (own, squares, slept) == ('own', [0, 1, 4, 9, 16], 7)"
    environment = "import os; assert not {*os.environ} - {'PATH', 'LANG', 'HOME', 'TMPDIR', 'LC_CTYPE', *THREADS}, os.environ"
    threads = 'THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]'
    assert reward([answer(ALLOWED, test), answer(threads, environment)]) == [1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "import os\nwhile True:\n    os.fork()",
        "import threading\nwhile True:\n    threading.Thread(target=threading.Event().wait).start()",
        "x = bytearray(1 << 33)",
        "x = [0]\nwhile True:\n    x += x",
        "import ctypes\nctypes.string_at(0)",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import sys\nsys.exit()",
        "import os\nos.abort()",
        "import os\nfor n in range(3, 64):\n    try:\n        os.write(n, b'+' + bytes(16))\n    except OSError:\n        pass",
        "(" * 100_000,
        "open('large', 'wb').write(bytes(17 << 20))",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    ],
    ids=[
        "fork",
        "threads",
        "memory",
        "list",
        "crash",
        "_exit",
        "SystemExit",
        "exit",
        "abort",
        "pipe",
        "brackets",
        "file",
        "limits",
    ],
)
def test_hostile_code_earns_nothing(reward, text):
    assert reward([answer(text, "pass")]) == [0]


@pytest.mark.parametrize(
    "text", ["while True:\n    pass", "import time\ntime.sleep(99)", "9 ** 10 ** 9", "import signal\nsignal.pause()"]
)
def test_what_does_not_end_is_ended(text):
    reward = build(settings({"type": "code", "timeout": 0.5})[0])
    start = time.monotonic()
    assert reward([answer(text, "pass"), answer(text, PROGRAM)]) == [0, 0]
    assert time.monotonic() - start < 20


def test_output_without_end_is_cut(reward):
    assert reward([answer("while True:\n    print('x' * 1000)", PROGRAM)]) == [0]


def test_folders_without_end_are_removed():
    reward = build(settings({"type": "code", "timeout": 60})[0])
    assert reward([answer("import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')", "pass")]) == [1]
    assert reward([answer("import os\nos.mkdir('d', 0o300)\nopen('d/f', 'w').close()", "pass")]) == [1]


def test_an_output_that_became_something_else_is_not_read(reward, tmp_path):
    (tmp_path / "secret").write_text("3")
    links = f"import os\nos.remove('output-0')\nos.symlink({str(tmp_path / 'secret')!r}, 'output-0')"
    pipes = "import os\nos.remove('output-0')\nos.mkfifo('output-0')"
    tests = json.dumps({"inputs": [""], "outputs": ["3"]})
    assert reward([answer(links, tests), answer(pipes, tests)]) == [0, 0]


def test_the_expected_output_is_not_in_reach(reward):
    look = """
import gc, sys
frame, seen = sys._getframe(), []
while frame:
    seen.append(repr({**frame.f_locals, "code": 0}))
    frame = frame.f_back
print("found" if "SECR" + "ET" in str(seen) else "nothing")
"""
    assert reward([answer(look, json.dumps({"inputs": [""], "outputs": ["SECRET"]}))]) == [0]
    assert reward([answer(look, json.dumps({"inputs": ["", ""], "outputs": ["nothing", "nothing"]}))]) == [1]


def test_packages_are_there_where_they_are_asked_for(reward):
    text = "import numpy\nx = int(numpy.arange(4).sum())"
    assert reward([answer(text, "assert x == 6")]) == [0]
    assert build(settings({"type": "code", "packages": True, "memory_mb": 2048})[0])([answer(text, "assert x == 6")]) == [1]


def test_the_children_are_gone(reward):
    build(settings({"type": "code", "timeout": 0.3})[0])([answer("import time\ntime.sleep(99)", "pass")])
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in mine if b"jail.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_system_that_cannot_isolate_stops_the_run(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    jail.write_text(code.JAIL.read_text("utf-8").replace("_MACHINES.get(os.uname().machine)", "None"), "utf-8")
    monkeypatch.setattr(code, "JAIL", jail)
    with pytest.raises(UserError, match=r"code cannot be isolated here: there is no list of system calls .*isolation: limits"):
        build(settings("code")[0])
    limited = build(settings({"type": "code", "isolation": "limits", "timeout": 1})[0])
    assert limited(
        [answer(ADD, "assert add(1, 2) == 3"), answer("while True: pass", "pass"), answer("x = bytearray(1 << 33)", "pass")]
    ) == [1, 0, 0]


def test_a_jail_that_does_not_reply_is_bad_and_whoever_ended_it_earns_nothing(reward):
    killer = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    assert reward([answer(killer, "pass")]) == [0]
    assert build(settings({"type": "code", "isolation": "limits", "timeout": 2})[0])([answer(killer, "pass")]) == [0]
    assert code._read(b"", 2) == Bad("the process of the tests ended before it replied")
    assert code._read(b"10\n", 2) == [True, False]


def test_many_answers_keep_their_order(reward):
    judge = Judge([Part("code", reward, waits=True)])
    assert judge([answer(f"x = {i % 2}", "assert x") for i in range(8)]).total == [0, 1] * 4
