"""Serves a backend of credential-broker: everything in docs/protocol.md that is the same for each of them.

A backend is an object with a method `credentials(request, call)`, which returns a GetCredentialsResponse, and perhaps `check(request, call)`, which returns nothing. Both are
called from many threads at once. What goes wrong they raise: Unavailable, Refused or Misconfigured. `call` is gRPC's ServicerContext: `call.time_remaining()` is for timeouts.
"""

import difflib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from concurrent import futures

import grpc

import backend_pb2 as pb

COOKIE = ("CREDENTIAL_BROKER_BACKEND", "4e54a7c9-6d0f-4b7e-9a55-credential-backend")
PROTOCOL_VERSION = "1"
MAX_MESSAGE_BYTES = 1 << 20
AT_ONCE = 64  # calls that are worked on; further ones wait

log = logging.getLogger("backend")


class Failure(Exception):
    """A failure of a backend's work. Its text says what was being done, to what, and what to try, and is never a secret."""

    kind = pb.Error.KIND_UNAVAILABLE
    field = ""

    def message(self):
        return pb.Error(kind=self.kind, message=str(self), field=self.field)


class Unavailable(Failure):
    """Nobody can say now; the next pull asks again."""


class Refused(Failure):
    """The service understood and said no."""

    kind = pb.Error.KIND_REFUSED


class Misconfigured(Failure):
    """The settings are wrong. `field` is a path within them: `auth.file`, `files["registry.example"]`."""

    kind = pb.Error.KIND_MISCONFIGURED

    def __init__(self, field, message):
        super().__init__(message)
        self.field = field


def known(settings, names, path=""):
    """Refuses a field of settings that is none of names: misspelt, it would be without effect."""
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise Misconfigured(path + name, "unknown field" + (f': did you mean "{near[0]}"?' if near else ""))


def decode(settings):
    """The one JSON object that settings are. Python's own decoder takes more: UTF-16, NaN, and a name twice."""

    def once(pairs):
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError
        return fields

    def no_number(_):
        raise ValueError

    try:
        fields = json.loads(settings.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError):  # what they say may quote a value
        fields = None
    if not isinstance(fields, dict):
        raise Misconfigured("", "the settings are not one JSON object in UTF-8 with each name once")
    return fields


class Service:
    """The methods of the protocol. One that is not here gRPC answers with UNIMPLEMENTED, as the protocol wants it."""

    def __init__(self, name, version, configure):
        self.name, self.version, self.make, self.backend = name, version, configure, None

    def describe(self, request, call):
        # What it can do is not known before there are settings, so Check is promised, and may turn out to be UNIMPLEMENTED.
        return pb.DescribeResponse(name=self.name, version=self.version, features=[pb.FEATURE_CHECK])

    def configure(self, request, call):
        def work():
            self.backend = self.make(decode(request.settings), request.provider)

        _, error = attempt(work)
        return pb.ConfigureResponse(errors=[error] if error else [])

    def credentials(self, request, call):
        response, error = attempt(lambda: self.configured().credentials(request, call))
        return pb.GetCredentialsResponse(error=error) if error else response

    def check(self, request, call):
        if self.backend and not hasattr(self.backend, "check"):
            call.abort(grpc.StatusCode.UNIMPLEMENTED, "there is nothing to check")
        _, error = attempt(lambda: self.configured().check(request, call))
        return pb.CheckResponse(error=error)

    def configured(self):
        if self.backend is None:
            raise Misconfigured("", "asked before it had settings")
        return self.backend

    def handlers(self):
        def method(function, request):
            return grpc.unary_unary_rpc_method_handler(function, request.FromString, lambda response: response.SerializeToString())

        return grpc.method_handlers_generic_handler("credentialbroker.backend.v1.Backend", {
            "Describe": method(self.describe, pb.DescribeRequest),
            "Configure": method(self.configure, pb.ConfigureRequest),
            "GetCredentials": method(self.credentials, pb.GetCredentialsRequest),
            "Check": method(self.check, pb.CheckRequest),
        })


def attempt(work):
    """What work returns, and what went wrong, one of them None. gRPC would answer an exception with its text, and log it: a bug's text may hold anything, so only its place is told."""
    try:
        return work(), None
    except Failure as failure:
        return None, failure.message()
    except Exception as bug:
        at = traceback.extract_tb(bug.__traceback__)[-1]
        log.error("a bug: %s at %s:%d", type(bug).__name__, os.path.basename(at.filename), at.lineno)
        return None, Unavailable(f"a bug of the backend's ({type(bug).__name__}): see the log").message()


class JSONLines(logging.Formatter):
    """A line for the broker's log, with its level."""

    def format(self, record):
        return json.dumps({"level": record.levelname, "msg": record.getMessage()})


def lifeline():
    """Ends the process with standard input, which ends with the broker, whatever else goes on. Children get subprocess.DEVNULL for theirs, or they would hold it open."""
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():  # as the broker starts it: what it has started itself goes too
        os.killpg(0, signal.SIGKILL)
    os._exit(0)  # sys.exit would wait for calls under way


def run(name, version, configure):
    """Serves until the broker ends. `configure(settings, provider)` returns the backend, or raises Misconfigured."""
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.exit(f"{name} is a backend of credential-broker, which starts it: see its README")
    if PROTOCOL_VERSION not in os.environ.get("PLUGIN_PROTOCOL_VERSIONS", "").split(","):
        sys.exit(f"{name} speaks version {PROTOCOL_VERSION} of the backend protocol, and the broker another")
    threading.Thread(target=lifeline, daemon=True).start()

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    server = grpc.server(futures.ThreadPoolExecutor(AT_ONCE), handlers=[Service(name, version, configure).handlers()], options=[
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ])
    socket = os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "s")
    if not server.add_insecure_port("unix:" + socket):  # insecure: there is no TLS, the directory keeps others out
        sys.exit(f"listen on {socket}")
    server.start()
    print("1", PROTOCOL_VERSION, "unix", socket, "grpc", sep="|", flush=True)
    server.wait_for_termination()
