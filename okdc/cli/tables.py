"""The tables of the commands. Each function prints the object that `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from okdc.bundle.artefacts import REDUCED
from okdc.cli import console
from okdc.errors import by
from okdc.recipe.reference import Key, by_table
from okdc.runs.accuracy import not_above, with_interval
from okdc.units import duration


def result(facts: dict[str, Any]) -> None:
    """A finished run: the accuracy of every head at the last epoch, and of the kept student, with its interval."""
    kept, n, split = facts["kept"], facts["images"], facts["judged_on"]
    rows = [[name, with_interval(value, n), "last"] for name, value in facts["heads_last_epoch_top1_pct"].items()]
    rows.append([f"kept: student{kept['student']}", with_interval(kept["top1_pct"], n), str(kept["epoch"])])
    console.table(["head", f"top-1 % on {split}", "epoch"], rows)
    console.out(
        f"kept student{kept['student']} ({kept['architecture']}): {with_interval(kept['top1_pct'], n)} % on {n} "
        f"{split} images (95 % interval){_balanced(kept, facts)}, seed {facts['seed']}, one run"
        f"{'; its weights are the average over steps' if kept.get('averaged') else ''}"
    )
    _warn_of_one_answer("", kept["top1_pct"], n, facts["largest_class_pct"])
    if split != "test":
        console.warn("the data has no test split: these images also chose the student, so its accuracy is too high")
    trained = facts.get("epochs_trained", facts["epochs"])
    epochs = f"{trained} epoch{'s' if trained > 1 else ''}"
    compiled = ", compilation included" if facts.get("compiled") else ""
    console.out(f"trained {epochs} in {facts['seconds']:.1f} s, {facts['images_per_s']:,.0f} images/s{compiled}")


def _accuracy(row: dict[str, Any]) -> str:
    """The row's accuracy with its interval; nothing where it has none."""
    return with_interval(row["top1_pct"], row["images"]) if row["top1_pct"] is not None else ""


def _unequal(classes: dict[str, Any]) -> bool:
    """Whether some classes have more of the judging images than others: top-1 then weighs them by their size."""
    return bool(classes["largest_class_pct"] != classes["smallest_class_pct"])


def _balanced(row: dict[str, Any], classes: dict[str, Any]) -> str:
    """The row's balanced accuracy, in words; nothing where it is the accuracy, as classes are equal."""
    return f", balanced accuracy {row['balanced_accuracy_pct']:.2f} %" if _unequal(classes) else ""


def _warn_of_one_answer(name: str, top1_pct: float, images: int, largest_class_pct: float) -> None:
    """Warns of a student or file that is no better than the same answer to every image."""
    if warning := not_above(top1_pct, images, largest_class_pct):
        console.warn(f"{name}: {warning}" if name else warning)


def _decimals(value: float | None) -> str:
    """Two of them; nothing for no value."""
    return f"{value:.2f}" if value is not None else ""


def series(facts: dict[str, Any]) -> None:
    """A row for each seed, and the mean accuracy of the kept students of the complete runs."""
    split, n = facts["judged_on"], facts["n"]
    done = [row for row in facts["runs"] if row["top1_pct"] is not None]
    unequal = any(_unequal(row) for row in done)
    console.table(
        [
            *("seed", "state", "kept", "epoch", "validation %", f"top-1 % on {split}" if split else "top-1 %"),
            *(["balanced %"] if unequal else []),
        ],
        [
            [
                str(row["seed"]),
                row["state"],
                f"student{row['student']} ({row['architecture']})" if row["architecture"] else "",
                str(row["epoch"] or ""),
                _decimals(row["val_top1_pct"]),
                _accuracy(row),
                *([_decimals(row["balanced_accuracy_pct"])] if unequal else []),
            ]
            for row in facts["runs"]
        ],
    )
    for row in done:
        _warn_of_one_answer(f"seed {row['seed']}", row["top1_pct"], row["images"], row["largest_class_pct"])
    if not n:
        return
    mean, sd = facts["top1_pct_mean"], facts["top1_pct_sd"]
    spread = f"{mean:.2f} ± {sd:.2f} % (mean ± standard deviation)" if sd is not None else f"{mean:.2f} %"
    seeds = f"n = {n} seeds" if n > 1 else "n = 1 seed: its spread is unknown"
    console.out(f"{facts['method']}, kept student: {spread} on {facts['images']} {split} images, {seeds}")
    if split != "test":
        console.warn("the data has no test split: these images also chose the students, so accuracies are too high")


WORST = 20  # classes to show, of more; --json has all of them


