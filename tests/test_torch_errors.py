"""What errors of torch mean, on errors that torch itself raises.

Those of lost processes are in test_processes.py and test_streaming_runs.py, those of a GPU in test_step.py.
"""

from __future__ import annotations

import pytest
import torch

from okdc import torch_errors


def raised(work: object, *args: object) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        work(*args)  # type: ignore[operator]
    return caught.value


def test_memory_that_is_full() -> None:
    assert torch_errors.out_of_memory(raised(torch.empty, 1 << 50))
    assert torch_errors.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert torch_errors.out_of_memory(MemoryError())
    assert not torch_errors.out_of_memory(ValueError("can't allocate memory"))
    assert not torch_errors.out_of_memory(raised(torch.empty, -1))


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
