"""Compose, Kubernetes, workflows and Makefile agree with the code."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from streams.cli import cli
from streams.settings import DEFAULT_BOOTSTRAP, Settings, load_settings
from streams.topics import EVENT_MAX_BYTES, TOPICS

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    return services


def manifests() -> list[dict[str, Any]]:
    return [
        document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text("utf-8")) if document
    ]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in manifests():
        if "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def freshet_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line given to our program in compose, Kubernetes and the Makefile."""
    for name, service in compose().items():
        if str(service["image"]).startswith("freshet"):
            yield f"compose {name}", service["command"]
            if "freshet" in service.get("healthcheck", {}).get("test", []):
                yield f"compose {name} healthcheck", service["healthcheck"]["test"][2:]
    for name, pod in pods():
        for container in pod["containers"]:
            yield f"kubernetes {name}", container["args"]
            for probe in (value for key, value in container.items() if key.endswith("Probe")):
                if "exec" in probe:
                    yield f"kubernetes {name} probe", probe["exec"]["command"][1:]
    for arguments in re.findall(r"bin/freshet (.*)", (ROOT / "Makefile").read_text("utf-8")):
        yield "Makefile", arguments.replace("$(ARGS)", "").split()


def check_command(words: list[str]) -> None:
    """Walk the click tree along `words`; raises AssertionError at the first that the program would refuse."""
    node: click.Command = cli
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            options = {name: one for one in node.params for name in one.opts if isinstance(one, click.Option)}
            assert word in options, f"{node.name} has no option {word}"
            if not options[word].is_flag:
                assert rest, f"{word} lacks its value"
                rest.pop(0)
            continue
        assert isinstance(node, click.Group), f"{node.name} takes no {word!r}"
        assert word in node.commands, (
            f"{node.name} has no command {word!r}; there are {', '.join(node.commands)}"
        )
        node = node.commands[word]
    assert not isinstance(node, click.Group), f"{' '.join(words)!r} stops at a group"


def test_every_command_exists() -> None:
    found = list(freshet_commands())
    assert {tuple(words)[:1] for where, words in found if where.startswith("compose")} == {
        ("topics",),
        ("worker",),
        ("trainer",),
        ("monitor",),
        ("doctor",),
    }
    assert len(found) >= 10
    for where, words in found:
        try:
            check_command(words)
        except AssertionError as error:
            pytest.fail(f"{where}: {error}")


@pytest.mark.parametrize("words", [["work"], ["topics"], ["worker", "--name", "a"], ["worker", "extra"]])
def test_a_wrong_command_is_found(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_command(words)


def test_compose_settings_are_settings() -> None:
    for name, service in compose().items():
        if str(service["image"]).startswith("freshet"):
            settings = load_settings(
                environ={key: str(value) for key, value in service["environment"].items()}
            )
            assert settings.bootstrap_servers == "kafka:19092", name
            assert settings.registry_url == "/var/lib/freshet/models", name


def test_compose_publishes_on_loopback_only_and_the_right_ports() -> None:
    published = {name: service.get("ports", []) for name, service in compose().items()}
    ports = [port for many in published.values() for port in many]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    default = Settings().monitor.port
    assert published["monitor"] == [f"127.0.0.1:{default}:{default}"]
    assert f":{default}/" in " ".join(compose()["monitor"]["healthcheck"]["test"])


def test_compose_broker_is_the_embedded_brokers_version_and_fits_the_topics() -> None:
    pom = (DEPLOY / "kafka" / "pom.xml").read_text("utf-8")
    version = re.search(r"<kafka\.version>([\d.]+)</kafka\.version>", pom)
    assert version
    broker = compose()["kafka"]
    assert broker["image"] == f"apache/kafka:{version[1]}"
    environment = broker["environment"]
    assert environment["KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS"] == 1000
    assert environment["KAFKA_MESSAGE_MAX_BYTES"] == EVENT_MAX_BYTES
    largest = max(int(spec.config.get("max.message.bytes", EVENT_MAX_BYTES)) for spec in TOPICS.values())
    assert environment["KAFKA_REPLICA_FETCH_MAX_BYTES"] >= largest


def test_compose_mounts_exist() -> None:
    named = yaml.safe_load(COMPOSE.read_text("utf-8"))["volumes"]
    used = set()
    for name, service in compose().items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name} mounts {source}, which is not in deploy/"
            else:
                used.add(source)
    assert used == set(named)


def test_compose_waits_for_services_that_exist() -> None:
    services = compose()
    for name, service in services.items():
        for other in service.get("depends_on", []):
            assert other in services, f"{name} waits for {other}"


