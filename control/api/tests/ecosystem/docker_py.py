"""docker-py drives a cluster of a manager, m1, and two workers, w1 and w2. $DOCKER_HOST says where it is."""

import time

import docker
from docker.types import (
    ConfigReference,
    EndpointSpec,
    Healthcheck,
    IPAMConfig,
    IPAMPool,
    Mount,
    Placement,
    Resources,
    RestartPolicy,
    RollbackConfig,
    SecretReference,
    ServiceMode,
    TaskTemplate,
    UpdateConfig,
)

LIMIT_S = 60
LOOK_PERIOD_S = 0.05


def eventually(what, ask):
    """The first answer that says something."""
    end = time.monotonic() + LIMIT_S
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(LOOK_PERIOD_S)


def exactly(count, items):
    return items if len(items) == count else None


def refused(status, words, call, *arguments, **options):
    """What must fail, as the daemon says it."""
    try:
        call(*arguments, **options)
    except docker.errors.APIError as error:
        assert error.status_code == status and words in error.explanation, str(error)
        return
    raise AssertionError(f"not refused: {words}")


def running(service, count):
    """Waits until exactly so many tasks run and are wanted."""

    def look():
        tasks = service.tasks(filters={"desired-state": "running"})
        states = [task["Status"]["State"] for task in tasks]
        return tasks if states == ["running"] * count else None

    return eventually(f"{count} tasks of {service.name}", look)


def the_node(client):
    assert client.ping() is True
    version = client.version()
    assert version["ApiVersion"] == "1.50" and version["MinAPIVersion"] == "1.24", version
    assert version["Os"] == "linux" and version["Version"] == "0.1.0", version
    assert client.api.api_version == "1.50"
    info = client.info()
    assert info["Name"] == "m1" and info["OSType"] == "linux", info
    swarm = info["Swarm"]
    assert swarm["LocalNodeState"] == "active" and swarm["ControlAvailable"] is True, swarm
    assert (swarm["Nodes"], swarm["Managers"]) == (3, 1), swarm
    assert [image.tags for image in client.images.list()] == [["whoami:v1"]]
    assert client.images.get("whoami:v1").attrs["Architecture"] == "amd64"
    refused(404, "No such image", client.images.get, "nothing")
    disk = client.df()
    assert [image["RepoTags"] for image in disk["Images"]] == [["whoami:v1"]], disk


def the_swarm(client):
    swarm = client.swarm
    assert len(swarm.id) == 25 and swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    before = swarm.version
    assert swarm.update(task_history_retention_limit=3, name="default") is True
    swarm.reload()
    assert swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 3
    assert swarm.version > before
    worker = swarm.attrs["JoinTokens"]["Worker"]
    assert swarm.update(rotate_worker_token=True, task_history_retention_limit=3) is True
    swarm.reload()
    assert swarm.attrs["JoinTokens"]["Worker"] != worker
    assert swarm.get_unlock_key()["UnlockKey"] == ""


