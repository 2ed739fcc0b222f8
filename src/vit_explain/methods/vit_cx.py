"""ViT-CX."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Range, Seed
from ..perturb import chunked, turns
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Xie, Li, Cao and Zhang, ViT-CX: Causal Explanation of Vision Transformers, IJCAI 2023",
    family="perturbation",
    means="Which of the model's own feature maps, used as masks, keep the class likely beside mere noise.",
    does_not_mean="It can only show shapes that the features have, and a pixel shares in all that its masks achieve. "
    "Masked and noisy pictures are unlike those that the model was trained on.",
    needs={"probe"},
    forwards=200,
    class_specific=True,
)
def vit_cx(
    trace: Trace,
    *,
    distance: Annotated[float, Range(0.0, 2.0)] = 0.1,
    noise: Annotated[float, Range(0.0, 10.0)] = 0.1,
    seed: Seed = 0,
) -> Attribution:
    """The model's own feature maps as masks, each weighted by what it does to the class beside mere noise.

    The channels of the tokens that enter the last attention (after its norm) are maps over the patches, scaled to
    [0, 1] each. Those within the cosine ``distance`` of one another (complete linkage) are summed, enlarged bilinearly
    and scaled to [0, 1] again: K masks m_k, some tens to a few hundred. With ε_k Gaussian, of ``noise`` in normalised
    pixels, and y a softmax probability, ``p_k = y(x ⊙ m_k + ε_k ⊙ (1 − m_k)) − y(x + ε_k ⊙ (1 − m_k)) + y(x)`` and
    ``map = 1/K Σ_k p_k m_k / Σ_k m_k`` at the pixels, (B, H, W). Two forwards a mask.

    The authors' code enlarges all channels before it clusters them; here they are clustered on the patch grid, which
    needs a hundredth of the memory and changes few clusters. Channels that are the same everywhere make no mask. A
    value is negative only where noise beside a mask costs more than the mask leaves.
    """
    pixels, (h, w) = trace.pixels, trace.anatomy.grid
    inquiries = [trace.inquiry.single(image) for image in range(len(pixels))]
    masks = []
    for image, alone in enumerate(inquiries):
        # Looked at alone, so that no rounding of a batch decides which cluster a channel goes to.
        features = alone.again(pixels[image : image + 1], {"features"}).features
        assert features is not None
        channels = features[0, trace.anatomy.prefix :].float().T
        masks.append(_clustered(channels, distance).unflatten(1, (h, w)))
    whole = torch.cat([alone.probe(pixels[image : image + 1]) for image, alone in enumerate(inquiries)])
    weighted = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.float32, device=pixels.device)
    total = torch.zeros_like(weighted)
    draws = [torch.Generator().manual_seed(seed) for _ in masks]
    for image, rows, alone in turns(trace, [chunked(trace, len(own)) for own in masks]):
        some = _enlarged(trace, masks[image][rows])
        picture, soft = pixels[image], some.to(pixels.dtype).unsqueeze(1)
        # Mask by mask, so that the draws do not depend on how many go into one forward.
        drawn = [torch.randn(picture.shape, generator=draws[image]) for _ in rows]
        beside = noise * torch.stack(drawn).to(picture) * (1 - soft)
        causal = alone.probe(picture * soft + beside) - alone.probe(picture + beside) + whole[image]
        weighted[image] += torch.einsum("n,nhw->hw", causal, some)
        total[image] += some.sum(0)
    counts = torch.tensor([len(own) for own in masks], device=pixels.device)
    values = weighted / total.clamp_min(torch.finfo(total.dtype).tiny) / counts[:, None, None]
    return Attribution(values, {"score": whole, "masks": counts})


def _clustered(channels: Tensor, distance: float) -> Tensor:
    """Channels (D, patches) -> (K, patches): scaled to [0, 1], and summed over clusters of complete linkage."""
    # Slow to import, so it is left until it is needed.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    maps = _scaled(channels)
    maps = maps[maps.amax(1) > 0]
    if len(maps) < 2:
        return maps if len(maps) else torch.ones_like(channels[:1])
    directions = F.normalize(maps.double(), dim=1)
    apart = (1 - directions @ directions.T).clamp_(min=0).cpu().numpy()
    labels = fcluster(linkage(squareform(apart, checks=False), "complete"), distance, "distance")
    number = torch.from_numpy(labels).to(maps.device).long() - 1
    return torch.zeros(int(number.max()) + 1, maps.shape[1], dtype=torch.float32, device=maps.device).index_add_(
        0, number, maps
    )


def _enlarged(trace: Trace, masks: Tensor) -> Tensor:
    """(n, h, w) -> (n, H, W) in [0, 1]; zero where no patch covers the picture."""
    (height, width), (_, _, whole_height, whole_width) = trace.anatomy.covers, trace.pixels.shape
    large = F.interpolate(masks.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False)
    scaled = _scaled(large.flatten(1)).view(-1, height, width)
    return F.pad(scaled, (0, whole_width - width, 0, whole_height - height))


def _scaled(rows: Tensor) -> Tensor:
    """Each row to [0, 1]; a row that is the same everywhere becomes zero."""
    low = rows.amin(1, keepdim=True)
    return (rows - low) / (rows.amax(1, keepdim=True) - low).clamp_min(torch.finfo(rows.dtype).tiny)