def test_kubernetes_settings_are_settings(tmp_path: Path) -> None:
    (config,) = (one for one in manifests() if one["kind"] == "ConfigMap")
    file = tmp_path / "freshet.toml"
    file.write_text(config["data"]["freshet.toml"], "utf-8")
    settings = load_settings(file, environ={})
    assert settings.topics.replication_factor == 3
    environment = {
        one["name"]: one["value"]
        for _, pod in pods()
        for container in pod["containers"]
        for one in container.get("env", [])
        if "value" in one
    }
    assert load_settings(file, environ=environment).monitor.host == environment["FRESHET_MONITOR__HOST"]


def test_kubernetes_workers_take_their_identity_from_the_pod() -> None:
    (workers,) = (one for one in manifests() if one["kind"] == "StatefulSet")
    (container,) = workers["spec"]["template"]["spec"]["containers"]
    assert container["args"][-3:] == ["worker", "--id", "$(POD_NAME)"]
    (name,) = (one for one in container["env"] if one["name"] == "POD_NAME")
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (budget,) = (one for one in manifests() if one["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["selector"] == workers["spec"]["selector"]
    assert workers["spec"]["replicas"] <= Settings().topics.partitions


def test_kubernetes_selectors_ports_and_volumes_meet() -> None:
    for document in manifests():
        spec = document.get("spec", {})
        if "selector" in spec and "template" in spec:
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items(), document["metadata"]["name"]
    pod_ports = {
        one["containerPort"] for _, pod in pods() for c in pod["containers"] for one in c.get("ports", [])
    }
    service_ports = {
        one["port"] for d in manifests() if d["kind"] == "Service" for one in d["spec"].get("ports", [])
    }
    assert pod_ports == service_ports == {Settings().monitor.port}
    for name, pod in pods():
        claimed = {"state"} if name == "freshet-worker" else set()
        volumes = {volume["name"] for volume in pod["volumes"]} | claimed
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name


def test_kubernetes_pods_run_without_privileges() -> None:
    found = list(pods())
    assert len(found) == 4
    for name, pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert "memory" in container["resources"]["limits"], name


def test_kustomization_names_every_manifest() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8"))
    others = {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert others == set(kustomization["resources"])
    images = {container["image"] for _, pod in pods() for container in pod["containers"]}
    assert images == {image["name"] for image in kustomization["images"]}


def test_dockerfile_copies_what_the_context_lets_in() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.lock",
    }
    assert needed <= allowed
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert 'ENTRYPOINT ["freshet"]' in text
    assert re.search(r"^USER 10001", text, re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_parse_pin_their_actions_and_call_real_targets(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.search(r"@v\d", step["uses"]), step["uses"]
            for target in re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.MULTILINE):
                assert target in targets, f"{name}: make {target}"


def test_ci_demands_kafka_and_a_browser_everywhere() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    tests = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]["test"]
    assert tests["env"] == {"REQUIRE_KAFKA": "1", "REQUIRE_BROWSER": "1"}
    assert "export REQUIRE_KAFKA=1 REQUIRE_BROWSER=1" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def keys(section: msgspec.Struct, path: str = "") -> Iterator[tuple[str, object]]:
    """Every setting with its dotted name."""
    for name in section.__struct_fields__:
        value = getattr(section, name)
        dotted = f"{path}.{name}" if path else name
        if isinstance(value, msgspec.Struct):
            yield from keys(value, dotted)
        else:
            yield dotted, value


def test_the_example_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "freshet.example.toml").read_text("utf-8")
    untouched = dict(keys(load_settings(ROOT / "freshet.example.toml", environ={})))
    lines = [line for line in text.splitlines() if "# example, not the default" not in line]
    file = tmp_path / "freshet.toml"
    file.write_text("\n".join(re.sub(r'^# (?=["\w.]+ = )', "", line) for line in lines), "utf-8")
    shown = tomllib.loads(file.read_text("utf-8"))
    defaults = dict(keys(Settings()))
    del defaults["kafka"]
    expected = defaults | {"kafka": {"bootstrap.servers": DEFAULT_BOOTSTRAP}}
    assert untouched == expected
    assert dict(keys(load_settings(file, environ={}))) == expected
    missing = []
    for dotted in defaults:
        node: Any = shown
        for part in dotted.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            missing.append(f"{dotted} = {defaults[dotted]!r}")
    assert not missing, f"freshet.example.toml lacks: {missing}"
