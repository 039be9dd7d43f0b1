"""Plain transformers knows the demo model's tower after ``import mmneurons``, whichever is imported first."""

import subprocess
import sys

import pytest

ORDERS = {
    "ours first": "import mmneurons; assert 'torch' not in __import__('sys').modules; import transformers",
    "transformers first": "import transformers, mmneurons",
    "its models first": "from transformers import AutoModel; import mmneurons",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_tower_is_known(order):
    code = (
        f"{ORDERS[order]}\n"
        "from transformers import AutoConfig, AutoModel\n"
        "config = AutoConfig.for_model('efficientnet_lite')\n"
        "print(AutoModel.from_config(config).__class__.__name__)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip().endswith("EfficientNetLiteModel")
