"""Lists the licences of what Kinfold is installed with, and of its extras, as the packages themselves state them.

    python benchmarks/trust/licences.py [--extras parquet images …] [--out benchmarks/trust/licences.md]

Everything that the installed packages require in turn is listed, each once. The exit status is 1 where a licence is not
among those that may be distributed along with a package under the Apache License 2.0 (`allowed`), or is not stated.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[1]))

from provenance import provenance

_ALLOWED = {
    *(
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MIT License",
        "ISC",
        "ISC License (ISCL)",
        "HPND",
        "Zlib",
        "Unlicense",
        "CC0-1.0",
        "BSL-1.0",
    ),
    *("0BSD", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSD License", "3-Clause BSD License"),
    *("Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Apache 2.0", "Apache Software License"),
    *("PSF-2.0", "Python-2.0", "Python Software Foundation License"),
    *("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)", "The Unlicense (Unlicense)"),
}
EXTRAS = ("parquet", "images", "pruning", "onnx", "tracking", "huggingface", "cluster")


def installed(extras: Sequence[str] = ()) -> Iterator[Distribution]:
    """Yields what Kinfold and these extras of it require, and what that requires, as far as it is installed here."""
    waiting, seen = [], set()
    for requirement in map(Requirement, requires("kinfold") or ()):
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            waiting.append(requirement.name)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or name == "kinfold":
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        yield found
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


def licence(found: Distribution) -> str:
    """Returns what a distribution says of its licence, in one line, or an empty text."""
    said = found.metadata
    classifiers = [
        each.rsplit("::", 1)[-1].strip() for each in said.get_all("Classifier") or () if "License ::" in each
    ]
    stated = said.get("License-Expression") or ", ".join(classifiers) or said.get("License") or ""
    return stated.strip().splitlines()[0] if stated.strip() else ""


def allowed(said: str) -> bool:
    """Returns whether a licence is one of those: of what holds together (`AND`, several classifiers) all, of `OR` one.

    Example:
        >>> allowed("MIT AND (Apache-2.0 OR GPL-2.0-only)"), allowed("MIT AND GPL-3.0-only"), allowed("")
        (True, False, False)
    """
    while (inner := _INNER.search(said)) is not None:
        said = said.replace(inner[0], "MIT" if allowed(inner[1]) else "none")
    return all(any(one.strip() in _ALLOWED for one in part.split(" OR ")) for part in re.split(r" AND |, ", said))


_INNER = re.compile(
    r"(?:(?<=AND )|(?<=OR )|(?<![^(]))\(([^()]*)\)"
)  # in brackets that group, and do not explain the word before them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=EXTRAS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = sorted((each.metadata["Name"], each.version, licence(each)) for each in installed(arguments.extras))
    wrong = [row for row in rows if not allowed(row[2])]
    lines = ["| package | version | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    verdict = f"{len(rows)} packages; not allowed: {', '.join(row[0] for row in wrong) or 'none'}."
    text = "\n".join(["# Licences", "", provenance(), "", verdict, "", *lines, ""])
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
