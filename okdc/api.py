"""The Python API: what the commands of okdc do, as functions. The command line calls them.

    recipe = okdc.load_recipe("digits_resnet8", optim={"epochs": 3})
    report = okdc.check(recipe, images=True)                       # okdc check --images
    run = okdc.distill(recipe)                                     # okdc distill
    run = okdc.resume(run)                                         # okdc resume
    report = okdc.profile(run, "resnet56")                         # okdc profile
    bundle = okdc.export(run, int8=True)                           # okdc export --onnx --int8
    bundle.verify(); bundle.predict(["photo.png"])                 # okdc verify, okdc predict
    report = okdc.compare(["runs/a", "runs/b"])                    # okdc compare

Nothing is printed: `progress` takes an `okdc.Progress`, which shows what it is told. What the command line prints as an
error is raised: a subclass of `okdc.OkdcError` with `kind`, `message`, `hint`, `details` and the command's `exit_code`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from okdc.distributed import Ranks
from okdc.errors import DataError, Interrupted, UsageError
from okdc.progress import Progress, Silent
from okdc.recipe import draft
from okdc.runs.artefacts import ExportCheck, Judged, Result
from okdc.runs.provenance import provenance
from okdc.runs.run import RunDir, State
from okdc.runs.series import SeriesDir, newest_resumable, owner

if TYPE_CHECKING:
    from okdc.assembly.resolve import ResolvedRecipe
    from okdc.bundle.artefacts import Manifest
    from okdc.bundle.bundle import BundleDir
    from okdc.bundle.session import Pixels
    from okdc.cohort import Backbone
    from okdc.deploy.export import Exported
    from okdc.deploy.reduced import Wanted
    from okdc.runs.predictions import Predictions


__all__ = [
    "Bundle", "Run", "Series", "check", "compare", "distill", "distill_seeds", "download", "evaluate", "export",
    "features", "load_recipe", "profile", "report", "resume", "study", "track",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A training and what it left on disk. `Run("runs/a-1")` opens one; a folder that is no run raises RunError."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))
        RunDir.open(self.path)

    @classmethod
    def newest(cls, state: State = "complete") -> Run:
        """The run below ./runs that was started last, of those in this state. Raises RunError where there is none."""
        return cls(RunDir.newest(state).path)

    @property
    def folder(self) -> RunDir:
        """The files of the run, by name."""
        return RunDir(self.path)

    @property
    def state(self) -> State:
        """complete, running, resumable or failed: read from the files each time."""
        return self.folder.state()

    @property
    def recipe(self) -> ResolvedRecipe:
        """The recipe that the run was started with, every default written out."""
        from okdc.assembly import reopen

        return reopen.recipe_of(self.folder)

    @property
    def result(self) -> Result:
        """result.json, typed. Raises RunError where the run is not complete, or the file is damaged."""
        return self.folder.read_result()

    @property
    def log(self) -> list[dict[str, Any]]:
        """A row an epoch: epoch, lr, loss, losses by term, train_top1_pct and val_top1_pct by head, seconds, and
        of these seconds_steps, seconds_data (waiting for batches) and seconds_validation. With `optim.ema` there are
        heads of averages, such as student0_ema; with `cohort.keep_metric=balanced` there is val_balanced_pct by head.
        """
        return self.folder.rows()

    @property
    def predictions(self) -> Predictions:
        """What the kept student answered to the validation and the test images, and which other answers were right.

        Raises RunError where the run is not complete, or the file is damaged; CheckFailed where it is not the file that
        the run recorded.
        """
        from okdc.runs import predictions

        return predictions.read(self.folder.predictions, self.result)

    @property
    def students(self) -> tuple[Judged, ...]:
        """A complete run's students: architecture, epoch, accuracies in % and the device that they were judged on,
        params, macs, hashes. Raises as `result`.
        """
        return self.result.cohort

    def student(self, index: int | None = None) -> Backbone:
        """A student's network in eval mode on the CPU, NCHW float32 images -> NK logits; by default the kept one.

        Raises RunError where the run is not complete or has no such student, CheckFailed where a file of the student
        is not the one that the run recorded.
        """
        from okdc.assembly import student

        return student.load(self.folder, index).network


@dataclass(frozen=True)
class Series:
    """One recipe trained with several seeds: a folder of runs. Raises RunError where it is no series."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))
        SeriesDir.open(self.path)

    @property
    def folder(self) -> SeriesDir:
        """The files of the series, by name."""
        return SeriesDir(self.path)

    @property
    def state(self) -> State:
        """running, resumable, failed or complete."""
        return self.folder.state()

    @property
    def runs(self) -> dict[int, Run]:
        """The runs that were begun, by seed."""
        folder = self.folder
        return {seed: Run(folder.run(seed).path) for seed in folder.seeds() if folder.state_of(seed)}

    @property
    def summary(self) -> dict[str, Any]:
        """What `okdc distill --seeds --json` prints: a row a seed, the mean and standard deviation over them."""
        return self.folder.summary()


