"""``python -m vit_explain``: the original script's flags where one is given, ``vit-explain`` otherwise."""

from __future__ import annotations

import sys

from .cli import main, said_in_one_line
from .commands.original import FLAGS, original

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if any(argument.startswith(FLAGS) for argument in arguments):
        sys.exit(said_in_one_line(lambda: original(arguments)))
    sys.exit(main(arguments))
