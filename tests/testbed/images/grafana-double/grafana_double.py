#!/usr/bin/env python3
"""Test double of Grafana 12, not the real server.

Reads the provisioning files of data sources and dashboards after the public
documentation (https://grafana.com/docs/grafana/latest/administration/provisioning/)
and answers the part of the HTTP API this project relies on: health, login,
organization, data sources and their health checks, search, dashboards. It
refuses what the server refuses and, on purpose, unknown keys in provisioning
files as well, which the server would silently ignore.

Exit codes: 0 stopped by a signal, 1 a provisioning file or setting is refused,
2 usage.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import psycopg2
import yaml

VERSION = "12.1.1"
POSTGRES_TYPES = ("postgres", "grafana-postgresql-datasource")
CORE_TYPES = (
    *POSTGRES_TYPES,
    "alertmanager",
    "cloudwatch",
    "elasticsearch",
    "graphite",
    "influxdb",
    "jaeger",
    "loki",
    "mssql",
    "mysql",
    "opentsdb",
    "prometheus",
    "stackdriver",
    "tempo",
    "testdata",
    "zipkin",
)
SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
UID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
log = logging.getLogger("grafana")


class ProvisioningError(Exception):
    """A provisioning file or setting that stops the start."""


class ApiError(Exception):
    """An answer in the API's error format."""

    def __init__(self, status: int, message: str, message_id: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.message_id = status, message, message_id


_VARIABLE = re.compile(r"\$\$|\$__env\{(\w+)\}|\$__file\{([^}]+)\}|\$\{(\w+)\}|\$([A-Za-z_]\w*)")


def expand(value: str, environment: dict[str, str]) -> str:
    """Replace $VAR, ${VAR}, $__env{VAR} and $__file{path}; $$ is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        if match.group(2):
            try:
                return Path(match.group(2)).read_text().strip()
            except OSError as error:
                raise ProvisioningError(f"failed to expand {match.group()}: {error}") from error
        return environment.get(match.group(1) or match.group(3) or match.group(4), "")

    return _VARIABLE.sub(replace, value)


def expand_all(value: Any, environment: dict[str, str]) -> Any:
    if isinstance(value, str):
        return expand(value, environment)
    if isinstance(value, list):
        return [expand_all(entry, environment) for entry in value]
    if isinstance(value, dict):
        return {key: expand_all(entry, environment) for key, entry in value.items()}
    return value


# Keys of provisioning files and the type of their values.
DATASOURCE = {
    "name": str,
    "type": str,
    "uid": str,
    "access": str,
    "orgId": int,
    "url": str,
    "user": str,
    "database": str,
    "basicAuth": bool,
    "basicAuthUser": str,
    "withCredentials": bool,
    "isDefault": bool,
    "correlations": list,
    "jsonData": dict,
    "secureJsonData": dict,
    "version": int,
    "editable": bool,
}
DATASOURCE_FILE = {"apiVersion": int, "prune": bool, "datasources": list, "deleteDatasources": list}
DELETION = {"name": str, "orgId": int}
PROVIDER = {
    "name": str,
    "orgId": int,
    "folder": str,
    "folderUid": str,
    "type": str,
    "disableDeletion": bool,
    "editable": bool,
    "updateIntervalSeconds": int,
    "allowUiUpdates": bool,
    "options": dict,
}
PROVIDER_FILE = {"apiVersion": int, "providers": list}
PROVIDER_OPTIONS = {"path": str, "foldersFromFilesStructure": bool}


def convert(text: str) -> str | int | bool:
    """A number or truth value that a variable's expansion left as text."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def check_keys(document: object, allowed: dict[str, type], where: str) -> dict[str, Any]:
    """The document with its scalars converted; ProvisioningError names what is wrong."""
    if not isinstance(document, dict):
        raise ProvisioningError(f"{where}: a mapping is expected, found {type(document).__name__}")
    checked: dict[str, Any] = {}
    for key, value in document.items():
        if key not in allowed:
            raise ProvisioningError(f"{where}: unknown key {key!r}; known are {', '.join(allowed)}")
        kind = allowed[key]
        if value is None:
            continue
        if kind in (int, bool) and isinstance(value, str):
            value = convert(value)
        if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ProvisioningError(f"{where}: {key} must be {kind.__name__}, found {type(value).__name__} {value!r}")
        checked[key] = value
    return checked


def read_files(folder: Path) -> list[tuple[Path, Any]]:
    """Each YAML file of a provisioning folder; a folder that is not there holds none."""
    if not folder.is_dir():
        log.error("can't read provisioning files from directory path=%s", folder)
        return []
    documents = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".yaml", ".yml"):
            continue
        try:
            documents.append((path, yaml.safe_load(path.read_text())))
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise ProvisioningError(f"could not parse provisioning config file: {path.name} error: {error}") from error
    return documents


