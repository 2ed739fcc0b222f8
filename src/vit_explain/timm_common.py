"""What timm's models have in common: configuration, preprocessing, class names, weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .errors import ModelError, reason
from .family import Placed
from .image import Preprocessing
from .layer import Placement
from .layouts import Grid, laid_out, merging
from .types import Anatomy, Readout
from .weights import load_weights, read_state

try:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    from timm.layers.diff_attention import DiffAttention
    from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelThingsBlock
except (ImportError, RuntimeError) as error:
    # A CPU-only torch beside a registry torchvision dies with "operator torchvision::nms does not exist".
    raise ModelError(
        f"timm cannot be imported ({reason(error)}): torch is a CPU-only build and torchvision is not, "
        "or the reverse; reinstall both together: pip install --force-reinstall torch torchvision"
    ) from error

BUNDLED = "bundled"
NORMS = ("attns.0.norm", "in_norm", "norm1")  # what blocks of Vision Transformers call the norm before attention
# Where timm's models keep the last layer.
HEADS = ("head.weight", "head.fc.weight", "head.l.weight", "head.1.fc.weight")
# Names of Vision Transformers whose blocks hold two attentions, and what these are made of.
TWO_ATTENTIONS = ("vit_*_18x2_*", "vit_dwee_*", "vit_dpwee_*", "vit_dlittle_*")
SIDE_BY_SIDE = ParallelThingsBlock
DIFFERENTIAL = (DiffAttention, DiffParallelScalingBlock)


class Timm(Placed):
    """The answers of a family of timm models that do not depend on its blocks."""

    modules: tuple[str, ...] = ()  # files of timm.models whose names this family loads
    exclude: tuple[str, ...] = ()  # patterns of names there that are something else
    kinds: tuple[type[nn.Module], ...] = ()  # classes it answers for

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, self.kinds)

    def refuses(self, model: nn.Module) -> str | None:
        return None

    def readout(self, model: Any) -> Readout:
        """The mean of the patches where the model pools by average, else the class token."""
        return Readout(patches=True) if model.global_pool == "avg" else Readout(tokens=(0,))

    def averaged(self, model: Any) -> Readout:
        """The mean of the patches; ``ModelError`` where the model pools in another way."""
        head = getattr(model, "head", None)
        places = ((head, "global_pool"), (head, "pool_type"), (model, "global_pool"))
        pool = next(getattr(where, name) for where, name in places if hasattr(where, name))
        kind = getattr(pool, "pool_type", pool)
        if kind != "avg":
            raise ModelError(
                f"{self.name(model)} reads its tokens by {kind!r} pooling, which no row of weights describes"
            )
        return Readout(patches=True)

    def pyramid(
        self,
        model: Any,
        shape: tuple[int, int, int],
        calls: Sequence[tuple[Placement | None, Grid]],
        grid: Grid,
        *,
        reason: str,
        features: str = "",
        covers: Grid | None = None,
        remembers: bool = False,
    ) -> Anatomy:
        """The anatomy of a model with convolutions between or before its calls, each with the grid that it is on, whose
        tokens end on ``grid`` and are averaged. ``features``: by default the last of its stages."""
        return laid_out(
            (shape[1], shape[2]),
            calls[0][1],
            merging(calls),
            grid,
            covers=covers,
            readout=self.averaged(model),
            features=features or f"stages.{len(model.stages) - 1}",
            reason=f"{self.name(model)}{reason}",
            undroppable=f"{self.name(model)} has convolutions, which need every place",
            remembers=remembers,
        )

    def unplaced(self, model: Any, shape: tuple[int, int, int], reason: str, *, padded: bool = True) -> Anatomy:
        """The anatomy of a picture classifier of whose attention nothing is read, for this reason; what timm says of
        its last feature map is all that is known. ``padded``: whether what is left of a side makes a cell as well."""
        self.check_channels(model, shape[0])
        last = model.feature_info[-1]
        stride = last["reduction"]
        rest = stride - 1 if padded else 0
        grid = (shape[1] + rest) // stride, (shape[2] + rest) // stride
        return laid_out(
            (shape[1], shape[2]),
            grid,
            (),
            grid,
            covers=None if padded else (grid[0] * stride, grid[1] * stride),
            readout=Readout(patches=True),
            features=last["module"],
            reason=reason,
            undroppable=f"{self.name(model)} is not known to go without some of its tokens",
            remembers=True,  # for all that is known
        )

    def built_for(self, model: Any) -> tuple[int, int] | None:
        """Pixels (height, width) that the model was built for; None where it takes others, or does not say."""
        if getattr(model, "dynamic_img_size", False):
            return None
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
        return size if isinstance(size, tuple) else None

    def grid_of(self, model: Any, embed: Any, size: tuple[int, int]) -> Grid:
        """Patches (rows, columns) that a dynamic patch embedding makes of a picture; ``ModelError`` where of none."""
        patch = embed.patch_size
        fits = embed.img_size is None or getattr(embed, "dynamic_img_pad", False)
        if not fits and any(side % length for side, length in zip(size, patch, strict=True)):
            raise ModelError(
                f"{self.name(model)} takes sides that patches of {patch[0]}x{patch[1]} pixels divide, not "
                f"{size[0]}x{size[1]}; timm.create_model(..., dynamic_img_pad=True) pads others"
            )
        rows, columns = embed.dynamic_feat_size(size)
        return rows, columns

    def check_channels(self, model: Any, channels: int) -> None:
        """``ModelError`` where the model was built for other inputs."""
        # Not every model says it; the first weights may come after a transform of the pixels (CSATv2).
        first = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), channels)
        wanted = getattr(model, "in_chans", first)
        if channels != wanted:
            raise ModelError(
                f"{self.name(model)} takes {wanted} channels, not {channels}; pass a preprocessed (B, C, H, W) tensor"
            )

    def check_size(self, model: Any, size: tuple[int, int], wanted: tuple[int, int]) -> None:
        """``ModelError`` where a model was built for another input size."""
        if tuple(wanted) != tuple(size):
            takes = "x".join(map(str, wanted))
            raise ModelError(
                f"{self.name(model)} takes {takes} pixels (height x width), not {size[0]}x{size[1]}; "
                "timm.create_model(..., img_size=(H, W)) builds it for another size"
            )

    def classes(self, model: Any) -> int:
        return model.num_classes

    def logits(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the model returned {shape}, not (B, classes) scores")
        return output

    def preprocessing(self, model: Any) -> Preprocessing:
        config = resolve_data_config({}, pretrained_cfg=config_of(model), model=model)
        size = tuple(self.built_for(model) or config["input_size"][1:])
        mean, std = (tuple(config[name]) for name in ("mean", "std"))
        return Preprocessing(
            size=(size[0], size[1]),
            mean=mean * 3 if len(mean) == 1 else mean,  # of models of one channel
            std=std * 3 if len(std) == 1 else std,
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def labels(self, model: Any) -> list[str] | None:
        known = config_of(model).get("label_names")
        if known is not None and len(known) == model.num_classes:
            return list(known)
        subset = infer_imagenet_subset(model) if model.num_classes else None
        if subset is None:
            return None
        info = ImageNetInfo(subset)
        return [info.index_to_description(number) for number in range(model.num_classes)]

    def name(self, model: Any) -> str:
        return config_of(model).get("architecture") or type(model).__name__

    def names(self) -> list[str]:
        return [name for part in self.modules for name in timm.list_models(module=part, exclude_filters=self.exclude)]

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        if checkpoint is not None:
            return with_checkpoint(name, checkpoint, {})
        try:
            return timm.create_model(name, pretrained=True).eval()
        except Exception as error:  # hubs, proxies and disks fail in many ways; all of them mean "no weights"
            raise ModelError(
                f"the weights of {name} could not be loaded from the hub ({reason(error)}); offline, give a file with "
                f"checkpoint=, or use the model {BUNDLED!r}"
            ) from error


def two_attentions(model: nn.Module) -> bool:
    """Whether a block of the model holds several attentions side by side, or the difference of two."""
    return any(isinstance(part, (SIDE_BY_SIDE, *DIFFERENTIAL)) for part in model.modules())


def config_of(model: Any) -> dict[str, Any]:
    """timm's configuration of the pretrained weights; empty for a model built from its class."""
    return getattr(model, "pretrained_cfg", None) or {}


def with_checkpoint(name: str, checkpoint: Path, arguments: dict[str, Any]) -> Any:
    """The architecture with a file's weights, every one of them used; the head is as wide as the file's."""
    state = read_state(checkpoint)
    head = next((state[key] for key in HEADS if key in state), None)
    if head is not None:
        arguments = {**arguments, "num_classes": head.shape[0]}
    return load_weights(timm.create_model(name, pretrained=False, **arguments), state, checkpoint, name)
