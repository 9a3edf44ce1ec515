"""What ships in recipes/: each file is its command, can be built, and carries what the papers print for its cell."""

from __future__ import annotations

import re

import pytest

from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.recipe import catalog
from okdc.recipe.draft import check, load
from okdc.recipe.schema import Recipe

SHIPPED = catalog.recipes()
OWN_SETTING = {  # recipes of one method that the papers cite, by its published setting: epochs, decay, milestones
    "cifar100_resnet18_byot": (200, 5e-4, (0.375, 0.65, 0.9)),
    "cifar100_resnet32_ahbf": (300, 5e-4, (0.5, 0.75)),
    "cifar10_wrn16_1_wrn16_8_switokd": (300, 5e-4, (1 / 3, 0.5, 2 / 3)),
    "cifar10_resnet32_okdph": (300, 5e-4, (0.5, 0.75)),
    "cifar100_resnet32_okdph": (300, 5e-4, (0.5, 0.75)),
    "cifar100_resnet32_pcl": (300, 5e-4, (0.5, 0.75)),
    "cifar100_resnet20_dualnet": (684, 1e-4, (11 / 12,)),  # 240,000 steps of 351 an epoch
}
NETWORKS = ("resnet20", "resnet32", "resnet56", "resnet110", "wrn16_2", "wrn40_2", "densenet40_12")


def shipped(name: str) -> Recipe:
    recipe, problems = check(load([name]))
    assert recipe is not None, problems
    return recipe


def test_every_cell_family_of_the_papers_has_its_recipe() -> None:
    cells = {f"{data}_{network}" for data in ("cifar10", "cifar100") for network in NETWORKS}
    cells |= {"cinic10_mobilenetv2", "cinic10_resnet18", "imagenet_resnet18"}
    cells |= {"cifar100_resnet32_students3", "cifar100_resnet56_students3", "cifar100_resnet56_students4"}
    cells |= {"cifar100_resnet32_wrn16_2", "cifar100_resnet56_wrn40_2"}
    cells |= {f"cifar100_{network}_ablation" for network in ("resnet32", "resnet56", "resnet110")}
    assert cells | OWN_SETTING.keys() | {"digits_resnet8", "folder_resnet20", "folder_mobilenet"} == set(SHIPPED)


@pytest.mark.parametrize("name", list(SHIPPED))
def test_a_recipe_begins_with_its_command_and_can_be_built(name: str) -> None:
    first = SHIPPED[name].read_text(encoding="utf-8").splitlines()[0]
    assert re.match(rf"# okdc distill( recipes/{name}\.toml.*)?( {{2,}}.*)?$", first), first
    resolved = resolve(load([str(SHIPPED[name])]), needs_data=False)
    assert resolved.recipe.method["name"] == (name.rpartition("_")[2] if name in OWN_SETTING else "fefr")
    assert bool(resolved.notes) == bool(
        resolved.recipe.cohort.weights
    )  # the colours that the weights were trained with
    assembly.assemble(resolved, 10)


@pytest.mark.parametrize("name", list(SHIPPED))
def test_a_recipe_names_the_data_set_and_the_students_of_its_file_name(name: str) -> None:
    recipe = shipped(name)
    data, *rest = name.split("_")
    assert recipe.data.name == data
    students = {student.removeprefix("torchvision:") for student in recipe.cohort.students}
    if data in ("folder", "imagenet"):
        assert all(student.startswith(rest[0]) for student in students)
    else:
        assert "_".join(rest).startswith("_".join(dict.fromkeys(recipe.cohort.students)))
    if number := re.search(r"students(\d)$", name):
        assert len(recipe.cohort.students) == int(number[1])
    apart = len(students) > 1 or data in ("digits", "folder") or len(recipe.cohort.students) == 1
    apart = apart or recipe.method["name"] in ("dualnet", "okdph")  # which train separate networks
    assert recipe.cohort.share == ("none" if apart else "low")


CELLS = [n for n in SHIPPED if not n.startswith(("digits", "folder", "imagenet")) and n not in OWN_SETTING]


@pytest.mark.parametrize("name", CELLS)
def test_the_papers_cells_have_the_papers_optimisation(name: str) -> None:
    """MFEF section 4.1: SGD with Nesterov 0.9, 300 epochs, batch 128, 0.1 divided by ten at 150 and 225."""
    optim = shipped(name).optim
    assert (optim.epochs, optim.batch_size, optim.lr, optim.momentum) == (300, 128, 0.1, 0.9)
    assert (optim.weight_decay, optim.aux_weight_decay) == (1e-4, 1e-5)
    assert (optim.schedule, optim.milestones) == ("step", (0.5, 0.75))


@pytest.mark.parametrize("name", OWN_SETTING)
def test_a_cited_method_has_its_own_optimisation(name: str) -> None:
    """Scaffolding decays as the students do: both public codes give all parameters to one optimiser."""
    optim = shipped(name).optim
    epochs, decay, milestones = OWN_SETTING[name]
    assert (optim.epochs, optim.batch_size, optim.lr, optim.momentum) == (epochs, 128, 0.1, 0.9)
    assert optim.weight_decay == optim.aux_weight_decay == decay
    assert optim.schedule == "step"
    assert optim.milestones == pytest.approx(milestones)


