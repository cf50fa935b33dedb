"""The peer Gorse against a program that speaks its HTTP interface; against Gorse itself where it is built."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from online_models.evaluation import peer_gorse
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.peer_gorse import GorseError, GorsePeer, config, find_program
from online_models.evaluation.peers import MissingPeerError, make_peers
from online_models.evaluation.protocols import last_positive_out

SERVER = """#!{python}
import http.server, json, sys, tomllib
from collections import Counter
from urllib.parse import unquote

settings = tomllib.load(open(sys.argv[sys.argv.index("-c") + 1], "rb"))
feedback, asked = [], Counter()

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        feedback.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer({{}})

    def do_GET(self):
        kind, user = self.path.split("?")[0].split("/")[2:4]
        if kind == "health":
            return self.answer({{}})
        asked[kind] += 1
        if kind == "collaborative-filtering" and asked[kind] < 3:  # not fitted at once
            return self.answer([])
        had = [entry["ItemId"] for entry in feedback if entry["UserId"] == unquote(user)]
        liked = Counter(entry["ItemId"] for entry in feedback if entry["Value"] >= 4)
        order = sorted(liked, key=lambda item: (-liked[item], item))
        self.answer([item for item in order if item not in had])

    def log_message(self, *_):
        pass

address = (settings["master"]["http_host"], settings["master"]["http_port"])
http.server.HTTPServer(address, Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "gorse"
    file.write_text(SERVER.format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setenv("FRESHET_GORSE", str(file))
    monkeypatch.setattr(peer_gorse, "SETTLE_S", 0.0)
    return str(file)


def test_its_lists_are_the_scores(program: str) -> None:
    ratings = [
        ("ann", "x", 5),
        ("bob", "x", 4),
        ("bob", "y", 5),
        ("a/b", "y", 1),
        ("cem", "z", 4),
        ("cem", "y", 4),
    ]
    peer = GorsePeer(program, 4.0)
    for second, (user, item, rating) in enumerate(ratings):
        peer.learn_one(user, item, float(rating), {"weight": 1.0, "timestamp": 1000 * second})
    rows = peer.items.rows(["x", "y", "z", "unknown"])
    # liked: x twice, y twice, z once; ann has had x, so y stands first for her
    assert peer.score_rows("ann", rows).tolist() == [0.0, 1.0, 0.5, 0.0]
    assert peer.score_rows("a/b", rows).tolist() == [1.0, 0.0, 0.5, 0.0], "a user id is quoted in a path"
    assert peer.score_rows("stranger", rows).tolist() == [0.0] * 4
    peer.learn_one("ann", "later", 5.0)
    assert peer.predict_one("ann", "later") == 0.0, "it was fitted once"


def test_it_is_judged_as_the_others_are(program: str) -> None:
    peers = make_peers("gorse", "last-positive-out")
    events = [
        Interaction(f"u{user}", f"i{(user + k) % 5}", 5.0, {"weight": 1.0, "timestamp": 0}, 5.0)
        for user in range(6)
        for k in range(3)
    ]
    run = last_positive_out(peers, events)
    assert [entrant.name for entrant in run.entrants] == ["gorse"]
    assert np.isfinite(run.ranks(run.entrants[0])).sum() >= 5


def test_a_program_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    file = tmp_path / "gorse"
    file.write_text("#!/bin/sh\necho no disk >&2\nexit 3\n")
    file.chmod(0o755)
    peer = GorsePeer(str(file), 4.0)
    peer.learn_one("ann", "x", 5.0)
    with pytest.raises(GorseError, match=r"did not start .*ended with 3, its log ends: no disk"):
        peer.predict_one("ann", "x")


def test_without_the_program_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHET_GORSE", "no-such-program-here")
    assert find_program() is None
    with pytest.raises(
        MissingPeerError, match=r"gorse-in-one on PATH, or its path in FRESHET_GORSE.*evaluation\.md"
    ):
        make_peers("gorse", "last-positive-out")


def test_its_settings_are_on_loopback_in_its_folder(tmp_path: Path) -> None:
    settings = tomllib.loads(config(tmp_path, 1, 2, 4.0))
    assert settings["master"]["http_host"] == settings["master"]["host"] == "127.0.0.1"
    assert settings["recommend"]["data_source"]["positive_feedback_types"] == ["rating>=4.0"]
    stores = [*settings["database"].values(), settings["blob"]["uri"]]
    assert len(stores) == 3
    assert all(str(tmp_path) in store for store in stores)
