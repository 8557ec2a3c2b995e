"""A torch data set over any samples, for training loops of other people's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from magtiles_seg.dataset.samples import Sample, load_pair
from magtiles_seg.labels import LABELS


class SampleDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with their class masks, read when they are asked for.

    Pixels that are ignored have the class `magtiles_seg.labels.IGNORED`, as `ignore_index=255` of
    `torch.nn.CrossEntropyLoss` takes it.

    Example:
        >>> parts = pipeline.split_parts(Path("runs/split.json"), params)
        >>> image, mask = SampleDataset(parts["train"], labels=params.data_load.labels)[0]
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        labels: Sequence[str] = LABELS,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Keep what is to be read.

        Args:
            samples: A part of a split, or all of a data set.
            labels: Class names by index, background first.
            transform: Takes and returns picture and mask, as an augmentation does.
        """
        self.samples, self.labels, self.transform = tuple(samples), tuple(labels), transform

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a picture, (1, H, W) uint8 grey levels, and its mask, (H, W) uint8 class indices.

        Raises:
            IndexError: There is no such picture.
            DataError: Picture or mask are damaged, of two sizes, or do not fit the labels.
        """
        sample = self.samples[index]
        picture, target = load_pair(sample, labels=self.labels)
        image, mask = torch.from_numpy(picture)[None], torch.from_numpy(target)
        return (image, mask) if self.transform is None else self.transform(image, mask)
