"""From a create request and an image to a container's settings: merges, defaults, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dockerd import errors
from dockerd.config import Config
from dockerd.containers import create, names
from dockerd.containers.create import Settings
from dockerd.containers.host import Host
from dockerd.containers.model import HealthConfig

ID = "ab" * 32
IMAGE = {"Cmd": ["sh"], "Env": ["FOO=bar", "PATH=/bin"], "Labels": {"from": "image"}, "WorkingDir": "/w"}


def settle(host: Host, image: Mapping[str, Any] = IMAGE, **body: Any) -> Settings:
    """The settings for a request with these fields."""
    return create.settle(create.parse({"Image": "busybox", **body}), image, ID, Config(), host)


def test_the_image_fills_what_the_request_leaves_open(host: Host) -> None:
    """Command, directory, variables and labels."""
    settings = settle(host, Env=["FOO=own", "A=b"], Labels={"x": "y"})
    assert (settings.path, settings.args) == ("sh", [])
    assert settings.config.working_dir == "/w"
    assert settings.config.env == ["FOO=own", "A=b", "PATH=/bin"]
    assert settings.config.labels == {"from": "image", "x": "y"}


@pytest.mark.parametrize(
    ("image", "body", "command"),
    [
        ({"Cmd": ["a"]}, {}, ["a"]),
        ({"Cmd": ["a"]}, {"Cmd": ["b", "c"]}, ["b", "c"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {}, ["e", "a"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"Cmd": ["b"]}, ["e", "b"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"Entrypoint": ["x"]}, ["x"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"Entrypoint": [""], "Cmd": ["b"]}, ["b"]),
        ({"Cmd": ["a"]}, {"Cmd": "b c"}, ["b c"]),
        ({"Cmd": ["a"]}, {"Entrypoint": "x"}, ["x"]),
    ],
)
def test_entry_point_and_command_combine_as_in_the_real_engine(
    host: Host, image: Mapping[str, Any], body: Mapping[str, Any], command: list[str]
) -> None:
    """An entry point of one's own leaves the image's command behind."""
    settings = settle(host, image, **body)
    assert [settings.path, *settings.args] == command


def test_defaults_are_the_real_engines(host: Host) -> None:
    """What inspect shows for a request that says nothing."""
    host_config = settle(host).host_config
    assert host_config.network_mode == "bridge"
    assert host_config.restart_policy.name == "no"
    assert host_config.log_config.type == "json-file"
    assert host_config.shm_size == 64 << 20
    assert host_config.ipc_mode == "private"
    assert host_config.cgroupns_mode == "host"
    assert host_config.masked_paths == create.MASKED_PATHS
    assert settle(host).config.hostname == ID[:12]


def test_a_unified_machine_gives_a_cgroup_namespace() -> None:
    """The default follows the hierarchy."""
    assert settle(Host(cgroup_version=2)).host_config.cgroupns_mode == "private"


def test_memory_brings_as_much_swap(host: Host) -> None:
    """Twice the memory for both together, unless said otherwise."""
    assert settle(host, HostConfig={"Memory": 64 << 20}).host_config.memory_swap == 128 << 20
    assert settle(host, HostConfig={"Memory": 64 << 20, "MemorySwap": -1}).host_config.memory_swap == -1


def test_names_of_fields_are_taken_in_any_case_and_null_is_nothing(host: Host) -> None:
    """As Go's decoder does."""
    settings = settle(host, cmd=["x"], tty=None, hostconfig={"memory": 64 << 20, "Binds": None})
    assert settings.path == "x"
    assert settings.host_config.memory == 64 << 20


