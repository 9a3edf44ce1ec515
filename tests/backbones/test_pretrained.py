"""Weights that libraries publish: their names, what is known of them, and how they come without a network or with one.

The servers are the tests' own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.models as models
from asking import ask, write_tree
from harness import built, recipe
from safetensors.torch import load_file, save
from serving import Server, served

from okdc.assembly import weights
from okdc.assembly.weights import to_safetensors
from okdc.backbones import pretrained
from okdc.errors import DataError, OkdcError, RecipeError
from okdc.recipe.draft import load, read

Captured = pytest.CaptureFixture[str]
SQUEEZENET = "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"
FOLDER = ("data.name=folder", "data.root=images", "data.val_fraction=0.1", "optim.batch_size=8", "optim.epochs=1")
SIZE = (*FOLDER, "data.train_images=16", "data.image_size=64", "method.name=baseline")
TIMM = "timm is an extra: pip install 'okdc[timm]'"


@pytest.fixture(autouse=True)
def pictures() -> None:
    write_tree(Path("images"), {"train": {"cat": 10, "dog": 10}, "test": {"cat": 2, "dog": 2}}, size=16)


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_torchvision_says_how_its_weights_were_trained() -> None:
    for name in ("torchvision:mobilenet_v2", "torchvision:MobileNet_V2_Weights.DEFAULT"):
        weights = pretrained.find(name)
        facts = weights.facts
        assert weights.name == facts.name == "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2"
        assert weights.network == "torchvision:mobilenet_v2"
        assert (facts.size, facts.shorter_side(224), facts.shorter_side(112)) == (224, 232, 116)
        assert facts.mean == (0.485, 0.456, 0.406)
        assert facts.interpolation == "bilinear"
        assert facts.classes == len(facts.labels) == 1000
    assert pretrained.find("torchvision:MobileNet_V2_Weights.IMAGENET1K_V1").facts.shorter_side(224) == 256


def test_a_network_that_changes_its_pixels_with_weights_alone_gets_the_changed_ones() -> None:
    """GoogLeNet's and Inception's own loaders turn on `transform_input`, which okdc's students are built without."""
    pixels = torch.rand(1, 3, 8, 8)
    own = models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    network = models.googlenet(weights=None, init_weights=False, transform_input=True)
    facts = pretrained.find("torchvision:googlenet").facts
    assert facts.mean is not None
    assert facts.std is not None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts.mean, facts.std))
    theirs = (pixels - torch.tensor(own.mean).view(1, 3, 1, 1)) / torch.tensor(own.std).view(1, 3, 1, 1)
    torch.testing.assert_close((pixels - mean) / std, network._transform_input(theirs))
    assert pretrained.find("torchvision:inception_v3").facts.mean == facts.mean


def test_timm_says_how_its_weights_were_trained() -> None:
    pytest.importorskip("timm", reason=TIMM)
    for name in ("timm:mobilenetv4_conv_small", "timm:mobilenetv4_conv_small.e2400_r224_in1k"):
        weights = pretrained.find(name)
        facts = weights.facts
        assert weights.name == "timm:mobilenetv4_conv_small.e2400_r224_in1k"
        assert (facts.size, facts.shorter_side(224), facts.interpolation) == (224, 256, "bicubic")
        assert (facts.classes, facts.labels, facts.licence) == (1000, (), "apache-2.0")
    assert pretrained.find("timm:tf_efficientnet_lite0").facts.mean == (0.5, 0.5, 0.5)
    assert pretrained.find("timm:convnext_tiny.fb_in22k_ft_in1k_384").facts.crop_mode == "squash"
    assert pretrained.find("timm:convnext_tiny.fb_in22k_ft_in1k").facts.crop_mode == "center"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("timm:resnet18.a1_in", "timm has no weights 'a1_in' of timm:resnet18 (did you mean 'a1_in1k'?)", "a2_in1k"),
        ("timm:resnet19.a1_in1k", "timm has no network called 'resnet19'", "list_models"),
        ("timm:test_vit5", "timm has no network called 'test_vit5'", "list_models"),
        ("torchvision:ResNet18_Weights.V1", "torchvision's ResNet18_Weights has no 'V1'", "IMAGENET1K_V1"),
        ("torchvision:ResNet17_Weights.V1", "did you mean 'ResNet", "ResNet18_Weights.IMAGENET1K_V1"),
    ],
)
def test_weights_that_do_not_exist_are_refused_with_the_nearest(name: str, message: str, hint: str) -> None:
    pytest.importorskip("timm", reason=TIMM)
    with pytest.raises(RecipeError) as caught:
        pretrained.find(name)
    assert message in caught.value.message
    assert hint in caught.value.hint


