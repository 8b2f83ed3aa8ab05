"""The engine itself: ``/_ping``, ``/version``, ``/info``, ``/auth``, ``/system/df``."""

from __future__ import annotations

import os
import platform
import time
from typing import Any
from urllib.parse import urlsplit

import flask
from google.protobuf import empty_pb2

from dockerd import machine
from dockerd.api import usage
from dockerd.api.request import api_at_least, json_body, json_reply
from dockerd.containerd_process import search_path
from dockerd.engine import NAMESPACE, Engine, current_engine
from dockerd.errors import InvalidParameter
from dockerd.images.registries import default_scheme
from dockerd.registry_login import login
from dockerd.version import API_VERSION, COMMIT, MIN_API_VERSION, VERSION
from gantry.stdio.jsonfile import timestamp

__all__ = ["blueprint"]

blueprint = flask.Blueprint("system", __name__)

_NOT_CACHED = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache", "Swarm": "inactive"}


@blueprint.route("/_ping", methods=["GET", "HEAD"])
def ping() -> flask.Response:
    """Say that the engine is there, and which API it speaks."""
    body = "" if flask.request.method == "HEAD" else "OK"
    return flask.Response(body, headers=_NOT_CACHED, content_type="text/plain; charset=utf-8")


@blueprint.get("/version")
def version() -> flask.Response:
    """Versions of the engine and of what it is made of."""
    engine = current_engine()
    kernel, architecture = _kernel(), _architecture()
    details = {
        "ApiVersion": API_VERSION,
        "Arch": architecture,
        "BuildTime": _build_time(),
        "Experimental": "false",
        "GitCommit": COMMIT,
        "GoVersion": _language(),
        "KernelVersion": kernel,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
    }
    containerd = engine.containerd.version.Version(empty_pb2.Empty())
    runtime = machine.runtime(search_path())
    components = [
        {"Name": "Engine", "Version": VERSION, "Details": details},
        {"Name": "containerd", "Version": containerd.version, "Details": {"GitCommit": containerd.revision}},
        {"Name": "runc", "Version": runtime.version, "Details": {"GitCommit": runtime.commit}},
    ]
    return json_reply(
        {
            "Platform": {"Name": "Gantry"},
            "Components": components,
            "Version": VERSION,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": COMMIT,
            "GoVersion": _language(),
            "Os": "linux",
            "Arch": architecture,
            "KernelVersion": kernel,
            "BuildTime": _build_time(),
        }
    )


def _kernel() -> str:
    return os.uname().release


def _architecture() -> str:
    return machine.ARCHITECTURES.get(os.uname().machine, os.uname().machine)


def _language() -> str:
    """What the real engine's Go version is here."""
    return f"python{platform.python_version()}"


def _build_time() -> str:
    """When this version was installed."""
    seconds = os.stat(os.path.dirname(os.path.dirname(__file__))).st_mtime
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000000+00:00", time.gmtime(seconds))


@blueprint.get("/info")
def info() -> flask.Response:
    """What the engine holds, and what the machine can do."""
    engine = current_engine()
    body = _counts(engine) | _storage(engine) | _plugins() | _limits() | _machine(engine) | _runtimes(engine)
    body["Warnings"] = _warnings() or None
    if not api_at_least("1.50"):
        body |= {"BridgeNfIptables": False, "BridgeNfIp6tables": False}
    if not api_at_least("1.49"):
        del body["FirewallBackend"]
        for name in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            body[name] = body[name] | {"Expected": body[name]["ID"]}
    if not api_at_least("1.46"):
        del body["Containerd"]
    return json_reply(body)


def _counts(engine: Engine) -> dict[str, Any]:
    states = [container.state.status.value for container in engine.containers.all()]
    running, paused = states.count("running") + states.count("restarting"), states.count("paused")
    return {
        "ID": machine.engine_id(engine.config.data_root),
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": len(engine.images.list()),
    }


def _storage(engine: Engine) -> dict[str, Any]:
    config = engine.config
    return {
        "Driver": config.storage_driver,
        "DriverStatus": [
            ["driver-type", "io.containerd.snapshotter.v1"],
            ["Backing Filesystem", machine.backing_filesystem(config.data_root)],
        ],
        "DockerRootDir": config.data_root,
        "LoggingDriver": config.log_driver,
        "LiveRestoreEnabled": True,
    }


