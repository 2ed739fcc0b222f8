"""On the bundled, trained model the right object of four lights up; noise does not.

Grid pointing (Böhle, Fritz and Schiele, CVPR 2021): four pictures of four classes in one, each class is explained, and
the share of the map's positive relevance in that class's quarter is its *localisation*. The pictures are drawings, and
one photo: see ``drawings``.

Chance is 25 %. What "far above chance" means was set before anything was measured, and is the same for every method:
the localisation is 40 % or more on average, and in more than half of the maps no other quarter holds a larger share.
Methods that do not get there are named in ``NOT_FAR``, each with what about it is the reason. What also holds for most
of these, since a part that the maps of all classes have in common cannot change it: the map *of the right class* has a
larger share in a quarter than those of the three other classes, again in more than half of them (chance: a quarter).
Those in ``CLASS_AGNOSTIC`` fail this too. A method that is on a list and passes fails its test.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from drawings import PICTURES
from numpy.typing import NDArray
from PIL import Image

from vit_explain import Explainer, list_methods
from vit_explain.image import prepare

CHANCE, FAR, MOST = 0.25, 0.4, 0.5
MOSAICS = (
    ("golf ball", "parachute", "gas pump", "French horn"),
    ("French horn", "cassette player", "church", "gas pump"),
    ("parachute", "church", "cassette player", "golf ball"),
    ("church", "gas pump", "cassette player", "parachute"),
)
# Each class twice, in two cells and in two companies. In the last one the gas pump is what the model answers, in the
# others the ball, each with 84 % or more: the other three classes are not even its second thought.
