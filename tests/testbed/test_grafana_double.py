"""The double of Grafana reads provisioning files, and refuses wrong ones."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parent / "images/grafana-double/grafana_double.py"
DATASOURCES = """
apiVersion: 1
datasources:
  - name: TradingDB
    uid: trading-db
    type: grafana-postgresql-datasource
    access: proxy
    url: postgres:5432
    user: grafana_reader
    isDefault: true
    jsonData: {database: trading_db, sslmode: disable}
    secureJsonData: {password: $GRAFANA_DB_PASSWORD}
"""
PROVIDERS = """
apiVersion: 1
providers:
  - name: trading
    folder: Trading
    type: file
    options: {path: PATH}
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grafana_double", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grafana_double"] = module
    spec.loader.exec_module(module)
    return module


double: Any = load()


class Home:
    """Folders of a Grafana, and the server made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "GF_PATHS_DATA": str(folder / "data"),
            "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
            "GF_SECURITY_ADMIN_USER": "admin",
            "GF_SECURITY_ADMIN_PASSWORD": "correct horse",
            "GRAFANA_DB_PASSWORD": "reader's",
        }
        for name in ("data", "provisioning/datasources", "provisioning/dashboards", "provisioning/alerting", "boards"):
            (folder / name).mkdir(parents=True)
        self.provision("datasources", DATASOURCES)
        self.provision("dashboards", PROVIDERS.replace("PATH", str(folder / "boards")))

    def provision(self, kind: str, text: str, name: str = "all.yml") -> None:
        (self.folder / "provisioning" / kind / name).write_text(text)

    def start(self) -> Any:
        return double.Grafana(self.environment)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def call(grafana: Any, method: str, path: str, password: str | None = "correct horse", body: Any = None) -> Any:
    """Status and document of a request."""
    headers = {}
    if password is not None:
        headers["authorization"] = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
    path, _, query = path.partition("?")
    options = dict(pair.split("=") for pair in query.split("&") if pair)
    try:
        status, document, _ = grafana.handle(method, path, options, headers, json.dumps(body).encode())
    except double.ApiError as error:
        return error.status, error.message
    return status, document


def test_health_needs_no_login(home: Home) -> None:
    status, answer = call(home.start(), "GET", "/api/health", password=None)
    assert (status, answer["database"], answer["version"]) == (200, "ok", "12.1.1")


def test_everything_else_needs_a_login(home: Home) -> None:
    grafana = home.start()
    for path in ("/api/org", "/api/datasources", "/api/search", "/api/dashboards/uid/x"):
        assert call(grafana, "GET", path, password=None) == (401, "Unauthorized")
        assert call(grafana, "GET", path, password="wrong") == (401, "Invalid username or password")
    assert call(grafana, "GET", "/api/org") == (200, {"id": 1, "name": "Main Org.", "address": {}})


def test_login_sets_a_session(home: Home) -> None:
    grafana = home.start()
    body = json.dumps({"user": "admin", "password": "correct horse"}).encode()
    status, _, extra = grafana.handle("POST", "/login", {}, {}, body)
    session = extra["Set-Cookie"].partition(";")[0]
    assert status == 200
    assert grafana.handle("GET", "/api/org", {}, {"cookie": session}, b"")[0] == 200
    assert call(grafana, "POST", "/login", None, {"user": "admin", "password": "x"})[0] == 401


def test_the_first_password_stays(home: Home) -> None:
    home.start()
    home.environment["GF_SECURITY_ADMIN_PASSWORD"] = "another"
    again = home.start()
    assert call(again, "GET", "/api/org")[0] == 200
    assert call(again, "GET", "/api/org", password="another")[0] == 401


def test_secrets_come_from_files(home: Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    environment = {"GF_SECURITY_ADMIN_PASSWORD__FILE": str(tmp_path / "secret")}
    assert double.secrets_from_files(environment) == {"GF_SECURITY_ADMIN_PASSWORD": "from a file"}
    with pytest.raises(double.ProvisioningError, match="exclusive"):
        double.secrets_from_files(environment | {"GF_SECURITY_ADMIN_PASSWORD": "x"})


def test_a_data_source_is_provisioned_without_showing_its_secret(home: Home) -> None:
    grafana = home.start()
    status, source = call(grafana, "GET", "/api/datasources/uid/trading-db")
    assert (status, source["name"], source["isDefault"]) == (200, "TradingDB", True)
    assert source["secureJsonFields"] == {"password": True}
    assert grafana.datasources[0].settings["secureJsonData"]["password"] == "reader's"
    assert "reader's" not in json.dumps([source, call(grafana, "GET", "/api/datasources")])
    assert call(grafana, "GET", "/api/datasources/uid/none") == (404, "Data source not found")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A-${A}-$__env{A}", "x-x-x"),
        ("pa$$word", "pa$word"),
        ("$UNSET.", "."),
        ("5$", "5$"),
    ],
)
def test_variables_expand(text: str, expected: str) -> None:
    assert double.expand(text, {"A": "x"}) == expected


@pytest.mark.parametrize(
    ("before", "after", "promised"),
    [
        ("apiVersion: 1", "apiVersion: 2", "apiVersion must be 1"),
        ("datasources:", "datasources: [", "could not parse"),
        ("name: TradingDB", "name: ''", "name is missing"),
        ("access: proxy", "access: server", "access must be proxy or direct"),
        ("isDefault: true", "isDefault: maybe", "isDefault must be bool"),
        ("user: grafana_reader", "password: clear", "unknown key 'password'"),
        ("uid: trading-db", "uid: trading db", "invalid uid"),
        ("jsonData: {database: trading_db, sslmode: disable}", "jsonData: none", "jsonData must be dict"),
    ],
)
def test_a_data_source_file_that_stops_the_start(home: Home, before: str, after: str, promised: str) -> None:
    assert before in DATASOURCES
    home.provision("datasources", DATASOURCES.replace(before, after))
    with pytest.raises(double.ProvisioningError, match=promised):
        home.start()


def test_two_defaults_stop_the_start(home: Home) -> None:
    home.provision("datasources", DATASOURCES.replace("trading-db", "x").replace("TradingDB", "X"), "more.yml")
    with pytest.raises(double.ProvisioningError, match="Only one datasource"):
        home.start()


@pytest.mark.parametrize(
    ("before", "after", "promised"),
    [
        ("options: {path:", "options: {paht:", "unknown key 'paht'"),
        ("type: file", "type: git", "is not supported"),
        ("options: {path:", "# {path:", "path param is not a string"),
    ],
)
def test_a_provider_file_that_stops_the_start(home: Home, before: str, after: str, promised: str) -> None:
    assert before in PROVIDERS
    home.provision("dashboards", PROVIDERS.replace(before, after))
    with pytest.raises(double.ProvisioningError, match=promised):
        home.start()


def test_an_alerting_file_has_to_be_yaml(home: Home) -> None:
    home.provision("alerting", "groups: [")
    with pytest.raises(double.ProvisioningError, match="could not parse"):
        home.start()


def test_dashboards_are_found_and_wrong_ones_left_out(home: Home) -> None:
    boards = home.folder / "boards"
    (boards / "health.json").write_text(json.dumps({"uid": "health", "title": "System Health", "panels": []}))
    (boards / "same.json").write_text(json.dumps({"uid": "health", "title": "Other"}))
    (boards / "untitled.json").write_text(json.dumps({"uid": "untitled"}))
    (boards / "broken.json").write_text("{")
    grafana = home.start()
    status, hits = call(grafana, "GET", "/api/search?type=dash-db")
    assert (status, [(hit["uid"], hit["folderTitle"]) for hit in hits]) == (200, [("health", "Trading")])
    status, answer = call(grafana, "GET", "/api/dashboards/uid/health")
    assert (status, answer["dashboard"]["title"], answer["meta"]["provisioned"]) == (200, "System Health", True)
    assert call(grafana, "GET", "/api/search?query=nothing") == (200, [])
    assert call(grafana, "GET", "/api/dashboards/uid/untitled")[0] == 404


def test_a_reload_reads_the_files_again(home: Home) -> None:
    grafana = home.start()
    path = "/api/admin/provisioning/datasources/reload"
    home.provision("datasources", DATASOURCES.replace("TradingDB", "Renamed"))
    assert call(grafana, "POST", path)[0] == 200
    assert grafana.datasources[0].settings["name"] == "Renamed"
    home.provision("datasources", "datasources: [")
    assert call(grafana, "POST", path)[0] == 500
    assert grafana.datasources[0].settings["name"] == "Renamed"


@pytest.mark.parametrize(
    ("settings", "promised"),
    [
        ({"url": "127.0.0.1:1", "jsonData": {"database": "d", "sslmode": "disable"}}, "refused"),
        ({"url": "127.0.0.1:1", "jsonData": {"sslmode": "disable"}}, "default database"),
        ({"url": "127.0.0.1:1", "jsonData": {"database": "d", "sslmode": "off"}}, "unsupported sslmode"),
        ({"url": "127.0.0.1:x", "jsonData": {"database": "d", "sslmode": "disable"}}, "invalid port"),
    ],
)
def test_a_postgresql_source_that_is_not_healthy(settings: dict[str, Any], promised: str) -> None:
    assert promised in double.check_postgres(settings)


def test_a_folder_that_cannot_be_written_stops_the_start(home: Home) -> None:
    home.environment["GF_PATHS_DATA"] = str(home.folder / "nowhere")
    with pytest.raises(double.ProvisioningError, match="is not writable"):
        home.start()
