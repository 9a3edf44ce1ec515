"""What a model card says of the data sets that have a name. No torch."""

from __future__ import annotations

DATA = {
    "digits": "Digits: 1,797 images of 8×8 grey pixels. The split does not keep the writers apart: a hand that the "
    "model has never seen may be harder.",
    "cifar10": "CIFAR-10: about 3 % of its test images have near-duplicates among the training images "
    "(arXiv 1902.00423).",
    "cifar100": "CIFAR-100: about 10 % of its test images have near-duplicates among the training images "
    "(arXiv 1902.00423).",
    "cinic10": "CINIC-10: its test split holds all CIFAR-10 test images and 10,000 CIFAR-10 training images "
    "(github.com/BayesWatch/cinic-10, README); it has duplicates within and between splits, and blank images "
    "(github.com/BayesWatch/cinic-10/issues/5).",
    "imagenet": "ImageNet: its terms allow research and education that is not commercial; what that means for weights "
    "trained on it is not settled here.",
}

# Of one known content; every other data set is what a folder held, or what somebody's own code gave.
FIXED = ("digits", "cifar10", "cifar100")