@dataclass(frozen=True)
class Bundle:
    """An exported student: `Bundle(path)` opens one. Raises RunError for a folder that is no bundle."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        from okdc.bundle.bundle import BundleDir

        object.__setattr__(self, "path", Path(path))
        object.__setattr__(self, "_folder", BundleDir.open(self.path))

    @property
    def folder(self) -> BundleDir:
        """The files of the bundle, each proven by the manifest's hash when it is read."""
        folder: BundleDir = self._folder  # type: ignore[attr-defined]
        return folder

    @property
    def manifest(self) -> Manifest:
        """manifest.json, typed."""
        return self.folder.manifest

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.folder.labels

    def verify(self, data_root: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Check the files, the answers to the bundle's own cases, and the accuracy, on this processor.

        The report is that of `okdc verify --json`. `data_root` says where the images are that judged the bundle;
        without them `accuracy_not_checked` has the reason. Raises CheckFailed with everything that differs,
        DataError where `data_root` holds other images.
        """
        from okdc.bundle import verify

        report = verify.verify(self.path, data_root, progress or Silent())
        verify.check(report)
        return report

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | Pixels,
        model: str = "float32",
        *,
        top: int = 5,
        batch: int = 64,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """The likeliest classes of each image: {"image", "top": [{"label", "probability"}, ...]}, in order.

        `images` are files and folders of files, of any size, or an array N×size×size×3 of uint8 RGB pixels, whose
        "image" is its index. A file that is no whole image has "error" in place of "top". `progress` gets a note on the
        files of a folder that are not read. Raises UsageError for a model that the bundle lacks, CheckFailed for a file
        that is not the bundle's, DataError for an array of another shape or type, and where no image is found.
        """
        import numpy as np

        from okdc.bundle import predict

        if isinstance(images, np.ndarray):
            return predict.predict_pixels(self.folder, images, model, top, batch, threads)
        paths = [images] if isinstance(images, (str, Path)) else images
        files, left_out = predict.listed([Path(path) for path in paths])
        if left_out and progress:
            progress.note(left_out)
        rows = []
        with contextlib.suppress(DataError):  # raised after the last image: each damaged one has a row of its own
            for row in predict.predict(self.folder, files, model, top, batch, threads):
                rows.append(row)
        return rows


# ---------------------------------------------------------------------------------------------------------------------
# Training


def load_recipe(recipe: str | Path | None = None, **overrides: Any) -> ResolvedRecipe:
    """A recipe by its path, or by the name of a shipped one (None: the default), every name and key checked.

    `overrides` replace keys: those of a table by a dict, `optim={"epochs": 3}`, those at the top by a value, `seed=1`.
    `method={"name": "mfef"}` starts that table afresh, as `method.name=mfef` does on the command line.

    Raises RecipeError with every problem of the recipe.
    """
    from okdc.assembly.resolve import resolve

    return resolve(draft.with_values(recipe, overrides))


def check(
    recipe: ResolvedRecipe | str | Path,
    *,
    images: bool = False,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything but the training: the report of `okdc check --json`, with the time to the end by some timed steps.

    `images` also looks for images that occur twice. `seconds` are those for the timed steps. What looks wrong are
    sentences in `warnings`, what would spoil the result in `failures`. Raises what `distill` raises before its first
    epoch.
    """
    from okdc.survey import check as survey
    from okdc.training import timing

    return survey.check(_resolved(recipe), images, progress or Silent(), timing.SECONDS if seconds is None else seconds)


def distill(
    recipe: ResolvedRecipe | str | Path,
    out: str | Path | None = None,
    *,
    export_check: bool = True,
    progress: Progress | None = None,
    raise_interrupts: bool = False,
) -> Run:
    """Train a cohort of students in a new run directory, `out` or runs/<recipe>-<n>, and keep one of them.

    `export_check`: before the first step each student that is not a network of okdc's own goes the whole way to ONNX
    untrained, so that one of which no bundle could be made is refused, as RecipeError, before it is paid for.

    Ctrl-C after the training has begun saves the state and returns the run, whose state is then "resumable"; with
    `raise_interrupts` it raises Interrupted, as SIGTERM always does. Several processes are started by torchrun: each
    calls this function.

    Raises RecipeError, DataError, DeviceError, OutOfMemoryError, RunError, DiskError; TrainingError where a loss is not
    finite.
    """
    from okdc.training import start

    resolved, progress = _resolved(recipe), progress or Silent()
    for note in resolved.notes:
        progress.note(note)
    try:
        known: ExportCheck | None = None if export_check else "skipped"
        run = start.start(resolved, _path(out), provenance(_command()), progress, Ranks.of_environment(), known)
    except Interrupted as error:
        return Run(_saved(error, progress, raise_interrupts))
    return Run(run.path)


def distill_seeds(
    recipe: ResolvedRecipe | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    *,
    export_check: bool = True,
    progress: Progress | None = None,
    raise_interrupts: bool = False,
) -> Series:
    """Train a recipe once with each seed, one run after the other, in one folder.

    Each seed is then complete or failed. `export_check`, Ctrl-C and errors as in `distill`, but for TrainingError,
    which ends its seed alone.
    """
    from okdc.training import series

    resolved, progress = _resolved(recipe), progress or Silent()
    for note in resolved.notes:
        progress.note(note)
    try:
        made_by = provenance(_command())
        return Series(series.start(resolved, tuple(seeds), _path(out), made_by, progress, export_check).path)
    except Interrupted as error:
        return Series(_saved(error, progress, raise_interrupts))


@overload
def resume(
    run: Run, *, data_root: str | None = ..., progress: Progress | None = ..., raise_interrupts: bool = ...
) -> Run: ...
@overload
def resume(
    run: Series, *, data_root: str | None = ..., progress: Progress | None = ..., raise_interrupts: bool = ...
) -> Series: ...
@overload
def resume(
    run: str | Path | None = ...,
    *,
    data_root: str | None = ...,
    progress: Progress | None = ...,
    raise_interrupts: bool = ...,
) -> Run | Series: ...
def resume(
    run: Run | Series | str | Path | None = None,
    *,
    data_root: str | None = None,
    progress: Progress | None = None,
    raise_interrupts: bool = False,
) -> Run | Series:
    """Continue an interrupted run or series, bit for bit; None: the one below ./runs that was worked on last.

    `data_root` says where the images are now. Ctrl-C as in `distill`. Raises RunError for a run that failed or that
    another process trains, DeviceError where this machine lacks the run's device, DataError for other images.
    """
    from okdc.training import series, start

    progress, ranks = progress or Silent(), Ranks.of_environment()
    path = run.path if isinstance(run, (Run, Series)) else Path(run) if run else newest_resumable().path
    if SeriesDir.is_at(path):
        if not ranks.alone:
            raise UsageError(f"{path} is a series, trained by one process", hint=f"okdc resume {path}")
        try:
            return Series(series.resume(SeriesDir.open(path), provenance(_command()), progress, data_root).path)
        except Interrupted as error:
            return Series(_saved(error, progress, raise_interrupts))
    folder = RunDir.open(path)
    whole = owner(folder)
    if whole and not ranks.alone:
        raise UsageError(f"{path} belongs to a series, trained by one process", hint=f"okdc resume {whole.path}")
    try:
        with whole.held() if whole else contextlib.nullcontext():  # whoever trains a series trains all of it
            start.resume(folder, progress, data_root, ranks)
    except Interrupted as error:
        return Run(_saved(error, progress, raise_interrupts))
    return Run(path)


def _saved(error: Interrupted, progress: Progress, raise_interrupts: bool) -> Path:
    """The run or series that Ctrl-C stopped. Raises the error where the caller wants it, and at any other signal."""
    if raise_interrupts or error.run is None or error.exit_code != Interrupted.BY_CTRL_C:
        raise error
    progress.note(f"{error.message}; okdc.resume({str(error.run)!r}) continues it")
    return error.run


def _resolved(recipe: ResolvedRecipe | str | Path) -> ResolvedRecipe:
    return load_recipe(recipe) if isinstance(recipe, (str, Path)) else recipe


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _command() -> list[str]:
    """The words that started this program, for run.json."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return ["okdc" if program == "__main__.py" else program, *sys.argv[1:]]


# ---------------------------------------------------------------------------------------------------------------------
# What comes after a training


def profile(
    *subjects: Run | str | Path, onnx: bool = False, threads: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Parameters, MACs and latency of runs, networks by name and recipes, side by side; none: the newest complete run.

    The report is that of `okdc profile --json`: `rows`, one a network; `stages`; `shrink`, how many times smaller the
    kept student is than the whole that was trained. `onnx` also exports networks that no run has trained, for the size
    and latency of their files. `threads` are those of the latency.

    Raises UsageError for a word that names nothing, RunError for a series, CheckFailed where the two counters disagree
    or a student is not the recorded one.
    """
    from okdc.profiling import report

    words = [str(subject.path if isinstance(subject, Run) else subject) for subject in subjects]
    return report.profile(words, onnx, threads, progress or Silent())


def export(
    run: Run | str | Path | None = None,
    out: str | Path | None = None,
    *,
    student: int | str | None = None,
    budget: str | None = None,
    int8: bool = False,
    fp16: bool = False,
    full_range: bool = False,
    calibration_images: int | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    diagnose: bool = False,
    license: str | None = None,
    data_root: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write the ONNX bundle of a run's student, proven equal to the student, to `out` or RUN/bundle.

    The run is by default the newest complete one. The student is the kept one, or the one of an index, a name or an
    architecture, or the most accurate within a budget: "params<300k,latency_ms<2". The options are those of
    `okdc export`.

    Raises CheckFailed where the file is not the student; where an int8 or float16 model does not pass its gate, the
    bundle stands without that model, and CheckFailed is raised all the same. Raises RunError for a run that is not
    complete, and for a bundle in that place whose int8 or float16 model the new one would lack, unless `replace` gives
    it up; DataError where the run's images are missing or others, UsageError for options that do not go together.
    """
    from okdc.deploy.reduced import Wanted

    wanted = Wanted(int8, fp16, full_range, calibration_images, max_drop, min_agreement, diagnose)
    exported = write_bundle(run, _path(out), student, budget, wanted, license, data_root, progress or Silent(), replace)
    if exported.error:
        raise exported.error
    return Bundle(exported.folder)


def write_bundle(
    run: Run | str | Path | None,
    out: Path | None,
    student: int | str | None,
    budget: str | None,
    wanted: Wanted,
    license: str | None,
    data_root: str | None,
    progress: Progress,
    replace: bool = False,
    keep: bool = False,
) -> Exported:
    """`export` for a caller that shows the report of a bundle that stands without a model that was wanted.

    `keep`: the bundle in RUN/bundle is taken as it is, if it is whole and of that very student.
    """
    from okdc.deploy import export as deploy
    from okdc.profiling import budget as budgets
    from okdc.profiling import students

    if student is not None and budget is not None:
        raise UsageError("student and budget both choose a student", hint="one of them")
    folder = _run_dir(run, progress)
    index, reason = None, ""
    if student is not None:
        index, reason = students.by_name(folder, str(student))
    elif budget is not None:
        index, reason = budgets.choose(folder, budgets.parse(budget), progress)
    if reason:
        progress.note(reason)
    if keep and (standing := deploy.standing(folder, index, progress)):
        return standing
    return deploy.export(folder, out, data_root, progress, index, wanted, license, replace)


def evaluate(
    subject: Run | Bundle | str | Path | None = None,
    *,
    data_root: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy on the split that judged, class by class, read again: the report of `okdc evaluate --json`.

    None: the newest complete run. Raises RunError for what is neither a run nor a bundle, DataError where the images
    are missing or others, CheckFailed where the accuracy is not the recorded one.
    """
    from okdc.deploy import evaluate as again

    progress = progress or Silent()
    path = RunDir.newest_complete(progress.note).path if subject is None else _folder(subject)
    return again.evaluate(path, data_root, progress)


def _run_dir(run: Run | str | Path | None, progress: Progress) -> RunDir:
    """None: the newest complete run."""
    if run is None:
        return RunDir.newest_complete(progress.note)
    return RunDir.open(run.path if isinstance(run, Run) else Path(run))


def _folder(subject: Run | Bundle | str | Path) -> Path:
    return subject.path if isinstance(subject, (Run, Bundle)) else Path(subject)


def features(
    *runs: Run | str | Path,
    out: str | Path | None = None,
    data_root: str | None = None,
    neighbours: int = 10,
    images: int = 10_000,
    points: int = 2_000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The features that each classifier of a run reads, with numbers and a map: the report of `okdc features --json`.

    None: of the newest complete run. They go to RUN/features.npz or to `out`: `features_HEAD`, N×C float32, and
    `tsne_HEAD` for the images `tsne_images`. `knn_pct` is the share of images that their nearest `neighbours` classify,
    `silhouette` how narrow and far apart the classes are, -1 to 1.

    Raises RunError for a run that is not complete or has lost its checkpoint, DataError where its images are missing or
    others, UsageError for options that do not go together.
    """
    from okdc.embedding import features as embedding

    progress = progress or Silent()
    paths = [_folder(run) for run in runs]
    if not paths:
        paths = [RunDir.newest_complete(progress.note).path]
    return embedding.features(paths, progress, _path(out), data_root, neighbours, images, points)


def report(
    *runs: Run | Series | str | Path,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    quick: bool = False,
    baseline: str | None = None,
    data_root: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write one HTML page of a run, of several, of a series or of a study, and give its tables.

    None: of the newest complete run. The page goes to `out`, or to report.html in the folder that is named. It opens
    without a network. The tables are those of `okdc report --json`: `run` has what was trained, its curves, answers,
    calibration, costs and data, and in `missing` what is not on this machine; of several runs `several` has the
    comparison. `quick` leaves out what takes seconds: times, and the map of the features. `picture`: a file for an SVG
    of one run.

    Raises RunError for what is no run and for damaged files, UsageError for an `out` that is something else than a
    page, DiskError where it cannot be written.
    """
    from okdc.reporting import report as reporting
    from okdc.reporting.run import Wanted

    progress = progress or Silent()
    paths = [run.path if isinstance(run, (Run, Series)) else Path(run) for run in runs]
    if not paths:
        paths = [RunDir.newest_complete(progress.note).path]
    file = reporting.place(paths, _path(out))
    tables = reporting.facts(paths, Wanted(quick, data_root), baseline, progress)
    reporting.write_page(file, tables)
    if picture is not None:
        reporting.write_picture(Path(picture), tables)
    progress.note(f"the page is {file}")
    return tables


def track(
    run: Run | str | Path | None = None,
    *,
    tensorboard: str | Path,
    data_root: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write TensorBoard's events of a run in any state to a folder: the report of `okdc track --json`.

    None: of the newest complete run. The events are those that `engine.track = ["tensorboard"]` writes live. The folder
    is empty, absent, or one of this run's events, which is written anew. `missing` says why a run has no pictures of
    mistakes.

    Raises UsageError for a folder that holds something else, and where tensorboard is not installed; RunError and
    CheckFailed for damaged files, DiskError where the folder cannot be written.
    """
    from okdc.tracking import tensorboard as events

    progress = progress or Silent()
    folder = _run_dir(run, progress)
    return events.write(folder, Path(tensorboard), progress, data_root)


def compare(
    runs: Sequence[Run | Series | str | Path] = (), *, baseline: str | None = None, require: Sequence[str] = ()
) -> dict[str, Any]:
    """Finished runs as one row a variant, means over seeds, differences paired by seed and image, with 95 % intervals.

    `runs` are runs or folders of runs; none: ./runs. The report is that of `okdc compare --json`; `required` says of
    each requirement, such as "fefr>baseline", whether it holds. Raises RunError for runs that are missing, not complete
    or not comparable, UsageError for a row that is not there.
    """
    from okdc.comparison import compare as comparison

    paths = [run.path if isinstance(run, (Run, Series)) else Path(run) for run in runs]
    return comparison.compare(paths, baseline, require)


def study(
    name: str | Path,
    *overrides: str,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    train: bool = True,
    progress: Progress | None = None,
    raise_interrupts: bool = False,
) -> dict[str, Any]:
    """Train what is missing of a study, in `out` or studies/NAME, and give its table: that of `okdc study --json`.

    `name` is a shipped study, a TOML file or the folder of a study; `overrides` are KEY=VALUE words for every run of
    it. `only` are patterns of columns, methods and seeds. With several `jobs` the runs are processes side by side.
    `train=False` trains nothing and gives the table of what there is. The table is also written into the folder.

    Ctrl-C saves the run at hand and gives the table of what there is; with `raise_interrupts` it raises Interrupted,
    as SIGTERM always does. Raises RecipeError for what is no study or a recipe that cannot be trained, RunError where a
    folder holds another run, UsageError for a pattern that matches nothing, and what a training raises before its
    first step.
    """
    from okdc.studies import study as studies
    from okdc.studies.opened import opened as open_study

    progress = progress or Silent()
    opened = open_study([str(name), *overrides], _path(out))
    if not train:
        return studies.written(opened, only)
    try:
        return studies.train(opened, only, jobs, provenance(_command()), progress)
    except Interrupted as error:
        if raise_interrupts or error.exit_code != Interrupted.BY_CTRL_C:
            raise
        progress.note(error.message)
        return studies.written(opened)


def download(
    name: str, *, data_root: str | None = None, url: str | None = None, progress: Any = None
) -> dict[str, Any]:
    """Download a published data set and check it: the facts of `okdc download --json`.

    `progress(done_mb, total_mb, text)` is called as the archive grows. Raises UsageError for a name without an archive,
    DataError for a transfer that failed or another file than the published one, DiskError where there is no room.
    """
    from okdc.data import download as downloads

    return downloads.download(name, data_root, url, progress or (lambda *_: None))


def download_weights(*names: str, out: str | Path | None = None) -> list[dict[str, Any]]:
    """Bring trained weights of torchvision or timm to this machine: the facts of `okdc download weights --json`.

    They go to the cache of their library, where `cohort.weights="pretrained"` finds them; with `out` also to a file
    in that folder, which `cohort.weights` takes where there is no network.

    Raises UsageError for a name that leads to no weights, DataError where they cannot be had, DiskError where there is
    no room.
    """
    from okdc.assembly import weights

    return weights.download(names, _path(out))