def evaluation(report: dict[str, Any]) -> None:
    """The accuracy of each class (the worst of many), the classes taken for others, and accuracy beside its record."""
    classes = report["classes"]
    if len(classes) > WORST:
        classes = sorted((row for row in classes if row["images"]), key=lambda row: row["top1_pct"])[:WORST]
        console.note(f"the {len(classes)} worst of {len(report['classes'])} classes; --json has all")
    console.table(
        ["class", "images", "right", "top-1 %"],
        [
            [
                row["class"],
                str(row["images"]),
                str(row["right"]),
                f"{row['top1_pct']:.2f}" if row["images"] else "",
            ]
            for row in classes
        ],
    )
    if report["confused"]:
        console.out("")
        console.table(
            ["class", "taken for", "images"],
            [[row["class"], row["taken_for"], str(row["images"])] for row in report["confused"]],
        )
    console.out("")
    top5 = f", top-5 {report['top5_pct']:.2f} %" if report["top5_pct"] is not None else ""
    console.out(
        f"{report['architecture']}: {with_interval(report['top1_pct'], report['images'])} % on "
        f"{report['images']} {report['split']} images (95 % interval){_balanced(report, report)}{top5}; "
        f"{report['recorded_top1_pct']:.2f} % recorded ({report['engine']})"
    )
    _warn_of_one_answer("", report["top1_pct"], report["images"], report["largest_class_pct"])


def runs(rows: Sequence[dict[str, Any]]) -> None:
    """The runs, oldest first."""
    console.table(
        ["run", "state", "method", "epoch", "best val %", "left", "kept", "top-1 %", "on"],
        [
            [
                row["run"],
                row["state"],
                _or_unknown(row["method"]),
                f"{_or_unknown(row['epoch'])}/{_or_unknown(row['epochs'])}",
                _decimals(row["best_val_pct"]),
                "" if row["seconds_left"] is None else duration(row["seconds_left"]),
                row["kept"] or "",
                _accuracy(row),
                row["judged_on"] or "",
            ]
            for row in rows
        ],
    )


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)


def recipes(rows: Sequence[dict[str, Any]]) -> None:
    """The shipped recipes, with the errors that a paper prints for them."""
    console.table(
        ["recipe", "students", "method", "epochs", "paper's student error, %"],
        [
            [
                row["name"],
                _counted(row["cohort"]["students"]),
                row["method"]["name"],
                str(row["optim"]["epochs"]),
                _paper(row["about"].get("paper")),
            ]
            for row in rows
        ],
    )


def keys(rows: Sequence[Key]) -> None:
    """The keys of a recipe, a table each."""
    for number, (heading, group) in enumerate(by_table(rows)):
        if number:
            console.out("")
        cells = [[row.key, row.takes, row.default_text, row.description] for row in group]
        console.out(heading)
        console.table(["key", "takes", "default", "what it is"], cells)


def _counted(names: Sequence[str]) -> str:
    """resnet20 ×2; resnet32, wrn16_2"""
    counts = {name: names.count(name) for name in names}
    return ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in counts.items())


def _paper(paper: dict[str, Any] | None) -> str:
    """`baseline 7.32, mfef 6.38`: a number for each student if the paper has them."""
    errors = paper["student_error"] if paper else {}
    return ", ".join(
        f"{method} {' / '.join(f'{e:.2f}' for e in error) if isinstance(error, list) else f'{error:.2f}'}"
        for method, error in errors.items()
    )


ORT_MS = "latency_ms_p50_onnxruntime"


