"""Object detectors of Hugging Face's transformers: DETR and YOLOS."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from ..family import Placed, register
from ..hf_pictures import processing
from ..huggingface import HuggingFace, type_of
from ..image import Preprocessing
from ..layouts import laid_out
from ..structure import check_size, pair
from ..types import Anatomy, Attends, Readout

USUAL = (800, 1066)  # pixels (height, width) of a 3:4 picture as DETR gets it, whose size is not fixed
STRIDE, DILATED = 32, 16  # pixels between the feature vectors of DETR's convolutional network


@register
class HuggingFaceDetection(HuggingFace, Placed):
    """A target is what a function makes of the output, such as one query's score of one class,
    ``lambda output: output.logits[:, 3, 17]``."""

    title = "transformers DETR and YOLOS, without methods that read attention"
    attends: Attends = "unread"

    def matches(self, model: nn.Module) -> bool:
        return type_of(model) in ("detr", "yolos") and hasattr(model, "class_labels_classifier")

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        config, size, name = model.config, (shape[1], shape[2]), self.name(model)
        check_size(name, shape, config.num_channels, None)
        if config.model_type == "yolos":
            stride, features = pair(config.patch_size)[0], ""  # no module's output has one vector a patch
            grid = (size[0] // stride, size[1] // stride)
            reason = f"{name} has detection tokens behind its patches, and is read at these"
        else:
            stride, features = DILATED if config.dilation else STRIDE, "model.input_projection"
            grid = (-(-size[0] // stride), -(-size[1] // stride))
            reason = f"{name} is read at queries, which look at features of a convolutional network"
        if 0 in grid:
            raise ModelError(f"{name} has patches of {stride}x{stride} pixels: {size} has none")
        return laid_out(
            size,
            grid,
            (),
            grid,
            stride=(stride, stride),
            readout=Readout(patches=True),
            features=features,
            reason=reason,
            undroppable=f"{name} is not known to go without some of its tokens",
        )

    def preprocessing(self, model: Any) -> Preprocessing:
        return processing(model, pair(getattr(model.config, "image_size", USUAL)))
