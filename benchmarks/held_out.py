"""The photos of Imagenette that the bundled model was not trained on, as a folder with one folder a class.

``python benchmarks/held_out.py --data TAR --out FOLDER``; then ``vit-explain evaluate FOLDER``.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
from data import CLASSES, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tar of Imagenette's training part, 224 pixels")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tarfile.open(given.data) as tar:
        members = sorted((one for one in tar.getmembers() if one.isfile()), key=lambda one: one.name)
        _, held_out = split(len(members))
        for number in held_out.tolist():
            member = members[number]
            file = given.out / CLASSES[Path(member.name).parent.name] / Path(member.name).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    print(f"{len(held_out)} photos in {given.out}")


if __name__ == "__main__":
    main()