def refused(*words: str) -> str:
    with pytest.raises(OkdcError) as caught:
        recipe(*SIZE, *words)
    return "\n".join(caught.value.details)


def test_a_tag_that_would_be_ignored_is_an_error_with_the_line_to_write() -> None:
    pytest.importorskip("timm", reason=TIMM)
    tagged = "cohort.students=['timm:resnet18.a1_in1k+msfe']"
    said = refused(tagged)
    assert "timm:resnet18.a1_in1k+msfe names trained weights, and the students start from random ones" in said
    assert 'cohort.weights="pretrained" takes them; or the network alone: timm:resnet18+msfe' in said
    said = refused(tagged, "cohort.weights=w.safetensors")
    assert "names trained weights, and w.safetensors names others" in said
    cohort = recipe(*SIZE, tagged, "cohort.weights=pretrained").recipe.cohort
    assert cohort.students == ("timm:resnet18+msfe",)
    assert cohort.weights == "timm:resnet18.a1_in1k"


def test_the_weights_of_another_network_and_networks_without_any_are_refused() -> None:
    said = refused("cohort.students=['torchvision:resnet18']", f"cohort.weights={SQUEEZENET}")
    assert "are weights of torchvision:squeezenet1_1, the student is torchvision:resnet18" in said
    assert "nobody publishes weights of resnet8" in refused("cohort.students=['resnet8']", "cohort.weights=pretrained")


def test_a_recipe_names_the_weights_in_full_and_reads_nothing() -> None:
    words = ("cohort.students=['torchvision:mobilenet_v2', 'resnet8']", "method.name=dml")
    found = recipe(*SIZE, *words, "cohort.weights=['pretrained', 'none']").recipe
    assert found.cohort.weights == ("torchvision:MobileNet_V2_Weights.IMAGENET1K_V2", "none")
    assert found.data.mean == (0.485, 0.456, 0.406)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, dict[str, torch.Tensor]]]:
    """torchvision's weights of a SqueezeNet, on a server of the test's own; nothing is cached."""
    torch.manual_seed(3)
    tensors = models.squeezenet1_1().state_dict()
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    monkeypatch.setenv("TORCH_HOME", str(Path("torch").absolute()))
    with served() as server:
        server.content = buffer.getvalue()
        file = f"squeezenet-{hashlib.sha256(server.content).hexdigest()[:8]}.pth"
        weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
        url = server.url.rpartition("/")[0] + "/" + file
        monkeypatch.setattr(weights, "_value_", replace(weights.value, url=url))
        yield server, tensors


def test_pretrained_weights_of_torchvision_are_downloaded_once_and_their_head_is_new(
    published: tuple[Server, dict[str, torch.Tensor]],
) -> None:
    server, tensors = published
    words = (*SIZE, "cohort.students=['torchvision:squeezenet1_1']", "cohort.weights=pretrained")
    for _ in range(2):
        job = built(recipe(*words))
    assert len(server.requests) == 1
    found = job.method.cohort.backbone(0).weights()
    other = {key for key in tensors if not torch.equal(found[key], tensors[key])}
    assert other == {"classifier.1.weight", "classifier.1.bias"}
    assert job.recipe.cohort.weights == SQUEEZENET
    assert job.recipe.cohort.weights_sha256 == (hashlib.sha256(save(tensors)).hexdigest(),)
    start = job.starts[0]
    assert start is not None
    assert (start.weights, start.head, start.classes) == (SQUEEZENET, "new", 1000)


def test_a_recipe_without_the_key_loads_and_asks_for_nothing(
    published: tuple[Server, dict[str, torch.Tensor]],
) -> None:
    server, _ = published
    assert built(recipe(*SIZE, "cohort.students=['torchvision:squeezenet1_1']")).starts == ()
    assert server.requests == []


def test_weights_that_cannot_be_had_are_one_line_with_the_command_that_brings_them(
    published: tuple[Server, dict[str, torch.Tensor]], capsys: Captured
) -> None:
    server, _ = published
    server.status = 503
    answer = ask(capsys, "distill", *SIZE, "cohort.students=['torchvision:squeezenet1_1']", "cohort.weights=pretrained")
    assert answer.code == 2
    assert f"{SQUEEZENET}: these weights are not on this machine" in answer.err
    assert f"okdc download weights {SQUEEZENET} -o FOLDER" in answer.err
    assert "Traceback" not in answer.err
    assert not Path("runs").exists()


