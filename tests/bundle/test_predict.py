"""`okdc predict`: any image by the manifest's rule, a line each, whatever is wrong with the others."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from asking import ask, picture
from bundles import add_model, bomb, edit, edit_model, of_digits
from PIL import Image

from okdc.bundle import predict as module
from okdc.bundle.bundle import BundleDir
from okdc.bundle.session import Session
from okdc.data import images
from okdc.errors import DataError
from okdc.precision import half
from okdc.recipe import catalog
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
Line = dict[str, Any]


@pytest.fixture(autouse=True)
def bundle(finished: RunDir, blob: bytes, tmp_path: Path) -> Path:
    of_digits(finished, blob, tmp_path / "bundle")
    return Path("bundle")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runner_beside", catalog.folder("export") / "python" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def zoo() -> Path:
    """Images as people have them: sizes, modes, rotation, transparency, sixteen bits."""
    folder = Path("zoo")
    folder.mkdir()
    colour = Image.fromarray(picture(3, 21, 34))
    alpha = np.dstack([picture(3, 21, 34), picture(4, 21, 34)[..., :1]])
    palette = colour.convert("P")
    made = {
        "wide.png": colour,
        "tall.png": colour.transpose(Image.Transpose.ROTATE_90),
        "grey.png": colour.convert("L"),
        "grey_alpha.png": Image.fromarray(alpha[..., 2:], "LA"),
        "alpha.png": Image.fromarray(alpha),
        "palette.png": palette,
        "one_bit.png": colour.convert("1"),
        "sixteen.png": Image.fromarray(alpha[..., 0].astype(np.uint16) * 257),
        "exact.png": colour.resize((8, 8)),
        "tiny.png": colour.resize((3, 5)),
        "small.webp": colour.resize((9, 8)),
    }
    for name, image in made.items():
        image.save(folder / name)
    palette.save(folder / "clear.png", transparency=0)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    colour.save(folder / "turned.jpg", exif=exif)
    return folder


def lines(out: str) -> list[Line]:
    return [json.loads(line) for line in out.splitlines()]


def predicted(capsys: Captured, *words: str | Path) -> list[Line]:
    answer = ask(capsys, "predict", "bundle", *map(str, words))
    assert (answer.code, answer.err) == (0, "")
    return lines(answer.out)


def close(found: list[Line], expected: list[Line]) -> None:
    """The same images and labels in the same order, probabilities up to rounding."""
    assert [line["image"] for line in found] == [line["image"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert [row["label"] for row in one["top"]] == [row["label"] for row in other["top"]]
        mine, theirs = ([row["probability"] for row in line["top"]] for line in (one, other))
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_every_kind_of_image_gets_the_answer_that_the_bundles_own_client_gives(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, runner: ModuleType, bundle: Path, zoo: Path
) -> None:
    paths = sorted(zoo.iterdir())
    monkeypatch.setattr(sys, "argv", ["run.py", str(bundle), *map(str, paths), "--json"])
    assert runner.main() == 0
    theirs = lines(capsys.readouterr().out)
    assert len(theirs) == 14
    close(predicted(capsys, *paths), theirs)


def test_a_line_holds_what_the_model_says_of_the_image_by_the_stated_rule(
    capsys: Captured, bundle: Path, zoo: Path
) -> None:
    session = Session(bundle / "model.onnx")
    for line in predicted(capsys, zoo, "--top", "10"):
        with Image.open(line["image"]) as image:
            _, ((*row,),) = session(images.fit(image, 8)[None])
        assert {best["label"]: best["probability"] for best in line["top"]} == pytest.approx(
            {str(digit): float(p) for digit, p in enumerate(row)}, abs=1e-6
        )
        order = [best["probability"] for best in line["top"]]
        assert order == sorted(order, reverse=True)


def test_a_folder_is_read_by_name_to_its_depth_and_without_what_is_hidden(capsys: Captured) -> None:
    for name in ("b/z.png", "b/a.JPG", "a.png", "c.png/inside.bmp", ".hidden.png", ".git/x.png", "notes.txt", "d.heic"):
        path = Path("folder", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".txt":
            Image.fromarray(picture(1)).save(path, "jpeg" if path.suffix in (".JPG", ".heic") else None)
        else:
            path.write_text("no image")
    Path("folder/b/again").symlink_to(Path("folder/b").absolute())
    expected = [f"folder/{name}" for name in ("a.png", "b/a.JPG", "b/z.png", "c.png/inside.bmp")]
    answer = ask(capsys, "predict", "bundle", "folder")
    assert (answer.code, [line["image"] for line in lines(answer.out)]) == (0, expected)
    for reason in ("5 files are not read", "1 .heic", "1 .txt", "2 hidden", "under another name", "folder/d.heic"):
        assert reason in answer.err
    named = ["folder/d.heic", "folder/b", "folder/d.heic"]  # a file that is named is read whatever its name
    found = [line["image"] for line in lines(ask(capsys, "predict", "bundle", *named).out)]
    assert found[0] == found[-1] == "folder/d.heic"
    assert found[1:3] == expected[1:3]


def test_batches_threads_and_neighbours_change_nothing(capsys: Captured, zoo: Path) -> None:
    expected = predicted(capsys, zoo)
    for words in (("--batch", "1"), ("--batch", "3"), ("--batch", "5", "--threads", "2")):
        close(predicted(capsys, zoo, *words), expected)
    assert all(len(line["top"]) == 5 for line in expected)
    assert [len(line["top"]) for line in predicted(capsys, zoo / "wide.png", "--top", "99")] == [10]


def test_another_of_the_models_answers_where_it_is_asked(
    capsys: Captured, bundle: Path, blob: bytes, zoo: Path
) -> None:
    light = half.half(blob)
    add_model(bundle, "float16", light, 1e-3)
    found = predicted(capsys, zoo / "wide.png", "--model", "float16", "--top", "1")
    with Image.open(zoo / "wide.png") as image:
        _, probabilities = Session(light)(images.fit(image, 8)[None])
    assert found[0]["top"][0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
    assert found != predicted(capsys, zoo / "wide.png", "--top", "1")
    for word, hint in (("int8", "there is: float32, float16"), ("float31", "did you mean 'float32'?")):
        answer = ask(capsys, "predict", "bundle", str(zoo), "--model", word)
        assert (answer.code, answer.out) == (2, "")
        assert f"bundle has no {word} model" in answer.err
        assert hint in answer.err


# --- what is no image


@pytest.fixture
def spoilt(zoo: Path) -> dict[str, str]:
    """Files that are no whole images, in `zoo`, and what is said of each."""
    whole = (zoo / "turned.jpg").read_bytes()
    (zoo / "cut.jpg").write_bytes(whole[:-60])
    (zoo / "text.jpg").write_text("no image")
    (zoo / "empty.png").write_bytes(b"")
    (zoo / "bomb.png").write_bytes(bomb())
    Image.new("L", (1, 1_500_000)).save(zoo / "line.png")
    return {
        "cut.jpg": "image file is truncated",
        "text.jpg": "not an image of a known format",
        "empty.png": "zero bytes",
        "bomb.png": "exceeds limit",
        "line.png": "1×1500000 pixels would become 8×12000000",
    }


@pytest.mark.parametrize("batch", ["1", "4", "64"])
def test_a_damaged_image_stops_no_other_and_all_are_named_at_the_end(
    capsys: Captured, zoo: Path, spoilt: dict[str, str], batch: str
) -> None:
    answer = ask(capsys, "predict", "bundle", str(zoo), "gone.png", "--batch", batch)
    found = lines(answer.out)
    names = sorted(path.name for path in zoo.iterdir())
    assert [line["image"] for line in found] == [*(f"zoo/{name}" for name in names), "gone.png"]
    bad = {Path(line["image"]).name: line["error"] for line in found if "error" in line}
    assert set(bad) == {*spoilt, "gone.png"}
    assert not [(bad[name], says) for name, says in spoilt.items() if says not in bad[name]]
    assert bad["gone.png"] == "No such file or directory"
    assert all(len(line["top"]) == 5 for line in found if "error" not in line)
    assert answer.code == 2
    assert answer.err.startswith("error[data]: 6 of 20 images cannot be read, the first is gone.png: No such file")
    assert answer.err.count("\n  ") == 6


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(capsys: Captured) -> None:
    os.mkfifo("pipe.png")
    answer = ask(capsys, "predict", "bundle", "pipe.png")
    assert (answer.code, lines(answer.out)) == (2, [{"image": "pipe.png", "error": "a pipe, not a file"}])


def test_where_there_is_no_image_at_all_it_is_said(capsys: Captured) -> None:
    Path("empty").mkdir()
    answer = ask(capsys, "predict", "bundle", "empty")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error[data]: no images below empty\n")


def test_answers_that_are_no_numbers_are_an_error_and_still_json(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, zoo: Path
) -> None:
    def nothing(_session: Session, pixels: Any, classes: int) -> tuple[Any, Any]:
        found = np.full((len(pixels), classes), np.nan, np.float32)
        return found, found

    monkeypatch.setattr(module, "answers", nothing)
    answer = ask(capsys, "predict", "bundle", str(zoo / "wide.png"))
    assert answer.code == 2
    assert lines(answer.out)[0]["error"] == "the model gives probabilities that are not finite"


def test_a_name_that_is_no_text_is_written_as_json_all_the_same() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(picture(1)).save(name)
    done = subprocess.run(
        [sys.executable, "-m", "okdc", "predict", "bundle", name], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == name


# --- the streams


def test_lines_come_as_images_are_answered_and_not_at_the_end(bundle: Path, zoo: Path) -> None:
    opened = BundleDir.open(bundle)
    files = [zoo / "wide.png"] * 8 + [zoo / "gone.png"]
    asked: list[int] = []

    class Files(list[Path]):
        def __iter__(self) -> Any:
            for i, path in enumerate(super().__iter__()):
                asked.append(i)
                yield path

    found = module.predict(opened, Files(files), batch=2)
    next(found)
    assert max(asked) == 3, "two batches ahead and no more"
    assert len([next(found) for _ in range(8)]) == 8
    with pytest.raises(DataError, match="1 of 9 images cannot be read"):
        next(found)


def test_a_reader_that_goes_away_ends_it_quietly(zoo: Path) -> None:
    """As in `okdc predict bundle zoo | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "okdc", "predict", "bundle", str(zoo)]
        told = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(writing)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_bar_of_a_terminal_takes_nothing_from_a_pipe(zoo: Path) -> None:
    """As in `okdc predict bundle zoo > lines.json`."""
    terminal, far = pty.openpty()
    try:
        command = [sys.executable, "-m", "okdc", "predict", "bundle", str(zoo)]
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=far, text=True, check=False, timeout=60)
        os.set_blocking(terminal, False)
        drawn = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(far)
        os.close(terminal)
    assert told.returncode == 0
    assert len(lines(told.stdout)) == 14
    assert '"image"' not in drawn


def test_a_model_that_is_not_the_bundles_answers_nothing(capsys: Captured, bundle: Path, zoo: Path) -> None:
    edit(bundle / "manifest.json", lambda m: m["labels"].reverse())
    answer = ask(capsys, "predict", "bundle", str(zoo))
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("error[structure]: metadata okdc.labels")
    edit(bundle / "manifest.json", lambda m: m["labels"].reverse())
    edit_model(bundle, lambda model: model.graph.node.pop())
    answer = ask(capsys, "predict", "bundle", str(zoo))
    assert (answer.code, answer.out) == (1, "")
