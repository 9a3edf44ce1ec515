"""Augmentation of training images: what a recipe's `[augment]` asks for.

draws.py        the draws of an epoch on the host: a function of the seed and the epoch alone
pipeline.py     `Augmentation`: a batch's images and draws to normalised pixels, on the device where both are
crops.py        crops by whole pixels, and the crop of an image file
geometry.py     one matrix an image for everything else that moves pixels, and one bilinear resample
colour.py       brightness, contrast, saturation and hue
policy.py       TrivialAugmentWide: what of it is neither a matrix nor a colour factor
blur.py         a Gaussian of each image's own width
erasing.py      a rectangle in the mean colour
mixing.py       mixup and CutMix: neighbours in a batch mixed, with both labels
boxes.py        rectangles: of crops, of what is erased, of what is cut

Every draw happens on the CPU, so that any step can be repeated, on every device and by any number of processes. What
the device does has the same shapes in every batch and reads nothing back: a CUDA graph may hold it.
"""

from okdc.data.augmentation.draws import Draws, order
from okdc.data.augmentation.pipeline import Augmentation, Examples

__all__ = ["Augmentation", "Draws", "Examples", "order"]
