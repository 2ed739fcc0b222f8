"""What the words of a command line mean: texts become the values that the library takes, here and only here."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError, OptionError, TargetError, near

if TYPE_CHECKING:
    from .explainer import Explainer
    from .metric_registry import Metric
    from .registry import Method

BUNDLED = "bundled"
ORIGINAL_DEFAULT = "deit_tiny_patch16_224"


def open_explainer(
    model: str, checkpoint: str | None, labels: str | None, device: str, texts: Sequence[str] | None = None
) -> Explainer:
    """The model that was named, with its class names, or with texts for classes, on its device."""
    from .explainer import Explainer

    names = None if labels is None else read_labels(labels)
    return Explainer(model, checkpoint=checkpoint, labels=names, device=read_device(device), texts=texts)


def read_device(name: str) -> str:
    """``auto`` means the accelerator where there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def read_labels(path: str) -> list[str]:
    """Class names from a file: a JSON list, a JSON object from number to name, or one name a line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ModelError(f"there is no labels file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the labels file {path} cannot be read as text: {error}") from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(text)
            names: list[Any] = [found[str(n)] for n in range(len(found))] if isinstance(found, dict) else found
        except (json.JSONDecodeError, KeyError):
            names = [None]
        # The form {"0": ["n01440764", "tench"]} is in wide use.
        names = [name[-1] if isinstance(name, list) and name else name for name in names]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ModelError(
            f"the labels file {path} must be one name a line, a JSON list of names, "
            "or a JSON object from 0, 1, ... to names"
        )
    return names


def read_target(targets: Sequence[str], against: str | None) -> Any:
    """The target of ``--target`` (repeatable) and ``--against``; None where neither is given."""
    if against is not None:
        from .targets import Contrast

        if len(targets) != 1:
            raise TargetError("--against needs exactly one --target: the class rather than which it is explained")
        return Contrast(targets[0], against)
    if not targets:
        return None
    return targets[0] if len(targets) == 1 else list(targets)


def read_prompts(texts: Sequence[str], targets: Sequence[str], against: str | None) -> tuple[list[str] | None, Any]:
    """The texts of ``--text`` (repeatable), None without any, and the target.

    The target is every text, unless ``--target`` says which of them; with ``--against`` one text rather than another.
    """
    if not texts or targets:
        return list(texts) or None, read_target(targets, against)
    if against is None:
        return list(texts), list(range(len(texts))) if len(texts) > 1 else 0
    from .targets import Contrast

    if len(texts) != 1:
        raise TargetError("--against needs exactly one --text: the one rather than which the other is explained")
    return [texts[0], against], Contrast(0, 1)


def read_pairs(pairs: Sequence[str], said: Container[str] = (), flag: str = "-O") -> dict[str, str]:
    """``key=value`` texts as a dictionary; dashes in keys are the underscores of the library. ``said``: keys that were
    given in another way. ``flag``: before which the texts stood."""
    read: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise OptionError(f"{flag} takes key=value, not {pair!r}")
        if key in read or key in said:
            raise OptionError(f"{key} is given twice; leave {flag} {pair} out, or the other")
        read[key] = value.strip()
    return read


def read_settings(method: str, texts: dict[str, str]) -> dict[str, Any]:
    """Options of a method from their texts, each read and checked as its annotation says."""
    from . import methods as _registers_them  # noqa: F401
    from .registry import find

    return _parsed(find(method), texts)


def _parsed(owner: Method | Metric, texts: dict[str, str]) -> dict[str, Any]:
    """The owner's options from their texts; those that it does not have are refused by it."""
    values = {n: owner.options[n].parse(text, owner.name) if n in owner.options else text for n, text in texts.items()}
    owner.settings(values)
    return values


def read_list(text: str, flag: str) -> list[str]:
    """The parts between commas; each may stand once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise OptionError(f"{flag} needs at least one value, as in {flag} a,b")
    return list(dict.fromkeys(parts))


def read_options(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``method.key=value`` texts as options of each of these methods."""
    return {method: read_settings(method, own) for method, own in _owned(pairs, methods, "-O", "method").items()}


def read_metric_options(pairs: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``metric.key=value`` texts as options of each of these metrics."""
    from .metric_registry import find_metric

    return {one: _parsed(find_metric(one), own) for one, own in _owned(pairs, metrics, "-M", "metric").items()}


def _owned(pairs: Sequence[str], owners: Sequence[str], flag: str, kind: str) -> dict[str, dict[str, str]]:
    """``owner.key=value`` texts by owner."""
    texts: dict[str, dict[str, str]] = {}
    for key, value in read_pairs(pairs, flag=flag).items():
        owner, dot, name = key.partition(".")
        if not dot:
            raise OptionError(
                f"of several {kind}s, {flag} needs to know whose option it is: {kind.upper()}.{key}={value}"
            )
        if owner not in owners:
            raise OptionError(f"{flag} {key}={value}: {owner!r} is not among --{kind}s; {near(owner, owners)}")
        texts.setdefault(owner, {})[name] = value
    return texts