def profile(report: dict[str, Any]) -> None:
    """The costs of the networks side by side, the kept student, the Pareto front, and the stages of each network."""
    rows = report["rows"]
    if len({row["run"] for row in rows if row["run"]}) > 1:  # each has a student0
        rows = [row | {"name": f"{row['run']}: {row['name']}"} if row["run"] else row for row in rows]
    console.table(*_costs(rows))
    for row in rows:
        if row["kept"]:
            console.out(f"* kept: {_row_name(row)}")
    if front := [_row_name(row) for row in rows if row["front"]]:
        console.out(f"+ Pareto front: {', '.join(front)} (none is better in one column and as good in the others)")
    if thrown_away := [row["name"] for row in rows if row["kind"] == "head"]:
        console.out(f"thrown away, and in no bundle: {', '.join(dict.fromkeys(thrown_away))}; at the last epoch")
    for network in report["stages"]:
        name = f"{network['architecture']}, {by(network['input'])}"
        console.out("")
        console.table(
            [name, "output", "params", "MACs"],
            [[s["stage"], by(s["output"]), f"{s['params']:,}", f"{s['macs']:,}"] for s in network["stages"]],
        )
    console.out("")
    for row in report["rows"]:
        if row["uncounted"]:
            console.warn(f"{row['name']}: {', '.join(row['uncounted'])} cannot be counted; its MACs are a lower bound")
    if shrink := report["shrink"]:
        console.out(
            f"the kept student has 1/{shrink['params']:.1f} of the parameters that were trained, and "
            f"1/{shrink['macs']:.1f} of the MACs"
        )
    latency = report["latency"]
    splits = {(row["judged_on"], row["images"]) for row in rows if row["judged_on"]}
    accuracies = "".join(f"{split} %: 95 % interval, {n:,} images. " for split, n in sorted(splits))
    if elsewhere := [row["name"] for row in rows if row["judged_device"] not in (None, "cpu")]:
        accuracies += f"Judged on the GPU: {', '.join(dict.fromkeys(elsewhere))}; an export judges again on the CPU. "
    engines = "in torch and in onnxruntime (ORT)" if any(row[ORT_MS] for row in rows) else "in torch"
    console.note(
        f"{accuracies}MACs: of convolutions and linear layers, equal to torch's FlopCounterMode; FLOPs: 2 × MACs. "
        f"ms: median time of one image {engines}, "
        f"{latency['threads']} thread{'s' if latency['threads'] > 1 else ''}, {latency['processor']}. "
        "--json adds p90, activations and fvcore's count"
    )


