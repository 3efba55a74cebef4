#!/usr/bin/env python3
"""Test double of InfluxDB 2.7, not the real server.

Answers the part of the v2 HTTP API this project relies on, after the public
documentation (https://docs.influxdata.com/influxdb/v2/api/): health, setup,
organizations, buckets, authorizations and writes of line protocol. Flux and
everything else is refused. Points are checked and kept, never served.

Exit codes: 0 stopped by a signal, 1 the set-up failed, 2 usage.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
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
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "v2.7.12"
HOUR = 3600
NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
DURATION_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "m": 60,
    "h": HOUR,
    "d": 24 * HOUR,
    "w": 7 * 24 * HOUR,
}
ID = re.compile(r"[0-9a-f]{16}")
log = logging.getLogger("influxd")


class ApiError(Exception):
    """An answer in the API's error format: HTTP status, code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class SetupError(Exception):
    """The environment does not describe a first setup the real image accepts."""


def invalid(message: str) -> ApiError:
    return ApiError(400, "invalid", message)


def not_found(message: str) -> ApiError:
    return ApiError(404, "not found", message)


def unprocessable(message: str) -> ApiError:
    return ApiError(422, "unprocessable entity", message)


def conflict(message: str) -> ApiError:
    return ApiError(422, "conflict", message)


def parse_duration(text: str) -> int:
    """Seconds of an InfluxDB duration such as `90d`, `1w2d` or `0`."""
    if text in ("", "0", "inf"):
        return 0
    parts = re.findall(r"(\d+)(ns|us|ms|s|m|h|d|w)", text)
    if "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"invalid duration {text!r}")
    return int(sum(int(number) * DURATION_UNITS[unit] for number, unit in parts))


