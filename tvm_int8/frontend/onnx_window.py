"""Kernel, stride, dilation and padding of a sliding-window operator, with every automatic form made explicit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .onnx_registry import Node


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes; every field has one entry per axis.

    Attributes
    ----------
    size : tuple of int
        Extent of the input.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
        """The window `node` describes over an input of extent `size`; auto_pad is resolved."""
        rank = len(size)
        strides = tuple(node.get("strides") or [1] * rank)
        dilations = tuple(node.get("dilations") or [1] * rank)
        pads = node.get("pads") or [0] * (2 * rank)
        window = cls(size, tuple(kernel), strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
        lengths = {len(field) for field in (window.kernel, strides, dilations, window.begin, window.end)}
        if lengths != {rank}:
            raise node.error("its kernel, strides, dilations and pads differ in length", f"{rank} spatial axes each")
        return window._with_auto_pad(node)

    def _with_auto_pad(self, node: Node) -> Window:
        mode = node.get("auto_pad", "NOTSET")
        if mode in ("NOTSET", ""):
            return self
        zeros = (0,) * len(self.size)
        if mode == "VALID":
            return replace(self, begin=zeros, end=zeros)
        if mode not in ("SAME_UPPER", "SAME_LOWER"):
            raise node.error(f"has auto_pad '{mode}'", "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        totals = [
            max((-(-size // stride) - 1) * stride + reach - size, 0)
            for size, stride, reach in zip(self.size, self.strides, self.reach, strict=True)
        ]
        small = tuple(total // 2 for total in totals)
        large = tuple(total - total // 2 for total in totals)
        return replace(self, begin=small, end=large) if mode == "SAME_UPPER" else replace(self, begin=large, end=small)

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of the dilated kernel."""
        return tuple((kernel - 1) * step + 1 for kernel, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def padding(self) -> tuple[int, ...]:
        """Relax's order: all begins, then all ends."""
        return self.begin + self.end

    @property
    def is_padded(self) -> bool:
        """Whether any padding is left."""
        return any(self.padding)

    def as_2d(self) -> Window:
        """A window over [W] as one over [1, W]."""
        return Window(
            (1, *self.size),
            (1, *self.kernel),
            (1, *self.strides),
            (1, *self.dilations),
            (0, *self.begin),
            (0, *self.end),
        )

    def require_output(self, node: Node) -> None:
        """Raise ModelError when the window does not fit into the padded input."""
        for size, begin, end, reach in zip(self.size, self.begin, self.end, self.reach, strict=True):
            if size + begin + end < reach:
                found = f"its window of {list(self.reach)} is larger than its padded input of {list(self.size)}"
                raise node.error(found, "a window that fits", "check the input shapes")

    def covering(self, ceil_mode: bool) -> Window:
        """The window with its end padding grown so that rounding down gives what `ceil_mode` asks for.

        Like PyTorch and ONNX Runtime, no window may start in the end padding.
        """
        if not ceil_mode:
            return self
        ends = []
        for size, reach, stride, begin, end in zip(
            self.size, self.reach, self.strides, self.begin, self.end, strict=True
        ):
            count = -(-(size + begin + end - reach) // stride) + 1
            if (count - 1) * stride >= size + begin:
                count -= 1
            ends.append(max((count - 1) * stride + reach - size - begin, 0))
        return replace(self, end=tuple(ends))
