"""What a plan may take of memory, and what networks take of it."""

from __future__ import annotations

import pytest

from unet_med.config import Network
from unet_med.planning.memory import CPU_SHARE, budget_of, network_elements

RESIDUAL = Network(kind="residual")


def test_a_small_plain_network_by_hand() -> None:
    # levels of 8x8 and 4x4: encoder 2*4*64 + 2*8*16; decoder 2 convolutions, 1 up-convolution, 3 outputs at 8x8
    count = network_elements(Network(), (8, 8), ((1, 1), (2, 2)), (4, 8), 3)
    assert count == 512 + 256 + (3 * 4 + 3) * 64
    one = network_elements(Network(decoder_convolutions=1), (8, 8), ((1, 1), (2, 2)), (4, 8), 3)
    assert count - one == 4 * 64


def test_a_small_residual_network_by_hand() -> None:
    # stem 4*64; one block of two convolutions; three blocks at 4x4, the first with a skip; decoder 1 + 1 and 3 outputs
    count = network_elements(RESIDUAL, (8, 8), ((1, 1), (2, 2)), (4, 8), 3)
    assert count == 4 * 64 + 2 * 4 * 64 + (6 + 1) * 8 * 16 + (2 * 4 + 3) * 64
    fewer = Network(kind="residual", blocks_per_level=(1, 1))
    assert count - network_elements(fewer, (8, 8), ((1, 1), (2, 2)), (4, 8), 3) == 4 * 8 * 16


# from compute_conv_feature_map_size of nnU-Net's networks: 32 to 320 features, 3 outputs, strides of 2
@pytest.mark.parametrize(
    ("network", "patch", "levels", "outputs", "elements"),
    [
        (Network(), (128, 128, 128), 6, 3, 452_796_416),
        (Network(), (512, 512), 8, 2, 82_624_512),
        (RESIDUAL, (128, 128, 128), 6, 3, 557_420_544),
        (RESIDUAL, (512, 512), 8, 2, 129_441_792),
        (RESIDUAL, (40, 56, 40), 4, 3, 23_609_600),
    ],
)
def test_elements_are_those_of_nnunet(
    network: Network, patch: tuple[int, ...], levels: int, outputs: int, elements: int
) -> None:
    dims = len(patch)
    strides = ((1,) * dims, *((2,) * dims,) * (levels - 1))
    features = [min({2: 512, 3: 320}[dims], 32 * 2**level) for level in range(levels)]
    assert network_elements(network, patch, strides, features, outputs) == elements


@pytest.mark.parametrize(
    ("network", "memory_gb", "device", "gb", "elements"),
    [
        (Network(), None, "gpu", 8, 560e6),
        (Network(), 80, "gpu", 80, 5.6e9),
        (Network(), None, "cpu", 3, 560e6 * 3 / 8 * CPU_SHARE),
        (RESIDUAL, None, "gpu", 8, 680e6),
        (RESIDUAL, 24, "gpu", 24, 2.1e9),
        (RESIDUAL, 30, "gpu", 30, 2.1e9 * 30 / 24),
        (RESIDUAL, 80, "gpu", 80, 3.6e9 * 2),
        (RESIDUAL, 2, "gpu", 2, 680e6 / 4),
        (RESIDUAL, None, "cpu", 3, 680e6 * 3 / 8 * CPU_SHARE),
        (Network(kind="residual", size="L"), None, "gpu", 24, 2.1e9),
        (Network(kind="residual", size="XL"), None, "gpu", 40, 3.6e9),
        (Network(kind="residual", size="XL"), 20, "gpu", 20, 1.8e9),
    ],
)
def test_budgets(network: Network, memory_gb: float | None, device: str, gb: float, elements: float) -> None:
    budget = budget_of(network, 3, device, memory_gb)
    assert budget.gb == gb
    assert budget.elements == pytest.approx(elements)
    assert budget.batch_of(budget.elements) == 2
    assert budget.largest_patch == pytest.approx(elements)


def test_pictures_come_in_larger_batches_or_are_larger() -> None:
    budget = budget_of(Network(), 2, "gpu")
    assert budget.batch_of(budget.elements) == 12
    assert budget.largest_patch == 6 * budget.elements
