"""Compiles the hot path with mypyc (https://mypyc.readthedocs.io): the same typed Python, as an extension module.

A request then costs about 40 % of the interpreter's time (docs/architecture.md, "Compiled or not"). Without a C
compiler, or with ONETRIP_PURE=1, the package installs and works as plain Python.
"""

import os
import shutil
import sys
import sysconfig

from setuptools import setup

HOT_PATH = [
    "proxy/downstream/listener.py",
    "proxy/exchange/attempt.py",
    "proxy/exchange/exchange.py",
    "proxy/exchange/forward.py",
    "proxy/http/claims.py",
    "proxy/http/compression/hpack.py",
    "proxy/http/compression/huffman.py",
    "proxy/http/connection.py",
    "proxy/http/h1/base.py",
    "proxy/http/h1/chunked.py",
    "proxy/http/h1/client.py",
    "proxy/http/h1/head.py",
    "proxy/http/h1/request.py",
    "proxy/http/h1/response.py",
    "proxy/http/h1/server.py",
    "proxy/http/h2/client.py",
    "proxy/http/h2/connection.py",
    "proxy/http/h2/control.py",
    "proxy/http/h2/flow.py",
    "proxy/http/h2/frames.py",
    "proxy/http/h2/heads.py",
    "proxy/http/h2/messages.py",
    "proxy/http/h2/server.py",
    "proxy/http/h2/stream.py",
    "proxy/http/message.py",
    "proxy/http/semantics.py",
    "proxy/l4/flow.py",
    "proxy/l4/pipe.py",
    "proxy/l4/relay.py",
    "proxy/l4/tunnel.py",
    "proxy/loop/reactor.py",
    "proxy/loop/timers.py",
    "proxy/loop/turn.py",
    "proxy/observe/access_line.py",
    "proxy/upstream/connection.py",
    "proxy/upstream/link.py",
    "proxy/upstream/links.py",
    "proxy/upstream/pool.py",
    "routing/balancer.py",
    "routing/choice.py",
    "routing/drain.py",
    "routing/evidence.py",
    "routing/hedge.py",
    "routing/latency.py",
    "routing/ledger.py",
    "routing/outlier.py",
    "routing/region.py",
    "routing/retry.py",
    "routing/state.py",
    "routing/table.py",
]


BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


def extensions():
    """The compiled modules; none where they can't be built (or where setuptools only asks for metadata)."""
    if not BUILDING & set(sys.argv):
        return []
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if os.environ.get("ONETRIP_PURE") or shutil.which(compiler) is None or not os.path.exists(header):
        return []
    from mypyc.build import mypycify

    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--allow-untyped-decorators"]
    try:
        found = mypycify([*options, *HOT_PATH], opt_level="2", debug_level="0", group_name="onetrip")
    except SystemExit:  # another mypy than the one this was written with may find fault with something
        print("onetrip: mypyc could not compile the hot path; installing it as plain Python", file=sys.stderr)
        return []
    for extension in found:
        extension.optional = True  # a compiler that fails leaves plain Python
    return found


setup(ext_modules=extensions())