def test_published_ports_are_exposed(host: Host) -> None:
    """And a port without a protocol is TCP."""
    settings = settle(host, HostConfig={"PortBindings": {"80": [{"HostPort": "8080"}], "53/udp": None}})
    assert settings.config.exposed_ports == {"53/udp": {}, "80/tcp": {}}
    assert settings.host_config.port_bindings["80/tcp"] is not None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Cmd": 5}, "Expected `array"),
        ({"HostConfig": {"Memory": "1"}}, r"Expected `int`, got `str` - at `\$.Memory`"),
        ({"HostConfig": []}, "HostConfig must be an object"),
        ({"WorkingDir": "x"}, "the working directory 'x' is invalid, it needs to be an absolute path"),
        ({"Env": ["=x"]}, "invalid environment variable: =x"),
        ({"StopSignal": "FOO"}, "invalid signal: FOO"),
        ({"HostConfig": {"Memory": 1000}}, "Minimum memory limit allowed is 6MB"),
        ({"HostConfig": {"MemorySwap": 1 << 30}}, "You should always set the Memory limit"),
        ({"HostConfig": {"Memory": 64 << 20, "MemorySwap": 32 << 20}}, "Minimum memoryswap limit should be larger"),
        ({"HostConfig": {"NanoCpus": 5 * 10**9}}, "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs"),
        ({"HostConfig": {"NanoCpus": 10**9, "CpuQuota": 5000}}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"HostConfig": {"CpusetCpus": "9"}}, "Requested CPUs are not available - requested 9, available: 0-3"),
        ({"HostConfig": {"AutoRemove": True, "RestartPolicy": {"Name": "always"}}}, "can't create 'AutoRemove'"),
        ({"HostConfig": {"RestartPolicy": {"Name": "often"}}}, "unknown policy 'often'"),
        ({"HostConfig": {"CapAdd": ["FOO"]}}, 'invalid CapAdd: unknown capability: "FOO"'),
        ({"HostConfig": {"SecurityOpt": ["nonsense"]}}, 'invalid --security-opt 2: "nonsense"'),
        ({"HostConfig": {"OomScoreAdj": 2000}}, "Invalid value 2000, range for oom score adj"),
        ({"HostConfig": {"PortBindings": {"http": []}}}, "invalid port specification"),
        ({"HostConfig": {"IpcMode": "often"}}, "invalid IpcMode: often"),
        ({"HostConfig": {"NetworkMode": "container:x", "PublishAllPorts": True}}, "conflicting options"),
        ({"HostConfig": {"LogConfig": {"Type": "fluentd"}}}, "no log driver named 'fluentd' is registered"),
        ({"HostConfig": {"LogConfig": {"Type": "nope"}}}, "error looking up logging plugin nope"),
        ({"HostConfig": {"LogConfig": {"Config": {"foo": "x"}}}}, "unknown log opt 'foo' for json-file log driver"),
        ({"HostConfig": {"LogConfig": {"Config": {"mode": "zzz"}}}}, "logging mode not supported: zzz"),
        ({"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 9, "Hard": 3}]}}, "ulimit soft limit must be less"),
        ({"HostConfig": {"Runtime": "kata"}}, "unknown or invalid runtime name: kata"),
    ],
)
def test_what_cannot_be_is_refused_in_words_that_name_it(host: Host, body: Mapping[str, Any], words: str) -> None:
    """HTTP 400."""
    with pytest.raises(errors.InvalidParameter, match=words):
        settle(host, **body)


@pytest.mark.parametrize(
    ("host_config", "field"),
    [
        ({"Links": ["a:b"]}, "Links"),
        ({"UsernsMode": "private"}, "UsernsMode"),
        ({"StorageOpt": {"size": "1G"}}, "StorageOpt"),
        ({"DeviceRequests": [{"Count": -1}]}, "DeviceRequests"),
        ({"CpuPercent": 5}, "CpuPercent"),
        ({"KernelMemory": 5}, "KernelMemory"),
        ({"FromTheFuture": {"a": 1}}, "FromTheFuture"),
        ({"SecurityOpt": ["apparmor=docker-default"]}, "AppArmor"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(host: Host, host_config: Mapping[str, Any], field: str) -> None:
    """HTTP 501, never ignored."""
    with pytest.raises(errors.NotSupported, match=field):
        settle(host, HostConfig=host_config)


def test_networks_to_be_on(host: Host) -> None:
    """That of the mode is the first; its hardware address is the container's, what is not offered is refused."""

    def on(mode: str = "bridge", **endpoints: Any) -> Settings:
        return settle(host, HostConfig={"NetworkMode": mode}, NetworkingConfig={"EndpointsConfig": endpoints})

    assert on(bridge={"MacAddress": "02:42:00:00:00:01"}).config.mac_address == "02:42:00:00:00:01"
    assert list(on("back", front={}, back={"Aliases": ["db"]}).endpoints) == ["back", "front"]
    assert on("default", default={}).endpoints == {"bridge": {}}
    assert on("container:other").endpoints == {}
    on(bridge={"IPAMConfig": {"IPv4Address": ""}, "Links": None, "Aliases": [], "GwPriority": 0})
    with pytest.raises(errors.NotSupported, match=r"EndpointsConfig\.bridge\.DriverOpts"):
        on(bridge={"DriverOpts": {"a": "b"}})
    assert on("container:other", back={}).endpoints == {}
    assert on("default", front={}, back={}).endpoints == {"front": {}, "back": {}}
    assert on("none", back={}).endpoints == {"back": {}}
    assert list(on("bridge", back={}, bridge={}).endpoints) == ["bridge", "back"]
    with pytest.raises(errors.InvalidParameter, match="host-mode"):
        on("host", back={})


def test_values_that_ask_for_nothing_are_fine(host: Host) -> None:
    """Clients send every field that they know."""
    neutral = {
        "Links": [],
        "UsernsMode": "host",
        "StorageOpt": {},
        "DeviceRequests": None,
        "CpuPercent": 0,
        "FromTheFuture": None,
        "Isolation": "default",
        "MemorySwappiness": -1,
        "PidsLimit": -1,
    }
    host_config = settle(host, HostConfig=neutral).host_config
    assert host_config.memory_swappiness is None
    assert host_config.pids_limit is None


def test_limits_that_the_kernel_lacks_are_dropped_with_a_warning() -> None:
    """As the real engine does."""
    settings = settle(Host(blkio_weight=False), HostConfig={"BlkioWeight": 500})
    assert settings.host_config.blkio_weight == 0
    assert settings.warnings == [
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
    ]


def test_health_checks_are_merged_field_by_field(host: Host) -> None:
    """The image's check is taken where the request says nothing; a time that is too short is refused."""
    image = {**IMAGE, "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000, "Retries": 2}}
    settings = settle(host, image, Healthcheck={"Retries": 7, "Interval": 0})
    assert settings.config.healthcheck == HealthConfig(test=["CMD", "true"], interval=5_000_000, retries=7)
    off = settle(host, image, Healthcheck={"Test": ["NONE"]}).config.healthcheck
    assert off is not None
    assert off.test == ["NONE"]
    with pytest.raises(errors.InvalidParameter, match="Timeout in Healthcheck cannot be less than 1ms"):
        settle(host, Healthcheck={"Test": ["CMD", "true"], "Timeout": 10})


def test_no_command_at_all_is_an_error(host: Host) -> None:
    """Neither the image nor the request has one."""
    with pytest.raises(errors.InvalidParameter, match="no command specified"):
        settle(host, {})


def test_an_empty_body_is_an_error() -> None:
    """In the real engine's words."""
    with pytest.raises(errors.InvalidParameter, match="config cannot be empty in order to create a container"):
        create.parse({})


def test_log_options_choose_attributes(host: Host) -> None:
    """labels, env and tag."""
    config = settle(host, Labels={"a": "1", "b": "2"}, Env=["X=y"]).config
    options = {"labels": "a,none", "env": "X", "tag": "{{.Name}}/{{.ID}}"}
    chosen = create.log_attributes(ID, "web", config, options)
    assert chosen == {"a": "1", "X": "y", "tag": f"web/{ID[:12]}"}


def test_generated_names_are_valid_and_never_end() -> None:
    """Two words, later with a number."""
    generator = names.candidates()
    made = [next(generator) for _ in range(50)]
    assert all(names.check_name(name) == name for name in made)
    assert all("_" in name for name in made)
    assert made[-1][-1].isdigit()


@pytest.mark.parametrize("name", ["", "a", "-ab", "a b", "a/b", "é" * 3, "ab\n"])
def test_names_that_are_not_allowed(name: str) -> None:
    """Two characters at least, and no others than letters, digits and three signs."""
    with pytest.raises(errors.InvalidParameter, match="Invalid container name"):
        names.check_name(name)