def test_the_cited_methods_have_their_published_keys_and_numbers() -> None:
    byot, ahbf, dualnet = (
        resolve(load([str(SHIPPED[name])]), needs_data=False)
        for name in ("cifar100_resnet18_byot", "cifar100_resnet32_ahbf", "cifar100_resnet20_dualnet")
    )
    assert dualnet.variant == "dualnet combine=mean turns=2 weight=0.3"
    assert dualnet.recipe.augment.padding == 0
    assert byot.variant == "byot"
    assert byot.architectures == ("resnet18",)
    paper = byot.recipe.about.paper
    assert paper is not None
    assert (paper.epochs, paper.students, paper.student_error) == (200, ("resnet18",), {"byot": 21.36})  # 78.64 %
    assert ahbf.variant == "ahbf aux=4 branch_weight=4.0 fused_weight=2.0"
    assert ahbf.architectures == ("resnet32", "resnet32+4", "resnet32+8", "resnet32+12")
    assert ahbf.recipe.method["weight"] == 1.5
    assert ahbf.recipe.method["rampup"] == pytest.approx(240 / 300)
    assert ahbf.recipe.about.paper is None, "its repository prints no result"


def test_switokd_pcl_and_okdph_have_their_published_keys_and_numbers() -> None:
    switokd, pcl = shipped("cifar10_wrn16_1_wrn16_8_switokd"), shipped("cifar100_resnet32_pcl")
    assert switokd.about.paper is not None
    assert switokd.about.paper.student_error == {  # accuracies 91.45, 91.96, 91.86, 92.50; 95.21, 95.06, 95.33, 94.76
        "baseline": [8.55, 4.79],
        "dml": [8.04, 4.94],
        "kdcl": [8.14, 4.67],
        "switokd": [7.50, 5.24],
    }
    assert pcl.about.paper is not None
    assert pcl.about.paper.student_error["pcl"] == 25.86
    assert pcl.method["views"] == "own"
    ten, hundred = (shipped(f"{data}_resnet32_okdph").method for data in ("cifar10", "cifar100"))
    assert [ten[key] for key in ("omega", "beta", "gamma", "temperature", "hybrid")] == [0.8, 0.8, 0.5, 4.0, "mean"]
    assert [hundred[key] for key in ("omega", "beta", "gamma", "temperature", "hybrid")] == [1.0, 0.5, 1.0, 4.0, "mean"]
    assert ten["interval"] * 300 == pytest.approx(1)  # epochs
    assert hundred["interval"] * 300 * (45_000 // 128) == pytest.approx(5, rel=1e-3)  # steps


def numbers(name: str) -> list[float]:
    paper = shipped(name).about.paper
    errors = [*paper.student_error.values(), *paper.fused_error.values()] if paper else []
    return [e for error in errors for e in (error if isinstance(error, list) else [error])]


def test_the_133_numbers_that_mfef_prints_are_all_there() -> None:
    """Tables 1 to 5 of arXiv 2206.08224; FEFR's own tables did not survive."""
    tables: dict[str, list[float]] = {}
    for name in SHIPPED:
        if (paper := shipped(name).about.paper) and paper.source.startswith("MFEF"):
            tables.setdefault(paper.source.partition(", ")[2], []).extend(numbers(name))
    counts = {table: len(found) for table, found in tables.items()}
    assert counts == {"table 1": 98, "table 2": 4, "table 3": 12, "table 4": 12, "table 5": 7}
    # The sums tell a digit that was mistyped; they were added up from the published tables.
    sums = {table: round(sum(found), 2) for table, found in tables.items()}
    assert sums == {"table 1": 1546.15, "table 2": 62.79, "table 3": 294.31, "table 4": 306.75, "table 5": 167.05}


@pytest.mark.parametrize("name", [name for name in SHIPPED if numbers(name)])
def test_a_fused_classifier_is_better_than_the_students_it_teaches_in_every_printed_cell(name: str) -> None:
    paper = shipped(name).about.paper
    assert paper is not None
    for method, error in paper.fused_error.items():
        student = paper.student_error[method]
        assert not isinstance(student, list)
        assert error < student


ABLATION = ("cifar100_resnet32_ablation", "cifar100_resnet56_ablation")


@pytest.mark.parametrize("name", ABLATION)
def test_in_every_case_of_the_ablation_the_fused_map_is_equally_wide(name: str) -> None:
    """The six cases of both readings, with the overrides that the recipe's own lines name."""
    text = SHIPPED[name].read_text(encoding="utf-8")
    cases = re.findall(r"^#   (text|released) +(\S+) +(method\..*)$", text, re.M)
    assert [(reading, case) for reading, case, _ in cases] == [
        (reading, case) for reading in ("text", "released") for case in ("FE", "FE+FC", "FE+FC+FD")
    ]
    for reading, case, words in cases:
        resolved = resolve(load([name, "data.root=there", *words.split()]), needs_data=False)
        method = assembly.assemble(resolved, 100).method
        fusion = method.get_submodule("fusion")
        assert fusion.get_parameter("depthwise.0.weight").shape == (128, 1, 3, 3), words
        assert fusion.get_parameter("fc.weight").shape == (100, 64), words
        config = resolved.config.model_dump()
        assert (config["reading"], config["reconstruct"] != "none", config["attention"]) == (
            reading,
            "FC" in case,
            "FD" in case,
        )