def the_nodes(client):
    nodes = {node.attrs["Description"]["Hostname"]: node for node in client.nodes.list()}
    assert sorted(nodes) == ["m1", "w1", "w2"]
    manager = nodes["m1"].attrs
    assert manager["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "198.18.0.11:2377"}
    assert manager["Status"] == {"State": "ready", "Addr": "198.18.0.11"}
    assert manager["Description"]["Resources"]["NanoCPUs"] == 2_000_000_000
    assert [node.id for node in client.nodes.list(filters={"role": "manager"})] == [nodes["m1"].id]
    worker = nodes["w1"]
    spec = dict(worker.attrs["Spec"], Labels={"rack": "a7"})
    assert worker.update(spec) is True
    worker.reload()
    assert worker.attrs["Spec"]["Labels"] == {"rack": "a7"}
    assert [node.id for node in client.nodes.list(filters={"node.label": "rack=a7"})] == [worker.id]
    refused(404, "node nothing not found", client.nodes.get, "nothing")
    refused(400, "is not down and can't be removed", client.api.remove_node, worker.id)


def the_networks(client):
    pool = IPAMPool(subnet="10.77.0.0/24", gateway="10.77.0.1")
    app = client.networks.create(
        "app", driver="overlay", labels={"tier": "front"}, attachable=True, ipam=IPAMConfig(pool_configs=[pool])
    )
    app.reload()
    assert app.attrs["Scope"] == "swarm" and app.attrs["Attachable"] is True, app.attrs
    assert app.attrs["IPAM"]["Config"] == [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}], app.attrs
    for wanted in ({"names": ["app"]}, {"ids": [app.id]}, {"filters": {"label": "tier=front"}}):
        assert [network.id for network in client.networks.list(**wanted)] == [app.id], wanted
    assert {network.name for network in client.networks.list()} == {"app", "ingress", "docker_gwbridge"}
    refused(409, "network with name app already exists", client.networks.create, "app", driver="overlay")
    return app


def secret_and_config(client):
    secret = client.secrets.create(name="key", data=b"open sesame", labels={"of": "web"})
    config = client.configs.create(name="motd", data=b"hello", labels={"of": "web"})
    assert (secret.name, config.name) == ("key", "motd")
    secret.reload()
    config.reload()
    assert secret.attrs["Spec"]["Labels"] == {"of": "web"} and "Data" not in secret.attrs["Spec"], secret.attrs
    assert config.attrs["Spec"]["Data"] == "aGVsbG8=", config.attrs
    assert [one.id for one in client.secrets.list(filters={"name": "key"})] == [secret.id]
    assert [one.id for one in client.configs.list(filters={"label": "of=web"})] == [config.id]
    refused(409, "secret key already exists", client.secrets.create, name="key", data=b"x")
    refused(404, "config nothing not found", client.configs.get, "nothing")
    return secret, config


def create_web(client, app, secret, config):
    return client.services.create(
        "whoami:v1",
        command=["/whoami"],
        args=["--verbose"],
        name="web",
        labels={"team": "blue"},
        container_labels={"kind": "site"},
        hostname="shop",
        env=["A=1"],
        workdir="/srv",
        user="1000",
        groups=["audio"],
        init=True,
        hosts={"other": "10.9.9.9"},
        mounts=[
            Mount("/data", "store", type="volume", labels={"keep": "yes"}),
            Mount("/scratch", None, type="tmpfs", tmpfs_size=1 << 20, tmpfs_mode=0o700),
        ],
        networks=[app.name],
        secrets=[SecretReference(secret.id, secret.name, filename="key", uid="7", mode=0o400)],
        configs=[ConfigReference(config.id, config.name)],
        endpoint_spec=EndpointSpec(ports={8080: 80, 8053: (53, "udp"), 9090: (90, "tcp", "host")}),
        mode=ServiceMode("replicated", 2),
        resources=Resources(cpu_limit=500_000_000, mem_limit=64 << 20, mem_reservation=8 << 20),
        restart_policy=RestartPolicy("on-failure", delay=5_000_000_000, max_attempts=3),
        update_config=UpdateConfig(parallelism=2, delay=0, order="stop-first", monitor=1_000_000_000),
        rollback_config=RollbackConfig(parallelism=1, failure_action="continue"),
        healthcheck=Healthcheck(test="true", interval=1_000_000_000, retries=2),
        constraints=["node.hostname!=w2"],
        preferences=[("spread", "node.labels.rack")],
        maxreplicas=1,
        stop_grace_period=3_000_000_000,
        cap_add=["NET_ADMIN"],
        cap_drop=["CHOWN"],
        sysctls={"net.core.somaxconn": "256"},
        log_driver="json-file",
        log_driver_options={"max-size": "1m"},
    )


