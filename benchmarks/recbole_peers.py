"""RecBole's networks on the split of `benchmarks.networks_loo`, run in an environment of their own.

    uv venv --python 3.11 rb && uv pip install --python rb/bin/python --no-deps recbole==1.2.1
    uv pip install --python rb/bin/python torch 'numpy<2' 'scipy<1.14' 'pandas<2.3' 'setuptools<81' \
        'ray<=2.6.3' tqdm colorlog==4.7.2 colorama==0.4.4 scikit-learn pyyaml tensorboard thop tabulate \
        plotly texttable psutil
    OMP_NUM_THREADS=1 rb/bin/python -m benchmarks.recbole_peers [--models GRU4Rec,NeuMF] [--cpu-s 540]

RecBole 1.2.1 keeps times as float32, which can't tell apart what lies within 64 s in this data set: it is
given each event's place in time (equal times in file order) as its time instead, and what it then holds out
is compared with what is held out here, user by user. Its models and their training are its own, with its
defaults. Judged is as our networks are: all items ranked, what the user had masked, ties by half, the
validation item in the history when the test is asked. Training ends by RecBole's patience of 10 judgements,
or before the first epoch that would begin after `--cpu-s` of processor time in training (judging isn't
counted); the weights that ranked the validation items best are tested. Imports nothing of Freshet, which
does not import it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "networks_peers.json"
MODELS = ("GRU4Rec", "Caser", "NeuMF", "NextItNet")
SEQUENTIAL = ("GRU4Rec", "Caser", "NextItNet")
PATIENCE = 10
"""RecBole's `stopping_step`: judgements without a gain."""
JUDGED_EVERY = {"NeuMF": 5}
"""Epochs, where not after each: it scores pair by pair, which takes longer than an epoch."""
PAIRS = 1 << 17
"""Users x items scored at once by a model that scores pairs."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Log:
    """Lines of the file, header first, and by user the items in order of time."""

    header: str
    rows: list[list[str]]
    order: list[int]  # rows in order of time, stable
    items_of: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Log:
        header, *lines = path.read_text("utf-8").splitlines()
        if [name.split(":")[0] for name in header.split("\t")] != [
            "user_id",
            "item_id",
            "rating",
            "timestamp",
        ]:
            raise ValueError(f"{path}: the columns are {header!r}")
        rows = [line.split("\t") for line in lines]
        order = sorted(range(len(rows)), key=lambda k: float(rows[k][3]))
        items_of: dict[str, list[str]] = {}
        for k in order:
            items_of.setdefault(rows[k][0], []).append(rows[k][1])
        return cls(header, rows, order, items_of)

    def write_places(self, path: Path) -> None:
        """The same log with each event's place in time for its time."""
        place = dict(zip(self.order, range(len(self.order)), strict=True))
        lines = ["\t".join([*row[:3], str(place[k])]) for k, row in enumerate(self.rows)]
        path.write_text("\n".join([self.header, *lines]) + "\n", "utf-8")