def test_the_hint_brings_all_missing_weights_and_gives_the_whole_list(
    published: tuple[Server, dict[str, torch.Tensor]], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as it stands, once where there is a network and once here."""
    server, _ = published
    server.status = 503
    other = "torchvision:SqueezeNet1_0_Weights.IMAGENET1K_V1"
    url = f"{server.url.rpartition('/')[0]}/squeezenet1_0-12345678.pth"
    weights = models.SqueezeNet1_0_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=url))
    networks = "cohort.students=torchvision:squeezenet1_1,resnet8,torchvision:squeezenet1_0"
    words = ("distill", *SIZE, "method.name=dml", networks, "optim.epochs=1", "--no-export-check")
    answer = ask(capsys, *words, f"cohort.weights={SQUEEZENET},none,pretrained")
    hint = answer.err.partition("hint: where there is a network: ")[2].strip()
    download, _, here = hint.partition("; here ")
    assert shlex.split(download) == ["okdc", "download", "weights", SQUEEZENET, other, "-o", "FOLDER"]
    monkeypatch.setattr(pretrained.Pretrained, "load", random_weights)
    assert ask(capsys, *shlex.split(download)[1:]).code == 0
    assert ask(capsys, *words, *shlex.split(here)).code == 0


def random_weights(weights: pretrained.Pretrained) -> dict[str, torch.Tensor]:
    return dict(models.get_model(weights.network.partition(":")[2], weights=None).state_dict())


def test_what_is_there_already_is_not_brought_again(
    published: tuple[Server, dict[str, torch.Tensor]], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = published
    pretrained.find(SQUEEZENET).load()
    weights = models.SqueezeNet1_0_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=f"{server.url}/none-12345678.pth"))
    server.status = 503
    words = ("cohort.students=torchvision:squeezenet1_1,torchvision:squeezenet1_0", "cohort.weights=pretrained")
    answer = ask(capsys, "distill", *SIZE, "method.name=dml", *words)
    assert "okdc download weights torchvision:SqueezeNet1_0_Weights.IMAGENET1K_V1 -o FOLDER;" in answer.err
    assert f"cohort.weights={SQUEEZENET},FOLDER/SqueezeNet1_0_Weights.IMAGENET1K_V1.safetensors" in answer.err


def test_weights_of_a_run_that_starts_anew_come_to_their_librarys_cache(
    published: tuple[Server, dict[str, torch.Tensor]],
) -> None:
    """A file has another sha256, and resume takes no key."""
    server, _ = published
    job = built(recipe(*SIZE, "cohort.students=torchvision:squeezenet1_1", "cohort.weights=pretrained"))
    shutil.rmtree("torch")
    server.status = 503
    with pytest.raises(DataError) as caught:
        weights.load(job.recipe, 1)
    assert caught.value.hint.endswith(f"okdc download weights {SQUEEZENET}")


@pytest.mark.parametrize("out", [(), ("-o", "here")])
@pytest.mark.parametrize("count", [1, 2])
def test_the_next_line_of_a_download_has_two_students_at_least(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, out: tuple[str, ...], count: int
) -> None:
    monkeypatch.setattr(pretrained.Pretrained, "load", random_weights)
    names = ["torchvision:squeezenet1_1", "torchvision:squeezenet1_0"][:count]
    answer = ask(capsys, "download", "weights", *names, *out)
    *_, students, taken = shlex.split(answer.err.partition("next: ")[2])
    cohort = load(["folder_resnet20", students, taken]).tables["cohort"]
    assert cohort["students"] == (names * 2)[:2]
    members = ["SqueezeNet1_1_Weights.IMAGENET1K_V1", "SqueezeNet1_0_Weights.IMAGENET1K_V1"][:count]
    values = [f"here/{each}.safetensors" if out else f"torchvision:{each}" for each in members]
    assert cohort["weights"] == (values if count == 2 else values[0])


def test_a_tagged_student_takes_the_file_of_that_tag() -> None:
    timm = pytest.importorskip("timm", reason=TIMM)
    tensors = timm.create_model("test_resnet", pretrained=False).state_dict()
    words = (*SIZE, "cohort.students=timm:test_resnet.r160_in1k", "cohort.weights=w.safetensors")
    facts = pretrained.find("timm:test_resnet.r160_in1k").facts
    Path("w.safetensors").write_bytes(to_safetensors(tensors, facts))
    assert recipe(*words).recipe.cohort.students == ("timm:test_resnet",)
    Path("w.safetensors").write_bytes(to_safetensors(tensors, replace(facts, name="timm:test_resnet.other")))
    assert "names trained weights, and w.safetensors names others" in refused(*words[len(SIZE) :])


def test_a_file_that_was_changed_on_its_way_is_refused(published: tuple[Server, dict[str, torch.Tensor]]) -> None:
    server, _ = published
    server.content = server.content[:-1] + bytes([server.content[-1] ^ 1])
    with pytest.raises(DataError, match="invalid hash"):
        pretrained.find(SQUEEZENET).load()


def test_weights_are_brought_to_a_file_that_a_recipe_takes_without_a_network(
    published: tuple[Server, dict[str, torch.Tensor]], capsys: Captured
) -> None:
    server, tensors = published
    answer = ask(capsys, "download", "weights", "torchvision:squeezenet1_1", "-o", "far/away", "--json")
    assert answer.code == 0
    (facts,) = json.loads(answer.out)
    path = Path(facts["file"])
    assert path == Path("far/away/SqueezeNet1_1_Weights.IMAGENET1K_V1.safetensors")
    found = load_file(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    server.status = 503
    words = (*SIZE, "cohort.students=['torchvision:squeezenet1_1']", f"cohort.weights={path}")
    job = built(recipe(*words))
    assert job.recipe.data.mean == (0.485, 0.456, 0.406)
    start = job.starts[0]
    assert start is not None
    assert (start.weights, start.classes) == (SQUEEZENET, 1000), "the file says what it is"


def test_a_download_of_weights_says_what_it_takes(capsys: Captured) -> None:
    for words, said in (
        (["weights"], "no name"),
        (["weights", "resnet8"], "nobody publishes weights of resnet8"),
        (["weights", "torchvision:resnet18", "--url", "http://x"], "are for data sets"),
        (["cifar10", "cifar100"], "takes one data set"),
        (["cifar10", "-o", "x"], "takes one data set"),
    ):
        answer = ask(capsys, "download", *words)
        assert answer.code == 2
        assert said in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# timm's, from a hub


HUB = """
import http.server, sys, threading
from pathlib import Path
from okdc.__main__ import main

content = Path("published.safetensors").read_bytes()

class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self, body=False):
        known = self.path.startswith("/timm/test_resnet.r160_in1k/") and self.path.endswith("/model.safetensors")
        self.send_response(200 if known else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"' + "1" * 40 + '"')
        self.send_header("Content-Length", str(len(content) if known else 0))
        self.end_headers()
        if body and known:
            self.wfile.write(content)
    def do_GET(self):
        self.do_HEAD(body=True)
    def log_message(self, *_):
        pass

codes = []
for words in sys.argv[2:]:
    state, *words = words.split()
    if state == "on":
        with http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hub) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            codes.append(main(words))
            server.shutdown()
            thread.join()
    else:
        codes.append(main(words))
