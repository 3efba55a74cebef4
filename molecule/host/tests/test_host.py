"""Is the test host a production host in all that the playbooks rely on?"""

from __future__ import annotations

from typing import Any

import pytest

COMPOSE = """
name: probe
services:
  redis:
    image: {image}
    container_name: probe_redis
    command: redis-server --save ''
    mem_limit: 64m
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    user: "999:999"
    restart: unless-stopped
    healthcheck:
      test: ["CMD", "redis-cli", "ping"]
      interval: 1s
      timeout: 2s
      retries: 20
    ports: ["127.0.0.1:6399:6379"]
    networks: [probe_network]
  client:
    image: {image}
    container_name: probe_client
    command: sleep infinity
    init: true
    depends_on:
      redis:
        condition: service_healthy
    networks: [probe_network]
networks:
  probe_network:
    name: probe_network
"""


@pytest.fixture(scope="module")
def project(host: Any, facts: dict[str, Any]) -> Any:
    """A compose project of two containers, waited for by health, taken down at the end."""
    folder = "/tmp/probe"
    text = COMPOSE.format(image=facts["images"]["redis"])
    host.check_output("mkdir -p %s && printf '%%s' %s > %s/docker-compose.yml", folder, text, folder)
    host.check_output("cd %s && docker-compose up -d --wait", folder)
    yield folder
    host.check_output("cd %s && docker-compose down --timeout 1 && rm -r %s", folder, folder)


def test_systemd_is_the_first_process_and_nothing_failed(host: Any) -> None:
    assert host.check_output("cat /proc/1/comm") == "systemd"
    assert host.check_output("systemctl is-system-running --wait") == "running"


@pytest.mark.parametrize("name", ["ssh", "cron", "docker"])
def test_service_runs_now_and_after_a_restart(host: Any, name: str) -> None:
    service = host.service(name)
    assert service.is_running
    assert service.is_enabled


def test_account_is_unprivileged_with_sudo_and_docker(host: Any, facts: dict[str, Any]) -> None:
    assert host.check_output("id -un") == facts["base_owner"]
    assert host.check_output("id -u") == "1000"
    assert "docker" in host.check_output("id -Gn").split()
    assert host.check_output("sudo -n id -u") == "0"


def test_base_folder_belongs_to_the_account(host: Any, facts: dict[str, Any]) -> None:
    folder = host.file(facts["base_dir"])
    assert folder.is_directory
    assert (folder.user, folder.group) == (facts["base_owner"], facts["base_group"])


def test_versions_are_recent_enough(host: Any) -> None:
    def version(command: str) -> tuple[int, ...]:
        text = host.check_output(command)
        return tuple(int(part) for part in text.split("-")[0].split("+")[0].split(".")[:2])

    assert version("docker version --format '{{.Server.Version}}'") >= (20, 10)
    assert version("docker-compose version --short") >= (2, 0)
    assert version("python3 -c 'import platform; print(platform.python_version())'") >= (3, 10)


@pytest.mark.parametrize("name", ["python3-psycopg2", "python3-requests", "python3-ujson", "python-is-python3"])
def test_what_the_playbooks_install_is_not_there_yet(host: Any, name: str) -> None:
    assert not host.package(name).is_installed


def test_password_login_is_refused(host: Any) -> None:
    settings = host.check_output("sudo sshd -T").splitlines()
    assert "passwordauthentication no" in settings


@pytest.mark.service("probe_redis")
def test_compose_waits_for_health(host: Any, project: str) -> None:
    assert host.check_output("docker inspect -f '{{.State.Health.Status}}' probe_redis") == "healthy"


@pytest.mark.service("probe_redis")
def test_containers_reach_each_other_by_name(host: Any, project: str) -> None:
    assert host.check_output("docker exec probe_client redis-cli -h redis ping") == "PONG"


def test_port_is_published_on_loopback_alone(host: Any, project: str) -> None:
    assert host.socket("tcp://127.0.0.1:6399").is_listening
    assert not host.socket("tcp://0.0.0.0:6399").is_listening
    reply = host.check_output("bash -c 'exec 3<>/dev/tcp/127.0.0.1/6399; echo PING >&3; head -n 1 <&3'")
    assert reply.strip() == "+PONG"


def test_memory_limit_is_enforced(host: Any, project: str) -> None:
    read = "cd /sys/fs/cgroup && cat memory/memory.limit_in_bytes || cat memory.max"
    limit = host.check_output("docker exec probe_redis sh -c %s", read)
    assert int(limit) == 64 * 1024 * 1024


def test_killed_container_is_restarted(host: Any, project: str) -> None:
    before = host.check_output("docker inspect -f '{{.State.Pid}}' probe_redis")
    host.check_output("sudo kill -9 %s", before)
    host.check_output(
        'timeout 90 sh -c \'until [ "$(docker inspect -f {{.State.Health.Status}} probe_redis)" = healthy ]'
        ' && [ "$(docker inspect -f {{.State.Pid}} probe_redis)" != %s ]; do sleep 0.2; done\'',
        before,
    )