def inspect_web(client, web, app):
    shown = client.services.get("web")
    assert shown.id == web.id
    spec = shown.attrs["Spec"]
    assert (spec["Name"], spec["Labels"]) == ("web", {"team": "blue"})
    assert spec["Mode"] == {"Replicated": {"Replicas": 2}}
    task = spec["TaskTemplate"]
    container = task["ContainerSpec"]
    expected = {
        "Image": "whoami:v1",
        "Command": ["/whoami"],
        "Args": ["--verbose"],
        "Labels": {"kind": "site"},
        "Hostname": "shop",
        "Env": ["A=1"],
        "Dir": "/srv",
        "User": "1000",
        "Groups": ["audio"],
        "Init": True,
        "Hosts": ["10.9.9.9 other"],
        "StopGracePeriod": 3_000_000_000,
        "CapabilityAdd": ["NET_ADMIN"],
        "CapabilityDrop": ["CHOWN"],
        "Sysctls": {"net.core.somaxconn": "256"},
    }
    for key, value in expected.items():
        assert container.get(key) == value, f"{key}: {container.get(key)}"
    assert [mount["Target"] for mount in container["Mounts"]] == ["/data", "/scratch"], container["Mounts"]
    assert container["Secrets"][0]["File"] == {"Name": "key", "UID": "7", "GID": "0", "Mode": 0o400}
    assert container["Configs"][0]["ConfigName"] == "motd"
    assert container["Healthcheck"]["Retries"] == 2
    assert task["Resources"]["Limits"] == {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20}
    assert task["RestartPolicy"]["Condition"] == "on-failure" and task["RestartPolicy"]["MaxAttempts"] == 3
    assert task["Placement"]["Constraints"] == ["node.hostname!=w2"]
    assert task["Placement"]["Preferences"] == [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}]
    assert task["Placement"]["MaxReplicas"] == 1
    assert task["LogDriver"] == {"Name": "json-file", "Options": {"max-size": "1m"}}
    assert task["Networks"] == [{"Target": app.id}], task["Networks"]
    assert spec["UpdateConfig"]["Monitor"] == 1_000_000_000 and spec["RollbackConfig"]["FailureAction"] == "continue"
    keys = ("PublishedPort", "TargetPort", "Protocol", "PublishMode")
    ports = {tuple(port[key] for key in keys) for port in shown.attrs["Endpoint"]["Ports"]}
    assert ports == {(8080, 80, "tcp", "ingress"), (8053, 53, "udp", "ingress"), (9090, 90, "tcp", "host")}, ports
    addresses = {address["NetworkID"]: address["Addr"] for address in shown.attrs["Endpoint"]["VirtualIPs"]}
    assert len(addresses) == 2 and addresses[app.id].startswith("10.77.0."), addresses
    full = client.services.get("web", insert_defaults=True).attrs["Spec"]
    assert full["RollbackConfig"]["Monitor"] == 5_000_000_000 and full["EndpointSpec"]["Mode"] == "vip", full


def list_web(client, web):
    for filters in ({"name": "web"}, {"id": web.id}, {"label": "team=blue"}, {"mode": "replicated"}):
        assert [one.id for one in client.services.list(filters=filters)] == [web.id], filters
    assert client.services.list(filters={"mode": "global"}) == []

    def counts():
        return client.services.list(status=True)[0].attrs["ServiceStatus"]

    eventually("the counts", lambda: counts()["RunningTasks"] == 2)
    assert counts()["DesiredTasks"] == 2


def the_tasks(client, web, app):
    tasks = running(web, 2)
    assert sorted(task["Slot"] for task in tasks) == [1, 2]
    nodes = {node.attrs["Description"]["Hostname"]: node.id for node in client.nodes.list()}
    assert {task["NodeID"] for task in tasks} == {nodes["m1"], nodes["w1"]}
    first = client.api.inspect_task(tasks[0]["ID"])
    assert first["ServiceID"] == web.id and first["DesiredState"] == "running"
    assert len(first["Status"]["ContainerStatus"]["ContainerID"]) == 64
    assert first["Status"]["PortStatus"]["Ports"][0]["PublishedPort"] == 9090
    attached = {attachment["Network"]["ID"]: attachment["Addresses"] for attachment in first["NetworksAttachments"]}
    assert attached[app.id][0].startswith("10.77.0."), attached
    assert len(web.tasks(filters={"node": "w1"})) == 1
    assert client.api.tasks(filters={"service": "web", "desired-state": "shutdown"}) == []
    refused(404, "task nothing not found", client.api.inspect_task, "nothing")


