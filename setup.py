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
    "proxy/access_line.py",
    "proxy/attempt.py",
    "proxy/client.py",
    "proxy/codec/h1.py",
    "proxy/codec/h1_base.py",
    "proxy/codec/h1_chunked.py",
    "proxy/codec/h1_client.py",
    "proxy/codec/h1_head.py",
    "proxy/codec/h1_request.py",
    "proxy/codec/h1_response.py",
    "proxy/codec/h1_server.py",
    "proxy/codec/h2.py",
    "proxy/codec/h2_client.py",
    "proxy/codec/h2_connection.py",
    "proxy/codec/h2_control.py",
    "proxy/codec/h2_flow.py",
    "proxy/codec/h2_frames.py",
    "proxy/codec/h2_heads.py",
    "proxy/codec/h2_messages.py",
    "proxy/codec/h2_server.py",
    "proxy/codec/h2_stream.py",
    "proxy/codec/hpack.py",
    "proxy/codec/huffman.py",
    "proxy/codec/semantics.py",
    "proxy/exchange.py",
    "proxy/flow.py",
    "proxy/forward.py",
    "proxy/link.py",
    "proxy/listener.py",
    "proxy/message.py",
    "proxy/pipe.py",
    "proxy/pool.py",
    "proxy/reactor.py",
    "proxy/relay.py",
    "proxy/sockpool.py",
    "proxy/tcp.py",
    "proxy/timers.py",
    "proxy/tunnel.py",
    "proxy/turn.py",
    "routing/balancer.py",
    "routing/choice.py",
    "routing/drain.py",
    "routing/evidence.py",
    "routing/hedge.py",
    "routing/latency.py",
    "routing/ledger.py",
    "routing/outlier.py",
    "routing/region.py",
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
