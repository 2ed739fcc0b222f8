"""Attention flow against other maximum flow solvers, and what holds for every flow."""

from __future__ import annotations

import functools
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from small_models import GRID, small, unfused_attention
from test_rollout import fused_by_hand, synthetic

from vit_explain import Explainer, load_model
from vit_explain.errors import OptionError
from vit_explain.flow import OTHER_CUT, SINK_CUT, SOURCE_CUT, Flows, maximum_flows
from vit_explain.flow_cuts import costs
from vit_explain.image import prepare
from vit_explain.methods.attention_flow import attention_flow

PHOTO = Path(__file__).parents[1] / "examples" / "cat.jpg"
EXACT = 1e-12  # relative; sums of some hundred numbers in float64


# Two solvers that know nothing of cuts, sides and skeletons ----------------------------------------------------------


def edges_of(supply: np.ndarray, matrices: np.ndarray, sink: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(from, to, capacity) of the whole graph; the source is node m·N, the sink the next."""
    levels, n, _ = matrices.shape
    source, own = levels * n, np.arange(n)
    tails, heads = [np.full(n, source), source - n + own], [own, np.full(n, source + 1)]
    capacities = [supply, matrices[-1][:, sink]]
    for level in range(levels - 1):
        i, k = (part.ravel() for part in np.indices((n, n)))
        tails.append(level * n + i)
        heads.append((level + 1) * n + k)
        capacities.append(matrices[level].ravel())
    tail, head, capacity = np.concatenate(tails), np.concatenate(heads), np.concatenate(capacities)
    return tail[capacity > 0], head[capacity > 0], capacity[capacity > 0]


def by_networkx(supply: np.ndarray, matrices: np.ndarray, sink: int) -> float:
    source = matrices.shape[0] * len(supply)
    graph = nx.DiGraph()
    graph.add_nodes_from((source, source + 1))
    for tail, head, capacity in zip(*edges_of(supply, matrices, sink), strict=True):
        graph.add_edge(tail, head, capacity=capacity)
    return nx.maximum_flow_value(graph, source, source + 1, flow_func=nx.algorithms.flow.edmonds_karp)


def by_refining(supply: np.ndarray, matrices: np.ndarray, sink: int) -> float:
    """The whole graph in whole numbers, then what rounding left of it in smaller units, and so on."""
    source = matrices.shape[0] * len(supply)
    tail, head, capacity = edges_of(supply, matrices, sink)
    left = csr_array((capacity, (tail, head)), shape=(source + 2, source + 2))
    total, bound = 0.0, min(supply.sum(), matrices[-1][:, sink].sum())
    for _ in range(5):
        if bound == 0:
            break
        scale = (2**30 - 1) / bound
        counts = csr_array((np.floor(np.minimum(left.data, bound) * scale).astype(np.int32), left.indices, left.indptr))
        found = maximum_flow(counts, source, source + 1)
        total += found.flow_value / scale
        left = csr_array(left - found.flow.astype(float) / scale)
        left.data = np.maximum(left.data, 0)
        left.eliminate_zeros()
        bound = min(bound, len(capacity) / scale)
    return total


def check(supply: np.ndarray, matrices: np.ndarray, flows: Flows) -> None:
    """What holds for every flow, whatever the graph."""
    given, taken = supply.sum(), matrices[-1].sum(0)
    rounding = 1 + EXACT
    assert (flows.lower >= 0).all() and (flows.lower <= flows.values).all()
    assert (flows.values <= np.minimum(given, taken) * rounding).all()
    assert (flows.gaps <= 8 * len(supply) * len(matrices) / 2**31).all()
    np.testing.assert_allclose(flows.values[flows.cuts == SINK_CUT], taken[flows.cuts == SINK_CUT], rtol=EXACT)


# Random graphs -------------------------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return powers / powers.sum(-1, keepdims=True)


def residual(matrices: np.ndarray) -> np.ndarray:
    return (matrices + np.eye(matrices.shape[-1])) / 2


def graph(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Supply (N,) and matrices (m, N, N)."""
    generator = np.random.default_rng(seed)
    levels, n = int(generator.integers(1, 7)), int(generator.integers(2, 11))
    shape = (levels, n, n)
    matrices = {
        "uniform": lambda: generator.random(shape),
        "sparse": lambda: generator.random(shape) * (generator.random(shape) < 0.3),
        "peaked": lambda: softmax(3 * generator.standard_normal(shape)),
        "residual": lambda: residual(softmax(3 * generator.standard_normal(shape))),
        "heavy sinks": lambda: residual(softmax(generator.standard_normal(shape) + 8 * np.eye(n)[:2].sum(0))),
        "levels of any size": lambda: generator.random(shape) * 10.0 ** generator.uniform(-6, 3, (levels, 1, 1)),
        "many ties": lambda: generator.integers(0, 4, shape).astype(float),
        "all the same": lambda: np.full(shape, 1 / n),
        "empty rows and columns": lambda: generator.random(shape),
    }[kind]()
    if kind == "empty rows and columns":
        matrices[:, generator.integers(n)] = 0
        matrices[:, :, generator.integers(n)] = 0
    if seed % 2:
        return generator.random(n) * (generator.random(n) < 0.7), matrices
    return np.eye(n)[generator.integers(n)], matrices


KINDS = (
    "uniform", "sparse", "peaked", "residual", "heavy sinks", "levels of any size", "many ties", "all the same",
    "empty rows and columns",
)  # fmt: skip
SEEDS = range(8)


@pytest.mark.parametrize("kind", KINDS)
def test_random_graphs_as_networkx_solves_them(kind):
    kinds_of_cut = set()
    for seed in SEEDS:
        supply, matrices = graph(kind, seed)
        flows = maximum_flows(supply, matrices)
        check(supply, matrices, flows)
        expected = [by_networkx(supply, matrices, sink) for sink in range(len(supply))]
        np.testing.assert_allclose(flows.values, expected, rtol=EXACT, atol=1e-300)
        kinds_of_cut |= set(flows.cuts)
    if kind in ("sparse", "peaked", "residual", "heavy sinks"):
        assert OTHER_CUT in kinds_of_cut


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_solvers_agree(kind):
    for seed in SEEDS[:3]:
        supply, matrices = graph(kind, seed)
        expected = by_networkx(supply, matrices, 1)
        assert by_refining(supply, matrices, 1) == pytest.approx(expected, rel=EXACT, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_skeleton(kind):
    for seed in SEEDS:
        supply, matrices = graph(kind, seed)
        some = [maximum_flows(supply, matrices, largest).values for largest in (1, 2, 5)]
        np.testing.assert_allclose(some[1:], [some[0]] * 2, rtol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_may_come_in_any_order_and_in_any_unit(kind):
    for seed in SEEDS:
        supply, matrices = graph(kind, seed)
        plain = maximum_flows(supply, matrices).values
        order = np.random.default_rng(seed).permutation(len(supply))
        shuffled = maximum_flows(supply[order], matrices[:, order][:, :, order]).values
        np.testing.assert_allclose(shuffled, plain[order], rtol=EXACT)
        np.testing.assert_allclose(maximum_flows(supply * 1e-5, matrices * 1e-5).values, plain * 1e-5, rtol=EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_forms_of_one_and_two_levels(seed):
    generator = np.random.default_rng(seed)
    n = 9
    upper, lower = softmax(2 * generator.standard_normal((2, n, n)))
    one = np.eye(n)[4]
    np.testing.assert_allclose(maximum_flows(one, upper[None]).values, upper[4], rtol=EXACT)
    expected = np.minimum(upper[4][:, None], lower).sum(0)
    np.testing.assert_allclose(maximum_flows(one, np.stack([upper, lower])).values, expected, rtol=EXACT)
    supply = generator.random(n)
    expected = np.minimum(supply[:, None], lower).sum(0)
    np.testing.assert_allclose(maximum_flows(supply, lower[None]).values, expected, rtol=EXACT)


def test_nothing_flows_where_nothing_is_given_or_taken():
    supply, matrices = graph("residual", 4)
    matrices = np.concatenate([matrices, matrices])
    matrices[-1, :, 1] = 0
    flows = maximum_flows(supply, matrices)
    assert flows.values[1] == flows.lower[1] == flows.gaps[1] == 0
    assert (np.delete(flows.values, 1) > 0).all()
    assert not maximum_flows(np.zeros_like(supply), matrices).values.any()
    assert not maximum_flows(supply, np.zeros_like(matrices)).values.any()


def test_a_single_supply_limits_what_rows_could_carry():
    matrices = np.full((3, 4, 4), 2.0)
    flows = maximum_flows(np.eye(4)[0] * 0.5, matrices)
    assert (flows.values == 0.5).all() and (flows.lower == 0.5).all() and (flows.cuts == SOURCE_CUT).all()


def test_a_bottleneck_in_the_middle_is_another_cut():
    """Everything passes through one edge of the middle level."""
    wide = np.full((5, 5), 3.0)
    narrow = np.zeros((5, 5))
    narrow[2, 3] = 0.25
    flows = maximum_flows(np.full(5, 9.0), np.stack([wide, narrow, wide]))
    assert (flows.values == 0.25).all() and (flows.cuts == OTHER_CUT).all()


def test_costs_of_cuts_on_numbers_one_can_check():
    supply, matrices = np.array([1.0, 2.0]), np.array([[[4.0, 8.0], [16.0, 32.0]], [[64.0, 0], [128.0, 0]]])
    labels = np.array([[[0, 0], [1, 1], [1, 0], [0, 1]], [[0, 0], [1, 1], [0, 1], [0, 0]]], float)
    found = costs(supply, matrices, np.broadcast_to(matrices[-1][:, 0], (4, 2)), labels)
    assert found.tolist() == [3, 192, 2 + 4 + 128, 1 + 16 + 32]


# Attention of the bundled model --------------------------------------------------------------------------------------


@functools.cache
def bundled() -> tuple[Explainer, torch.Tensor, list[torch.Tensor]]:
    """The model, a photo's pixels, and its attention (1, H, N, N) read in another way than the package's."""
    model = load_model("bundled")
    explainer = Explainer(model)
    with Image.open(PHOTO) as photo:
        pixels = torch.from_numpy(prepare(photo.convert("RGB"), explainer.preprocessing)[0][None])
    return explainer, pixels, unfused_attention(model, pixels, 0)[0]


def capacities_by_hand(attentions: list[torch.Tensor], fusion: str, ratio: float) -> np.ndarray:
    """Ã of the first image from the last block down: (L, N, N)."""
    made = []
    for attention in reversed(attentions):
        matrix = fused_by_hand(attention[0].double().numpy(), fusion)
        dropped = int(matrix.size * ratio)
        cut = np.sort(matrix, None)[dropped]
        own = matrix[0, 0]
        matrix[matrix < cut] = 0
        matrix[0, 0] = own
        matrix += np.eye(len(matrix))
        made.append(matrix / matrix.sum(1, keepdims=True))
    return np.stack(made)


@pytest.mark.parametrize(("blocks", "ratio"), [(3, 0.0), (3, 0.9), (8, 0.0)])
def test_real_attention_as_another_solver_has_it(blocks, ratio):
    _, _, attentions = bundled()
    matrices = capacities_by_hand(attentions, "mean", ratio)[:blocks]
    supply = np.eye(len(matrices[0]))[0]
    flows = maximum_flows(supply, matrices)
    check(supply, matrices, flows)
    sinks = range(0, len(supply), 40)
    expected = [by_refining(supply, matrices, sink) for sink in sinks]
    np.testing.assert_allclose(flows.values[list(sinks)], expected, rtol=1e-9)


def test_full_depth_is_degenerate_and_says_so():
    explainer, pixels, attentions = bundled()
    deep = explainer.explain(pixels, "attention_flow", last_blocks=None)
    sums = capacities_by_hand(attentions, "mean", 0.0)[-1].sum(0)
    patches = sums[-deep.relevance[0].size :].reshape(deep.relevance[0].shape)
    np.testing.assert_allclose(deep.relevance[0], np.minimum(1, patches), rtol=1e-5)
    assert "column sum of block 0" in deep.warnings[0][0] and "does not depend" in deep.warnings[0][0]
    assert deep.facts["other_cut"][0] == 0
    few = explainer.explain(pixels, "attention_flow")
    assert not few.warnings[0] and few.facts["other_cut"][0] > 0.5
    for found in (deep, few):
        assert found.facts["largest_gap"][0] < 1e-6
        assert sum(found.facts[name][0] for name in ("source_cut", "sink_cut", "other_cut")) == pytest.approx(1)


def test_full_depth_does_not_depend_on_the_token_and_few_blocks_do():
    _, _, attentions = bundled()
    matrices = capacities_by_hand(attentions, "mean", 0.0)
    tokens = np.eye(len(matrices[0]))
    for blocks, alike in ((len(matrices), True), (2, False)):
        some = [maximum_flows(tokens[token], matrices[:blocks]).values for token in (0, 100)]
        assert np.allclose(*some, rtol=1e-9) == alike


# The method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "ratio"), [("mean", 0.0), ("max", 0.0), ("min", 0.3), ("mean", 0.9)])
@pytest.mark.parametrize("blocks", [1, 2, None])
def test_a_class_token_by_hand(vit, pixels, blocks, fusion, ratio):
    attentions, _ = unfused_attention(vit, pixels[:1], 0)
    options = {"last_blocks": blocks, "head_fusion": fusion, "discard_ratio": ratio}
    found = Explainer(vit).explain(pixels[:1], "attention_flow", **options).relevance[0]
    matrices = capacities_by_hand(attentions, fusion, ratio)[:blocks]
    supply = np.eye(len(matrices[0]))[0]
    expected = [by_networkx(supply, matrices, sink) for sink in range(1, len(supply))]
    np.testing.assert_allclose(found, np.reshape(expected, GRID), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mean pooling", "distilled", "attention pooling"])
def test_other_heads_by_hand(pixels, name):
    """Whatever weights the head reads the last tokens with are what it may draw of them."""
    model = small(name)
    attentions, _ = unfused_attention(model, pixels[:1], 0)
    matrices = capacities_by_hand(attentions, "mean", 0.0)
    supply = np.zeros(len(matrices[0]))
    if name == "mean pooling":
        supply[:] = 1 / len(supply)
    elif name == "distilled":
        supply[:2] = 0.5
    else:
        supply[:] = Explainer(model).explain(pixels[:1], "attention").relevance[0].ravel()
    found = Explainer(model).explain(pixels[:1], "attention_flow").relevance[0].ravel()
    expected = [by_networkx(supply, matrices, sink) for sink in range(len(supply))]
    np.testing.assert_allclose(found, expected[len(supply) - len(found) :], rtol=2e-5)


def test_a_batch_is_its_images_alone():
    both = synthetic()
    together = attention_flow(both)
    for image in range(2):
        alone = synthetic()
        for layer in alone.layers:
            assert layer.probabilities is not None
            layer.probabilities = layer.probabilities[image : image + 1]
        alone.pixels, alone.logits = alone.pixels[:1], alone.logits[:1]
        single = attention_flow(alone)
        assert single.map.equal(together.map[image : image + 1])
        assert single.warnings[0] == together.warnings[image]
        for name, values in single.facts.items():
            assert values[0] == together.facts[name][image]


def test_patches_may_come_in_any_order():
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    plain, shuffled = synthetic(), synthetic()
    for layer in shuffled.layers:
        assert layer.probabilities is not None
        layer.probabilities = layer.probabilities[:, :, tokens][..., tokens]
    for ratio in (0.0, 0.6):
        expected = attention_flow(plain, discard_ratio=ratio).map.flatten(1)[:, order]
        torch.testing.assert_close(
            attention_flow(shuffled, discard_ratio=ratio).map.flatten(1), expected, rtol=1e-6, atol=0
        )


def test_more_blocks_than_there_are_means_all(vit, pixels):
    explainer = Explainer(vit)
    some = [explainer.explain(pixels, "attention_flow", last_blocks=blocks).relevance for blocks in (3, 99, None)]
    assert (some[0] == some[1]).all() and (some[0] == some[2]).all()
    with pytest.raises(OptionError, match="last_blocks must be a whole number in"):
        explainer.explain(pixels, "attention_flow", last_blocks=0)
