"""What errors of torch mean, on errors that torch itself raises.

Those of lost processes are in test_processes.py and test_streaming_runs.py, those of a GPU in test_step.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from okdc import torch_errors
from okdc.torch_errors import Shortage


def raised(work: object, *args: object) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        work(*args)  # type: ignore[operator]
    return caught.value


GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 15.77 GiB of which 10.50 MiB is "
    "free. Including non-PyTorch memory, this process has 15.70 GiB memory in use."
)


def test_memory_that_is_full() -> None:
    assert torch_errors.shortage(raised(torch.empty, 1 << 50)) == Shortage("cpu", "4,194,304.00 GiB")
    assert torch_errors.shortage(torch.OutOfMemoryError(GPU)) == Shortage(
        "cuda:1", "2.00 GiB", "10.50 MiB", "15.77 GiB"
    )
    assert torch_errors.shortage(torch.OutOfMemoryError("another text")) == Shortage("cuda")
    assert torch_errors.shortage(MemoryError()) == Shortage("cpu")
    assert torch_errors.shortage(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")) == Shortage("cuda")
    assert not torch_errors.out_of_memory(ValueError("can't allocate memory"))
    assert not torch_errors.out_of_memory(raised(torch.empty, -1))


def test_numpy_says_how_much_it_asked_for() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 55, np.uint8)
    assert torch_errors.shortage(caught.value) == Shortage("cpu", "32.0 PiB")


def test_a_shortage_in_words_names_what_is_there_to_name() -> None:
    assert Shortage("cuda:0", "2.00 GiB", "10.50 MiB", "15.77 GiB").words == (
        "out of memory on cuda:0: 2.00 GiB asked for, 10.50 MiB of 15.77 GiB free"
    )
    assert Shortage("cpu", "4.00 GiB").words == "out of memory on cpu: 4.00 GiB asked for"
    assert Shortage("cuda").words == "out of memory on cuda"


@pytest.mark.gpu
def test_a_full_gpu_says_so_in_a_text_that_is_read_and_in_a_type() -> None:
    full = torch_errors.shortage(raised(lambda: torch.empty(1 << 45, dtype=torch.uint8, device="cuda")))
    assert full is not None
    assert full.device == "cuda:0"
    assert full.asked == "32768.00 GiB"
    assert full.free
    assert full.total
    pinned = raised(lambda: torch.empty(1 << 60, dtype=torch.uint8, pin_memory=True))  # the driver's own error
    assert torch_errors.out_of_memory(pinned)


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        error = raised(torch.empty(4).put_, torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch_errors.without_deterministic_kernel(error) == "put_"
    assert torch_errors.without_deterministic_kernel(RuntimeError("boom")) == ""


def test_the_store_and_nccl_have_a_type_of_their_own() -> None:
    assert torch_errors.peer_lost(torch.distributed.DistBackendError("NCCL"))
    assert not torch_errors.peer_lost(RuntimeError("boom"))


def test_an_error_that_is_none_of_these_is_none_of_them() -> None:
    error = RuntimeError("boom")
    tests = (
        torch_errors.out_of_memory,
        torch_errors.worker_died,
        torch_errors.peer_lost,
        torch_errors.not_compilable,
        torch_errors.without_deterministic_kernel,
    )
    assert not any(test(error) for test in tests)