def _costs(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells, without columns that are empty in every row. A small run fits 80 columns."""
    several_sizes = len({tuple(row["input"]) for row in rows}) > 1
    splits = {row["judged_on"] for row in rows if row["judged_on"]}
    columns: dict[str, list[str]] = {
        # The marks follow a space, so that a narrow terminal wraps the cell there.
        "": [f"{_row_name(row)} {'*' * row['kept']}{'+' * bool(row['front'])}".rstrip() for row in rows],
        "input": [by(row["input"]) if several_sizes else "" for row in rows],
        "val %": [_decimals(row["val_top1_pct"]) for row in rows],
        f"{'/'.join(sorted(splits))} %": [_accuracy(row) for row in rows],
        "params": [f"{row['params']:,}" for row in rows],
        "MACs": [("≥ " if row["lower_bound"] else "") + f"{row['macs']:,}" for row in rows],
        "ONNX\nkB": [f"{row['onnx_bytes'] / 1000:,.0f}" if row["onnx_bytes"] else "" for row in rows],
        "torch\nms": [_decimals(row["latency_ms_p50_torch"]) for row in rows],
        "ORT\nms": [_decimals(row[ORT_MS]) for row in rows],
    }
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    return list(shown), [list(cells) for cells in zip(*shown.values(), strict=True)]


def _row_name(row: dict[str, Any]) -> str:
    return f"{row['name']} {row['architecture']}" if row["student"] is not None else str(row["name"])


def parity(reports: dict[str, Any]) -> None:
    """What parity measured and allows: the float32 file against the student, then reduced files against float32."""
    report = reports["float32"]
    logits, top1, allowed = report["logits"], report["top1_pct"], report["logits"]["allowed"]
    device = report.get("recorded_device", "cpu")
    on = "" if device == "cpu" else f" on {device}"
    console.table(
        ["parity", "measured", "allowed"],
        [
            [f"images of the {report['split']} split", f"{report['images']:,}", ""],
            ["top-1 %, torch", f"{top1['torch']:.2f}", f"{top1['recorded']:.2f} recorded{on}"],
            ["top-1 %, onnxruntime", f"{top1['onnx']:.2f}", f"{top1['torch']:.2f}"],
            *(
                [["balanced accuracy %", f"{report['balanced_accuracy_pct']['onnx']:.2f}", ""]]
                if _unequal(report)
                else []
            ),
            ["predictions that differ", str(report["predictions_that_differ"]), "0 beyond rounding"],
            *[
                [
                    f"logits, max |d|, {name.replace('_', ' ')}",
                    f"{value:.1e}",
                    f"{allowed.get(name, allowed['images']):.1e}",
                ]
                for name, value in logits["max_abs"].items()
            ],
            [
                "batches 1 to 135, threads 1 and 2",
                f"{max(report['invariance_max_abs'].values()):.1e}",
                f"{allowed['images']:.1e}",
            ],
            [
                "second engine (onnx.reference)",
                "cannot run it" if report.get("onnx_reference_refused") else f"{report['onnx_reference_max_abs']:.1e}",
                f"{allowed['images']:.1e}",
            ],
        ],
    )
    _warn_of_one_answer("", top1["onnx"], report["images"], report["largest_class_pct"])
    for precision in REDUCED:
        if precision in reports:
            console.out("")
            _reduced(precision, reports[precision])


def _reduced(precision: str, report: dict[str, Any]) -> None:
    """A reduced file: the settings that the search tried, then the measurements that its gates judge."""
    if table := report.get("search"):
        chosen, on = report["setting"], report["searched_on"]
        console.table(
            [f"{precision}, weights", "calibration", f"agreement % on {on['split']}", "top-1 %", "mean |d|", ""],
            [
                [
                    row["weights"],
                    row["calibration"],
                    *(
                        [row["error"], "", "", ""]
                        if "error" in row
                        else [
                            f"{row['agreement_pct']:.2f}",
                            f"{row['top1_pct']:.2f}",
                            f"{row['mean_abs']:.1e}",
                            "chosen" if {key: row[key] for key in chosen} == chosen else "",
                        ]
                    ),
                ]
                for row in table
            ],
        )
        console.out("")
    top1, gates, worst = report["top1_pct"], report["gates"], report["worst_class"]
    balanced = report["balanced_accuracy_pct"]
    image_pct = 100 / report["images"]  # no gate is finer than one image
    console.table(
        [precision, "measured", "allowed"],
        [
            [f"images of the {report['split']} split", f"{report['images']:,}", ""],
            [
                f"top-1 %, float32 → {precision}",
                f"{top1['float32']:.2f} → {top1[precision]:.2f}",
                f"{max(gates['max_drop'], image_pct):.2f} points less",
            ],
            *(
                [["balanced accuracy %, the same", f"{balanced['float32']:.2f} → {balanced[precision]:.2f}", ""]]
                if _unequal(report)
                else []
            ),
            [
                "predictions that agree, %",
                f"{report['agreement_pct']:.2f}",
                f"{min(gates['min_agreement'], 100 - image_pct):.2f} at least",
            ],
            [
                f"worst class ({worst['class']}), points",
                f"{worst['change_pct']:+.2f}",
                f"-{worst['allowed_pct']:.2f}",
            ],
            ["logits, max |d|", f"{report['logits']['max_abs']:.1e}", ""],
            [
                "file",
                f"{report['bytes'][precision] / 1000:,.0f} kB",
                f"float32 {report['bytes']['float32'] / 1000:,.0f} kB",
            ],
        ],
    )
    _warn_of_one_answer(precision, top1[precision], report["images"], report["largest_class_pct"])
    if layers := report.get("worst_layers"):
        console.out("")
        console.table(
            ["worst layers", "operator", "signal to error, dB", "weights"],
            [
                [row["node"], row["operator"], f"{row['sqnr_db']:.1f}", (row["weight"] or "").removeprefix("network.")]
                for row in layers
            ],
        )


def verification(report: dict[str, Any]) -> None:
    """The checks of a bundle: the structure, the sample images and the accuracy of each model, then the files."""
    rows = []
    for name, model in report["models"].items():
        samples = model["samples"]
        difference = "not checked"
        if samples:
            measured = f"{samples['max_abs']:.1e}" if samples["max_abs"] is not None else "not finite"
            difference = f"{measured} (allowed {samples['allowed']:.1e})"
        rows.append(
            [
                name,
                "as stated" if model["structure"] else "not as stated",
                difference,
                _decimals(model["top1_pct"]) or "not checked",
                _decimals(model["recorded_top1_pct"]),
            ]
        )
    console.table(["model", "structure", "sample images, max |d|", "top-1 % here", "recorded"], rows)
    failed = len(report["failures"])
    state = f"{failed} check{'s' if failed > 1 else ''} failed" if failed else "all is as stated"
    for name, model in report["models"].items():
        top1_pct = model["recorded_top1_pct"] if model["top1_pct"] is None else model["top1_pct"]
        if _unequal(report):
            here = _decimals(model["balanced_accuracy_pct"])
            console.out(
                f"{name}: balanced accuracy {f'{here} % here' if here else 'not checked'}, "
                f"{model['recorded_balanced_accuracy_pct']:.2f} % recorded"
            )
        _warn_of_one_answer(name, top1_pct, report["judged_images"], report["largest_class_pct"])
    counts = {model["images"] for model in report["models"].values()} - {None}
    images = "".join(f"top-1 on {n:,} {report['split']} images, " for n in counts)
    console.out(f"{report['architecture']}, {report['files']} files, {images}on {report['processor']}: {state}")
