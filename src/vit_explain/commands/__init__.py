"""One command a file: a typed function whose body loads what it needs, so that ``--help`` stays instant."""
