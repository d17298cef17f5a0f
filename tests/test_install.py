"""The distribution: built, installed into an empty environment without a network, and used from there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import TINY

import kernel_pytorch

ROOT = Path(__file__).parents[1]
VERSION = kernel_pytorch.__version__
README = (ROOT / "README.md").read_text()
EXTRAS = {
    "train": {"matplotlib", "rich"},
    "advice": {"matplotlib", "rich"},
    "quantize": {"torchao"},
    "liger": {"liger-kernel"},
    "tensorboard": {"tensorboard"},
    "tokenizers": {"tokenizers"},
    "nvidia": {"nvidia-ml-py"},
    "amd": {"amdsmi"},
    "migrate": {"libcst"},
    "demos": {"matplotlib", "scikit-learn", "snntorch"},
    "jobs": {"pyyaml"},
    "metrics": {"prometheus-client"},
    "triton": {"triton"},
}
pytestmark = pytest.mark.xdist_group("install")


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees neither this checkout nor pip's configuration, and must succeed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))
    }
    environment |= {"PYTHONNOUSERSITE": "1", "PIP_CONFIG_FILE": os.devnull, **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(kind: str, tree: Path, to: Path) -> Path:
    """Call a hook of the build backend (PEP 517), as pip does."""
    script = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    run([sys.executable, "-c", script, to], tree)
    (built,) = to.iterdir()
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build reads: it writes into its tree."""
    tree = tmp_path_factory.mktemp("checkout")
    for path in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / path, tree / path, ignore=ignored)
    for path in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / path, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return message_from_bytes(zipfile.ZipFile(wheel).read(f"longnet_pytorch-{VERSION}.dist-info/METADATA"))


def needed(requirements: Sequence[str]) -> Iterator[str]:
    """The distributions that requirements without extras name, and all that those need in turn."""
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = Requirement(waiting.pop())
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in seen:
            seen.add(requirement.name)
            yield requirement.name
            waiting += distribution(requirement.name).requires or ()


@pytest.fixture(scope="module")
def scripts(wheel, metadata, tmp_path_factory) -> Path:
    """The commands of an environment with the wheel, what it declares to need, pip, and nothing else."""
    home, linked = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("linked")
    venv.create(home, symlinks=True)
    for name in needed(["pip", *metadata.get_all("Requires-Dist", ())]):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (linked / top).exists():  # a namespace of several distributions
                (linked / top).symlink_to(Path(found.locate_file(top)).resolve())
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "linked.pth").write_text(f"{linked}\n")
    run([home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", wheel], home)
    return home / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".md") and ".egg-info" not in str(path)
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {"kernel_pytorch/py.typed", "dilated_attention_pytorch/py.typed"} < files
    assert "kernel_pytorch/cli/probe/probe.schema.json" in files
    assert f"longnet_pytorch-{VERSION}.dist-info/licenses/LICENSE" in names


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("longnet-pytorch", VERSION)
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", ())]
    for extra, names in {"": {"torch", "numpy", "msgspec"}, **EXTRAS}.items():
        chosen = {
            requirement.name
            for requirement in requirements
            if ("extra ==" in str(requirement.marker)) == bool(extra)
            and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
        }
        assert chosen == names, extra
    assert set(metadata.get_all("Provides-Extra", ())) == set(EXTRAS)


def test_the_citation_has_the_name_and_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"(?m)^(?:title|version): (.*)$", citation) == ["longnet-pytorch", VERSION]


def test_the_sdist_builds_the_same_wheel(checkout, wheel, tmp_path):
    sdist = build("sdist", checkout, tmp_path)
    assert sdist.name == f"longnet_pytorch-{VERSION}.tar.gz"
    tree, again = tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "again"
    again.mkdir()
    run(["tar", "-xzf", sdist], tmp_path)
    top = {path.name for path in tree.iterdir()}
    assert {"LICENSE", "README.md", "pyproject.toml", "src"} < top
    assert "tests" not in top
    rebuilt = build("wheel", tree, again)
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()


def test_both_commands_run(scripts, tmp_path):
    for name in ("longnet", "kernel-pytorch"):
        command = scripts / name
        assert run([command, "--version"], tmp_path, PYTHONWARNINGS="error").stdout == f"{name} {VERSION}\n"
        printed = run([command, "--help"], tmp_path, PYTHONWARNINGS="error").stdout
        assert printed.startswith(f"usage: {name} ")
    assert "├─ CPUs" in run([scripts / "kernel-pytorch", "probe"], tmp_path, PYTHONWARNINGS="error").stdout


def test_the_example_of_the_readme(scripts, tmp_path):
    _, section = README.split("\n## In Python\n")
    (example,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)[:1]
    where = "\nimport dilated_attention_pytorch as upper, kernel_pytorch as lower\n"
    where += "for package in (upper, lower): print(package.__version__, package.__file__)\n"
    done = run([scripts / "python", "-W", "error", "-c", example + where], tmp_path)
    for line in done.stdout.splitlines():
        assert line.startswith(f"{VERSION} {scripts.parent}/lib/"), line
    assert len(done.stdout.splitlines()) == 2


def test_a_model_is_trained_without_the_extras(scripts, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    command = [scripts / "longnet", "train", *TINY, "--data", "text", "--steps", "2"]
    assert "pip install matplotlib" in run(command, tmp_path, PYTHONWARNINGS="error").stdout


def test_install_lines_name_what_is_missing_itself():
    """None names this distribution: it is on no index, and its old name is another project's there."""
    named = set()
    for path in (*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")):
        named |= set(re.findall(r"pip install (?:-U )?([\w'.\[\]-]*[\w'\]]|\.)", path.read_text()))
    assert {"nvidia-ml-py", "amdsmi", "matplotlib", "."} < named
    ours = {"torch", "numpy", "msgspec"}.union(*EXTRAS.values())
    assert {name for name in named if not name.startswith(("'.[", "."))} <= {*map(canonicalize_name, ours)}
