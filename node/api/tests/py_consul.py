"""The unmodified py-consul against the router. Arguments: host and port."""

import sys
import threading
import time

import consul

host, port = sys.argv[1], int(sys.argv[2])
client = consul.Consul(host=host, port=port, scheme="http", token="writer")

# Status and agent.
assert client.status.leader() == "127.34.0.1:8300", client.status.leader()
assert client.status.peers() == ["127.34.0.1:8300"]
try:
    client.agent.self()
    raise AssertionError("py-consul sends no token here, and nobody is not allowed to see")
except consul.ACLPermissionDenied:
    client.http.session.headers["Authorization"] = "Bearer writer"
assert client.agent.self()["Config"]["NodeName"] == "node1"
assert [member["Status"] for member in client.agent.members()] == [1]

# A missing key has an index, which is what one waits with.
index, data = client.kv.get("none")
assert data is None and int(index) >= 1, index

# Values and flags round trip.
assert client.kv.put("a", None) is True
assert client.kv.get("a")[1]["Value"] is None
binary = bytes([0, 255, 10, 128]) * 7
assert client.kv.put("a", binary, flags=2**64 - 1) is True
index, entry = client.kv.get("a")
assert (entry["Value"], entry["Flags"], entry["LockIndex"]) == (binary, 2**64 - 1, 0), entry
assert int(index) == entry["ModifyIndex"]
assert client.kv.put("sp ace/ü/%2F+", "x") is True
assert client.kv.get("sp ace/ü/%2F+")[1]["Key"] == "sp ace/ü/%2F+"

# Compare and set.
now = entry["ModifyIndex"]
assert client.kv.put("a", "1", cas=0) is False
assert client.kv.put("a", "1", cas=now) is True
assert client.kv.put("a", "2", cas=now) is False
assert client.kv.delete("a", cas=now) is False
assert client.kv.delete("a", cas=client.kv.get("a")[1]["ModifyIndex"]) is True
assert client.kv.get("a")[1] is None
assert client.kv.delete("a") is True

# Lists.
for key in ["l/1", "l/2", "l/deep/3", "l/deep/4", "m"]:
    client.kv.put(key, key)
index, entries = client.kv.get("l/", recurse=True)
assert [entry["Key"] for entry in entries] == ["l/1", "l/2", "l/deep/3", "l/deep/4"], entries
assert client.kv.get("l/", keys=True, separator="/")[1] == ["l/1", "l/2", "l/deep/"]
assert client.kv.get("l", keys=True, separator="/")[1] == ["l/"]
assert "m" in client.kv.get("", keys=True)[1]
assert client.kv.get("zzz", keys=True)[1] is None
for consistency in ["consistent", "stale"]:
    assert client.kv.get("m", consistency=consistency)[1]["Value"] == b"m"

# A watcher wakes on a delete, and only then.
index, _ = client.kv.get("l/", recurse=True)
woken = []


def watch():
    woken.append(consul.Consul(host=host, port=port, token="writer").kv.get("l/", recurse=True, index=index, wait="60s"))


thread = threading.Thread(target=watch)
thread.start()
client.kv.put("elsewhere", "1")
time.sleep(0.3)
assert not woken, "a change elsewhere is none of its business"
client.kv.delete("l/deep/", recurse=True)
thread.join(20)
(new_index, entries), = woken
assert int(new_index) > int(index)
assert [entry["Key"] for entry in entries] == ["l/1", "l/2"]

# The end of the wait is a plain answer.
index, entry = client.kv.get("m")
assert client.kv.get("m", index=index, wait="100ms") == (index, entry)
index, _ = client.kv.get("none")
assert client.kv.get("none", index=index, wait="100ms") == (index, None)

# Health and catalog.
index, nodes = client.health.service("postgres")
assert nodes[0]["Service"]["Port"] == 5432 and nodes[0]["Node"]["Node"] == "node1", nodes
assert [check["CheckID"] for check in nodes[0]["Checks"]] == ["serfHealth", "pg"]
assert client.health.service("postgres", index=index, wait="300ms")[0] == index
assert client.health.service("postgres", tag="standby")[1] == []
assert client.catalog.services()[1] == {"consul": [], "postgres": ["primary"]}

# Refusals are its own exceptions.
for call, error in [
    (lambda: client.kv.put("a", "1", token="nobody"), consul.ACLPermissionDenied),
    (lambda: client.kv.put("a", b"x" * (512 * 1024 + 1)), consul.exceptions.ClientError),
    (lambda: client.kv.get("a", dc="elsewhere"), consul.ConsulException),
    (lambda: client.kv.put("a", "1", acquire="s"), consul.ConsulException),
    (lambda: client.kv.get("a\nb"), consul.exceptions.BadRequest),
]:
    try:
        call()
    except error:
        continue
    raise AssertionError(f"no {error}")
assert client.kv.put("a", b"x" * (512 * 1024)) is True
print("all is well")
