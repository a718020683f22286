"""A server on the loopback that knows as much of W&B's protocol as a sweep needs.

It answers the queries of ``wandb sweep``, ``wandb agent`` and a run of wandb 0.31; they are private
to that package and may change with any release. Sweeps hand out the runs that they were given.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT, SWEEP = "somebody", "monoface", "sweep001"


@dataclass
class Received:
    """What has come in.

    Attributes:
        to_run: parameters of the runs that agents will be told to start, in order.
        url: of the server.
        sweep: the config of the sweep that was made.
        sweep_state: RUNNING, or what it was set to.
        started: the parameters by run, as handed out.
        configs: the config by run, as sent by the run.
        sweeps: the sweep by run, as sent by the run.
        history: rows by run.
        files: names of the files by run.
        unknown: queries that had no answer.
    """

    to_run: list[dict[str, Any]]
    url: str = ""
    sweep: dict[str, Any] = field(default_factory=dict)
    sweep_state: str = ""
    started: dict[str, dict[str, Any]] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweeps: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@contextmanager
def serve(runs: list[dict[str, Any]]) -> Iterator[Received]:
    """Serve until the block ends.

    Args:
        runs: parameters of each run of the sweep.
    """
    received = Received(runs)
    handler = type("Handler", (_Handler,), {"received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    received.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    received: Received

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        _, _, run, name = self.path.split("/", 3)
        self.received.files.setdefault(run, []).append(name)
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            self._answer(self._stream(self.path.split("/")[-2], json.loads(body)))
        elif self.path == "/graphql":
            self._query(json.loads(body))
        else:  # telemetry
            self._answer({})

    def _query(self, body: dict[str, Any]) -> None:
        name = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name[1]).lower() if name else ""
        answer = getattr(self, f"_{snake}", None)
        if answer is None:
            self.received.unknown.append(body["query"])
            self._answer({"data": None, "errors": [{"message": "unknown to the fake"}]})
        else:
            self._answer({"data": answer(body.get("variables") or {})})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, run: str, body: dict[str, Any]) -> dict[str, Any]:
        for name, part in (body.get("files") or {}).items():
            if "history" in name:
                rows = [json.loads(line) for line in part["content"]]
                self.received.history.setdefault(run, []).extend(rows)
        return {"exitcode": None, "limits": {}}

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "1",
                "entity": ENTITY,
                "username": ENTITY,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.received.sweep |= yaml.safe_load(variables.get("config") or "{}")
        self.received.sweep_state = variables.get("state") or "RUNNING"
        project = {"id": "2", "name": PROJECT, "entity": {"id": "3", "name": ENTITY}}
        sweep = {"name": SWEEP, "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _sweep_with_runs(self, _: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "4", "name": SWEEP, "state": self.received.sweep_state}
        sweep |= {"runs": {"edges": []}, "config": yaml.safe_dump(self.received.sweep)}
        return {"project": {"sweep": sweep}}

    def _create_agent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "5"}}}

    def _heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        received = self.received
        commands: list[dict[str, Any]] = []
        if not json.loads(variables.get("runState") or "{}"):
            if len(received.started) == len(received.to_run):
                commands = [{"id": "stop", "type": "exit"}]
            else:
                values = received.to_run[len(received.started)]
                run = f"run{len(received.started)}"
                received.started[run] = values
                arguments = {name: {"value": value} for name, value in values.items()}
                program = received.sweep["program"]
                commands = [
                    {"id": run, "type": "run", "run_id": run, "program": program, "args": arguments}
                ]
        return {"agentHeartbeat": {"agent": {"id": "5"}, "commands": json.dumps(commands)}}

    def _upsert_bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name, received = variables["name"], self.received
        if variables.get("config"):
            config = json.loads(variables["config"])
            received.configs[name] = {key: value["value"] for key, value in config.items()}
        if variables.get("sweep"):
            received.sweeps[name] = variables["sweep"]
        bucket = {"id": name, "name": name, "displayName": name, "historyLineCount": 0}
        bucket |= {"description": "", "config": "{}", "sweepName": variables.get("sweep")}
        bucket["project"] = {"id": "2", "name": PROJECT, "entity": {"id": "3", "name": ENTITY}}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        url = f"{self.received.url}/upload/{run}"
        files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}