def the_logs(client, web):
    def whole():
        shown = b"".join(web.logs(stdout=True, stderr=True))
        return shown if shown.count(b"\n") == 4 else None

    text = eventually("the output of both", whole).decode()
    for slot in (1, 2):
        for words in ("begins", "complains"):
            of_it = [line for line in text.splitlines() if line.startswith(f"web.{slot}.") and line.endswith(words)]
            assert len(of_it) == 1, text
    only = b"".join(web.logs(stdout=True)).decode().splitlines()
    assert len(only) == 2 and all(line.endswith("begins") for line in only), only
    stamped = b"".join(web.logs(stdout=True, timestamps=True, tail=1)).decode().splitlines()
    assert all(line.startswith("2023-11-14T22:13:20") for line in stamped), stamped
    detailed = b"".join(web.logs(stdout=True, details=True)).decode()
    assert f"com.docker.swarm.service.id={web.id}" in detailed, detailed
    following = web.logs(stdout=True, follow=True)
    assert b"begins" in next(following)
    following.close()


def the_containers(client, web):
    containers = eventually("two containers", lambda: exactly(2, client.containers.list()))
    names = sorted(one.name for one in containers)
    assert names[0].startswith("web.1.") and names[1].startswith("web.2."), names
    one = client.containers.get(names[0])
    assert one.status == "running" and one.labels["com.docker.swarm.service.id"] == web.id
    assert "app" in one.attrs["NetworkSettings"]["Networks"], one.attrs["NetworkSettings"]
    by_label = client.containers.list(filters={"label": f"com.docker.swarm.service.id={web.id}"})
    assert len(by_label) == 2
    # docker-py loses output that comes with the reply's head, and the processes of this test write at once: only
    # their codes are looked at here, and the output of one that waits for its input.
    assert [one.exec_run([word]).exit_code for word in ("echo", "wrong")] == [0, 3]
    detached = client.api.exec_create(one.id, ["wrong"])["Id"]
    assert client.api.exec_start(detached, detach=True) == ""
    eventually("the process ends", lambda: not client.api.exec_inspect(detached)["Running"])
    over = client.api.exec_inspect(detached)
    assert over["ExitCode"] == 3 and over["ContainerID"] == one.id, over
    code, stream = one.exec_run(["cat"], stdin=True, socket=True)
    stream._sock.sendall(b"echoed\n")
    assert stream.read(8 + len(b"echoed\n"))[8:] == b"echoed\n"
    stream.close()
    assert one.top()["Titles"] == ["PID", "CMD"]
    assert one.stats(stream=False)["pids_stats"]["current"] == 4
    assert one.logs(stdout=True, stderr=False) == f"{one.name} begins\n".encode()
    archive, stat = one.get_archive("/etc/motd")
    assert stat["name"] == "motd" and len(b"".join(archive)) > 0
    assert one.put_archive("/etc", b"an archive") is True
    refused(404, "No such container: nothing", client.containers.get, "nothing")


