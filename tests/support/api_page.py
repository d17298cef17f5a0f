"""Reads the page of public names: which module has which name, with which members and parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

UPPER, LOWER = "dilated_attention_pytorch", "kernel_pytorch"
# What a section names in passing, of other modules.
ELSEWHERE = {
    "ring_traffic": f"{UPPER}.ring_attention:ring_traffic",
    "create_optimal_device_mesh": f"{LOWER}.distributed_scale.hardware_adapter:"
    "HardwareAdapter.create_optimal_device_mesh",
    "RankOrder": f"{LOWER}.links.order:RankOrder",
}
SECTION = re.compile(r"^## ([\w.]+)\n(.*?)(?=^## |\Z)", re.M | re.S)
BLOCK = re.compile(r"^```\n(.*?)^```$", re.M | re.S)
MODULE = re.compile(r"([a-z_][\w.]*) {2,}")
FILE = re.compile(r" {2,}((?:\w+/)+)(?:(\w+)\.py)?$")
TOKEN = re.compile(
    r"(?P<member>(?<!\S)\.[a-z_]\w*)"
    r"|(?P<dotted>[A-Za-z_]\w*(?:\.\w+)+)"
    r"|(?P<returns>-> ?)(?P<type>[A-Z][a-z]\w+)?"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<group>[(\[{])"
)
CLASSES = re.compile(r"[A-Z]\w*(?: [A-Z]\w*)*(?=$|  | \(|;)")
LISTED = re.compile(r"[A-Za-z_]\w*(?:, [A-Za-z_]\w*)+(?=$|  | \()")


@dataclass(kw_only=True)
class Page:
    """What the page promises."""

    names: set[str] = field(default_factory=set)
    """``module:name``, ``module:function(parameter, ...)``, ``module:Class.member(parameter, ...)``."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Old name to new."""
    moved: list[str] = field(default_factory=list)
    """Old modules."""


def read(text: str) -> Page:
    page = Page()
    for package, section in SECTION.findall(text):
        blocks = BLOCK.findall(section)
        for block in blocks:
            Reader(page, package).read(block)
        if not blocks:
            Reader(page, package).read("\n".join(re.findall(r"`(.+?)`", section)))
    for old, new in re.findall(r"`([\w, ]+) -> (\w+)`", text):
        page.renamed |= dict.fromkeys(old.split(", "), new)
    package = ""
    for module in re.findall(r"`([a-z_]*\.[a-z_]+)`", text.partition("Old module paths")[2]):
        package = module.partition(".")[0] or package
        page.moved.append(f"{LOWER}.{package}.{module.partition('.')[2]}")
    return page


class Reader:
    """Reads a block: lines of a module's names, classes followed by their members.

    Words between names are prose, and so is what stands between brackets, but for parameters. A class is a
    word that opens a bracket, or stands alone between two columns; words in capitals there are the values of
    an enumeration. After ``->`` members belong to the class that a function returns, until the line ends.
    """

    def __init__(self, page: Page, package: str) -> None:
        self.page = page
        self.package = self.module = package
        self.classes: list[str] = []
        """Of the module, in order."""
        self.owners: list[str] = []
        """Whose the members on the next lines are."""

    def read(self, block: str) -> None:
        lines: list[str] = []
        for line in block.splitlines():
            if lines and lines[-1].count("(") > lines[-1].count(")"):
                lines[-1] += f" {line.strip()}"
            else:
                lines.append(line)
        for line in lines:
            self.line(line)

    def line(self, line: str) -> None:
        if again := re.match(r"(\w+) re-exports ", line):
            self.module = f"{self.package}.{again[1]}"
            for name in line[again.end() :].split(", "):
                self.add(name)
            self.module = self.package
            return
        if named := MODULE.match(line):
            self.classes, self.owners = [], []
            self.module = named[1] if named[1].startswith(LOWER) else f"{self.package}.{named[1]}"
            line = line[named.end() :]
        if file := FILE.search(line):
            line = line[: file.start()]
            folder = f"{self.package}.{file[1].strip('/').replace('/', '.')}"
            if file[2]:
                self.names(line)
                folder += f".{file[2]}"
            self.module, before = folder, self.module
            self.names(line)
            self.module = before
        else:
            self.names(line)

    def names(self, line: str) -> None:
        """Note what a line names."""
        line = line.strip()
        if line.startswith("(."):
            line = line[1:-1]
        owners, returned = self.owners, list[str]()
        is_method, at = False, 0
        while at < len(line):
            if at == 0 or line[at - 2 : at] == "  ":
                is_method = False
                if listed := CLASSES.match(line, at) or LISTED.match(line, at):
                    for name in re.findall(r"\w+", listed[0]):
                        owners = self.bare(name)
                    at = listed.end()
                    continue
            found = TOKEN.match(line, at)
            if found is None:
                at += 1
                continue
            if found["group"]:
                at = closing(line, at) + 1
                continue
            at, given = found.end(), ""
            if line[at : at + 1] == "(":
                end = closing(line, at)
                given = f"({', '.join(parameters(line[at + 1 : end]))})"
                at = end + 1
            if found["member"] or (found["word"] == "forward" and given):
                name = (found["member"] or "forward").lstrip(".")
                for owner in owners:
                    self.add(f"{owner}.{name}{given}")
                is_method = True
            elif found["returns"]:
                if found["type"] and not is_method:
                    owners = [found["type"]]
                returned = [found["type"]] if found["type"] else []
                if found["type"] and given:
                    self.add(found["type"] + given)
            elif found["word"] == "with":
                owners = returned
            elif found["word"] == "both":
                owners = self.owners = self.classes[-2:]
            elif found["dotted"]:
                if given or line.startswith(" =", at):
                    self.add(found["dotted"] + given)
            elif given:
                owners = self.bare(found["word"], given)
                is_method = False
            elif found.start() == 0 and line.startswith(" .", at):
                start = found["word"].lower()
                owners = [one for one in self.classes if one.lower().startswith(start)] or owners

    def bare(self, name: str, given: str = "") -> list[str]:
        """Note a name, and answer whose the members are that follow."""
        if re.fullmatch(r"[A-Z][A-Z0-9_]+", name):
            self.add(f"{self.classes[-1]}.{name}")
            return self.owners
        self.add(name + given)
        if name[0].islower():
            return []
        self.classes.append(name)
        self.owners = [name]
        return self.owners

    def add(self, name: str) -> None:
        outer = name.partition("(")[0]
        if outer in ELSEWHERE:
            name = ELSEWHERE[outer] + name[len(outer) :]
        elif "." in outer and outer[0].islower():  # module.name
            home, _, last = outer.rpartition(".")
            name = f"{self.package.partition('.')[0]}.{home}:{last}{name[len(outer) :]}"
        else:
            name = f"{self.module}:{name}"
        self.page.names.add(name)


def closing(line: str, at: int) -> int:
    """Where the bracket closes that opens at ``at``."""
    depth = 0
    for place in range(at, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if depth == 0:
            return place
    raise ValueError(f"bracket not closed: {line[at:]}")


def parameters(text: str) -> list[str]:
    """The names of parameters as they are written in a call, without defaults and comments."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [found[0] for part in parts if (found := re.match(r"[A-Za-z_]\w*", part.strip()))]
