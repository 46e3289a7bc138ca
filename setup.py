"""Compiles the hot path with mypyc (https://mypyc.readthedocs.io): the same typed Python, as an extension module.

A request then costs about 40 % of the interpreter's time (docs/architecture.md, "Compiled or not"). Without a C
compiler, or with ONETRIP_PURE=1, the package installs and works as plain Python.

Each module becomes a C file, and all of them one library with direct calls between them. C files are compiled on every
core. What one came from names its object in `build/objects`: a C file that a change left as it was is not compiled again.
(A change that adds a constant moves the others' places, and compiles all; one within a function compiles that module.)
"""

import hashlib
import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

HOT_PATH = [
    "proxy/downstream/base.py",
    "proxy/downstream/connection.py",
    "proxy/downstream/early.py",
    "proxy/downstream/listener.py",
    "proxy/downstream/prelude.py",
    "proxy/downstream/presence.py",
    "proxy/exchange/attempt.py",
    "proxy/exchange/body.py",
    "proxy/exchange/deadlines.py",
    "proxy/exchange/exchange.py",
    "proxy/exchange/forward.py",
    "proxy/exchange/request.py",
    "proxy/exchange/service.py",
    "proxy/exchange/tries.py",
    "proxy/exchange/zero_rtt.py",
    "proxy/http/carrier.py",
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
    "proxy/http/serving.py",
    "proxy/l4/flow.py",
    "proxy/l4/listener.py",
    "proxy/l4/pipe.py",
    "proxy/l4/race.py",
    "proxy/l4/relay.py",
    "proxy/l4/tunnel.py",
    "proxy/loop/reactor.py",
    "proxy/loop/timers.py",
    "proxy/loop/turn.py",
    "proxy/net/kernel.py",
    "proxy/observe/access_line.py",
    "proxy/observe/record.py",
    "proxy/upstream/connection.py",
    "proxy/upstream/contract.py",
    "proxy/upstream/dialling.py",
    "proxy/upstream/dials.py",
    "proxy/upstream/link.py",
    "proxy/upstream/links.py",
    "proxy/upstream/pool.py",
    "proxy/upstream/pooled.py",
    "proxy/upstream/settings.py",
    "proxy/upstream/sizing.py",
    "proxy/upstream/stock.py",
    "proxy/upstream/waiters.py",
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


OBJECTS = Path("build", "objects")
# Calls between our modules need no table that another library could change: they are direct, and may be inlined.
FLAGS = ["-fvisibility=hidden", "-fno-semantic-interposition"]
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


class Build(build_ext):
    """Compiles what has changed, on every core. Where the compiler fails, nothing is compiled: it stays plain Python."""

    def finalize_options(self):
        """Extensions in parallel as well."""
        super().finalize_options()
        self.parallel = len(os.sched_getaffinity(0))

    def build_extensions(self):
        """The library's objects first; setuptools links."""
        used = set()
        try:
            for extension in self.extensions:
                if len(extension.sources) > 1:  # the library; the others are a few lines each that lead to it
                    objects = self.objects(extension)
                    extension.sources, extension.extra_objects = [], [*map(str, objects), *extension.extra_objects]
                    used.update(objects)
            super().build_extensions()
        except (CCompilerError, OSError) as error:
            print(f"onetrip: installing it as plain Python, since the compiler failed: {error}", file=sys.stderr)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
        for old in set(OBJECTS.glob(f"*.{sys.implementation.cache_tag}.o")) - used:
            old.unlink()

    def objects(self, extension):
        """The object of each C file, compiled unless there is one of the same text, headers, flags and compiler."""
        common = hashlib.sha256(repr((extension.extra_compile_args, self.compiler.compiler_so)).encode())
        for folder in (sysconfig.get_path("include"), *extension.include_dirs):
            for header in sorted(Path(folder).glob("*.h")):
                common.update(header.read_bytes())

        def compiled(source):
            name = common.copy()
            name.update(Path(source).read_bytes())
            place = OBJECTS / f"{Path(source).stem}.{name.hexdigest()[:24]}.{sys.implementation.cache_tag}"
            kept = place.with_name(f"{place.name}.o")
            if not kept.exists():
                arguments = {"include_dirs": extension.include_dirs, "extra_postargs": extension.extra_compile_args}
                (made,) = self.compiler.compile([source], output_dir=str(place), depends=extension.depends, **arguments)
                os.replace(made, kept)  # whole or not there
                shutil.rmtree(place)
            return kept

        largest_first = sorted(extension.sources, key=os.path.getsize, reverse=True)
        with ThreadPoolExecutor(self.parallel) as pool:
            return sorted(pool.map(compiled, largest_first))


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
        settings = {"opt_level": "2", "debug_level": "0", "multi_file": True, "group_name": "onetrip"}
        found = mypycify([*options, *HOT_PATH], **settings)
    except SystemExit:  # another mypy than the one this was written with may find fault with something
        print("onetrip: mypyc could not compile the hot path; installing it as plain Python", file=sys.stderr)
        return []
    for extension in found:
        extension.extra_compile_args += FLAGS
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
