"""Run `bench_ranks.py` on two hosts: network namespaces of this machine, with delays and a rate of their own.

    python benchmarks/bench_hosts.py            appended to results/hosts_cpu.csv; needs root, ip and tc

Each host has an address of its own on a pair of virtual interfaces; `tc netem` delays what leaves each of them by half
of the round trip. Results are checked as by `bench_ranks.py`. Where namespaces are not allowed it says so, and measures
nothing; where the kernel has no netem, it says so, and measures the network as it is.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_ranks import measure_one, parse, start_ranks
from lib.measure import RESULTS

HOSTS = ("unite-host0", "unite-host1")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
ROUND_TRIPS = (0.0, 0.2, 2.0)
"""Milliseconds."""
RATE = "10gbit"
PORT = "29577"


def call(command: str) -> None:
    """Run a command of the system. CalledProcessError if it fails."""
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


@contextmanager
def hosts() -> Iterator[None]:
    """Two namespaces that reach each other and nobody else, for as long as the block runs."""
    made = []
    try:
        for host in HOSTS:
            call(f"ip netns add {host}")
            made.append(host)
        call(f"ip link add veth0 netns {HOSTS[0]} type veth peer name veth1 netns {HOSTS[1]}")
        for n, (host, address) in enumerate(zip(HOSTS, ADDRESSES)):
            inside = f"ip netns exec {host}"
            call(f"{inside} ip addr add {address}/24 dev veth{n}")
            call(f"{inside} ip link set veth{n} up")
            call(f"{inside} ip link set lo up")
        yield
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def networks() -> Iterator[str]:
    """Set one network after the other between the hosts, and say what to call it."""
    inside = [f"ip netns exec {host} tc qdisc replace dev veth{n} root" for n, host in enumerate(HOSTS)]
    for round_trip in ROUND_TRIPS:
        try:
            for command in inside:
                call(f"{command} netem delay {round_trip / 2}ms rate {RATE}")
        except subprocess.CalledProcessError as error:
            print(f"netem is not to be had here ({error.stderr.strip()}): the hosts are measured without delays")
            yield "namespaces, no delay"
            return
        yield f"{round_trip:g} ms, {RATE}"


def main() -> None:
    options = parse()
    out = options.out if options.out != RESULTS / "ranks_cpu.csv" else RESULTS / "hosts_cpu.csv"
    try:
        with hosts(), tempfile.TemporaryDirectory() as folder:
            os.environ["UNITE_BENCH_RANKS"] = folder
            measure_one(Path(folder), "none", options.steps, out)
            for network in networks():
                commands = [
                    ["ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME=veth{n}"] for n, host in enumerate(HOSTS)
                ]
                arguments = ["--network", network, "--out", str(out), "--steps", str(options.steps)]
                environment = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "LOCAL_WORLD_SIZE": "1"}
                start_ranks(commands, environment, arguments)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise SystemExit(f"no hosts were measured: network namespaces are not to be had here: {said}") from error


if __name__ == "__main__":
    main()
