from __future__ import annotations

import shlex

import pytest

from kernel_pytorch.jobs.naming import name_of


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("longnet train --data books --steps 20000", "books"),
        ("longnet train --data=/data/wiki.txt", "wiki"),
        ("longnet train --data --steps 3", "longnet"),
        ("longnet train --data", "longnet"),
        ("./train.sh 1 2", "train"),
        ("python train.py --lr 3", "train"),
        ("/usr/bin/python3.12 -u -X dev /code/train.py", "dev"),
        ("python -m my.package.train --lr 3", "train"),
        ("env A=1 bash run.sh", "run"),
        ("bash -c 'sleep 3; exit'", "bash"),
        ("python -c 'import a\nimport b'", "python"),
        ("python", "python"),
        ("/", "job"),
        ("-x", "job"),
    ],
)
def test_a_name_from_the_command(command: str, name: str):
    assert name_of(shlex.split(command)) == name