def check_version(document: dict[str, Any], path: Path) -> None:
    if document.get("apiVersion") != 1:
        raise ProvisioningError(f"{path.name}: apiVersion must be 1, found {document.get('apiVersion')!r}")


@dataclass
class Datasource:
    """A provisioned data source, its variables expanded."""

    settings: dict[str, Any]
    id: int = 0

    @property
    def uid(self) -> str:
        return str(self.settings["uid"])

    def document(self, detailed: bool = True) -> dict[str, Any]:
        settings = self.settings
        document = {
            "id": self.id,
            "uid": self.uid,
            "orgId": settings.get("orgId", 1),
            "name": settings["name"],
            "type": settings["type"],
            "typeName": settings["type"],
            "access": settings["access"],
            "url": settings.get("url", ""),
            "user": settings.get("user", ""),
            "database": settings.get("database", ""),
            "basicAuth": settings.get("basicAuth", False),
            "isDefault": settings.get("isDefault", False),
            "jsonData": settings.get("jsonData", {}),
            "readOnly": not settings.get("editable", False),
        }
        if detailed:
            kept = settings.get("secureJsonData", {})
            document["secureJsonFields"] = {key: True for key, value in kept.items() if value}
            document["withCredentials"] = settings.get("withCredentials", False)
            document["version"] = settings.get("version", 1)
        return document


def read_datasources(folder: Path, environment: dict[str, str]) -> list[Datasource]:
    """Data sources of all files; raises ProvisioningError as the start would fail."""
    found: list[Datasource] = []
    for path, content in read_files(folder):
        if content is None:
            continue
        document = check_keys(content, DATASOURCE_FILE, path.name)
        check_version(document, path)
        for number, entry in enumerate(document.get("deleteDatasources", [])):
            check_keys(entry, DELETION, f"{path.name}: deleteDatasources[{number}]")
        for number, entry in enumerate(document.get("datasources", [])):
            where = f"{path.name}: datasources[{number}]"
            settings = check_keys(expand_all(entry, environment), DATASOURCE, where)
            for key in ("name", "type"):
                if not settings.get(key):
                    raise ProvisioningError(f"{where}: {key} is missing")
            settings.setdefault("access", "proxy")
            if settings["access"] not in ("proxy", "direct"):
                raise ProvisioningError(f"{where}: access must be proxy or direct, found {settings['access']!r}")
            if settings.get("orgId", 1) != 1:
                raise ProvisioningError(f"{where}: organization {settings['orgId']} does not exist")
            settings.setdefault("uid", "P" + hashlib.sha256(settings["name"].encode()).hexdigest()[:16].upper())
            if not UID.fullmatch(settings["uid"]):
                raise ProvisioningError(f"{where}: invalid uid {settings['uid']!r}")
            found.append(Datasource(settings, len(found) + 1))
    if sum(bool(entry.settings.get("isDefault")) for entry in found) > 1:
        raise ProvisioningError(
            "datasource.yaml config is invalid. Only one datasource per organization can be marked as default"
        )
    for key in ("uid", "name"):
        values = [entry.settings[key] for entry in found]
        for value in values:
            if values.count(value) > 1:
                raise ProvisioningError(f"two data sources have the {key} {value!r}")
    return found


