# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of configs by arithmetic on published settings, done without PyTorch."""

from typing import NamedTuple

# Config, million parameters, 10^9 MACs by convention, and shape if it is neither the convention's
# nor the config's; MACs include norms, hence FLOPS_TOLERANCE. Exact parameters are in
# tests/configs/test_build.py.
TABLE = """
classification/focal_t_in1k            28.880  linear=4.37   classification=4.92
classification/focal_s_in1k            51.142  linear=8.56   classification=9.43
classification/focal_b_in1k            89.815  linear=15.20  classification=16.36
classification/focal_t_convembed_in1k  30.825  classification=5.17   matmul-132=5.20
classification/focal_s_convembed_in1k  53.087  classification=9.67   matmul-132=9.73
classification/focal_b_convembed_in1k  93.269  classification=16.79  matmul-132=16.86
detection/focal_t_retinanet_1x         39.38   linear=245.1  matmul-120=265.6  matmul-132=266.4
detection/focal_s_retinanet_3x         61.66   linear=335.6  matmul-120=366.9  matmul-132=368.2
detection/focal_b_retinanet_1x         100.90  linear=478.7  matmul-120=520.5  matmul-132=522.2
detection/focal_t_maskrcnn_1x          48.72   linear=264.1  matmul-120=284.6  matmul-132=285.3
detection/focal_s_maskrcnn_3x          71.00   linear=354.5  matmul-120=385.8  matmul-132=387.1
detection/focal_b_maskrcnn_1x          109.66  linear=498.0  matmul-120=539.8  matmul-132=541.5
detection/focal_t_cascade_3x           86.55   linear=742.4  matmul-120=762.9  matmul-132=763.6
detection/focal_t_atss_3x              36.66   linear=211.8  matmul-120=232.3  matmul-132=233.0
detection/focal_t_reppointsv2_3x       45.84   reppointsv2=475.9
detection/focal_t_sparsercnn_3x        110.66  linear=169.9  matmul-120=190.3  default=194.3
detection/focal_l_htcpp_3x             255.28  linear=1088   matmul-132=1154   800x1280
detection/focal_l_htcpp_4conv1fc_3x    259.21  linear=1432   matmul-132=1497   800x1280
detection/focal_l_dyhead_2x            213.93  default=935   800x1280
detection/focal_l_dyhead_w12_2x        231.05  default=1012   800x1280
segmentation/focal_t_upernet_160k      60.86   linear=941.7   upernet-focal=998.1
segmentation/focal_s_upernet_160k      83.15   linear=1033.2  upernet-focal=1129.9
segmentation/focal_b_upernet_160k      123.80  linear=1182.1  upernet-focal=1354.1
segmentation/focal_l_upernet_640_160k  237.53  linear=2472.8  matmul-132=2572.3  640x2560
classification/ablations/focal_t_window14_in1k       29.425  classification=5.35
classification/ablations/focal_t_shift_in1k          28.880  classification=4.92
classification/ablations/focal_t_window_only_in1k    28.287  classification=4.49
classification/ablations/focal_t_local_in1k          28.869  classification=4.82
classification/ablations/focal_t_global_in1k         28.298  classification=4.60
classification/ablations/focal_t_d2222_in1k          21.46   classification=3.42
classification/ablations/focal_t_d2242_in1k          25.17   classification=4.17
detection/ablations/focal_t_window_only_maskrcnn_1x  47.79
detection/ablations/focal_t_local_maskrcnn_1x        48.69
detection/ablations/focal_t_global_maskrcnn_1x       47.83
classification/ablations/swin_t_in1k                 28.29   classification=4.49
detection/ablations/swin_t_maskrcnn_1x               47.79   linear=263.5  matmul-120=266.7
detection/ablations/swin_t_retinanet_1x              38.46   linear=244.6
detection/ablations/swin_s_retinanet_1x              59.78   linear=334.5
detection/ablations/swin_b_retinanet_1x              98.39   linear=476.8
"""
FLOPS_TOLERANCE = 5e-3  # relative


class RecipeNumbers(NamedTuple):
    """One row of a table; numbers as they are printed."""

    name: str
    params: str
    flops: dict[str, str]
    shape: tuple[int, int] | None


def parse(table: str = TABLE) -> list[RecipeNumbers]:
    """Read a table written like ``TABLE``."""
    rows = []
    for line in table.strip().splitlines():
        name, params, *rest = line.split()
        flops = dict(word.split('=') for word in rest if '=' in word)
        shape = next((tuple(map(int, word.split('x'))) for word in rest if '=' not in word), None)
        rows.append(RecipeNumbers(name, params, flops, shape))
    return rows


def half_a_unit(printed: str) -> float:
    """Half a unit of the last digit, and 2 % of it for ties that were rounded down."""
    return 1.02 * 0.5 / 10 ** len(printed.partition('.')[2])


def assert_printed(actual: float, printed: str, what: str) -> None:
    """Assert that ``actual`` equals ``printed`` up to half a unit of its last digit."""
    assert abs(actual - float(printed)) <= half_a_unit(printed), f'{what} {actual} for {printed}'
