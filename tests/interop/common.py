"""What the Python checks share: the server's dev.env, its REST face, and how a check reports.

A check is a script that is given the dev.env of a running `kmsgate dev`, prints one `ok` line for each thing it has
seen, and fails at the first that is not so. `tests/interop/install` must have run once.
"""

import http.client
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECK = Path(sys.argv[0]).stem


def use_pinned_packages():
    """Goes on under the suite's own Python, where the pinned packages are."""
    python = ROOT / "target/interop-venv/bin/python"
    if Path(sys.executable) != python:
        os.execv(python, [str(python), *sys.argv])


use_pinned_packages()


class Dev:
    """The addresses and credentials of a running `kmsgate dev`."""

    def __init__(self, path):
        lines = Path(path).read_text().splitlines()
        self.dir = Path(path).parent
        pairs = dict(line.split("=", 1) for line in lines if "=" in line)
        self.token = pairs["KMSGATE_TOKEN"]
        self.ak = pairs["KMSGATE_AK"]
        self.sk = pairs["KMSGATE_SK"]
        self.project = pairs["KMSGATE_PROJECT"]
        self.aes_key = pairs["KMSGATE_AES_KEY"]
        self.rsa_key = pairs["KMSGATE_RSA_KEY"]
        self.sm2_key = pairs["KMSGATE_SM2_KEY"]
        self.rest = pairs["KMSGATE_REST"]


class Rest:
    """A kept connection to the REST face, with a token."""

    def __init__(self, dev):
        self.connection = http.client.HTTPConnection(dev.rest, timeout=30)
        self.path = f"/v1.0/{dev.project}/kms/"
        self.headers = {"Content-Type": "application/json", "X-Auth-Token": dev.token}

    def post(self, operation, **members):
        """Calls an operation, which must succeed."""
        status, answer = self.ask(operation, **members)
        assert status == 200, f"{operation}: {status} {answer}"
        return answer

    def ask(self, operation, **members):
        """Calls an operation: its status and its answer."""
        self.connection.request("POST", self.path + operation, json.dumps(members), self.headers)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())


def run(checks, *arguments):
    """Calls each check in turn; its name is what it has shown."""
    for check in checks:
        check(*arguments)
        print(f"ok {CHECK}: {check.__name__.replace('_', ' ')}", flush=True)


def argument():
    """The one argument: the path of a dev.env."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} DIR/dev.env")
    return Dev(sys.argv[1])
