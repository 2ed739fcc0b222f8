"""One model, looked at once for all targets, and again for one target: every way a method may use a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .capture import differentiate, look
from .compiled import as_written
from .errors import ModelError, OptionError
from .family import Family
from .hooks import hooked
from .matching import match
from .modules import evaluation_mode
from .seeds import fingerprint
from .surroundings import callers
from .targets import Target, probabilities, score
from .types import Anatomy, Trace

CHUNK = 8  # images a forward; more gains nothing on a processor and costs memory
# An accelerator wants more of them, as long as their tokens are no more than these: of 32 pictures of 14 × 14 patches,
# of twice as many where nothing is kept for gradients, and of several times as many for models in half precision, which
# is so much quicker there that else starting operations would take longer than the operations.
ACCELERATOR_TOKENS = 32 * 197
ACCELERATOR_PROBE_TOKENS = 2 * ACCELERATOR_TOKENS
HALF_PRECISION = 8
PATCH = 16  # pixels a side of what counts as a token where a model has others at other depths

Report = Callable[[int, int], None]  # (done, total)
Columns = Sequence[Sequence[Target]]  # targets, K columns of one an image


@dataclass(eq=False)
class Tally:
    """One count for a caller, out of the counts that several method calls give of themselves."""

    report: Report
    share: float = 1.0  # how many calls like the present one there are from here on, this one included
    _before: int = 0  # of the calls that are finished
    _done: int = 0  # of the present one

    def begin(self, share: float) -> None:
        self._before, self._done, self.share = self._before + self._done, 0, share

    def __call__(self, done: int, total: int) -> None:
        self._done = done
        self.report(self._before + done, self._before + round(total * self.share))


@dataclass(frozen=True)
class Subject:
    """A model, its family, and what the family says of it at this input size."""

    model: nn.Module
    family: Family
    anatomy: Anatomy
    report: Report | None = None  # where methods of many forwards say how far they are
    black: tuple[float, ...] = ()  # see ``types.Inquiry``
    pieces: int = 1  # what a forward would take is parted into so many, for want of memory

    def look(
        self,
        pixels: Tensor,
        needs: frozenset[str],
        within: AbstractContextManager[Any] | None = None,
        *,
        shortened: tuple[int, int] | None = None,
    ) -> tuple[Trace, Any]:
        """The trace of a look without a target, in the graph where gradients are needed, and the model's output."""
        if self.anatomy.plan is not None and (unknown := needs & {"values", "tokens", "attended", "biases"}):
            raise ModelError(f"{self.anatomy.plan.reason}: {', '.join(sorted(unknown))} of its blocks are not known")
        gradient = bool(needs & {"gradient", "graph"})
        first = next(self.model.parameters(), None)
        if gradient and first is not None and first.is_inference():
            raise ModelError(
                f"{self.family.name(self.model)} was made inside torch.inference_mode(), so nothing can be "
                "differentiated through it: make it outside, or give copy.deepcopy(model), made outside"
            )
        with torch.set_grad_enabled(gradient), within or nullcontext():
            if "pixels" in needs:
                pixels = pixels.detach().requires_grad_()
            seen = look(self.model, pixels, needs, self.anatomy, shortened=shortened)
            layers, pool = match(seen.layers, self.anatomy) if "attention" in needs else ([], None)
            logits = self.family.logits(seen.output)
        if not finite(logits):
            raise ModelError(f"{self.family.name(self.model)} returned scores that are not finite (NaN or infinity)")
        trace = Trace(
            layers,
            pool,
            self.anatomy,
            pixels,
            logits.detach().float(),
            tokens=seen.tokens,
            norms=seen.norms,
            attended=seen.attended,
            features=seen.features,
            biases=seen.biases,
            inquiry=ModelInquiry(self, len(pixels)),
        )
        return trace, seen.output

    def about(
        self, trace: Trace, output: Any, targets: Sequence[Target], needs: frozenset[str], *, keep_graph: bool
    ) -> Trace:
        """The trace with what concerns these targets, one an image: y, its gradients, and the way to look again."""
        with torch.enable_grad():
            value = score(targets, self.family.logits(output), output)
            if "gradient" in needs:
                keep = keep_graph or "graph" in needs
                trace = differentiate(trace, value, needs, keep_graph=keep)
        return dataclasses.replace(trace, y=value.detach(), inquiry=ModelInquiry(self, len(targets), (tuple(targets),)))

    @property
    def together(self) -> int:
        """Images that a forward takes."""
        return max(1, self._tokens(ACCELERATOR_TOKENS) // self._length)

    def rows(self, kept: int | None = None) -> int:
        """Rows that a forward without gradients takes, where only so many patches are kept as tokens."""
        length = self._length if kept is None else max(1, self.anatomy.prefix + kept)
        return max(1, self._tokens(ACCELERATOR_PROBE_TOKENS) // length)

    @property
    def _length(self) -> int:
        """Tokens of a whole picture."""
        if self.anatomy.plan is not None:
            height, width = self.anatomy.covers
            return max(1, height * width // PATCH**2)
        return self.anatomy.prefix + self.anatomy.grid[0] * self.anatomy.grid[1]

    def _tokens(self, accelerator: int) -> int:
        """Tokens that a forward takes."""
        weights = next(self.model.parameters(), None)
        usual = CHUNK * self._length
        if weights is not None and weights.device.type != "cpu":
            usual = max(usual, accelerator * (HALF_PRECISION if weights.element_size() == 2 else 1))
        return usual // self.pieces

    def respond(self, pixels: Tensor, keep: Tensor | None = None, of: Tensor | None = None) -> tuple[Any, Tensor]:
        """The model's output for R rows, in one forward, and their scores (R, classes).

        Without ``keep`` rows are the pictures. With it, (R, patches) and as many in every row, the other patches are no
        tokens; ``of`` (R,) says which picture each row is of, by default the one or only one. Pictures are made into
        tokens once.
        """
        with evaluation_mode(self.model) as modules, callers():
            if keep is None:
                output = self.model(pixels)
            else:
                drop = self._dropping(keep, of)
                with as_written(modules), hooked(self.model.get_submodule(self.anatomy.blocks[0]), before=drop):
                    output = self.model(pixels)
        logits = self.family.logits(output)
        if not finite(logits):
            raise ModelError(f"{self.family.name(self.model)} returned scores that are not finite (NaN or infinity)")
        return output, logits

    def scores(self, pixels: Tensor, keep: Tensor | None = None, of: Tensor | None = None) -> Tensor:
        """``respond``'s scores (R, classes), in float32 and without gradients; where an accelerator's memory does not
        hold the rows of one forward, in several."""
        rows = len(pixels) if keep is None else len(keep)
        try:
            with torch.no_grad():
                return self.respond(pixels, keep, of)[1].float()
        except torch.cuda.OutOfMemoryError as error:
            if rows == 1:
                raise ModelError(exhausted(pixels)) from error
        # Out here nothing holds any more what the forward had kept when memory ran out.
        halves = torch.arange(rows, device=pixels.device).tensor_split(2)
        if keep is None:
            return torch.cat([self.scores(pixels[half]) for half in halves])
        return torch.cat([self.scores(pixels, keep[half], None if of is None else of[half]) for half in halves])

    def _dropping(self, keep: Tensor, of: Tensor | None) -> Callable[[Tensor], Tensor]:
        """What leaves only the kept patches of the tokens that enter the first block."""
        if self.anatomy.undroppable:
            raise OptionError(f"{self.anatomy.undroppable}, so patches cannot be left out as tokens; fill them instead")
        prefix = self.anatomy.prefix
        kept = keep.nonzero()[:, 1].view(len(keep), -1)
        first = torch.arange(prefix, device=keep.device).expand(len(keep), -1)
        places = torch.cat([first, prefix + kept], 1)

        def drop(tokens: Tensor) -> Tensor:
            if of is not None:
                return tokens[of[:, None], places]
            return tokens.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))

        return drop


@dataclass(frozen=True)
class ModelInquiry:
    """``types.Inquiry`` about some images and, for each, a target; without targets there is no y.

    ``columns``: all that a method will be asked about, K columns of a target an image, of which this is about the one
    with number ``column``. What a forward of ``probe`` answers for all of them is kept in ``known``, which inquiries
    about the others share: K classes cost the forwards of one, as long as a method asks the same about each.
    """

    subject: Subject
    images: int
    columns: tuple[tuple[Target, ...], ...] = ()
    column: int = 0
    known: dict[Hashable, Tensor] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.columns[self.column] if self.columns else ()

    @property
    def room(self) -> int:
        return max(1, self.subject.together // self.images)

    @property
    def black(self) -> tuple[float, ...]:
        return self.subject.black

    def rows(self, kept: int | None = None) -> int:
        return self.subject.rows(kept)

    def single(self, image: int) -> ModelInquiry:
        own = tuple(column[image : image + 1] for column in self.columns)
        return dataclasses.replace(self, images=1, columns=own)

    def progress(self, done: int, total: int) -> None:
        if self.subject.report is not None:
            self.subject.report(done, total)

    def again(self, pixels: Tensor, needs: Iterable[str], within: AbstractContextManager[Any] | None = None) -> Trace:
        needs = frozenset(needs)
        trace, output = self.subject.look(pixels, needs, within)
        return self.subject.about(trace, output, self._repeated(self.targets, len(pixels)), needs, keep_graph=False)

    def probe(self, pixels: Tensor, keep: Tensor | None = None, *, probability: bool = True) -> Tensor:
        number = len(pixels) if keep is None else len(keep)
        values = torch.empty(number, dtype=torch.float32, device=pixels.device)
        columns = [self._repeated(column, number) for column in self.columns or ((),)]
        # Rows of one forward must keep equally many patches.
        counts = torch.zeros(number, dtype=torch.long) if keep is None else keep.sum(1).cpu()
        with torch.no_grad():
            for count in counts.unique():
                rows = (counts == count).nonzero()[:, 0]
                for some in rows.split(self.rows(None if keep is None else int(count))):
                    kept = None if keep is None else keep[some]
                    seen = pixels if len(pixels) in (1, len(some)) else pixels[some]
                    asked = tuple(tuple(column[row] for row in some.tolist()) for column in columns)
                    values[some] = self._forward(seen, kept, asked, probability)
        return values

    def _forward(self, pixels: Tensor, keep: Tensor | None, columns: Columns, probability: bool) -> Tensor:
        """y (rows,) of the present one of these columns."""
        if len(columns) == 1:
            return self._answer(pixels, keep, columns, probability)[0]
        key = (fingerprint(pixels), None if keep is None else fingerprint(keep), columns, probability)
        if key not in self.known:
            self.known[key] = self._answer(pixels, keep, columns, probability)
        return self.known[key][self.column]

    def _answer(self, pixels: Tensor, keep: Tensor | None, columns: Columns, probability: bool) -> Tensor:
        """y (K, rows) of one forward."""
        output, logits = self.subject.respond(pixels, keep)
        scores = probabilities(logits) if probability else logits
        return torch.stack([score(column, scores, output) for column in columns])

    def lens(self, tokens: Tensor) -> Any:
        with evaluation_mode(self.subject.model) as modules, as_written(modules), callers():
            return self.subject.family.lens(self.subject.model, tokens)

    def value(self, output: Any, *, probability: bool = False) -> Tensor:
        logits = self.subject.family.logits(output)
        scores = probabilities(logits) if probability else logits
        return score(self._repeated(self.targets, len(logits)), scores, output)

    def projection(self, block: int) -> Tensor:
        return self.subject.family.projection(self.subject.model, block).detach().float()

    def _repeated(self, targets: Sequence[Target], rows: int) -> list[Target]:
        each, rest = divmod(rows, self.images)
        if rest or not targets:
            raise ValueError(f"{rows} rows for {self.images} images with {len(targets)} targets")
        return [target for target in targets for _ in range(each)]


def exhausted(pixels: Tensor) -> str:
    """Where not even one image can be looked at."""
    return f"the device has no memory for one image of {'x'.join(map(str, pixels.shape[2:]))} pixels"


def finite(values: Tensor) -> bool:
    """No NaN and no infinity, found in one pass: the extremes tell."""
    return not values.numel() or bool(torch.stack(values.detach().aminmax()).isfinite().all())
