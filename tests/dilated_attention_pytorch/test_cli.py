"""The shell of ``longnet``: what it shares with ``kernel-pytorch``, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from processes import first_process

from dilated_attention_pytorch import __version__
from dilated_attention_pytorch.cli import main

LONGNET = [sys.executable, "-m", "dilated_attention_pytorch.cli"]
# Ready to be stopped where a run reads its text, before it handles signals itself.
LOADING = """
import sys, time
from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.train import setup
def read_corpus(*arguments, **keywords):
    print("reading", flush=True)
    while True:
        time.sleep(60)
setup.read_corpus = read_corpus
sys.exit(main(["train"]))
"""


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"longnet {__version__}\n", "")
    assert main(["--help"]) == 0
    out, _ = capsys.readouterr()
    assert main([]) == 0
    assert capsys.readouterr() == (out, "")
    for line in ("train     train a model on text", "generate  continue a prompt with a trained model"):
        assert line in out


def test_an_error_shows_what_the_terminal_can(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*LONGNET, "generate", "lauf-ä", "--prompt", "a"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"longnet generate: error: no run lauf-?\n"


@pytest.mark.parametrize("arguments", [("train",), ("generate", "x", "--prompt", "a"), ("--help",)])
def test_a_closed_output_is_one_line(tmp_path, arguments):
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *LONGNET, *arguments]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    name = "longnet" if arguments == ("--help",) else f"longnet {arguments[0]}"
    assert (done.returncode, done.stderr) == (2, f"{name}: error: standard output is closed\n")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_the_first_process_of_a_container(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with first_process([sys.executable, "-c", LOADING]) as (process, child, line):
        assert line == "reading\n"
        os.kill(child, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "longnet train: terminated\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("importing", ["torch", "dilated_attention_pytorch.train.command"])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path, importing):
    """The console script, stopped in the import of a module that never ends."""
    script = f"""
import sys, time
class Endless:
    def find_spec(self, name, path=None, target=None):
        if name == {importing!r}:
            print("importing", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Endless())
from _longnet import main
sys.argv = ["longnet", "train"]
sys.exit(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        try:
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err.count("\n")) == (130, 1)
    assert err in ("longnet: interrupted\n", "longnet train: interrupted\n")