_KEY = r"(?:\\.|[^\\,= \n])+"
_MEASUREMENT = re.compile(r"(?:\\.|[^\\, \n])+")
_TAG = re.compile(rf",({_KEY})=({_KEY})")
_FIELD = re.compile(rf"({_KEY})=(\"(?:\\.|[^\"\\])*\"|[^,\" ]+)")
_VALUES = (
    ("integer", re.compile(r"-?\d+i")),
    ("unsigned", re.compile(r"\d+u")),
    ("boolean", re.compile(r"t|T|true|True|TRUE|f|F|false|False|FALSE")),
    ("string", re.compile(r'".*"', re.DOTALL)),
    ("float", re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")),
)


def parse_line(line: str) -> tuple[str, dict[str, str], dict[str, str], int | None]:
    """Measurement, tags, type of each field, and timestamp of one line.

    Raises ApiError 400 as the server does for a line it cannot parse.
    """

    def refuse(reason: str) -> ApiError:
        return invalid(f"unable to parse '{line}': {reason}")

    match = _MEASUREMENT.match(line)
    if not match:
        raise refuse("missing measurement")
    measurement, position = match.group(), match.end()
    tags: dict[str, str] = {}
    while tag := _TAG.match(line, position):
        if tag.group(1) in tags:
            raise refuse("duplicate tags")
        tags[tag.group(1)], position = tag.group(2), tag.end()
    if line[position : position + 1] == ",":
        raise refuse("missing tag value")
    rest = line[position:]
    if not rest.strip():
        raise refuse("missing fields")
    position += len(rest) - len(rest.lstrip(" "))
    fields: dict[str, str] = {}
    while True:
        field = _FIELD.match(line, position)
        if not field:
            raise refuse("missing field value" if "=" in line[position:] else "invalid field format")
        value = field.group(2)
        kind = next((name for name, pattern in _VALUES if pattern.fullmatch(value)), None)
        if kind is None:
            raise refuse("invalid number" if value[0] in "+-.0123456789" else "invalid boolean")
        fields[field.group(1)], position = kind, field.end()
        if line[position : position + 1] != ",":
            break
        position += 1
    stamp = line[position:].strip(" ")
    if stamp and not re.fullmatch(r"-?\d+", stamp):
        raise refuse("bad timestamp")
    if line[position : position + 1] not in ("", " "):
        raise refuse("invalid field format")
    return measurement, tags, fields, int(stamp) if stamp else None


def retention_seconds(body: dict[str, Any]) -> int | None:
    """Seconds of `retentionRules`, 0 for ever, None where the body is silent."""
    rules = body.get("retentionRules")
    if rules is None:
        return None
    if not isinstance(rules, list) or any(not isinstance(rule, dict) for rule in rules):
        raise invalid("json: retentionRules must be a list of objects")
    if len(rules) > 1:
        raise unprocessable("buckets cannot have more than one retention rule at this time")
    if not rules:
        return 0
    rule = rules[0]
    if rule.get("type", "expire") != "expire":
        raise unprocessable(f"retention rule type {rule['type']!r} is invalid, only 'expire' is known")
    every = rule.get("everySeconds")
    if not isinstance(every, int) or isinstance(every, bool):
        raise invalid("json: everySeconds must be an integer")
    if every < 0:
        raise unprocessable("expiration seconds cannot be negative")
    if 0 < every < HOUR:
        raise unprocessable("retention policy duration must be at least 1h0m0s")
    return every


def check_bucket_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise invalid("bucket name is required")
    if name.startswith("_"):
        raise unprocessable(f"bucket name {name} is invalid. Buckets may not start with underscore")
    if '"' in name:
        raise unprocessable(f"bucket name {name} is invalid. Bucket names may not include quotation marks")
    return name


def hash_password(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10_000).hex()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Store:
    """Organizations, buckets and tokens in one JSON file, points beside it."""

    def __init__(self, bolt_path: Path, engine_path: Path) -> None:
        self.path, self.engine = bolt_path, engine_path
        self.lock = threading.RLock()
        self.state: dict[str, Any] = {"users": [], "orgs": [], "buckets": [], "authorizations": []}
        self.field_types: dict[tuple[str, str, str], str] = {}
        self.engine.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
            self._read_field_types()

    def _read_field_types(self) -> None:
        for bucket in self.state["buckets"]:
            file = self.engine / bucket["id"]
            if file.exists():
                for line in file.read_text().splitlines():
                    measurement, _, fields, _ = parse_line(line)
                    for field, kind in fields.items():
                        self.field_types[bucket["id"], measurement, field] = kind

    def save(self) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.state, indent=1))
        draft.chmod(0o600)
        draft.replace(self.path)

    @property
    def is_set_up(self) -> bool:
        return bool(self.state["users"])

    def set_up(
        self, username: str, password: str, org: str, bucket: str, retention: int, token: str | None
    ) -> dict[str, Any]:
        """First user, organization, bucket and operator token, once."""
        if self.is_set_up:
            raise conflict("onboarding has already been completed")
        for name, value in (("username", username), ("org", org), ("bucket", bucket)):
            if not value:
                raise unprocessable(f"{name} is required")
        if not 8 <= len(password.encode()) <= 72:
            raise invalid("passwords must be between 8 and 72 characters long")
        if 0 < retention < HOUR:
            raise unprocessable("retention policy duration must be at least 1h0m0s")
        check_bucket_name(bucket)
        salt = secrets.token_hex(8)
        user = {"id": secrets.token_hex(8), "name": username, "salt": salt, "password": hash_password(password, salt)}
        organization = {
            "id": secrets.token_hex(8),
            "name": org,
            "description": "",
            "createdAt": now(),
            "updatedAt": now(),
        }
        self.state["users"].append(user)
        self.state["orgs"].append(organization)
        self._add_bucket("_tasks", organization["id"], 72 * HOUR, "System bucket for task logs", "system")
        self._add_bucket("_monitoring", organization["id"], 168 * HOUR, "System bucket for monitoring logs", "system")
        first = self._add_bucket(bucket, organization["id"], retention, "", "user")
        authorization = self._add_authorization(organization["id"], user["id"], f"{username}'s Token", token, [])
        self.save()
        return {"user": user, "org": organization, "bucket": first, "auth": authorization}

    def _add_bucket(self, name: str, org_id: str, retention: int, description: str, kind: str) -> dict[str, Any]:
        bucket = {
            "id": secrets.token_hex(8),
            "orgID": org_id,
            "type": kind,
            "name": name,
            "description": description,
            "retention": retention,
            "createdAt": now(),
            "updatedAt": now(),
        }
        self.state["buckets"].append(bucket)
        return bucket

    def _add_authorization(
        self, org_id: str, user_id: str, description: str, token: str | None, permissions: list[Any]
    ) -> dict[str, Any]:
        authorization = {
            "id": secrets.token_hex(8),
            "orgID": org_id,
            "userID": user_id,
            "description": description,
            "status": "active",
            "token": token or base64.b64encode(secrets.token_bytes(64)).decode(),
            "permissions": permissions,
            "operator": not permissions,
            "createdAt": now(),
            "updatedAt": now(),
        }
        self.state["authorizations"].append(authorization)
        return authorization

    def find_org(self, name: str | None = None, org_id: str | None = None) -> dict[str, Any]:
        for org in self.state["orgs"]:
            if org["id"] == org_id or (name is not None and org["name"] == name):
                return dict(org)
        raise not_found(f'organization name "{name}" not found' if name else "organization not found")

    def find_bucket(self, bucket_id: str) -> dict[str, Any]:
        if not ID.fullmatch(bucket_id):
            raise invalid("id must have a length of 16 bytes")
        for bucket in self.state["buckets"]:
            if bucket["id"] == bucket_id:
                found: dict[str, Any] = bucket
                return found
        raise not_found("bucket not found")

    def create_bucket(self, body: dict[str, Any]) -> dict[str, Any]:
        org_id = body.get("orgID")
        if not isinstance(org_id, str) or not ID.fullmatch(org_id):
            raise invalid("organization id must be provided")
        name = check_bucket_name(body.get("name"))
        retention = retention_seconds(body) or 0
        org = self.find_org(org_id=org_id)
        if any(b["name"] == name and b["orgID"] == org["id"] for b in self.state["buckets"]):
            raise conflict(f"bucket with name {name} already exists")
        bucket = self._add_bucket(name, org["id"], retention, str(body.get("description", "")), "user")
        self.save()
        return bucket

    def update_bucket(self, bucket_id: str, body: dict[str, Any]) -> dict[str, Any]:
        bucket = self.find_bucket(bucket_id)
        if "name" in body:
            name = check_bucket_name(body["name"])
            if bucket["type"] == "system":
                raise invalid("system buckets cannot be renamed")
            if any(b["name"] == name and b["id"] != bucket_id for b in self.state["buckets"]):
                raise conflict(f"bucket with name {name} already exists")
            bucket["name"] = name
        retention = retention_seconds(body)
        if retention is not None:
            bucket["retention"] = retention
        if "description" in body:
            bucket["description"] = str(body["description"])
        bucket["updatedAt"] = now()
        self.save()
        return bucket

    def delete_bucket(self, bucket_id: str) -> None:
        bucket = self.find_bucket(bucket_id)
        if bucket["type"] == "system":
            raise invalid("system buckets cannot be deleted")
        self.state["buckets"].remove(bucket)
        (self.engine / bucket_id).unlink(missing_ok=True)
        self.save()

    def write(self, bucket: dict[str, Any], text: str, precision: str) -> None:
        """Check every line, then append them all, with times in nanoseconds."""
        kept: list[str] = []
        kinds: dict[tuple[str, str, str], str] = {}
        oldest = time.time_ns() - bucket["retention"] * 1_000_000_000 if bucket["retention"] else None
        for line in text.splitlines():
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            measurement, _, fields, stamp = parse_line(line)
            for field, kind in fields.items():
                key = (bucket["id"], measurement, field)
                known = kinds.get(key, self.field_types.get(key, kind))
                if known != kind:
                    raise unprocessable(
                        "failure writing points to database: partial write: field type conflict: input field "
                        f'"{field}" on measurement "{measurement}" is type {kind}, '
                        f"already exists as type {known} dropped=1"
                    )
                kinds[key] = kind
            nanoseconds = time.time_ns() if stamp is None else stamp * NANOSECONDS[precision]
            if oldest is not None and nanoseconds < oldest:
                raise unprocessable(
                    "failure writing points to database: partial write: points beyond retention policy dropped=1"
                )
            body = line if stamp is None else line[: line.rindex(" ")]
            kept.append(f"{body} {nanoseconds}\n")
        if not kept:
            raise invalid("no points in request") if not text.strip() else invalid("writing requires points")
        with (self.engine / bucket["id"]).open("a") as file:
            file.writelines(kept)
        self.field_types.update(kinds)


