"""The registry on S3: s3fs over HTTP to moto's server, which keeps objects in memory.

Skipped where s3fs or moto is missing; CONTRIBUTING.md says how to install them.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator

import pytest

from serving.ranker.errors import RegistryError
from serving.ranker.settings import RankerSettings
from serving.registry.manifest import GOLDEN_FILE, MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE
from serving.registry.store import MANIFEST_FILE, Published, Registry
from serving.registry.swap import RankerSlot, SwapEvent, load_verified
from tests.test_serving.version_cases import publish_table, successor_table

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

ITEMS = [f"item-{n}" for n in range(30)]
FILES = {MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE, GOLDEN_FILE, MANIFEST_FILE}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 with the bucket `shop`, which s3fs finds in the environment."""
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a key",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("shop")
        yield told["AWS_ENDPOINT_URL"]
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        running.stop()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A registry of the test's own."""
    return f"s3://shop/{request.node.name}"


def publish(url: str, version: str, step: int = 3) -> tuple[Registry, Published]:
    return publish_table(url, version, ITEMS, successor_table(len(ITEMS), step))


def objects(url: str) -> dict[str, int]:
    """Size by name, below the registry's model."""
    found = s3fs.S3FileSystem(skip_instance_cache=True).find(f"{url}/ranker", detail=True)
    return {key.split("/ranker/")[1]: entry["size"] for key, entry in found.items()}


def settled(slot: RankerSlot) -> SwapEvent | None:
    assert slot.wait_loaded(60.0)
    return slot.swap_if_ready()


def test_a_version_is_written_file_by_file_under_its_own_names_and_the_manifest_last(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "werkzeug"):
        publish(url, "v1")
    asked = [
        found.groups()
        for record in caplog.records
        if (found := re.search(r'"(PUT|POST|DELETE) /shop/[^ ]*/(\S+) HTTP', record.getMessage()))
    ]
    assert {method for method, _ in asked} == {"PUT"}, "a rename is a copy and a DELETE"
    written = [name for _, name in asked]
    assert sorted(written) == sorted(FILES)
    assert written[-1] == MANIFEST_FILE
    assert set(objects(url)) == {f"v1/{name}" for name in FILES}


def test_who_reads_meanwhile_sees_whole_versions_only(url: str) -> None:
    """A reader lists and fetches while another publishes: what is listed can be fetched."""
    seen: list[str] = []
    failed: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        registry = Registry(url)
        try:
            while True:
                last = done.is_set()
                seen[:] = registry.list()
                for version in seen:
                    assert set(registry.fetch(version).files) == FILES - {MANIFEST_FILE}
                if last:
                    return
        except (AssertionError, RegistryError) as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(3):
            publish(url, f"v{number}")
    finally:
        done.set()
        reader.join()
    assert not failed
    assert seen == ["v0", "v1", "v2"]


def test_half_a_version_is_none_and_a_version_never_changes(url: str) -> None:
    registry, published = publish(url, "v1")
    s3fs.S3FileSystem().pipe_file(f"{url}/ranker/v2/{MODEL_FILE}", b"half done")
    assert registry.list() == ["v1"]
    with pytest.raises(RegistryError, match=r"v2/manifest\.json") as refused:
        registry.fetch("v2")
    assert refused.value.kind == "store"
    with pytest.raises(RegistryError, match="versions never change"):
        publish(url, "v1", step=5)
    assert Registry(url).manifest("v1")[1] == published.digest
    assert Registry("s3://shop/nothing").list() == []


def test_a_worker_fetches_checks_and_swaps(url: str) -> None:
    registry, first = publish(url, "v1")
    _, second = publish(url, "v2", step=5)
    slot = RankerSlot(Registry(url), RankerSettings(provider="cpu"))
    for published, previous in ((first, None), (second, "v1")):
        slot.request(published.manifest.version, published.digest, published.uri)
        event = settled(slot)
        assert event is not None
        assert (event.outcome, event.version, event.previous) == (
            "swapped",
            published.manifest.version,
            previous,
        )
    slot.request("v1", second.digest)
    event = settled(slot)
    assert event is not None
    assert (event.outcome, event.kind) == ("refused", "digest")
    assert slot.current is not None
    assert slot.current.version == "v2", "the one before goes on serving"
    assert load_verified(registry, "v1", first.digest, "cpu").version == "v1"


def test_a_cut_off_object_is_refused_and_the_former_goes_on_serving(url: str) -> None:
    _, first = publish(url, "v1")
    _, second = publish(url, "v2", step=5)
    slot = RankerSlot(Registry(url), RankerSettings(provider="cpu"))
    slot.request("v1", first.digest)
    settled(slot)
    store, key = s3fs.S3FileSystem(), f"{url}/ranker/v2/{MODEL_FILE}"
    store.pipe_file(key, store.cat_file(key)[:-100])
    slot.request("v2", second.digest)
    event = settled(slot)
    assert event is not None
    assert (event.outcome, event.kind, event.previous) == ("refused", "digest", "v1")
    assert "the manifest says" in event.reason
    store.rm(key)
    with pytest.raises(RegistryError, match=MODEL_FILE) as missing:
        Registry(url).fetch("v2")
    assert missing.value.kind == "file"


def test_a_store_that_does_not_answer_is_told_as_such() -> None:
    """What botocore raises of it is no OSError."""
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s", "skip_instance_cache": True}
    registry = Registry("s3://shop/away")
    registry._fs = s3fs.S3FileSystem(config_kwargs={"retries": {"max_attempts": 0}}, **options)
    registry._fs.retries = 1
    for ask in (registry.list, lambda: registry.fetch("v1")):
        with pytest.raises(RegistryError, match="Could not connect") as away:
            ask()
        assert away.value.kind == "store"
