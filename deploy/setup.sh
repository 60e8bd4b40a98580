#!/bin/bash
# Installs everything that the demo and the tests need on a bare Debian 12, as root. Idempotent: a second run changes nothing.
# Says each thing that it installs; stops with one line that names what could not be had.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

[ "$(id -u)" = 0 ] || fail "must run as root: it installs packages and loads BPF programs; use sudo make setup"

# clang, libbpf: the capture programs. node: Azurite. mmdebstrap, systemd-container: hosts with a systemd of their own (tests/containers).
# postgresql, haproxy: their programs; tests start what they need (tests/postgres.py, tests/system/test_docs_hosts.py).
# The rest: loop disks, file systems, measuring, checking images.
APT_PACKAGES="clang libbpf-dev libbpf1 gcc libc6-dev linux-libc-dev python3-venv python3-dev nodejs fio qemu-utils e2fsprogs xfsprogs
 btrfs-progs util-linux fdisk iptables mdadm mmdebstrap systemd-container postgresql-common postgresql-15 haproxy"
missing=""
for p in $APT_PACKAGES; do
    [ "$p" = nodejs ] && command -v node >/dev/null && continue
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
command -v npm >/dev/null || missing="$missing npm"
if [ -n "$missing" ]; then
    say "installing Debian packages:$missing"
    log=$(mktemp)
    install() {
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >>"$log" 2>&1 \
            || { tail -5 "$log" >&2; fail "apt-get could not install: $* (full output in $log)"; }
    }
    apt-get update -qq >"$log" 2>&1 || { tail -5 "$log" >&2; fail "apt-get could not update its lists (full output in $log)"; }
    case "$missing" in *postgresql-15*)
        # Debian's package makes a cluster of the host, and starts it, unless it is told first. Nobody needs one here.
        install postgresql-common
        sed -i -E 's/^#? *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    esac
    install $missing
    case "$missing" in *haproxy*) # nor this one
        systemctl disable --quiet --now haproxy 2>/dev/null || true
    esac
    rm -f "$log"
fi

PYTHON=/usr/bin/python3
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$PYTHON is older than 3.11; Debian 12 has 3.11"
if ! [ -x .venv/bin/python ]; then
    say "creating the virtual environment .venv"
    "$PYTHON" -m venv .venv || fail "could not create .venv with $PYTHON -m venv"
fi
stamp=.venv/.installed
want=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat $stamp 2>/dev/null)" != "$want" ]; then
    say "installing Python packages into .venv"
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-warn-script-location \
        -e '.[agent,process-server,master-target,config-server,postgresql,dev]' || fail "pip could not install the Python packages of pyproject.toml"
    echo "$want" > $stamp
fi

azurite=build/azurite
mkdir -p $azurite
if ! cmp -s deploy/azurite/package.json $azurite/package.json || ! [ -e $azurite/node_modules/.bin/azurite-blob ]; then
    say "installing Azurite (blob storage emulator) from npm into $azurite"
    cp deploy/azurite/package.json $azurite/package.json
    (cd $azurite && npm install --silent --no-audit --no-fund --omit=dev) || fail "npm could not install Azurite"
fi

make -s agent/capture/bpf/capture.bpf.o || fail "clang could not build the capture programs (agent/capture/bpf/capture.bpf.c)"
say "ready"
