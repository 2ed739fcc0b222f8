"""The page of all methods is what the registry says, and says of every method all that a reader needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_explain import list_methods
from vit_explain import metrics as _registers_them  # noqa: F401
from vit_explain.catalogue import PATENT_NOTE, as_dict, page, passes
from vit_explain.errors import OptionError
from vit_explain.metric_catalogue import page as metric_page
from vit_explain.metric_registry import choose_metrics
from vit_explain.registry import FAMILIES, METHODS, NEEDS, by_family, choose_methods, method

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))


def test_the_committed_page_is_the_registrys():
    assert page(list_methods()) == PAGE, "run `make docs`"


def test_every_method_has_a_row_and_a_section():
    assert set(SECTIONS) == {found.name for found in list_methods()}
    rows = dict(re.findall(r"^\| .*?\| \[(\w+)\]\(#\1\) \| (.*) \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(SECTIONS)
    for found in list_methods():
        known, signed, cost, needs = rows[found.name].split(" | ")
        assert (known, signed == "yes", cost) == (found.about_class, found.signed, passes(found))
        assert set(needs.split(", ")) - {"nothing"} >= found.needs
        section = SECTIONS[found.name]
        for text in (found.summary, found.means, found.does_not_mean, found.paper):
            assert text in section
        assert all(f"| `{name}` |" in section and option.allowed in section for name, option in found.options.items())


def test_the_committed_page_of_metrics_is_the_registrys():
    committed = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert metric_page(choose_metrics(["all"])) == committed, "run `make docs`"


def test_tables_have_as_many_cells_as_heads():
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_the_patent_note_names_the_methods_it_is_about():
    (line,) = [line for line in PAGE.splitlines() if PATENT_NOTE in line]
    named = set(re.findall(r"`(\w+)`", line))
    assert {"attn_lrp", "cp_lrp", "partial_lrp", "transformer_attribution"} <= named
    assert named == {found.name for found in list_methods() if found.family == "relevance propagation"}


def test_families_are_in_order_and_complete():
    grouped = by_family(list_methods())
    assert [family for family, _ in grouped] == list(FAMILIES)
    assert sorted(found.name for _, members in grouped for found in members) == sorted(METHODS)
    assert [family for family, _ in by_family([METHODS["rise"], METHODS["gae"]])] == [
        "attention × gradient",
        "perturbation",
    ]


def test_words_stand_for_lists_of_methods():
    everything = [found.name for found in choose_methods(["all"])]
    assert sorted(everything) == sorted(METHODS)
    assert everything == [found.name for _, members in by_family(METHODS.values()) for found in members]
    fast = [found.name for found in choose_methods(["fast"])]
    assert fast == [name for name in everything if METHODS[name].forwards == 1 and METHODS[name].backwards <= 1]
    assert {"rollout", "gradcam", "legrad"} <= set(fast) and not {"rise", "fullgrad", "tam"} & set(fast)
    assert [found.name for found in choose_methods(["rise", "gae", "rise"])] == ["rise", "gae"]
    assert [found.name for found in choose_methods(["fast", "rise"])] == [*fast, "rise"]
    with pytest.raises(OptionError, match="no method 'fats'; near matches: "):
        choose_methods(["rollout", "fats"])
    with pytest.raises(OptionError, match="at least one method"):
        choose_methods([])


def test_facts_for_json():
    assert {as_dict(found)["name"] for found in list_methods()} == set(METHODS)
    assert as_dict(METHODS["rollout"])["needs"] == ["attention"]
    assert set(as_dict(METHODS["gae"])["needs"]) <= NEEDS.keys()


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="unknown family 'astrology'"):

        @method(paper="", family="astrology", means="", does_not_mean="", needs=(), class_specific=False)
        def horoscope(trace):
            """Nothing."""
