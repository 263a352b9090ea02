from __future__ import annotations

import subprocess
import sys

import torchgeo_debias.data as data


def test_every_public_name_is_there() -> None:
    assert all(getattr(data, name) is not None for name in data.__all__)


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, torchgeo_debias.data; "
        "assert 'torch' not in sys.modules; "
        "torchgeo_debias.data.read_folder; torchgeo_debias.data.chips_from_layer; "
        "torchgeo_debias.data.ClassBalancedSampler; "
        "assert 'torchgeo' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
