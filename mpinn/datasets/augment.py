"""Augmentation of images: a crop of the image padded with zeros, and a horizontal flip, drawn anew in each epoch."""

from dataclasses import dataclass

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError

AUGMENT = int.from_bytes(b"augm")
GOLDEN = 0x9E3779B97F4A7C15
FIELD = 24
"""Bits of the hash that choose a place along one axis."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """``crop`` pixels of zeros on each side, of which a window of the old size is kept; ``flip``: mirror every other.

    The zeros are values of the file, black in an image, and are normalised like any other pixel.
    """

    crop: int = 0
    flip: bool = False

    def __bool__(self) -> bool:
        return bool(self.crop) or self.flip

    def check(self, shape: tuple[int, ...]) -> None:
        """InputError if samples of this shape cannot be augmented so."""
        for key, wanted in (("crop", self.crop), ("flip", self.flip)):
            if wanted and len(shape) != 3:
                raise InputError(f"data.{key}", f"needs images (height, width, channels), but a sample is {shape}")
        if self.crop and self.crop >= min(shape[:2]):
            raise InputError("data.crop", f"{self.crop} pixels of padding leave nothing of images of {shape[:2]}")

    def draw(self, key: tuple[int, int], samples: Array) -> tuple[Array, Array, Array]:
        """For each sample its shift down, its shift to the right (both from -crop to crop), and whether to flip it.

        A hash of (seed, epoch) = ``key`` and of the sample's number, so neither batch nor grid matter.
        """
        bits = np.full(len(samples), AUGMENT, np.uint64)
        for word in (*key, samples):
            np.bitwise_xor(bits, np.asarray(word, np.uint64), out=bits)
            _mix(bits)
        places, mask = np.uint64(2 * self.crop + 1), np.uint64(2**FIELD - 1)
        down, right = (
            (((bits >> np.uint64(shift)) & mask) * places >> np.uint64(FIELD)).astype(np.int64) - self.crop
            for shift in (40, 16)
        )
        return down, right, (bits & np.uint64(self.flip)).astype(bool)

    def gather(self, x: Array, rows: Array, drawn: tuple[Array, Array, Array], out: Array) -> None:
        """Write the images ``rows`` (count,) of x: (n, H, W, C) into out: (count, H, W, C), moved and flipped."""
        source, target = _pixels(x), _pixels(out)
        if self.crop:
            out.fill(0)
        height, width = x.shape[1:3]
        for image, row, down, right, flip in zip(
            target, rows.tolist(), *(part.tolist() for part in drawn), strict=True
        ):
            there = image[:, ::-1] if flip else image
            there[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = source[
                row, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
            ]


def _pixels(x: Array) -> Array:
    # all channels of a pixel as one item: half as slow to copy backwards
    return x.view(f"V{x.shape[-1] * x.itemsize}")[..., 0]


def _mix(bits: Array) -> None:
    # SplitMix64 (Steele, Lea, Flood 2014)
    np.add(bits, np.uint64(GOLDEN), out=bits)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.bitwise_xor(bits, bits >> np.uint64(shift), out=bits)
        np.multiply(bits, np.uint64(factor), out=bits)