class Judge:
    """Ranks of the validation items (`back` 2) or the test items (1), one for each user."""

    def __init__(self, log: Log, dataset: Any, held_out: Any, back: int) -> None:
        self.asked, self.dataset = held_out.inter_feat, dataset
        users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
        self.targets: list[int] = self.asked["item_id"].tolist()
        names = [str(users[user]) for user in self.asked["user_id"].tolist()]
        found = dict(zip(names, (str(items[item]) for item in self.targets), strict=True))
        expected = {user: own[-back] for user, own in log.items_of.items()}
        if found != expected:
            wrong = sum(found.get(user) != item for user, item in expected.items())
            raise ValueError(f"RecBole holds out another item {back} from the end for {wrong} users")
        self.had = np.zeros((len(names), dataset.item_num), dtype=np.bool_)
        self.had[:, 0] = True  # RecBole's padding
        for row, user in enumerate(names):
            self.had[row, [dataset.token2id("item_id", item) for item in log.items_of[user][:-back]]] = True

    @torch.no_grad()
    def ranks(self, model: Any) -> Float64:
        model.eval()
        scores = np.where(self.had, -np.inf, self._scores(model))
        if np.isnan(scores).any():
            raise ValueError("a score is not a number")
        own = scores[np.arange(len(scores)), self.targets][:, None]
        ranks: Float64 = (scores > own).sum(axis=1) + 0.5 * ((scores == own).sum(axis=1) - 1.0)
        return ranks

    def _scores(self, model: Any) -> Float64:
        """float64[U, items]."""
        if hasattr(type(model), "full_sort_predict") and type(model).__name__ in SEQUENTIAL:
            parts = [
                model.full_sort_predict(self.asked[at : at + 256]) for at in range(0, len(self.asked), 256)
            ]
            return torch.cat(parts).double().numpy()
        interaction = importlib.import_module("recbole.data.interaction").Interaction
        every, found = torch.arange(self.dataset.item_num), []
        users = self.asked["user_id"]
        for some in users.split(max(1, PAIRS // len(every))):
            pairs = {"user_id": some.repeat_interleave(len(every)), "item_id": every.repeat(len(some))}
            found.append(model.predict(interaction(pairs)).reshape(len(some), -1))
        return torch.cat(found).double().numpy()


def means(ranks: Float64) -> dict[str, float]:
    """HR@10 and NDCG@10 of one relevant item each."""
    gains = np.where(ranks < 10, 1.0 / np.log2(ranks + 2.0), 0.0)
    return {"hr_at_10": round(float((ranks < 10).mean()), 4), "ndcg_at_10": round(float(gains.mean()), 4)}


def measure(model_name: str, log: Log, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one model by RecBole's own epochs and judge it."""
    config, (train, valid, test), whole = _prepared(model_name, folder, asked)
    tools = importlib.import_module("recbole.utils")
    tools.init_seed(asked.seed, True)
    model = tools.get_model(model_name)(config, train._dataset)
    trainer = tools.get_trainer(config["MODEL_TYPE"], model_name)(config, model)
    judges = [Judge(log, whole, part._dataset, back) for part, back in ((valid, 2), (test, 1))]
    every, best, weights, spent, epoch = JUDGED_EVERY.get(model_name, 1), -1, {}, 0.0, 0
    curve: list[tuple[int, float, float]] = []
    while epoch < asked.epochs and spent < asked.cpu_s and len(curve) - 1 - best < PATIENCE:
        started = time.process_time()
        trainer._train_epoch(train, epoch, show_progress=False)
        spent, epoch = spent + time.process_time() - started, epoch + 1
        if epoch % every == 0 or not curve:
            curve.append((epoch, round(spent, 1), means(judges[0].ranks(model))["ndcg_at_10"]))
            print(f"{model_name}: {curve[-1]}", file=sys.stderr, flush=True)
            if best < 0 or curve[-1][2] > curve[best][2]:
                best, weights = len(curve) - 1, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return {
        **means(judges[1].ranks(model)), "validation": means(judges[0].ranks(model)), "epochs": epoch,
        "best_epoch": curve[best][0], "train_cpu_s": round(spent, 1),
        "stopped_by": "patience" if len(curve) - 1 - best >= PATIENCE else "budget",
        "users": len(judges[1].targets), "seed": asked.seed, "curve": curve, "batch_size": asked.batch_size,
        "command": "python -m benchmarks.recbole_peers " + " ".join(sys.argv[1:]),
    }  # fmt: skip


def _prepared(model_name: str, folder: Path, asked: argparse.Namespace) -> tuple[Any, Any, Any]:
    """RecBole's settings, its three parts of the data, and the whole."""
    given: dict[str, Any] = {
        "dataset": folder.name, "data_path": str(folder.parent), "use_gpu": False, "gpu_id": "",
        "seed": asked.seed, "train_batch_size": asked.batch_size,
        "state": "ERROR", "show_progress": False, "checkpoint_dir": str(folder), "log_wandb": False,
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
    }  # fmt: skip
    if model_name in SEQUENTIAL:
        given["train_neg_sample_args"] = None  # softmax over all items, RecBole's default loss_type CE
    config = importlib.import_module("recbole.config").Config(model=model_name, config_dict=given)
    data = importlib.import_module("recbole.data")
    importlib.import_module("recbole.utils").init_seed(asked.seed, True)
    whole = data.create_dataset(config)
    return config, data.data_preparation(config, whole), whole


def main() -> None:
    parser = argparse.ArgumentParser(description="RecBole's networks, leave-one-out.")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument(
        "--cpu-s", type=float, default=540.0, help="processor seconds of training, each model"
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="RecBole's default")
    parser.add_argument("--epochs", type=int, default=300, help="at most; RecBole's default")
    parser.add_argument("--seed", type=int, default=2020, help="RecBole's default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recbole = importlib.import_module("recbole")
    log = Log.read(Path(str(recbole.__file__)).parent / "dataset_example" / "ml-100k" / "ml-100k.inter")
    content = json.loads(asked.results.read_text("utf-8")) if asked.results.exists() else {"rows": {}}
    with tempfile.TemporaryDirectory(prefix="freshet-recbole-") as name:
        folder = Path(name) / "places"
        folder.mkdir()
        log.write_places(folder / "places.inter")
        logging.disable(logging.CRITICAL)
        for model_name in asked.models.split(","):
            row = measure(model_name, log, folder, asked)
            content["rows"][f"RecBole {model_name}"] = row
            content["environment"] = {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("recbole", "torch", "numpy")},
            }  # fmt: skip
            asked.results.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            print(model_name, {k: v for k, v in row.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