def shard_group_seconds(retention: int) -> int:
    """Default length of a shard group, as documented per retention period."""
    if 0 < retention < 48 * HOUR:
        return HOUR
    return 24 * HOUR if 0 < retention <= 180 * 24 * HOUR else 168 * HOUR


def bucket_document(bucket: dict[str, Any]) -> dict[str, Any]:
    rule = {
        "type": "expire",
        "everySeconds": bucket["retention"],
        "shardGroupDurationSeconds": shard_group_seconds(bucket["retention"]),
    }
    self_link = f"/api/v2/buckets/{bucket['id']}"
    document = {key: bucket[key] for key in ("id", "orgID", "type", "name", "createdAt", "updatedAt")}
    if bucket["description"]:
        document["description"] = bucket["description"]
    document["retentionRules"] = [rule]
    document["labels"] = []
    document["links"] = {
        "self": self_link,
        "org": f"/api/v2/orgs/{bucket['orgID']}",
        "labels": f"{self_link}/labels",
        "members": f"{self_link}/members",
        "owners": f"{self_link}/owners",
        "write": f"/api/v2/write?org={bucket['orgID']}&bucket={bucket['id']}",
    }
    return document


def org_document(org: dict[str, Any]) -> dict[str, Any]:
    return {**org, "links": {"self": f"/api/v2/orgs/{org['id']}", "buckets": f"/api/v2/buckets?org={org['name']}"}}


