"""AHBF-OKD: adaptive hierarchy-branch fusion (Gong et al., AAAI 2023), by its authors' public code, linruigong965/AHBF.

m branches grow from one trunk, each with a deeper last stage than the one before. Fusion modules join them one after
the other: the first takes branches 0 and 1, each further one the result so far and the next branch. A deeper branch
teaches what is fused of all shallower ones, and each fused result teaches the two that it was made of. The shallowest
branch, the plain network, is the student to keep.

From the code, which the paper's summary leaves open:

- No target is detached: a divergence moves its teacher as well as its student, and so makes a deep branch answer like
  the shallow ones. `detach_targets` tells how much that is worth.
- After its ramp-up the weight of a divergence is half of `weight`: the code multiplies the ramp by 0.5.
- The keys' defaults are those of the code's parser. The command in its README has aux = 4 and weights of 2 and 4; no
  result is printed there.

Not taken over: 1e-7 that the code adds to every target probability, after which they sum to more than 1; the bias of a
convolution in front of BatchNorm, which takes it away; the modules with CBAM, squeeze-and-excitation or non-local
attention behind the fused map, which the command leaves out; branches that also deepen the stage before the last
(ImageNet), and networks whose branches differ in width (DenseNet).

Shapes: N images, K classes; m students, the branches; C channels, H×W pixels of each one's last map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from okdc import backbones
from okdc.backbones.naming import deepened, depth_added
from okdc.errors import RecipeError
from okdc.methods.base import Batch, Config, Method, Step, Temperature, full_precision, kl, ramp, students
from okdc.methods.one import Gate

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
HALF = 0.5  # the code's factor on its ramp


class AHBFConfig(Config):
    aux: Annotated[int, Field(ge=0, le=100)] = Field(
        2,
        description="How many blocks more the last stage of each branch has than that of the branch before, where "
        "cohort.students names equal networks; 2 as in the authors' code, whose README trains with 4; 0: branches of "
        "one depth, which any network can have.",
    )
    temperature: Temperature = Field(
        3.0,
        description="T: logits are divided by it before the softmax of a KL term, which is multiplied by T²; 3 as in "
        "the authors' code.",
    )
    weight: Weight = Field(
        1.5,
        description="The code's kd_weight, a factor on every KL term, of which the ramp lets half come; 1.5 as there.",
    )
    branch_weight: Weight = Field(
        1.0,
        description="λ2, the weight of what a deeper branch teaches those before it; 1 as in the authors' code, whose "
        "README trains with 4.",
    )
    fused_weight: Weight = Field(
        1.0,
        description="λ1, the weight of what a fused result teaches the two that it is made of; 1 as in the authors' "
        "code, whose README trains with 2.",
    )
    rampup: Annotated[float, Field(ge=0, le=1)] = Field(
        240 / 300,
        description="The fraction of the training over which the weight of the KL terms rises from e⁻⁵ of its size to "
        "all of it, 0 for none; 240 of 300 epochs in the authors' code.",
    )
    detach_targets: bool = Field(
        False,
        description="Whether a teacher's logits are detached, so that it learns nothing from teaching; false as in the "
        "authors' code, where a KL term also draws its teacher to its student.",
    )


class Fusion(nn.Module):
    """Two maps NCHW and their logits NK -> the fused map NCHW and the fused logits NK.

    E = BN(conv1×1 [U; V]), and e = a_0·u + a_1·v with a = softmax(ReLU(BN(linear(mean over H×W of E)))).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.gate = Gate(channels, 2)

    def forward(self, U: Tensor, V: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        E: Tensor = self.bn(self.conv(torch.cat([U, V], 1)))
        a = self.gate(E)  # N2
        return E, a[:, :1] * u + a[:, 1:] * v


class AHBF(Method[AHBFConfig]):
    """L = Σ_b CE(z_b) + Σ_j CE(e_j) + ½·k·w(t)·T²·Σ_j [λ2·KL(v_j ‖ u_j) + λ1·(KL(e_j ‖ u_j) + KL(e_j ‖ v_j))].

    j = 0..m-2 are the fusion modules, e_j what they make of u_j and v_j = z_{j+1}: u_0 = z_0, and u_j = e_{j-1} from
    j = 1 on. The heads of the e_j are fused0, fused1, and so on; that of the last is fused.
    """

    title = "AHBF"
    summary = (
        "Trained as the shallowest branch of a trunk, taught by deeper branches and their fusion (AHBF; Gong et al., "
        "AAAI 2023)."
    )
    branches = True
    needs_trunk = True
    alternatives = (
        "name one network several times, and method.aux deepens the branches, or one with growing depth, as "
        "resnet32,resnet32+2; method.name=fefr, mfef, dml or kdcl takes students that differ"
    )
    least_students = 2

    def setup(self) -> None:
        if not self.cohort.shared:
            raise ValueError(
                "its branches grow from one trunk, and cohort.share='none' leaves none; use cohort.share=low, or a "
                "method for separate networks: dml, kdcl, ffl, mfef, fefr"
            )
        names = [student.architecture for student in self.cohort.backbones()]
        depths = [depth_added(name) for name in names]
        if depths != sorted(depths):
            raise ValueError(
                f"a branch is at least as deep as the one before it, and the first is kept; these are "
                f"{', '.join(names)}: cohort.students=[{','.join(sorted(names, key=depth_added))}]"
            )
        self.leader = 0
        self.notes = (f"the leader is student0 ({names[0]}), the shallowest of the branches {', '.join(names)}",)
        channels = self.cohort.probe(self.images)[0][-1][0]
        self.fusions = nn.ModuleList(Fusion(channels) for _ in names[1:])

    @classmethod
    def architectures(cls, names: Sequence[str], config: AHBFConfig) -> tuple[str, ...]:
        """Equal networks become branches of growing depth; names that differ say their depths themselves.

        Raises RecipeError for networks whose last stage cannot be deepened.
        """
        if len(set(names)) > 1 or not config.aux:
            return tuple(names)
        deeper = tuple(deepened(name, b * config.aux) for b, name in enumerate(names))
        try:
            for name in deeper[1:]:
                backbones.check(name)
        except RecipeError as error:
            raise RecipeError(
                f"method.aux={config.aux} adds blocks to the last stage of each branch but the first: {error.message}",
                hint=f"method.aux=0 leaves branches of one depth; {error.hint}",
            ) from None
        return deeper

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        config = self.config
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # m of NK
        heads = self._heads()
        U, u = maps[0][-1], z[0]
        fused = []  # m - 1 of (e_j, u_j, v_j), NK each
        for fusion, branch, v in zip(self.fusions, maps[1:], z[1:], strict=True):
            E, e = fusion(U, branch[-1], u, v)
            fused.append((e, u, v))
            U, u = E, e
        with full_precision(batch):
            w = HALF * config.weight * ramp(progress, config.rampup)
            losses = {f"ce_student{b}": self.cross_entropy(z_b, batch) for b, z_b in enumerate(z)}
            taught = "student0"  # u_j
            for j, (head, (e, u, v)) in enumerate(zip(heads, fused, strict=True)):
                branch_j = f"student{j + 1}"  # v_j
                losses[f"ce_{head}"] = self.cross_entropy(e, batch)
                losses[f"kl_{branch_j}_{taught}"] = w * config.branch_weight * self._kl(v, u)
                losses[f"kl_{head}_{taught}"] = w * config.fused_weight * self._kl(e, u)
                losses[f"kl_{head}_{branch_j}"] = w * config.fused_weight * self._kl(e, v)
                taught = head
        return Step(losses, students(z) | {head: e for head, (e, _, _) in zip(heads, fused, strict=True)})

    def _kl(self, teacher: Tensor, student: Tensor) -> Tensor:
        return kl(teacher, student, self.config.temperature, detach=self.config.detach_targets)

    def _heads(self) -> list[str]:
        """The names of e_0, ..., e_{m-2}: the last is the fusion of all branches."""
        return [*(f"fused{j}" for j in range(len(self.fusions) - 1)), "fused"]
