"""The photos of Imagenette that the bundled model was not trained on, as a folder with one folder a class.

``python benchmarks/held_out.py --data TAR --out FOLDER``; then ``vit-explain evaluate FOLDER``.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
from data import CLASSES, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tar of Imagenette's training part, 224 pixels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--half", choices=("all", "choose", "report"), default="all",
                        help="of each class every other photo: one half to choose by, one to report")  # fmt: skip
    given = parser.parse_args()
    with tarfile.open(given.data) as tar:
        members = sorted((one for one in tar.getmembers() if one.isfile()), key=lambda one: one.name)
        _, held_out = split(len(members))
        for member in halved([members[number] for number in held_out.tolist()], given.half):
            file = given.out / CLASSES[Path(member.name).parent.name] / Path(member.name).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    print(f"photos in {given.out}")


def halved(members: list[tarfile.TarInfo], half: str) -> list[tarfile.TarInfo]:
    """Every other member of each class, in the order of their names."""
    by_class: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
    for member in sorted(members, key=lambda one: one.name):
        by_class[Path(member.name).parent.name].append(member)
    parts = {"all": slice(None), "choose": slice(0, None, 2), "report": slice(1, None, 2)}
    return [member for own in by_class.values() for member in own[parts[half]]]


if __name__ == "__main__":
    main()