print("codes", *codes)
"""


def with_hub(*commands: str) -> subprocess.CompletedProcess[str]:
    """Commands in a process whose hub is the test's own, each with the word on or off before it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(Path("hub").absolute()),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environ.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", HUB, str(port), *commands]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=300)


def test_weights_of_timm_come_from_its_hub_once_and_then_from_the_cache() -> None:
    timm = pytest.importorskip("timm", reason=TIMM)
    torch.manual_seed(3)
    tensors = timm.create_model("test_resnet", pretrained=False).state_dict()
    Path("published.safetensors").write_bytes(save(tensors))
    name = "timm:test_resnet.r160_in1k"
    students = "cohort.students=['timm:test_resnet'] cohort.weights=pretrained method.name=baseline data.image_size=32"
    answer = with_hub(
        f"off download weights {name}",
        f"on download weights {name} -o here",
        f"off distill {' '.join(FOLDER)} {students} -o run --no-export-check",
    )
    assert answer.stdout.splitlines()[-1] == "codes 2 0 0", answer.stderr
    assert f"{name}: these weights are not on this machine" in answer.stderr
    assert f"okdc download weights {name} -o FOLDER" in answer.stderr
    assert "Retrying" not in answer.stderr, "its client goes on for most of a minute"
    found = load_file("here/test_resnet.r160_in1k.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert read(Path("run/recipe.toml"))["cohort"]["weights"] == name
