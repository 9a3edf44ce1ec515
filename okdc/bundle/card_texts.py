"""What a model card says of the methods and the data sets that have a name. No torch."""

from __future__ import annotations

METHODS = {
    "baseline": "Trained alone, without distillation.",
    "kd": "Distilled from a frozen teacher (KD; Hinton et al., 2015).",
    "dml": "Trained with peers that teach each other (DML, deep mutual learning; Zhang et al., CVPR 2018).",
    "one": "Trained as one branch of a trunk, taught by the gated ensemble (ONE; Lan et al., NeurIPS 2018).",
    "okddip": "Trained with diverse peers that attend to each other (OKDDip; Chen et al., AAAI 2020).",
    "kdcl": "Trained with peers, taught by a target that is made of all their logits (KDCL; Guo et al., CVPR 2020).",
    "dualnet": "Trained with peers whose features are summed into one classifier, without distillation (DualNet; "
    "Hou et al., 2017).",
    "ffl": "Distilled online from a classifier that is fused from the last maps of all students (FFL; "
    "arXiv 1904.09058).",
    "mfef": "Distilled online from a classifier that is fused from multi-scale features of all students (MFEF; "
    "arXiv 2206.08224).",
    "fefr": "Distilled online from a classifier that is fused from features of several depths of all students (FEFR; "
    "DOI 10.3233/JIFS-232626).",
}

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
