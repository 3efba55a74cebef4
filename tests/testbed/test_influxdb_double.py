"""The double of InfluxDB answers and refuses as the v2 API documents it."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "images/influxdb-double"
TOKEN = "operator-token"
ENVIRONMENT = {
    "DOCKER_INFLUXDB_INIT_MODE": "setup",
    "DOCKER_INFLUXDB_INIT_USERNAME": "admin",
    "DOCKER_INFLUXDB_INIT_PASSWORD": "long enough",
    "DOCKER_INFLUXDB_INIT_ORG": "trading_org",
    "DOCKER_INFLUXDB_INIT_BUCKET": "market_data",
    "DOCKER_INFLUXDB_INIT_RETENTION": "90d",
    "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN": TOKEN,
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


double: Any = load("influxdb_double")
cli: Any = load("influx_cli_double")


class Server:
    """A running double and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.store = double.Store(folder / "influxd.bolt", folder / "engine")
        environment = ENVIRONMENT | {"INFLUX_CONFIGS_PATH": str(folder / "configs")}
        double.set_up_from_environment(self.store, environment)
        self.server = double.serve(self.store, ("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def call(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if token:
            request.add_header("Authorization", f"Token {token}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def write(self, lines: str, **query: str) -> tuple[int, Any]:
        options = {"org": "trading_org", "bucket": "market_data"} | query
        return self.call("POST", "/api/v2/write?" + "&".join(f"{k}={v}" for k, v in options.items()), lines.encode())

    @property
    def org_id(self) -> str:
        return str(self.call("GET", "/api/v2/orgs?org=trading_org")[1]["orgs"][0]["id"])


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_health_and_ping_need_no_token(influx: Server) -> None:
    status, health = influx.call("GET", "/health", token=None)
    assert (status, health["status"], health["version"]) == (200, "pass", "v2.7.12")
    assert influx.call("GET", "/ping", token=None) == (204, None)


def test_everything_else_needs_the_token(influx: Server) -> None:
    for path in ("/api/v2/orgs", "/api/v2/buckets", "/api/v2/authorizations"):
        for token in (None, "wrong"):
            status, answer = influx.call("GET", path, token=token)
            assert (status, answer) == (401, {"code": "unauthorized", "message": "unauthorized access"})
    assert influx.call("POST", "/api/v2/write?org=trading_org&bucket=market_data", b"m v=1", token=None)[0] == 401


def test_a_password_signs_in(influx: Server) -> None:
    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()

    assert influx.call("POST", "/api/v2/signin", b"", token=None, Authorization=basic("long enough"))[0] == 204
    assert influx.call("POST", "/api/v2/signin", b"", token=None, Authorization=basic("wrong"))[0] == 401


def test_the_first_setup_leaves_org_and_buckets(influx: Server) -> None:
    _, answer = influx.call("GET", "/api/v2/buckets?org=trading_org")
    found = {b["name"]: b["retentionRules"][0]["everySeconds"] for b in answer["buckets"]}
    assert found == {"market_data": 90 * 86400, "_tasks": 3 * 86400, "_monitoring": 7 * 86400}
    assert influx.call("GET", "/api/v2/setup", token=None) == (200, {"allowed": False})
    assert influx.call("POST", "/api/v2/setup", {"username": "x"}, token=None)[0] == 422


@pytest.mark.parametrize(
    ("change", "promised"),
    [
        ({"DOCKER_INFLUXDB_INIT_PASSWORD": "short"}, "passwords must be between 8 and 72 characters long"),
        ({"DOCKER_INFLUXDB_INIT_PASSWORD": "x" * 73}, "passwords must be between 8 and 72 characters long"),
        ({"DOCKER_INFLUXDB_INIT_ORG": ""}, "missing parameter, cannot init InfluxDB: DOCKER_INFLUXDB_INIT_ORG"),
        ({"DOCKER_INFLUXDB_INIT_RETENTION": "90 days"}, "invalid duration"),
        ({"DOCKER_INFLUXDB_INIT_RETENTION": "10m"}, "at least 1h0m0s"),
        ({"DOCKER_INFLUXDB_INIT_MODE": "install"}, "invalid DOCKER_INFLUXDB_INIT_MODE"),
    ],
)
def test_a_first_setup_that_the_image_refuses(tmp_path: Path, change: dict[str, str], promised: str) -> None:
    store = double.Store(tmp_path / "influxd.bolt", tmp_path / "engine")
    with pytest.raises(double.SetupError, match=promised):
        double.set_up_from_environment(store, ENVIRONMENT | change)
    assert not (tmp_path / "influxd.bolt").exists()


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file\n")
    environment = ENVIRONMENT | {"DOCKER_INFLUXDB_INIT_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
    assert double.from_environment(environment, "ADMIN_TOKEN") == "from a file"


def test_a_second_start_keeps_what_is_there(tmp_path: Path) -> None:
    store = double.Store(tmp_path / "influxd.bolt", tmp_path / "engine")
    assert double.set_up_from_environment(store, ENVIRONMENT)
    again = double.Store(tmp_path / "influxd.bolt", tmp_path / "engine")
    assert not double.set_up_from_environment(again, ENVIRONMENT | {"DOCKER_INFLUXDB_INIT_PASSWORD": "another one"})
    assert again.state == store.state
    assert (tmp_path / "influxd.bolt").stat().st_mode & 0o777 == 0o600


def test_a_bucket_lives_through_its_life(influx: Server) -> None:
    body = {"orgID": influx.org_id, "name": "ticks", "retentionRules": [{"type": "expire", "everySeconds": 604800}]}
    status, made = influx.call("POST", "/api/v2/buckets", body)
    assert (status, made["name"], made["retentionRules"][0]["everySeconds"]) == (201, "ticks", 604800)
    assert influx.call("POST", "/api/v2/buckets", body)[0] == 422
    status, listed = influx.call("GET", "/api/v2/buckets?org=trading_org&name=ticks")
    assert (status, listed["buckets"]) == (200, [made])
    path = f"/api/v2/buckets/{made['id']}"
    changed = influx.call("PATCH", path, {"retentionRules": [{"type": "expire", "everySeconds": 86400}]})[1]
    assert changed["retentionRules"][0]["everySeconds"] == 86400
    assert influx.call("DELETE", path) == (204, None)
    assert influx.call("GET", path)[0] == 404
    assert influx.call("GET", "/api/v2/buckets?org=trading_org&name=ticks")[0] == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"orgID": None}, 400),
        ({"orgID": "0000000000000001"}, 404),
        ({"name": ""}, 400),
        ({"name": "_mine"}, 422),
        ({"retentionRules": [{"type": "expire", "everySeconds": 60}]}, 422),
        ({"retentionRules": [{"type": "expire", "everySeconds": -1}]}, 422),
        ({"retentionRules": [{"type": "expire", "everySeconds": "7d"}]}, 400),
    ],
)
def test_a_bucket_that_is_refused(influx: Server, change: dict[str, Any], status: int) -> None:
    assert influx.call("POST", "/api/v2/buckets", {"orgID": influx.org_id, "name": "ticks"} | change)[0] == status


