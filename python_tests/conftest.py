"""What every test gets: the devices there are, and random inputs that are new in each run and can be had again."""

import copy
import hashlib
import os

import pytest
import torch
from search_tools import Task, trained_net

SEED = int(os.environ.get("AMUN_TEST_SEED") or int.from_bytes(os.urandom(4)))
REQUIRE_CUDA = os.environ.get("AMUN_REQUIRE_CUDA") == "1"
collect_ignore = [] if torch.cuda.is_available() or REQUIRE_CUDA else ["test_cuda_device.py"]
AGAIN = f"AMUN_TEST_SEED={SEED} gives these random inputs again"


def pytest_configure():
    torch.set_num_threads(2)  # more than one, so that parallel code runs in parallel


def pytest_report_header():
    return AGAIN


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(AGAIN)


@pytest.fixture(autouse=True)
def _own_random_inputs(request):
    """A test draws the same numbers alone and among others, and leaves the generators as it found them."""
    digest = hashlib.sha256(f"{SEED} {request.node.nodeid}".encode()).digest()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(digest[:4]))
        yield


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() or REQUIRE_CUDA else ["cpu"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("AMUN_REQUIRE_CUDA=1, but torch finds no CUDA device")
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """In models this small threads only wait for each other, for long where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        images, labels = torch.rand(100, 1, 6, 6), torch.randint(0, 4, (100,))
        return trained_net(images, labels), images, labels


@pytest.fixture
def task(trained: Task) -> Task:
    """A net that is right about 100 images, and these."""
    net, images, labels = trained
    right = net(images).argmax(1) == labels
    assert right.sum() > 80
    return copy.deepcopy(net), images[right], labels[right]


@pytest.fixture
def few(task: Task) -> Task:
    model, images, labels = task
    return model, images[:30], labels[:30]
