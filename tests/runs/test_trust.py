"""Code that a run names: imported without asking only where this user has trained the run, in its place."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from asking import ask
from harness import Quiet, resume, start
from making import write_json

import okdc
from okdc.errors import RunError
from okdc.runs import trust
from okdc.runs.files import read_json
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
NETWORK = """
from pathlib import Path
import torch.nn as nn
with Path("imports").open("a") as log:
    log.write("x")
def make(classes):
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
    return nn.Sequential(block(3, 8), block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""
WORDS = ("cohort.students=['nets_of_others:make']", "method.name=baseline", "optim.epochs=1")


@pytest.fixture(autouse=True)
def network() -> None:
    Path("nets_of_others.py").write_text(NETWORK)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with the user's network, trained here; its module is then forgotten, as in another process."""
    run = start(*WORDS, out=Path("own"), export_check="skipped")
    _forget(monkeypatch)
    return run


@pytest.fixture
def foreign(own: RunDir) -> RunDir:
    """The same files somewhere else."""
    shutil.copytree(own.path, "foreign")
    return RunDir(Path("foreign"))


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nets_of_others", raising=False)
    Path("imports").unlink(missing_ok=True)


def test_the_run_of_this_user_is_trusted_in_its_place(own: RunDir, capsys: Captured) -> None:
    for words in (["evaluate", "own"], ["profile", "own"], ["evaluate", str(own.path.absolute())]):
        answer = ask(capsys, *words)
        assert answer.code == 0, answer.err
    assert Path("imports").exists()


COMMANDS = [
    ["evaluate", "foreign"],
    ["profile", "foreign"],
    ["export", "foreign", "--onnx"],
    ["distill", "method.name=kd", "method.teacher=foreign", "cohort.students=['resnet8']", "data.image_size=8"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.usefixtures("foreign")
def test_no_command_imports_the_code_of_another_run_unasked(capsys: Captured, words: list[str]) -> None:
    answer = ask(capsys, *words)
    assert answer.code == 2
    assert "error[run]" in answer.err
    assert "nets_of_others:make" in answer.err
    assert "--trust-code" in answer.err
    assert not Path("imports").exists()


@pytest.mark.usefixtures("foreign")
def test_the_user_may_trust_it(capsys: Captured) -> None:
    answer = ask(capsys, "evaluate", "foreign", "--trust-code")
    assert answer.code == 0, answer.err
    assert Path("imports").exists()
    assert ask(capsys, "evaluate", "foreign").code == 2  # once is not for ever


@pytest.mark.usefixtures("foreign")
def test_the_python_api_has_the_same_rule() -> None:
    with pytest.raises(RunError):
        okdc.evaluate("foreign")
    with okdc.trusting_code():
        assert okdc.evaluate("foreign")["top1_pct"] >= 0
    with pytest.raises(RunError):
        okdc.evaluate("foreign")


def test_an_interrupted_run_of_others_is_not_resumed_and_with_trust_is_this_users_from_then_on(
    foreign: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign.result.unlink()
    with pytest.raises(RunError, match="nets_of_others:make"):
        resume(foreign.path)
    assert not Path("imports").exists()
    with trust.trusting_code():
        resume(foreign.path)
    _forget(monkeypatch)
    assert okdc.Run(foreign.path).student() is not None


def test_another_architecture_in_the_files_of_a_trusted_run_is_not_imported(own: RunDir) -> None:
    """All hashes fit: whoever made the files knew the format."""
    write_json(own.student, read_json(own.student) | {"architecture": "evil_module:make"})
    result = read_json(own.result)
    sha256 = hashlib.sha256(own.student.read_bytes()).hexdigest()
    for row in (result["kept"], result["cohort"][0]):
        row["architecture"] = "evil_module:make"
    result["cohort"][0]["student_sha256"] = sha256
    write_json(own.result, result)
    Path("evil_module.py").write_text("raise AssertionError('imported')")
    with pytest.raises(RunError, match="evil_module:make"):
        okdc.evaluate(own.path)


@pytest.mark.parametrize("damage", ["", "{", "[]\n", "null\n", '{"folder": 3}\n', "\x00\xff"])
def test_a_damaged_list_trusts_nothing(own: RunDir, damage: str) -> None:
    (path,) = Path("state").iterdir()
    line = path.read_text()
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(RunError):
        okdc.evaluate(own.path)
    path.write_text(damage.replace("\xff", "") + ("" if damage.endswith("\n") else "\n") + line)
    okdc.evaluate(own.path)  # and hides no other line


def test_a_list_that_cannot_be_written_is_noted_and_stops_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKDC_STATE", "/dev/null/x")
    tell = Quiet()
    run = start(*WORDS, tell=tell, export_check="skipped")
    assert run.state() == "complete"
    assert any("--trust-code" in note for note in tell.notes)


def test_libraries_entry_points_and_okdcs_own_names_are_no_code() -> None:
    tables = {
        "cohort": {"students": ["resnet8", "torchvision:resnet18", "timm:x", "a:b", "a:b+msfe", "a:e[logits]"]},
        "method": {"name": "c:d", "teacher": "runs/x"},
        "data": {"name": "folder", "root": "C:/x"},
    }
    assert trust.code_of(tables) == ["a:b", "a:e", "c:d"]
    assert trust.code_of({"cohort": 3, "method": {"name": 5}, "data": {"name": ["x:y"]}}) == ["x:y"]


def test_a_run_without_code_is_not_listed() -> None:
    start("method.name=baseline", "optim.epochs=1")
    assert not Path("state").exists()


def test_every_name_has_to_be_on_the_list() -> None:
    trust.record(Path("x"), "2026", ["a:b"])
    trust.check(Path("x"), "2026", ["a:b"])
    for folder, started_at, code in (("x", "2026", ["a:b", "c:d"]), ("y", "2026", ["a:b"]), ("x", "2027", ["a:b"])):
        with pytest.raises(RunError):
            trust.check(Path(folder), started_at, code)


def test_the_list_has_one_line_a_run(own: RunDir) -> None:
    for _ in range(2):
        trust.record(own.path, own.read_info().started_at, ["nets_of_others:make"])
    (line,) = Path("state/trusted.jsonl").read_text().splitlines()
    assert json.loads(line)["folder"] == str(own.path.resolve())


# --- code that ends the program

EXITS = {
    "import": "import sys\nsys.exit(0)\n",
    "network": "import sys\ndef make(classes):\n    sys.exit(0)\n",
    "forward": NETWORK.replace("def block(a, b):", "return Ends(classes)\n    def block(a, b):")
    + "class Ends(nn.Module):\n"
    "    def __init__(self, classes):\n        super().__init__()\n        self.fc = nn.Linear(3, classes)\n"
    "    def forward(self, x):\n        raise SystemExit(0)\n",
}


@pytest.mark.parametrize("kind", EXITS)
def test_code_that_calls_sys_exit_is_an_error_and_not_the_exit_code(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _forget(monkeypatch)
    Path("nets_of_others.py").write_text(EXITS[kind])
    answer = ask(capsys, "distill", *WORDS)
    assert answer.code == 2
    assert "error[recipe]" in answer.err
    assert "nets_of_others:make" in answer.err


def test_a_method_that_calls_sys_exit_in_a_step_is_an_error(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("methods_of_others.py").write_text(
        "from okdc import Config, Method\n"
        "class Ends(Method):\n    title = 'ends'\n    summary = 'Ends.'\n    Config = Config\n"
        "    def forward(self, batch, progress):\n        raise SystemExit(0)\n"
    )
    monkeypatch.delitem(sys.modules, "methods_of_others", raising=False)
    answer = ask(capsys, "distill", "method.name=methods_of_others:Ends", "optim.epochs=1")
    assert answer.code == 2
    assert "SystemExit" in answer.err or "sys.exit" in answer.err