def test_points_are_written(influx: Server) -> None:
    now = time.time_ns()
    lines = f'ticks,symbol=BTC\\ USD,side=Buy price=1.5,size=3i,note="a, \\"b\\" = c",live=t {now}\n# note\n\nticks v=1'
    assert influx.write(lines) == (204, None)
    assert influx.write(f"ticks price=2.5 {now // 10**9}", precision="s") == (204, None)
    kept = next(iter((influx.store.engine).iterdir())).read_text().splitlines()
    assert len(kept) == 3
    assert kept[0].endswith(str(now))
    path = "/api/v2/write?org=trading_org&bucket=market_data"
    assert influx.call("POST", path, gzip.compress(b"ticks price=1"), Content_Encoding="gzip")[0] == 204


@pytest.mark.parametrize(
    "line",
    ["ticks", "ticks,symbol price=1", "ticks price=", "ticks price=1x", "ticks price=1 soon", ",a=b v=1",
     'ticks note="open', "ticks price=1,", "ticks a=1 b=2", "ticks,a=1,a=2 v=1"],
)  # fmt: skip
def test_a_line_that_does_not_parse_is_refused(influx: Server, line: str) -> None:
    status, answer = influx.write(f"good v=1\n{line}")
    assert (status, answer["code"]) == (400, "invalid")
    assert not list(influx.store.engine.iterdir())


def test_a_write_that_is_refused(influx: Server) -> None:
    assert influx.write("m v=1", bucket="nowhere")[0] == 404
    assert influx.write("m v=1", org="nobody")[0] == 404
    assert influx.write("m v=1", precision="h")[0] == 400
    assert influx.write("m v=1", precision="ns")[0] == 204
    assert influx.write("m v=1i")[0] == 422
    assert influx.write("m v=1 1000")[0] == 422
    assert influx.write("")[0] == 400


def test_a_token_is_held_to_its_permissions(influx: Server) -> None:
    bucket = influx.call("GET", "/api/v2/buckets?org=trading_org&name=market_data")[1]["buckets"][0]["id"]
    permission = {"action": "write", "resource": {"type": "buckets", "id": bucket}}
    body = {"orgID": influx.org_id, "description": "bots", "permissions": [permission]}
    status, made = influx.call("POST", "/api/v2/authorizations", body)
    assert status == 201
    path = "/api/v2/write?org=trading_org&bucket=market_data"
    assert influx.call("POST", path, b"m v=1", token=made["token"])[0] == 204
    assert influx.call("GET", "/api/v2/authorizations", token=made["token"])[0] == 401
    assert influx.call("DELETE", f"/api/v2/authorizations/{made['id']}")[0] == 204
    assert influx.call("POST", path, b"m v=1", token=made["token"])[0] == 401


def test_what_the_double_cannot_do_is_said(influx: Server) -> None:
    status, answer = influx.call("POST", "/api/v2/query?org=trading_org", b"from(bucket: 1)")
    assert status == 501
    assert "test double" in answer["message"]
    assert influx.call("GET", "/api/v2/nothing")[0] == 404
    assert influx.call("PUT", "/api/v2/buckets")[0] == 405


def test_the_command_reads_the_config_of_the_first_setup(
    influx: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFLUX_CONFIGS_PATH", str(influx.store.path.parent / "configs"))
    monkeypatch.setenv("INFLUX_HOST", influx.url)
    assert cli.main(["ping"]) == 0
    assert cli.main(["bucket", "create", "-n", "ticks", "-r", "7d"]) == 0
    capsys.readouterr()
    assert cli.main(["bucket", "list", "--json", "-n", "ticks"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["retentionRules"][0]["everySeconds"] == 604800
    assert cli.main(["bucket", "list", "-n", "nowhere"]) == 1
    assert cli.main(["bucket", "list", "-t", "wrong"]) == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["task", "list"])
    assert stopped.value.code == 2