def update_web(client, web):
    before = web.version
    assert web.update(env=["A=2"], labels={"team": "red"})["Warnings"] is None
    # With the version from before it is somebody else's.
    stale = {"name": "web", "fetch_current_spec": True}
    refused(500, "update out of sequence", client.api.update_service, web.id, before, **stale)

    def updated():
        web.reload()
        return web.attrs.get("UpdateStatus", {}).get("State") == "completed"

    eventually("the update", updated)
    web.reload()
    container = web.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Env"] == ["A=2"] and container["Image"] == "whoami:v1", container
    # docker-py sends what it is told, and what it fetched: nothing else is lost.
    assert container["Command"] == ["/whoami"] and container["Hostname"] == "shop", container
    assert web.attrs["Spec"]["Labels"] == {"team": "red"} and web.version > before
    assert web.attrs["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1"]
    running(web, 2)
    assert web.scale(1)["Warnings"] is None
    running(web, 1)
    web.reload()
    assert web.force_update()["Warnings"] is None
    web.reload()
    assert web.attrs["Spec"]["TaskTemplate"]["ForceUpdate"] == 1, web.attrs["Spec"]["TaskTemplate"]
    running(web, 1)


def other_modes(client):
    everywhere = client.services.create("whoami:v1", name="agents", mode="global")
    running(everywhere, 3)
    other = {"name": "agents", "mode": ServiceMode("replicated", 2), "fetch_current_spec": True}
    refused(501, "service mode change is not allowed", client.api.update_service, "agents", everywhere.version, **other)
    low_level = TaskTemplate({"Image": "whoami:v1"}, placement=Placement(platforms=[("x86_64", "linux")]))
    made = client.api.create_service(low_level, name="low")
    assert client.services.get(made["ID"]).name == "low"
    job = client.services.create("whoami:v1", name="job", mode=ServiceMode("replicated-job", 2))
    eventually("the job", lambda: [task["Status"]["State"] for task in job.tasks()] == ["complete"] * 2)
    for name in ("agents", "low", "job"):
        assert client.services.get(name).remove() is True
    refused(404, "service agents not found", client.services.get, "agents")
    refused(409, "name conflicts with an existing object", client.services.create, "whoami:v1", name="web")
    refused(400, "name must be valid as a DNS name component", client.services.create, "whoami:v1", name="bad name")


def the_volumes(client):
    volume = client.volumes.create("store", labels={"a": "b"})
    assert [one.name for one in client.volumes.list()] == ["store"]
    assert client.volumes.get("store").attrs["Labels"] == {"a": "b"}
    assert volume.remove() is None
    refused(404, "no such volume", client.volumes.get, "store")


def the_events(client, since, web):
    told = client.events(since=since, decode=True, filters={"type": "service", "service": web.id})
    first, second = next(told), next(told)
    assert (first["Action"], first["Actor"]["Attributes"]["name"]) == ("create", "web"), first
    assert second["Action"] == "update" and second["scope"] == "swarm", second
    # And those that come.
    live = client.events(decode=True, filters={"type": "network"})
    made = client.networks.create("late", driver="overlay")
    came = next(live)
    assert (came["Type"], came["Action"], came["Actor"]["ID"]) == ("network", "create", made.id), came
    made.remove()
    # It is told between, when its addresses are known.
    last = next(event for event in live if event["Action"] != "update")
    assert (last["Action"], last["Actor"]["Attributes"]["name"]) == ("remove", "late"), last
    told.close()
    live.close()


def main():
    since = int(time.time())
    client = docker.from_env(timeout=LIMIT_S)
    the_node(client)
    the_swarm(client)
    the_nodes(client)
    app = the_networks(client)
    secret, config = secret_and_config(client)
    web = create_web(client, app, secret, config)
    running(web, 2)
    inspect_web(client, web, app)
    list_web(client, web)
    the_tasks(client, web, app)
    the_logs(client, web)
    the_containers(client, web)
    refused(400, "is in use by the following service: web", secret.remove)
    refused(400, "is in use", app.remove)
    update_web(client, web)
    other_modes(client)
    the_volumes(client)
    the_events(client, since, web)
    assert web.remove() is True
    eventually("the tasks are gone", lambda: client.api.tasks() == [])
    assert secret.remove() is True and config.remove() is True
    eventually("the network is gone", lambda: app.remove() is None)
    client.close()
    print("all done")


main()