@dataclass
class Dashboard:
    """A dashboard file that was accepted."""

    model: dict[str, Any]
    folder: str
    folder_uid: str
    id: int = 0
    file: str = ""

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.model["title"].lower()).strip("-")

    @property
    def url(self) -> str:
        return f"/d/{self.model['uid']}/{self.slug}"


def read_providers(folder: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    providers = []
    for path, content in read_files(folder):
        if content is None:
            continue
        document = check_keys(content, PROVIDER_FILE, path.name)
        check_version(document, path)
        for number, entry in enumerate(document.get("providers", [])):
            where = f"{path.name}: providers[{number}]"
            provider = check_keys(expand_all(entry, environment), PROVIDER, where)
            if provider.get("type", "file") != "file":
                raise ProvisioningError(f"{where}: type {provider['type']!r} is not supported")
            if not provider.get("name"):
                raise ProvisioningError(f"{where}: name is missing")
            provider["options"] = check_keys(provider.get("options", {}), PROVIDER_OPTIONS, f"{where}: options")
            if not provider["options"].get("path"):
                raise ProvisioningError(f"{where}: failed to load dashboards, path param is not a string")
            providers.append(provider)
    names = [provider["name"] for provider in providers]
    if len(set(names)) < len(names):
        raise ProvisioningError(f"two dashboard providers have one name: {', '.join(sorted(names))}")
    return providers


def read_dashboards(providers: list[dict[str, Any]]) -> list[Dashboard]:
    """Dashboards of all providers. A file that is refused is logged and left out, as in the server."""
    found: list[Dashboard] = []
    for provider in providers:
        root = Path(provider["options"]["path"])
        if not root.is_dir():
            log.error("Cannot read directory error=%s does not exist", root)
            continue
        for path in sorted(root.rglob("*.json")):
            title = provider.get("folder", "")
            if provider["options"].get("foldersFromFilesStructure") and path.parent != root:
                title = path.parent.name
            uid = provider.get("folderUid") or (hashlib.sha256(title.encode()).hexdigest()[:14] if title else "")
            try:
                model = check_dashboard(path, title, found)
            except ProvisioningError as error:
                log.error("failed to load dashboard from file=%s error=%s", path, error)
                continue
            found.append(Dashboard(model, title, uid, len(found) + 1, str(path.relative_to(root))))
    return found


def check_dashboard(path: Path, folder: str, others: list[Dashboard]) -> dict[str, Any]:
    try:
        model = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ProvisioningError(f"invalid JSON: {error}") from error
    if not isinstance(model, dict):
        raise ProvisioningError("a JSON object is expected")
    if not isinstance(model.get("title"), str) or not model["title"].strip():
        raise ProvisioningError("Dashboard title cannot be empty")
    if "panels" in model and not isinstance(model["panels"], list):
        raise ProvisioningError("panels must be a list")
    model.setdefault("uid", hashlib.sha256(str(path).encode()).hexdigest()[:14])
    if not isinstance(model["uid"], str) or not UID.fullmatch(model["uid"]):
        raise ProvisioningError("uid contains illegal characters or is too long")
    if any(other.model["uid"] == model["uid"] for other in others):
        raise ProvisioningError(f"the same UID is used more than once uid={model['uid']}")
    if any(other.model["title"] == model["title"] and other.folder == folder for other in others):
        raise ProvisioningError(f"dashboard title is not unique in folder title={model['title']}")
    return model


def hash_password(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10_000).hex()


@dataclass
class Grafana:
    """State of the server: the administrator on disk, the rest from provisioning."""

    environment: dict[str, str]
    datasources: list[Datasource] = field(default_factory=list)
    providers: list[dict[str, Any]] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.data = Path(self.environment.get("GF_PATHS_DATA", "/var/lib/grafana"))
        self.provisioning = Path(self.environment.get("GF_PATHS_PROVISIONING", "/etc/grafana/provisioning"))
        if not os.access(self.data, os.W_OK):
            raise ProvisioningError(f"GF_PATHS_DATA='{self.data}' is not writable.")
        self.database = self.data / "grafana.db"
        if not self.database.exists():
            self.set_admin(
                self.environment.get("GF_SECURITY_ADMIN_USER") or "admin",
                self.environment.get("GF_SECURITY_ADMIN_PASSWORD") or "admin",
            )
        self.admin = json.loads(self.database.read_text())
        self.provision_datasources()
        self.provision_dashboards()
        for path, content in read_files(self.provisioning / "alerting"):
            if content is not None and not isinstance(content, dict):
                raise ProvisioningError(f"{path.name}: a mapping is expected")

    def set_admin(self, name: str, password: str) -> None:
        salt = secrets.token_hex(8)
        self.admin = {"name": name, "salt": salt, "password": hash_password(password, salt)}
        draft = self.database.with_suffix(".new")
        draft.write_text(json.dumps(self.admin))
        draft.chmod(0o600)
        draft.replace(self.database)

    def provision_datasources(self) -> None:
        self.datasources = read_datasources(self.provisioning / "datasources", self.environment)

    def provision_dashboards(self) -> None:
        self.providers = read_providers(self.provisioning / "dashboards", self.environment)
        read_dashboards(self.providers)

    def password_matches(self, name: str, password: str) -> bool:
        return name == self.admin["name"] and hmac.compare_digest(
            self.admin["password"], hash_password(password, self.admin["salt"])
        )

    def authenticate(self, headers: dict[str, str]) -> None:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            try:
                name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                name, password = "", ""
            if self.password_matches(name, password):
                return
            raise ApiError(401, "Invalid username or password", "password-auth.failed")
        for cookie in headers.get("cookie", "").split(";"):
            key, _, session = cookie.strip().partition("=")
            if key == "grafana_session" and session in self.sessions:
                return
        raise ApiError(401, "Unauthorized")

    def handle(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON document and extra headers of one request."""
        parts = [part for part in path.split("/") if part]
        match (method, parts):
            case ("GET" | "HEAD", ["api", "health"]):
                return 200, {"database": "ok", "version": VERSION, "commit": "testdouble"}, {}
            case ("GET" | "HEAD", ["healthz"]):
                return 200, {"status": "ok"}, {}
            case ("GET" | "HEAD", ["login"]):
                return 200, {"message": "test double of Grafana"}, {}
            case ("POST", ["login"]):
                return self._login(decode(body))
        self.authenticate(headers)
        match (method, parts):
            case ("GET", ["api", "org"]):
                return 200, {"id": 1, "name": "Main Org.", "address": {}}, {}
            case ("GET", ["api", "user"]):
                return 200, {"id": 1, "login": self.admin["name"], "orgId": 1, "isGrafanaAdmin": True}, {}
            case ("PUT", ["api", "user", "password"]):
                return self._change_password(decode(body))
            case ("GET", ["api", "login", "ping"]):
                return 200, {"message": "Logged in"}, {}
            case ("GET", ["api", "datasources"]):
                ordered = sorted(self.datasources, key=lambda source: source.settings["name"])
                return 200, [source.document(detailed=False) for source in ordered], {}
            case ("GET", ["api", "datasources", "uid", uid]):
                return 200, self._datasource("uid", uid).document(), {}
            case ("GET", ["api", "datasources", "name", name]):
                return 200, self._datasource("name", name).document(), {}
            case ("GET", ["api", "datasources", "uid", uid, "health"]):
                return self._check_health(self._datasource("uid", uid))
            case ("GET", ["api", "search"]):
                return 200, self._search(query), {}
            case ("GET", ["api", "folders"]):
                folders = {d.folder_uid: d.folder for d in read_dashboards(self.providers) if d.folder}
                return 200, [{"uid": uid, "title": title} for uid, title in sorted(folders.items())], {}
            case ("GET", ["api", "dashboards", "uid", uid]):
                return 200, self._dashboard(uid), {}
            case ("POST", ["api", "admin", "provisioning", "datasources", "reload"]):
                return self._reload(self.provision_datasources, "Datasources config reloaded")
            case ("POST", ["api", "admin", "provisioning", "dashboards", "reload"]):
                return self._reload(self.provision_dashboards, "Dashboards config reloaded")
        raise ApiError(404, "Not found")

    def _login(self, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if not self.password_matches(str(body.get("user", "")), str(body.get("password", ""))):
            raise ApiError(401, "Invalid username or password", "password-auth.failed")
        session = secrets.token_hex(16)
        self.sessions.add(session)
        cookie = f"grafana_session={session}; Path=/; HttpOnly; SameSite=Lax"
        return 200, {"message": "Logged in", "redirectUrl": "/"}, {"Set-Cookie": cookie}

    def _change_password(self, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if not self.password_matches(self.admin["name"], str(body.get("oldPassword", ""))):
            raise ApiError(401, "Invalid old password")
        new = str(body.get("newPassword", ""))
        if len(new) < 4:
            raise ApiError(400, "New password is too short")
        self.set_admin(self.admin["name"], new)
        return 200, {"message": "User password changed"}, {}

    def _datasource(self, key: str, value: str) -> Datasource:
        for source in self.datasources:
            if source.settings[key] == value:
                return source
        raise ApiError(404, "Data source not found")

    def _check_health(self, source: Datasource) -> tuple[int, Any, dict[str, str]]:
        kind = source.settings["type"]
        if kind not in CORE_TYPES:
            raise ApiError(404, "Plugin not found")
        if kind in POSTGRES_TYPES:
            problem, message = check_postgres(source.settings), "Database Connection OK"
        elif kind == "influxdb":
            problem, message = check_influxdb(source.settings)
        else:
            raise ApiError(501, f"this is a test double of Grafana: it does not check data sources of type {kind}")
        if problem:
            return 400, {"status": "ERROR", "message": problem}, {}
        return 200, {"status": "OK", "message": message}, {}

    def _search(self, query: dict[str, str]) -> list[dict[str, Any]]:
        if query.get("type", "dash-db") != "dash-db":
            return []
        wanted = query.get("query", "").lower()
        hits = []
        for dashboard in sorted(read_dashboards(self.providers), key=lambda entry: entry.model["title"]):
            model = dashboard.model
            if wanted in model["title"].lower() and query.get("tag", "") in ["", *model.get("tags", [])]:
                hits.append(
                    {
                        "id": dashboard.id,
                        "uid": model["uid"],
                        "title": model["title"],
                        "type": "dash-db",
                        "uri": f"db/{dashboard.slug}",
                        "url": dashboard.url,
                        "slug": "",
                        "tags": model.get("tags", []),
                        "isStarred": False,
                        "folderUid": dashboard.folder_uid,
                        "folderTitle": dashboard.folder,
                    }
                )
        return hits

    def _dashboard(self, uid: str) -> dict[str, Any]:
        for dashboard in read_dashboards(self.providers):
            if dashboard.model["uid"] == uid:
                meta = {
                    "type": "db",
                    "slug": dashboard.slug,
                    "url": dashboard.url,
                    "provisioned": True,
                    "provisionedExternalId": dashboard.file,
                    "folderUid": dashboard.folder_uid,
                    "folderTitle": dashboard.folder or "General",
                }
                return {"meta": meta, "dashboard": dashboard.model}
        raise ApiError(404, "Dashboard not found")

    def _reload(self, provision: Any, message: str) -> tuple[int, Any, dict[str, str]]:
        try:
            provision()
        except ProvisioningError as error:
            raise ApiError(500, str(error)) from error
        return 200, {"message": message}, {}


def check_postgres(settings: dict[str, Any]) -> str:
    """Connect as the server's plugin would; the problem, or an empty string."""
    options = settings.get("jsonData", {})
    database = options.get("database") or settings.get("database", "")
    mode = options.get("sslmode") or "verify-full"
    host, _, port = settings.get("url", "").partition(":")
    if not database:
        return "You do not currently have a default database configured for this data source."
    if mode not in SSL_MODES:
        return f'unsupported sslmode "{mode}"; only {", ".join(SSL_MODES)} are supported'
    if port and not port.isdigit():
        return f'invalid port in host specifier "{port}"'
    try:
        connection = psycopg2.connect(
            host=host,
            port=int(port or 5432),
            dbname=database,
            user=settings.get("user", ""),
            sslmode=mode,
            password=settings.get("secureJsonData", {}).get("password", ""),
            connect_timeout=5,
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            connection.close()
    except psycopg2.Error as error:
        return str(error).strip()
    return ""


def check_influxdb(settings: dict[str, Any]) -> tuple[str, str]:
    """List buckets as the Flux health check does; the problem and the good news."""
    options = settings.get("jsonData", {})
    if options.get("version") != "Flux":
        return "this is a test double of Grafana: of InfluxDB it checks jsonData.version Flux only", ""
    if not options.get("organization"):
        return "error performing flux query: no organization", ""
    query = urlencode({"org": options["organization"]})
    request = urllib.request.Request(f"{settings.get('url', '').rstrip('/')}/api/v2/buckets?{query}")
    request.add_header("Authorization", f"Token {settings.get('secureJsonData', {}).get('token', '')}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return "", f"{len(json.load(answer)['buckets'])} buckets found"
    except urllib.error.HTTPError as error:
        return f"error performing flux query: {error.code} {error.reason}", ""
    except (OSError, ValueError) as error:
        return f"error performing flux query: {error}", ""


def decode(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "bad request data") from error
    if not isinstance(document, dict):
        raise ApiError(400, "bad request data")
    return document


class Handler(BaseHTTPRequestHandler):
    """One HTTP request; `grafana` is set by `serve`."""

    grafana: Grafana
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length") or 0))
        try:
            status, document, extra = self.grafana.handle(self.command, unquote(address.path), query, headers, body)
        except ApiError as error:
            status, extra = error.status, {}
            document = {"message": error.message, "messageId": error.message_id, "statusCode": status, "traceID": ""}
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("X-Test-Double", "Grafana")
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Names that BaseHTTPRequestHandler looks for.
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def secrets_from_files(environment: dict[str, str]) -> dict[str, str]:
    """Resolve GF_<SETTING>__FILE; both forms at once are refused."""
    resolved = dict(environment)
    for name, path in environment.items():
        if name.startswith("GF_") and name.endswith("__FILE") and path:
            target = name.removesuffix("__FILE")
            if environment.get(target):
                raise ProvisioningError(f"Both {target} and {name} are set (but are exclusive)")
            try:
                resolved[target] = Path(path).read_text().rstrip("\n")
            except OSError as error:
                raise ProvisioningError(f"{name}: {error}") from error
            del resolved[name]
    return resolved


def serve(grafana: Grafana, address: tuple[str, int]) -> ThreadingHTTPServer:
    """A server bound to the address; the caller runs it."""
    handler = type("BoundHandler", (Handler,), {"grafana": grafana})
    ThreadingHTTPServer.daemon_threads = True
    return ThreadingHTTPServer(address, handler)


def main(argv: list[str]) -> int:
    if argv:
        print("usage: run.sh (a test double of Grafana: configure it by GF_* variables)", file=sys.stderr)
        return 2
    logging.basicConfig(level="INFO", format="logger=%(name)s t=%(asctime)s level=%(levelname)s msg=%(message)s")
    try:
        environment = secrets_from_files(dict(os.environ))
        grafana = Grafana(environment)
    except ProvisioningError as error:
        log.error("Failed to start grafana. error: %s", error)
        return 1
    port = int(environment.get("GF_SERVER_HTTP_PORT") or 3000)
    server = serve(grafana, ("", port))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info("TEST DOUBLE of Grafana %s listening on port %s", VERSION, port)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