def authorization_document(authorization: dict[str, Any], store: Store) -> dict[str, Any]:
    document = {key: value for key, value in authorization.items() if key != "operator"}
    document["org"] = store.find_org(org_id=authorization["orgID"])["name"]
    document["user"] = next(u["name"] for u in store.state["users"] if u["id"] == authorization["userID"])
    document["links"] = {"self": f"/api/v2/authorizations/{authorization['id']}"}
    return document


class Api:
    """Routes of the HTTP API: method and path in, status and document out."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.started = time.time()
        self.sessions: dict[str, str] = {}

    def authenticate(self, headers: dict[str, str]) -> dict[str, Any] | None:
        """The authorization behind a request; None for a signed-in session."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme in ("Token", "Bearer"):
            for authorization in self.store.state["authorizations"]:
                if hmac.compare_digest(authorization["token"].encode(), value.strip().encode()):
                    if authorization["status"] != "active":
                        break
                    found: dict[str, Any] = authorization
                    return found
        for cookie in headers.get("cookie", "").split(";"):
            name, _, key = cookie.strip().partition("=")
            if name == "influxdb-oss-session" and key in self.sessions:
                return None
        raise ApiError(401, "unauthorized", "unauthorized access")

    def permit(
        self, authorization: dict[str, Any] | None, action: str, kind: str, resource_id: str | None = None
    ) -> None:
        """Refuse what a token without operator rights does not name."""
        if authorization is None or authorization["operator"]:
            return
        for permission in authorization["permissions"]:
            resource = permission["resource"]
            granted = permission["action"] == action and resource["type"] == kind
            if granted and resource.get("id") in (None, resource_id):
                return
        raise ApiError(401, "unauthorized", f"{action}:{kind} is unauthorized")

    def sign_in(self, headers: dict[str, str]) -> str:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name, password = "", ""
        for user in self.store.state["users"]:
            if (
                scheme == "Basic"
                and user["name"] == name
                and hmac.compare_digest(user["password"], hash_password(password, user["salt"]))
            ):
                session = secrets.token_urlsafe(32)
                self.sessions[session] = name
                return session
        raise ApiError(401, "unauthorized", "unauthorized access")

    def handle(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON document (None for an empty answer) and extra headers."""
        with self.store.lock:
            return self._route(method, path, query, headers, body)

    def _route(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        match (method, [part for part in path.split("/") if part]):
            case ("GET", ["health"]):
                return (
                    200,
                    {
                        "name": "influxdb",
                        "message": "ready for queries and writes",
                        "status": "pass",
                        "checks": [],
                        "version": VERSION,
                        "commit": "testdouble",
                    },
                    {},
                )
            case ("GET", ["ready"]):
                return 200, {"status": "ready", "up": f"{time.time() - self.started:.0f}s"}, {}
            case ("GET" | "HEAD", ["ping"]):
                return 204, None, {}
            case ("GET", ["api", "v2", "setup"]):
                return 200, {"allowed": not self.store.is_set_up}, {}
            case ("POST", ["api", "v2", "setup"]):
                return 201, self._set_up(decode(body)), {}
            case ("POST", ["api", "v2", "signin"]):
                return 204, None, {"Set-Cookie": f"influxdb-oss-session={self.sign_in(headers)}; Path=/api/; HttpOnly"}
        authorization = self.authenticate(headers)
        match (method, [part for part in path.split("/") if part]):
            case ("GET", ["api", "v2", "orgs"]):
                self.permit(authorization, "read", "orgs")
                return 200, self._list_orgs(query), {}
            case ("GET", ["api", "v2", "orgs", org_id]):
                self.permit(authorization, "read", "orgs", org_id)
                return 200, org_document(self.store.find_org(org_id=org_id)), {}
            case ("GET", ["api", "v2", "buckets"]):
                return 200, self._list_buckets(query, authorization), {}
            case ("POST", ["api", "v2", "buckets"]):
                self.permit(authorization, "write", "buckets")
                return 201, bucket_document(self.store.create_bucket(decode(body))), {}
            case ("GET", ["api", "v2", "buckets", bucket_id]):
                self.permit(authorization, "read", "buckets", bucket_id)
                return 200, bucket_document(self.store.find_bucket(bucket_id)), {}
            case ("PATCH", ["api", "v2", "buckets", bucket_id]):
                self.permit(authorization, "write", "buckets", bucket_id)
                return 200, bucket_document(self.store.update_bucket(bucket_id, decode(body))), {}
            case ("DELETE", ["api", "v2", "buckets", bucket_id]):
                self.permit(authorization, "write", "buckets", bucket_id)
                self.store.delete_bucket(bucket_id)
                return 204, None, {}
            case ("POST", ["api", "v2", "write"]):
                self._write(query, headers, body, authorization)
                return 204, None, {}
            case ("GET", ["api", "v2", "authorizations"]):
                self.permit(authorization, "read", "authorizations")
                found = [authorization_document(a, self.store) for a in self.store.state["authorizations"]]
                return 200, {"links": {"self": "/api/v2/authorizations"}, "authorizations": found}, {}
            case ("POST", ["api", "v2", "authorizations"]):
                self.permit(authorization, "write", "authorizations")
                return 201, self._create_authorization(decode(body)), {}
            case ("DELETE", ["api", "v2", "authorizations", authorization_id]):
                self.permit(authorization, "write", "authorizations", authorization_id)
                return self._delete_authorization(authorization_id)
            case ("POST", ["api", "v2", "query" | "delete"]):
                raise ApiError(
                    501, "not implemented", "this test double of InfluxDB neither runs Flux nor deletes points"
                )
            case (_, ["api", "v2", "orgs" | "buckets" | "write" | "authorizations", *_]):
                raise ApiError(405, "method not allowed", f"{method} is not allowed here")
        raise not_found("path not found")

    def _set_up(self, body: dict[str, Any]) -> dict[str, Any]:
        retention = body.get("retentionPeriodSeconds", body.get("retentionPeriodHrs", 0) * HOUR)
        if not isinstance(retention, int):
            raise invalid("json: retentionPeriodSeconds must be an integer")
        done = self.store.set_up(
            str(body.get("username", "")),
            str(body.get("password", "")),
            str(body.get("org", "")),
            str(body.get("bucket", "")),
            retention,
            body.get("token") or None,
        )
        return {
            "user": {"id": done["user"]["id"], "name": done["user"]["name"], "status": "active"},
            "org": org_document(done["org"]),
            "bucket": bucket_document(done["bucket"]),
            "auth": authorization_document(done["auth"], self.store),
        }

    def _list_orgs(self, query: dict[str, str]) -> dict[str, Any]:
        named = "org" in query or "orgID" in query
        found = [self.store.find_org(query.get("org"), query.get("orgID"))] if named else self.store.state["orgs"]
        return {"links": {"self": "/api/v2/orgs"}, "orgs": [org_document(org) for org in found]}

    def _list_buckets(self, query: dict[str, str], authorization: dict[str, Any] | None) -> dict[str, Any]:
        try:
            limit, offset = int(query.get("limit", "20")), int(query.get("offset", "0"))
        except ValueError as error:
            raise invalid("limit and offset must be integers") from error
        if not 1 <= limit <= 100:
            raise invalid("limit must be between 1 and 100")
        org = None
        if "org" in query or "orgID" in query:
            org = self.store.find_org(query.get("org"), query.get("orgID"))
        if "id" in query:
            found = [self.store.find_bucket(query["id"])]
        else:
            found = [
                bucket
                for bucket in self.store.state["buckets"]
                if (org is None or bucket["orgID"] == org["id"]) and query.get("name", bucket["name"]) == bucket["name"]
            ]
            if not found and "name" in query and org is not None:
                raise not_found(f'bucket "{query["name"]}" not found')
        visible = []
        for bucket in sorted(found, key=lambda b: b["id"]):
            try:
                self.permit(authorization, "read", "buckets", bucket["id"])
            except ApiError:
                continue
            visible.append(bucket_document(bucket))
        return {"links": {"self": "/api/v2/buckets"}, "buckets": visible[offset : offset + limit]}

    def _write(
        self, query: dict[str, str], headers: dict[str, str], body: bytes, authorization: dict[str, Any] | None
    ) -> None:
        if "org" not in query and "orgID" not in query:
            raise invalid("Please provide either orgID or org")
        org = self.store.find_org(query.get("org"), query.get("orgID", query.get("org")))
        name = query.get("bucket", "")
        if not name:
            raise not_found("bucket not found")
        bucket = next(
            (b for b in self.store.state["buckets"] if name in (b["name"], b["id"]) and b["orgID"] == org["id"]), None
        )
        if bucket is None:
            raise not_found(f'bucket "{name}" not found')
        self.permit(authorization, "write", "buckets", bucket["id"])
        precision = query.get("precision", "ns")
        if precision not in NANOSECONDS:
            raise invalid(f"invalid precision {precision!r}; valid precision units are ns, us, ms, and s")
        if headers.get("content-encoding") == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError) as error:
                raise invalid("gzip: invalid header") from error
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise invalid("unable to parse points: not UTF-8") from error
        self.store.write(bucket, text, precision)

    def _create_authorization(self, body: dict[str, Any]) -> dict[str, Any]:
        org = self.store.find_org(org_id=body.get("orgID", ""))
        permissions = body.get("permissions")
        if not isinstance(permissions, list) or not permissions:
            raise invalid("authorization must include permissions")
        for permission in permissions:
            resource = permission.get("resource") if isinstance(permission, dict) else None
            action = permission.get("action") if isinstance(permission, dict) else None
            if not isinstance(resource, dict) or not resource.get("type") or action not in ("read", "write"):
                raise invalid("a permission needs an action (read or write) and a resource with a type")
        user = self.store.state["users"][0]
        made = self.store._add_authorization(org["id"], user["id"], str(body.get("description", "")), None, permissions)
        self.store.save()
        return authorization_document(made, self.store)

    def _delete_authorization(self, authorization_id: str) -> tuple[int, Any, dict[str, str]]:
        for authorization in self.store.state["authorizations"]:
            if authorization["id"] == authorization_id:
                self.store.state["authorizations"].remove(authorization)
                self.store.save()
                return 204, None, {}
        raise not_found("authorization not found")


def decode(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise invalid(f"invalid json structure: {error}") from error
    if not isinstance(document, dict):
        raise invalid("invalid json structure: an object is expected")
    return document


class Handler(BaseHTTPRequestHandler):
    """One HTTP request; `api` is set by `serve`."""

    api: Api
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length") or 0))
        try:
            status, document, extra = self.api.handle(self.command, unquote(address.path), query, headers, body)
        except ApiError as error:
            status, document, extra = error.status, {"code": error.code, "message": error.message}, {}
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("X-Influxdb-Build", "OSS")
        self.send_header("X-Influxdb-Version", VERSION)
        self.send_header("X-Test-Double", "InfluxDB")
        for name, value in extra.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Names that BaseHTTPRequestHandler looks for.
    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def from_environment(environment: dict[str, str], name: str) -> str:
    """Value of DOCKER_INFLUXDB_INIT_<name>, or of the file in its _FILE variant."""
    file = environment.get(f"DOCKER_INFLUXDB_INIT_{name}_FILE", "")
    if file and Path(file).exists():
        return Path(file).read_text().rstrip("\n")
    return environment.get(f"DOCKER_INFLUXDB_INIT_{name}", "")


def set_up_from_environment(store: Store, environment: dict[str, str]) -> bool:
    """Do the image's automated setup once; True where it was done now.

    Raises SetupError for what the official image's entrypoint refuses.
    """
    mode = environment.get("DOCKER_INFLUXDB_INIT_MODE", "")
    if not mode or store.is_set_up:
        return False
    if mode != "setup":
        raise SetupError(f"found invalid DOCKER_INFLUXDB_INIT_MODE {mode!r}, the double knows only 'setup'")
    values = {name: from_environment(environment, name) for name in ("USERNAME", "PASSWORD", "ORG", "BUCKET")}
    missing = [f"DOCKER_INFLUXDB_INIT_{name}" for name, value in values.items() if not value]
    if missing:
        raise SetupError(f"missing parameter, cannot init InfluxDB: {', '.join(missing)}")
    token = from_environment(environment, "ADMIN_TOKEN")
    try:
        retention = parse_duration(environment.get("DOCKER_INFLUXDB_INIT_RETENTION", ""))
        done = store.set_up(
            values["USERNAME"], values["PASSWORD"], values["ORG"], values["BUCKET"], retention, token or None
        )
    except (ApiError, ValueError) as error:
        raise SetupError(f"failed to setup instance: {error}") from error
    configs = environment.get("INFLUX_CONFIGS_PATH")
    if configs:
        path = Path(configs)
        path.write_text(
            f"[{environment.get('DOCKER_INFLUXDB_INIT_CLI_CONFIG_NAME', 'default')}]\n"
            f'  url = "http://localhost:8086"\n  token = "{done["auth"]["token"]}"\n'
            f'  org = "{values["ORG"]}"\n  active = true\n'
        )
        path.chmod(0o600)
    return True


def serve(store: Store, address: tuple[str, int]) -> ThreadingHTTPServer:
    """A server bound to the address; the caller runs it."""
    handler = type("BoundHandler", (Handler,), {"api": Api(store)})
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 128
    return ThreadingHTTPServer(address, handler)


def main(argv: list[str]) -> int:
    environment = dict(os.environ)
    parser = argparse.ArgumentParser(prog="influxd", description="Test double of InfluxDB 2.7", allow_abbrev=False)
    parser.add_argument("command", nargs="?", default="run", choices=["run", "version"])
    parser.add_argument("--http-bind-address", default=environment.get("INFLUXD_HTTP_BIND_ADDRESS", ":8086"))
    parser.add_argument("--bolt-path", default=environment.get("INFLUXD_BOLT_PATH", "/var/lib/influxdb2/influxd.bolt"))
    parser.add_argument("--engine-path", default=environment.get("INFLUXD_ENGINE_PATH", "/var/lib/influxdb2/engine"))
    parser.add_argument(
        "--log-level", default=environment.get("INFLUXD_LOG_LEVEL", "info"), choices=["debug", "info", "warn", "error"]
    )
    parser.add_argument("--reporting-disabled", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.command == "version":
        print(f"InfluxDB {VERSION} (test double)")
        return 0
    level = {"warn": "WARNING"}.get(arguments.log_level, arguments.log_level.upper())
    logging.basicConfig(level=level, format="ts=%(asctime)s lvl=%(levelname)s msg=%(message)s")
    store = Store(Path(arguments.bolt_path), Path(arguments.engine_path))
    try:
        if set_up_from_environment(store, environment):
            log.info("first setup done")
    except SetupError as error:
        log.error("%s", error)
        return 1
    host, _, port = arguments.http_bind_address.rpartition(":")
    server = serve(store, (host.strip("[]"), int(port)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info("TEST DOUBLE of InfluxDB %s listening on %s", VERSION, arguments.http_bind_address)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