def _plugins() -> dict[str, Any]:
    return {
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": ["json-file", "none"],
        }
    }


def _limits() -> dict[str, Any]:
    groups = machine.cgroups()
    return {
        "MemoryLimit": groups.memory,
        "SwapLimit": groups.swap,
        "KernelMemoryTCP": groups.kernel_memory_tcp,
        "CpuCfsPeriod": groups.cpu_quota,
        "CpuCfsQuota": groups.cpu_quota,
        "CPUShares": groups.cpu_shares,
        "CPUSet": groups.cpuset,
        "PidsLimit": groups.pids,
        "OomKillDisable": groups.oom_kill_disable,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": groups.version,
    }


def _warnings() -> list[str]:
    groups = machine.cgroups()
    wanted = (
        (groups.memory, "No memory limit support"),
        (groups.swap, "No swap limit support"),
        (groups.cpu_shares, "No cpu shares support"),
        (groups.cpu_quota, "No cpu cfs quota support"),
        (groups.cpuset, "No cpuset support"),
        (groups.pids, "No pids limit support"),
        (_forwards(), "IPv4 forwarding is disabled"),
    )
    return [f"WARNING: {text}" for there, text in wanted if not there]


def _forwards() -> bool:
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        return file.read().strip() == "1"


def _machine(engine: Engine) -> dict[str, Any]:
    config = engine.config
    insecure = [*config.insecure_registries, "::1/128", "127.0.0.0/8"]
    index = {"Mirrors": [], "Name": "docker.io", "Official": True, "Secure": True}
    return {
        "IPv4Forwarding": _forwards(),
        "Debug": config.debug,
        "NFd": machine.open_files(),
        "NGoroutines": 0,
        "SystemTime": timestamp(time.time_ns()),
        "NEventsListener": engine.events.listeners,
        "KernelVersion": _kernel(),
        "OperatingSystem": machine.operating_system(),
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": os.uname().machine,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "IndexConfigs": {"docker.io": index},
            "InsecureRegistryCIDRs": [one for one in insecure if "/" in one],
            "Mirrors": None,
        },
        "NCPU": machine.usable_cpus(),
        "MemTotal": machine.memory_total(),
        "GenericResources": None,
        "HttpProxy": os.environ.get("HTTP_PROXY", ""),
        "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
        "NoProxy": os.environ.get("NO_PROXY", ""),
        "Name": os.uname().nodename,
        "Labels": list(config.labels),
        "ExperimentalBuild": False,
        "ServerVersion": VERSION,
        "SecurityOptions": machine.security_options(),
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": [],
    }


def _runtimes(engine: Engine) -> dict[str, Any]:
    containerd = engine.containerd.version.Version(empty_pb2.Empty())
    runtime = machine.runtime(search_path())
    manager = {
        "LocalNodeState": "inactive",
        "NodeID": "",
        "NodeAddr": "",
        "ControlAvailable": False,
        "Error": "",
        "RemoteManagers": None,
    }
    return {
        "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
        "DefaultRuntime": "runc",
        "Swarm": manager,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": containerd.revision},
        "RuncCommit": {"ID": runtime.commit},
        "InitCommit": {"ID": ""},
        "Containerd": {
            "Address": engine.containerd.address,
            "Namespaces": {"Containers": NAMESPACE, "Plugins": f"plugins.{NAMESPACE}"},
        },
    }


@blueprint.post("/auth")
def auth() -> flask.Response:
    """Check a user's credentials with a registry."""
    body = json_body()
    server = body.text("serveraddress")
    domain = urlsplit(server if "://" in server else f"//{server}").netloc
    scheme = default_scheme(domain, current_engine().config.insecure_registries)
    token = login(server, scheme, body.text("username"), body.text("password"), body.text("identitytoken"))
    return json_reply({"Status": "Login Succeeded", "IdentityToken": token})


@blueprint.get("/system/df")
def disk_usage() -> flask.Response:
    """What images, containers and volumes take on disk."""
    wanted = flask.request.args.getlist("type") if api_at_least("1.42") else []
    for name in wanted:
        if name not in usage.KINDS:
            raise InvalidParameter(f"unknown object type: {name}")
    return json_reply(usage.collect(current_engine(), set(wanted) or set(usage.KINDS)))
